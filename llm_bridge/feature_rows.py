"""Region tokens → the rows of numbers that the projector reads, one for each placeholder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tap_tokenizer import RegionTokens

from .configuration_bridge import FeatureLayout


def layout_of(regions: RegionTokens) -> FeatureLayout:
    """The layout of the rows that are made of region tokens."""
    return FeatureLayout(
        regions.semantic_tokens.shape[-1], regions.semantic_embeds.shape[-1], regions.iou_scores.shape[1]
    )


def region_features(regions: RegionTokens, experts: Literal["routed", "all"], *, is_context: bool = False) -> Tensor:
    """Features (R, slots, F) of R regions on the CPU, float32: one slot for the answering expert, or one for each.

    `FeatureLayout` says what each row holds. is_context: the regions are shown as context and not asked about.
    """
    count, number = regions.iou_scores.shape
    chosen = regions.expert.unsqueeze(1) if experts == "routed" else torch.arange(number).expand(count, -1)
    chosen = chosen.to(regions.expert.device)

    def take(values: Tensor) -> Tensor:
        return values.gather(1, chosen.unsqueeze(-1).expand(-1, -1, values.shape[-1]))

    sizes = regions.image_sizes.to(regions.boxes.device)[regions.image_index].flip(1).repeat(1, 2)
    box = (regions.boxes / sizes).unsqueeze(1)
    layout = layout_of(regions)
    rows = torch.empty(*chosen.shape, layout.size)
    rows[..., layout.token] = take(regions.semantic_tokens)
    rows[..., layout.embed] = take(regions.semantic_embeds)
    rows[..., layout.box] = box
    rows[..., layout.area] = (box[..., 2:3] - box[..., :1]) * (box[..., 3:] - box[..., 1:2])
    rows[..., layout.score] = take(regions.iou_scores.unsqueeze(-1))
    rows[..., layout.expert] = torch.nn.functional.one_hot(chosen, number)
    rows[..., layout.context] = float(is_context)
    return rows
