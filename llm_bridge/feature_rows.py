"""Region tokens → the rows of numbers that the projector reads, one for each placeholder.

Knows the layout of a row; `projector` reads it, `configuration_bridge` counts it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tap_tokenizer import RegionTokens


def region_features(regions: RegionTokens, experts: Literal["routed", "all"], *, is_context: bool = False) -> Tensor:
    """Features (R, slots, F) of R regions on the CPU, float32: one slot for the answering expert, or one for each.

    Each row is [semantic token, semantic embedding, x1, y1, x2, y2 as shares of the picture's width and height, area
    share, IoU score, which expert, whether it is picture context].
    """
    count, number = regions.iou_scores.shape
    sizes = regions.image_sizes.to(regions.boxes.device)[regions.image_index].flip(1).repeat(1, 2)
    box = regions.boxes / sizes
    area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).unsqueeze(1)
    chosen = regions.expert.unsqueeze(1) if experts == "routed" else torch.arange(number).expand(count, -1)
    chosen = chosen.to(regions.expert.device)
    slots = chosen.shape[1]

    def take(values: Tensor) -> Tensor:
        return values.gather(1, chosen.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    where = torch.cat([box, area], dim=1).unsqueeze(1).expand(-1, slots, -1)
    parts = [
        take(regions.semantic_tokens),
        take(regions.semantic_embeds),
        where,
        take(regions.iou_scores.unsqueeze(-1)),
        torch.nn.functional.one_hot(chosen, number),
        torch.full((count, slots, 1), float(is_context), device=chosen.device),
    ]
    return torch.cat([part.float().cpu() for part in parts], dim=-1)
