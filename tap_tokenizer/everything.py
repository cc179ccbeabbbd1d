"""Everything mode: which points to ask about when nobody points at anything, and which of the answers to keep.

The points form a grid over the whole picture and over crops of it. Masks are filtered by their predicted IoU and their
stability. Of masks that show the same thing, only the best is kept, and specks and holes are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .everything_options import EverythingOptions
from .mask_boxes import boxes_of_masks
from .point_screen import PointScreen, is_screened
from .prompt_encoder import PointLabel
from .prompts import RegionPrompt
from .region_decoder import ANSWERS, ImageFeatures, RegionDecoder, boxes_around, frozen
from .region_tokens import RegionTokens

Crop = tuple[int, int, int, int]
"""A part of a picture: x1, y1, x2, y2 in whole pixels."""


def search_picture(
    decoder: RegionDecoder,
    whole: ImageFeatures,
    picture: np.ndarray | None,
    embed: Callable[[np.ndarray], ImageFeatures],
    options: EverythingOptions,
) -> RegionTokens:
    """The regions of one picture, the most confident first, with their masks.

    whole: its features. picture (H, W, 3) and embed, which encodes a part of it: needed for crops alone.
    """
    size = (int(whole.original_sizes[0, 0]), int(whole.original_sizes[0, 1]))
    parts = []
    for layer, crop in crops_of(size, options):
        seen = whole
        if layer:
            assert picture is not None
            seen = embed(picture[crop[1] : crop[3], crop[0] : crop[2]])
        parts.append(_search_crop(decoder, seen, crop, size, layer, options))
    found = RegionTokens.concatenate(parts, same_images=True)
    if options.min_mask_region_area:
        found = _without_specks(found, options.min_mask_region_area)
    if len(parts) > 1 or options.min_mask_region_area:  # what several crops found, or what cleaning made alike
        masks = [mask for mask in found.mask_parts if isinstance(mask, Tensor)]
        found = found[mask_nms(masks, found.scores, options.crops_nms_thresh)]
    return found


def _search_crop(
    decoder: RegionDecoder,
    features: ImageFeatures,
    crop: Crop,
    size: tuple[int, int],
    layer: int,
    options: EverythingOptions,
) -> RegionTokens:
    """Regions of one crop, placed in its picture of (height, width) `size`."""
    height, width = features.original_sizes[0].tolist()
    side = options.points_per_side(layer)
    ticks = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(ticks * height, ticks * width, indexing="ij")
    grid = [
        RegionPrompt(points=((px, py),), point_labels=(PointLabel.FOREGROUND,))
        for px, py in zip(x.flatten().tolist(), y.flatten().tolist())
    ]
    prepared = decoder.processor.prepare_prompts(features.original_sizes, [grid], is_batch=features.is_batch)
    kept: list[dict[str, Tensor]] = []
    with frozen(decoder.model):
        screen = PointScreen(decoder, features, prepared, options) if is_screened(features, options) else None
        waiting = torch.arange(len(grid))
        while len(rows := waiting[: decoder.batch_size] if screen is None else screen.take(decoder.batch_size)):
            limit = options.pred_iou_thresh
            output = decoder.run(features, prepared, rows.cpu(), output_masks=True, mask_iou_thresh=limit)
            score = output.iou_scores[torch.arange(len(rows)), output.expert]
            logits, passes = output.pred_masks.float(), score >= limit
            stable = stability_scores(logits, options.stability_score_offset) >= options.stability_score_thresh
            stable &= (logits > 0).amax(dim=(1, 2))
            passes[passes.clone()] = stable
            logits = logits[stable]
            kept.append({name: output[name][passes] for name in ANSWERS} | {"logits": logits})
            waiting = waiting[len(rows) :]
            if screen is not None:
                screen.learn(rows, score, passes, logits > 0)
        found = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
        if layer:
            index = torch.zeros(len(found["logits"]), dtype=torch.long)
            corner = index.new_tensor([crop[0], crop[1], crop[0], crop[1]]).to(decoder.device)
            boxes = corner + decoder.boxes_of_masks(found["logits"], features, index)
            cell = max(height, width) / found["logits"].shape[-1]
            whole = ~is_cut_off(boxes, crop, size, cell)
            found = {name: value[whole] for name, value in found.items()}
        scores = found["iou_scores"].gather(1, found["expert"][:, None]).squeeze(1)
        best = mask_nms(found["logits"] > 0, scores, options.crops_nms_thresh)
        found = {name: value[best] for name, value in found.items()}
        index = torch.zeros(len(best), dtype=torch.long)
        masks = decoder.masks(found.pop("logits"), features, index)
    masks = [_placed(mask, crop, size) for mask in masks]
    regions = RegionTokens(
        **found,
        boxes=boxes_around(masks, decoder.device),
        image_index=index.to(decoder.device),
        image_sizes=torch.tensor([size]),
        fingerprint=decoder.fingerprint,
        mask_parts=list(masks),
    )
    seen = regions.boxes.any(dim=1).cpu()  # a speck may vanish at the picture's own size
    return regions if seen.all() else regions[seen]


def _placed(mask: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """A crop's mask in its picture of (height, width) `size`."""
    if tuple(mask.shape) == size:
        return mask
    full = torch.zeros(size, dtype=torch.bool, device=mask.device)
    full[crop[1] : crop[3], crop[0] : crop[2]] = mask
    return full


def _without_specks(regions: RegionTokens, area: int) -> RegionTokens:
    """The same regions with specks and holes of fewer than `area` pixels taken out of their masks, and boxes to match."""
    given = [mask for mask in regions.mask_parts if isinstance(mask, Tensor)]
    device = regions.boxes.device
    masks = [torch.from_numpy(clean_mask(mask.cpu().numpy(), area)).to(device) for mask in given]
    return replace(regions, boxes=boxes_around(masks, device), mask_parts=list(masks))


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
    """Labels (H, W) of a mask's connected parts (8 neighbours), from 1, 0 outside it; and the pixels of each label."""
    from scipy.ndimage import label  # here: it takes longer to load than most searches need it

    labels, _ = label(mask, structure=np.ones((3, 3)))
    return labels, np.bincount(labels.ravel())
