"""Everything mode: what to ask of a picture when nobody points at anything, and which of the answers to keep.

A grid of points, over the whole picture and over crops of it; filters on the predicted IoU and on how firmly a mask
stands; of masks that show the same thing, the best one; specks and holes taken out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .everything_options import EverythingOptions
from .mask_boxes import boxes_of_masks

Crop = tuple[int, int, int, int]
"""A part of a picture: x1, y1, x2, y2 in whole pixels."""


def crops_of(size: tuple[int, int], options: EverythingOptions) -> list[tuple[int, Crop]]:
    """(layer, crop) for a picture of (height, width) `size`: first the whole picture, then all its crops."""
    height, width = size
    found = [(0, (0, 0, width, height))]
    for layer in range(1, options.crops_n_layers + 1):
        sides = 2**layer
        overlap = int(options.crop_overlap_ratio * min(height, width) * 2 / sides)
        crop_width, crop_height = (-(-(overlap * (sides - 1) + side) // sides) for side in (width, height))
        for row in range(sides):
            for column in range(sides):
                left, top = (crop_width - overlap) * column, (crop_height - overlap) * row
                right, bottom = min(left + crop_width, width), min(top + crop_height, height)
                if left < right and top < bottom:  # a picture of one row has no second row of crops
                    found.append((layer, (left, top, right, bottom)))
    return found


def stability_scores(logits: Tensor, offset: float) -> Tensor:
    """IoU of each mask of logits (R, h, w) cut at `offset` and at −`offset`: (R,); 0 where even the lower cut is empty."""
    inner, outer = ((logits > cut).flatten(1).sum(dim=1) for cut in (offset, -offset))
    return torch.where(outer > 0, inner / outer.clamp(min=1), 0.0)


def mask_nms(masks: Sequence[Tensor] | Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which rows of boolean masks (h, w) to keep, best score first: of any two with an IoU over `threshold`, the better.

    Two masks are compared pixel by pixel only if their boxes and areas allow such an IoU, and only inside a box, so that
    many masks of a large picture take little time. Memory: a few numbers for each pair of masks.
    """
    device = scores.device
    if not len(masks):
        return torch.zeros(0, dtype=torch.long, device=device)
    boxes = torch.cat([boxes_of_masks(mask[None]) for mask in masks]).to(device)
    areas = torch.tensor([int(mask.sum()) for mask in masks], device=device).float()
    corners = (
        torch.maximum(boxes[:, None, :2], boxes[None, :, :2]),
        torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=-1)
    smaller, larger = (pick(areas[:, None], areas[None, :]) for pick in (torch.minimum, torch.maximum))
    may_agree = (torch.minimum(shared.float(), smaller) / larger.clamp(min=1) > threshold).cpu()
    bounds, sizes = boxes.tolist(), areas.tolist()
    kept: list[int] = []
    for row in scores.argsort(descending=True, stable=True).tolist():
        rivals = [other for other in kept if may_agree[row, other]]
        if not any(
            _iou(masks[row], masks[other], bounds[row], sizes[row] + sizes[other]) > threshold for other in rivals
        ):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.long, device=device)


def _iou(mask: Tensor, other: Tensor, extent: Sequence[int], area_sum: float) -> float:
    """IoU of two masks whose areas add up to `area_sum`; the first lies within `extent`."""
    x1, y1, x2, y2 = extent
    both = int((mask[y1:y2, x1:x2] & other[y1:y2, x1:x2]).sum())
    return both / max(area_sum - both, 1.0)


def is_cut_off(boxes: Tensor, crop: Crop, size: tuple[int, int], slack: float) -> Tensor:
    """Which boxes (R, 4), in pixels of the picture, are cut off by the edge of a crop that is not the picture's edge."""
    edges = boxes.new_tensor(crop)
    height, width = size
    is_inner = torch.tensor([crop[0] > 0, crop[1] > 0, crop[2] < width, crop[3] < height], device=boxes.device)
    return (((boxes - edges).abs() <= slack) & is_inner).any(dim=1)


def clean_mask(mask: np.ndarray, area: int) -> np.ndarray:
    """Fill a mask's (H, W) holes and then remove its specks of fewer than `area` pixels. Its largest part always stays."""
    holes, sizes = connected_parts(~mask)
    mask = mask | np.isin(holes, [i for i, size in enumerate(sizes) if i and size < area])
    specks, sizes = connected_parts(mask)
    if len(sizes) < 2:
        return mask
    largest = 1 + int(np.argmax(sizes[1:]))
    return np.isin(specks, [i for i, size in enumerate(sizes) if i and (size >= area or i == largest)])


def connected_parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) of a mask's connected parts (8 neighbours), from 1, 0 outside it; and the pixels of each label.

    Runs of pixels are joined row by row with union-find, in time linear in the number of runs.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    rows, edges = np.nonzero(np.diff(padded, axis=1))
    rows, starts, ends = rows[::2], edges[::2], edges[1::2]  # a run covers starts … ends − 1
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    for row in range(1, height):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if starts[above] <= ends[here] and starts[here] <= ends[above]:  # corners touch as well
                parent[root(here)] = root(above)
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    _, numbers = np.unique(np.array([root(run) for run in range(len(rows))], dtype=np.int64), return_inverse=True)
    labels = np.zeros((height, width), dtype=np.int64)
    for row, start, end, number in zip(rows.tolist(), starts, ends, numbers):
        labels[row, start:end] = number + 1
    return labels, np.bincount(labels.ravel())


def mask_to_rle(mask: np.ndarray | Tensor) -> dict[str, list[int]]:
    """A mask (H, W) as COCO's uncompressed run lengths: column by column, the first run counts zeros.

    `pycocotools.mask.frPyObjects(rle, *rle["size"])` packs it into COCO's short form, and `decode` reads that.
    """
    pixels = np.asarray(mask, dtype=bool)
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(pixels.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}
