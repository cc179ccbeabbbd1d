"""Picture context: what an `<image>` shows the language model of the whole picture, beside the regions that are asked about.

It is either a grid, with the region token of each of n × n points, or regions: the tokens of the objects that the region
tokenizer finds by itself. Each object is encoded again by its box, so that its token is of the same kind as those of regions
that are asked about. Objects that the last question is about are left out, and the others are sorted by distance from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer, counted

from .configuration_bridge import FeatureLayout
from .description import box_iou
from .feature_rows import layout_of, region_features

CELLS = 8
"""Objects are looked for at the centres of this many cells per side, and then at their corners, where none was found."""
LEAST_SCORE = 0.3
"""A point's answer with a lower predicted IoU is not looked at again."""
MOST_ALIKE = 0.7
"""Of two points' answers whose boxes have a higher IoU, one is looked at again."""
ROUNDS = 2
"""How often a found region is asked about again by the box around its mask: parts of an object grow to the whole."""
LEAST_FIT = 0.6
"""Regions that seem to fit less well are no objects."""
LEAST_PATCHES = 2
"""Regions whose mask is smaller than so many patches of the image encoder are specks of a texture."""
MOST_OVERLAP = 0.3
"""Of two regions that share more than this part of the smaller one, only the one that fits better is shown."""


@dataclass(frozen=True)
class PictureContext:
    """How much of a picture is shown: `grid` × `grid` points, up to `regions` objects, or nothing if both are 0.

    `RegionBridgeConfig` says what they may be, and refuses other values.
    """

    grid: int = 0
    regions: int = 0

    @classmethod
    def of(cls, settings: Any) -> PictureContext:
        """The context that `image_grid` and `image_regions` of a bridge's config, a processor or a cache's plan ask for."""
        return cls(settings.image_grid, settings.image_regions)

    @property
    def slots(self) -> int:
        """Placeholders that an `<image>` takes."""
        return self.grid**2 or self.regions

    def __str__(self) -> str:
        if self.grid:
            return f"{self.grid} × {self.grid} grid of points"
        return f"up to {counted(self.regions, 'region')} that the tokenizer finds" if self.regions else "none"

    def encode(self, tokenizer: TapRegionTokenizer, features: ImageFeatures) -> list[Tensor]:
        """Context features (slots, F) of each picture."""
        if self.grid:
            prompts = [grid_points(self.grid, (size[0], size[1])) for size in features.original_sizes.tolist()]
            regions = tokenizer.encode(
                features=features, points=[points for points, _ in prompts], point_labels=[ones for _, ones in prompts]
            )
            return list(region_features(regions, "routed", is_context=True).flatten(0, 1).split(self.slots))
        return [self.of_regions(find_objects(tokenizer, features[i])) for i in range(len(features))]

    def of_regions(self, regions: RegionTokens) -> Tensor:
        """Context features (slots, F) that show these regions of one picture, the largest first; empty slots are zeros."""
        order = _by_size(regions.boxes)[: self.regions]
        rows = region_features(regions[order.tolist()], "routed", is_context=True).flatten(0, 1)
        return torch.cat([rows, _free_slots(self.regions - len(rows), layout_of(regions))])

    def beside(self, context: Tensor, regions: Tensor, layout: FeatureLayout, size: tuple[int, int]) -> Tensor:
        """Arrange a picture's context features (slots, F) beside `regions`, features (R, F) of the same picture.

        Objects that the regions already show (boxes whose IoU is above one half) are left out, so that each object is in the
        prompt once. The others are sorted by the distance of their centres from the first region's, in pixels of the
        picture, whose `size` is (height, width). Free slots stand in the middle, so the nearest object is always first and
        the farthest always last, and the model need not work that out from positions. A grid, or any context without
        regions, is returned unchanged.
        """
        if self.grid or not len(regions):
            return context
        shown, hidden = context[:, layout.box], regions[:, layout.box]
        overlap = (
            torch.minimum(shown[:, None, 2:], hidden[:, 2:]) - torch.maximum(shown[:, None, :2], hidden[:, :2])
        ).clamp(min=0)
        shared = overlap.prod(dim=-1)
        sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) for boxes in (shown, hidden)]
        apart = (shared <= 0.5 * (sizes[0][:, None] + sizes[1] - shared)).all(dim=1)
        kept = (apart & (sizes[0] > 0)).nonzero()[:, 0]
        centres = (shown[:, :2] + shown[:, 2:]) / 2, (hidden[:1, :2] + hidden[:1, 2:]) / 2
        distance = ((centres[0][kept] - centres[1]) * context.new_tensor([size[1], size[0]])).norm(dim=1)
        near, far = context[kept[distance.argsort(stable=True)]].tensor_split([(len(kept) + 1) // 2])
        return torch.cat([near, _free_slots(len(context) - len(kept), layout).to(context), far])


def _free_slots(count: int, layout: FeatureLayout) -> Tensor:
    """Context features (count, F) that show nothing."""
    rows = torch.zeros(count, layout.size)
    rows[:, layout.context] = 1.0
    return rows


def grid_points(side: int, size: tuple[int, int]) -> tuple[list[list[list[float]]], list[list[int]]]:
    """One point prompt in the middle of each of side × side cells of a picture of (height, width) `size`, row by row."""
    height, width = size
    points = [[[(x + 0.5) * width / side, (y + 0.5) * height / side]] for y in range(side) for x in range(side)]
    return points, [[1]] * len(points)


def find_objects(tokenizer: TapRegionTokenizer, features: ImageFeatures) -> RegionTokens:
    """Box-prompted tokens of the objects of one picture that the region tokenizer finds, none within another.

    Points are asked first, then the boxes around their masks. Each answer to a box is judged by its predicted IoU and by
    how well its mask fills the box: a box that cuts an object, or holds two, gets a mask that ends elsewhere. An answer of
    any round may stay, but no mask of a few pixels here and there.
    """
    height, width = features.original_sizes.view(-1, 2)[0].tolist()
    encoder = tokenizer.model.config.image_encoder_config
    speck = LEAST_PATCHES * (encoder.patch_size * max(height, width) / encoder.image_size) ** 2
    answers: list[RegionTokens] = []
    fits: list[Tensor] = []
    areas: list[Tensor] = []
    found: RegionTokens | None = None
    for ticks in ([n + 0.5 for n in range(CELLS)], [float(n) for n in range(1, CELLS)]):
        points = [(x * width / CELLS, y * height / CELLS) for y in ticks for x in ticks]
        if found is not None and len(found):
            covered = found.masks.amax(dim=0)
            points = [(x, y) for x, y in points if not covered[int(y), int(x)]]
        boxes = _boxes_at(tokenizer, features, points)
        for _ in range(ROUNDS):
            regions = tokenizer.encode(features=features, boxes=[boxes.tolist()], with_masks=True)
            regions = regions[regions.masks.flatten(1).sum(dim=1) > 1]  # a mask may be empty, or a pixel somewhere
            boxes = _around(regions.masks)
            answers.append(regions)
            fits.append(_fit(regions, boxes, speck))
            areas.append(_small(regions.masks).flatten(1))
        fit = torch.cat(fits)
        best = [i for i in _apart(torch.cat(areas), fit) if fit[i] >= LEAST_FIT]
        found = RegionTokens.concatenate(answers, same_images=True)[best]
    assert found is not None
    return found


def _boxes_at(tokenizer: TapRegionTokenizer, features: ImageFeatures, points: list[tuple[float, float]]) -> Tensor:
    """Boxes (R, 4) around what points of one picture show, the most confident first, without near duplicates."""
    regions = tokenizer.encode(
        features=features, points=[[[list(point)] for point in points]], point_labels=[[[1]] * len(points)]
    )
    kept: list[list[float]] = []
    boxes, scores = regions.boxes.tolist(), regions.scores.tolist()
    for row in sorted(range(len(regions)), key=lambda row: -scores[row]):
        box = boxes[row]
        is_new = all(box_iou(box, other) <= MOST_ALIKE for other in kept)
        if scores[row] >= LEAST_SCORE and max(box[2] - box[0], box[3] - box[1]) > 1 and is_new:
            kept.append(box)
    return torch.tensor(kept).view(-1, 4)


def _fit(regions: RegionTokens, around: Tensor, speck: float) -> Tensor:
    """How well box-prompted regions seem to hold one object each, (R,): predicted IoU × √(IoU of box and mask's box).

    around (R, 4): the boxes around their masks. Those whose masks have fewer pixels than `speck` do not fit at all.
    """
    boxes = zip(regions.boxes.tolist(), around.tolist())
    fit = regions.scores.float().cpu() * torch.tensor([box_iou(*pair) for pair in boxes]).sqrt()
    pixels = torch.tensor([int(mask.count_nonzero()) for mask in regions.masks])
    return torch.where(pixels < speck, 0.0, fit)


def _around(masks: Tensor) -> Tensor:
    """Boxes (R, 4) around masks (R, H, W), none of them empty."""
    edges = []
    for line in (masks.amax(dim=1), masks.amax(dim=2)):
        place = torch.arange(line.shape[1], device=line.device)
        edges += [torch.where(line, place, line.shape[1]).amin(dim=1), torch.where(line, place + 1, 0).amax(dim=1)]
    x1, x2, y1, y2 = edges
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def _apart(masks: Tensor, fit: Tensor) -> list[int]:
    """Rows of masks (R, N), shares of N places, the best fit first, that share little with any better one."""
    shared, area = masks @ masks.T, masks.sum(dim=1)
    kept: list[int] = []
    for row in fit.argsort(descending=True, stable=True).tolist():
        if all(shared[row, other] <= MOST_OVERLAP * min(area[row], area[other]) for other in kept):
            kept.append(row)
    return kept


def _small(masks: Tensor) -> Tensor:
    """Masks (R, H, W) as floats, of a picture whose long side is over 256 at half its size, a third, …: what overlaps needs."""
    shrink = max(1, max(masks.shape[1:]) // 256)
    return masks.float() if shrink == 1 else F.avg_pool2d(masks[:, None].float(), shrink, ceil_mode=True)[:, 0]


def _by_size(boxes: Tensor) -> Tensor:
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True, stable=True)
