"""The boxes of masks: read off whole masks, or from mask logits without resizing more than a few rows and columns of them.

Masks are resized as `TapImageProcessor` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-5
"""Of the largest logit of a mask: pixels nearer to zero may fall on either side of it by the order of a sum."""

ROUNDS = 8
"""How often an edge is looked for further inwards. Behind so many specks that vanish, whole masks cost less."""


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Boxes (R, 4), xyxy, around boolean masks (R, H, W), in whole pixels; zeros where a mask is empty."""
    edges = []
    for line in (masks.view(torch.uint8).amax(dim=1) > 0, masks.view(torch.uint8).amax(dim=2) > 0):  # faster than `any`
        place = torch.arange(line.shape[1], device=line.device)
        last = torch.where(line, place + 1, 0).amax(dim=1)
        edges += [torch.where(line, place, last[:, None]).amin(dim=1), last]
    x1, x2, y1, y2 = edges
    return torch.stack([x1, y1, x2, y2], dim=1)


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box x1, y1, x2, y2 around a boolean mask (H, W), in whole pixels; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)


def boxes_of_logits(
    logits: Tensor,
    frame_size: int,
    reshaped_size: tuple[int, int],
    original_size: tuple[int, int],
    masks_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """The boxes (R, 4) of the masks that mask logits (R, h, w) become when they are resized; see `boxes_of_masks`.

    Logits are resized to a frame of side `frame_size`, cut to `reshaped_size` and resized to `original_size`, as
    `TapImageProcessor.post_process_masks` does. From each side of the picture, rows and columns are computed inwards up to
    the first with a positive pixel: little more than the edges of a mask. Where rounding, or many specks, leave that open,
    the whole masks of those logits are asked for: masks_of (N, h, w) → (N, H, W).
    """
    logits = logits.float()
    down, across = (
        _resizing(cells, frame_size, kept, size).to(logits.device)
        for cells, kept, size in zip(logits.shape[1:], reshaped_size, original_size)
    )
    seen = logits[:, : down.shape[1], : across.shape[1]]
    columns, rows = seen.amax(dim=1), seen.amax(dim=2)
    slack = ROUNDING * torch.maximum(rows.amax(dim=1), -seen.amin(dim=(1, 2)))
    edges = [
        _first_positive(mask, highest > 0, slack, along.flip(0) if backwards else along, over)
        for mask, highest, along, over in ((seen.transpose(1, 2), columns, across, down), (seen, rows, down, across))
        for backwards in (False, True)
    ]
    (x1, x2, y1, y2), unsure = ([edge[i] for edge in edges] for i in (0, 1))
    height, width = original_size
    boxes = torch.stack([x1, y1, width - x2, height - y2], dim=1)
    boxes = torch.where((x1 < width)[:, None], boxes, 0)
    again = torch.stack(unsure).any(dim=0).nonzero().squeeze(1)
    if len(again):
        boxes[again] = boxes_of_masks(masks_of(logits[again]))
    return boxes


@lru_cache(maxsize=16)
def _resizing(cells: int, frame_size: int, kept: int, size: int) -> Tensor:
    """What resizing does to one axis of a mask, as a matrix (size, cells): PyTorch's own weights, from an identity.

    Without the last cells, if they lie in the padding alone.
    """
    frame = F.interpolate(torch.eye(cells)[None], frame_size, mode="linear", align_corners=False)
    weights = F.interpolate(frame[..., :kept], size, mode="linear", align_corners=False)[0].T
    return weights[:, : int(weights.any(dim=0).nonzero().max()) + 1].contiguous()


def _first_positive(logits: Tensor, live: Tensor, slack: Tensor, down: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """The first row with a positive pixel of each of logits (R, h, w) resized by down (H, h) and across (W, w): (R,).

    H where there is none. And whether it may lie elsewhere, (R,), by rounding or because it was not found in `ROUNDS`.
    live (R, h): which rows of cells have a positive one; slack (R,): how far a pixel may be off by rounding.

    A row of pixels mixes a few neighbouring rows of cells. Rows that mix no live one are passed over at once; so are, many
    at a time, those that have no positive value before their columns are mixed, too.
    """
    (height, cells), device = down.shape, logits.device
    first = torch.full((len(logits),), height, device=device)
    unsure = torch.zeros(len(logits), dtype=torch.bool, device=device)
    may = (live.float() @ (down > 0).float().T) > 0  # (R, H)
    window = torch.arange(2 * math.ceil(height / cells) + 2, device=device)
    near = torch.arange(min(cells, math.ceil(len(window) * cells / height) + 4), device=device)
    lowest = (down > 0).int().argmax(dim=1)  # (H,)
    waiting = may.any(dim=1).nonzero().squeeze(1)
    for _ in range(ROUNDS):
        if not len(waiting):
            break
        start = may[waiting].int().argmax(dim=1, keepdim=True)
        rows = (start + window).clamp(max=height - 1)
        mixing = lowest[rows].amin(dim=1, keepdim=True).clamp(max=cells - len(near)) + near
        mixed = down[rows[:, :, None], mixing[:, None]] @ logits[waiting[:, None], mixing]  # (N, window, w)
        least = -slack[waiting]
        seen = mixed.amax(dim=2) > least[:, None]
        place = seen.int().argmax(dim=1)  # the first that may be positive; if there is none, the window is done
        each = torch.arange(len(waiting), device=device)
        row = rows[each, place]
        pixel = (mixed[each, place] @ across.T).amax(dim=1)
        found = seen[each, place] & (pixel > least)
        first[waiting[found]] = row[found]
        unsure[waiting[found]] = pixel[found] <= slack[waiting[found]]
        passed = torch.where(seen[each, place], row, rows[:, -1])
        may[waiting] &= torch.arange(height, device=device) > passed[:, None]
        waiting = waiting[~found & may[waiting].any(dim=1)]
    unsure[waiting] = True
    return first, unsure
