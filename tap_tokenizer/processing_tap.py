"""Prompts in the user's pixels → dense points, labels and a mask in the model frame. All bad input stops here.

Boxes, points and masks are given in pixels of the original picture as one sees it; only this file and the image
processor know the model frame. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .coordinates import CoordinateProblem, as_numbers, box_problems, clip_boxes, clip_points, point_problems, shown
from .image_processing_tap import ImageInput, TapImageProcessor, as_image_list
from .prompt_encoder import PointLabel
from .prompts import as_mask

MASK_POINTS = 3
"""How many interior points stand for a mask, beside its box."""


@dataclass
class Prompt:
    """One region's prompt in the user's pixels: a box, points with labels, or both."""

    box: tuple[float, float, float, float] | None = None
    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


class TapProcessor(ProcessorMixin):
    """Pictures and prompts → the inputs of `TapModel`.

    You give prompts per region: `boxes` [x1, y1, x2, y2]; `points` [[x, y], …], with `point_labels` [1 or 0, …] (on or
    off the region) unless all lie on it; `masks`, in any form that `as_mask` reads. A region may have a box and points;
    `None` marks what a region lacks when others have it. For one picture give a list of regions; for a list of pictures,
    a list of such lists.
    A box or a point may lie up to a pixel outside and is then clipped. `box_problems` and `point_problems` say what is
    refused.

    A mask becomes its box and up to three points well inside it, far apart: TAP has no mask prompt of its own.
    """

    def __init__(self, image_processor: TapImageProcessor) -> None:
        super().__init__(image_processor)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
    ) -> BatchFeature:
        """One picture or a list, with its prompts → a batch.

        pixel_values (B, 3, S, S), original_sizes (B, 2) and reshaped_input_sizes (B, 2) as from `TapImageProcessor`, and
        what `prepare_prompts` makes of the prompts.
        """
        inputs = self.image_processor.preprocess(as_image_list(images))
        prompts = self.prepare_prompts(
            inputs["original_sizes"],
            is_batch=isinstance(images, (list, tuple)),
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            masks=masks,
        )
        return BatchFeature({**inputs, **prompts})

    def prepare_prompts(
        self,
        original_sizes: Tensor,
        *,
        is_batch: bool,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
    ) -> dict[str, Tensor]:
        """Prompts for pictures of `original_sizes` (B, 2) → R regions in the model frame.

        input_points (R, P, 2) and input_labels (R, P): every prompt as points, padded to the longest; prompt_mask (R, P):
        False on that padding; image_index (R,); prompt_boxes (R, 4): the given box, clipped, or the mask's, in the
        user's pixels; NaN for a region without.
        """
        given = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        per_image = _split_by_image(given, len(original_sizes), is_batch)
        prompts: list[Prompt] = []
        image_index: list[int] = []
        for index, (size, values) in enumerate(zip(original_sizes.tolist(), per_image)):
            where = f"Image {index}: " if is_batch else ""
            regions = _parse_regions(values, (size[0], size[1]), where)
            prompts += regions
            image_index += [index] * len(regions)
        scales = self.image_processor.image_size / original_sizes.amax(dim=1).double()
        rows = [_as_points(prompt) for prompt in prompts]
        longest = max((len(row) for row in rows), default=2)
        dense = torch.zeros(len(rows), longest, 3, dtype=torch.float64)
        dense[..., 2] = PointLabel.PADDING
        prompt_mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            dense[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
            dense[i, : len(row), :2] *= scales[image_index[i]]
            prompt_mask[i, : len(row)] = True
        absent = (float("nan"),) * 4
        return {
            "input_points": dense[..., :2].float(),
            "input_labels": dense[..., 2].long(),
            "prompt_mask": prompt_mask,
            "image_index": torch.tensor(image_index, dtype=torch.long),
            "prompt_boxes": torch.tensor([p.box or absent for p in prompts], dtype=torch.float32).reshape(-1, 4),
        }


def _split_by_image(given: dict[str, Any], count: int, is_batch: bool) -> list[dict[str, Any]]:
    """The prompts of each picture, by kind; kinds that were not given are left out."""
    present = {name: value for name, value in given.items() if value is not None}
    if not present:
        raise ValueError("Got no prompts: give boxes, points or masks.")
    if "point_labels" in present and "points" not in present:
        raise ValueError("Got point_labels without points: give both; a label is 1 on the region and 0 off it.")
    if not is_batch:
        return [present]
    for name, value in present.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_list and not (isinstance(value, (np.ndarray, Tensor)) and value.ndim):
            raise ValueError(
                f"Got {name} of type {type(value).__name__} for {count} images, expected one list of {name} per image."
            )
        if len(value) != count:
            raise ValueError(
                f"Got {name} for {len(value)} images, but {count} images: give one list of {name} per image, which is empty "
                "for an image without regions."
            )
    return [{name: value[i] for name, value in present.items()} for i in range(count)]


def _parse_regions(values: dict[str, Any], size: tuple[int, int], where: str) -> list[Prompt]:
    """The prompts of one picture of (height, width) `size`, checked."""
    lists = {name: _as_region_list(name, value, where) for name, value in values.items() if value is not None}
    counts = {name: len(value) for name, value in lists.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n} {name}" for name, n in counts.items())
        raise ValueError(f"{where}Got {found}: give the same number of each, None where a region lacks one.")
    regions = []
    boxes: dict[str, np.ndarray] = {}
    points: dict[str, np.ndarray] = {}
    for i in range(next(iter(counts.values()), 0)):
        place = f"{where}Region {i}"
        parts = {name: value[i] for name, value in lists.items() if value[i] is not None}
        if not parts:
            raise ValueError(f"{place} has no prompt: give it a box, points or a mask.")
        if "masks" in parts and len(parts) > 1:
            raise ValueError(f"{place} has a mask and other prompts: a mask stands alone.")
        if "masks" in parts:
            regions.append(_mask_prompt(parts["masks"], size, place))
            continue
        region = Prompt()
        if "boxes" in parts:
            boxes[place] = _numbers(parts["boxes"], (4,), f"{place}: box")
            region.box = _four(clip_boxes(boxes[place], size))
        if "points" in parts:
            points[place] = _numbers(parts["points"], (None, 2), f"{place}: points")
            region.points = [(x, y) for x, y in clip_points(points[place], size).tolist()]
            region.labels = _labels(parts.get("point_labels"), len(region.points), place)
        elif "point_labels" in parts:
            raise ValueError(f"{place} has point_labels but no points: give both or neither.")
        if region.box is None and not region.points:
            raise ValueError(f"{place} has neither a box nor points: give one of them.")
        regions.append(region)
    if boxes:
        _check_coordinates(box_problems(np.stack(list(boxes.values())), size), list(boxes))
    if points:
        places = [place for place, own in points.items() for _ in own]
        _check_coordinates(point_problems(np.concatenate(list(points.values())), size), places)
    return regions


def _check_coordinates(problems: dict[int, CoordinateProblem], places: list[str]) -> None:
    for row, problem in problems.items():
        raise ValueError(f"{places[row]}: {problem.words}")


def _four(values: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2


def _labels(value: Any, count: int, place: str) -> list[int]:
    """The labels of a region's points; without any, all lie on the region."""
    if value is None:
        return [int(PointLabel.FOREGROUND)] * count
    numbers = _numbers(value, (None,), f"{place}: point_labels").tolist()
    if len(numbers) != count:
        raise ValueError(f"{place} has {count} points and {len(numbers)} labels: give one label per point.")
    wrong = sorted({n for n in numbers if n not in (PointLabel.BACKGROUND, PointLabel.FOREGROUND)})
    if wrong:
        raise ValueError(f"{place} has point labels {wrong}, expected 1 (on the region) or 0 (off it).")
    return [int(n) for n in numbers]


def _as_region_list(name: str, value: Any, where: str) -> list[Any]:
    if isinstance(value, (np.ndarray, Tensor)):
        dimensions = {"boxes": 2, "points": 3, "point_labels": 2, "masks": 3}[name]
        has_channel = name == "masks" and value.ndim == 4
        if value.ndim != dimensions and not has_channel:
            raise ValueError(
                f"{where}Got {name} of shape {tuple(value.shape)}, expected {dimensions} dimensions: regions come first, "
                "so give a single region as a list of one."
            )
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"{where}Got {name} of type {type(value).__name__}, expected a list with one entry per region."
        )
    if value and isinstance(value[0], Real):
        one = {"boxes": "[x1, y1, x2, y2]", "points": "[[x, y]]", "point_labels": "[1]", "masks": "mask"}[name]
        write = f"[[{one}], …], a list of regions for every picture" if where else f"[{one}]"
        raise ValueError(
            f"{where}Got {name} as a flat list of numbers, expected one entry per region: write {name}={write}."
        )
    return list(value)


def _numbers(value: Any, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """Finite numbers of a shape, where None stands for any length."""
    try:
        array = as_numbers(value, len(shape))
    except ValueError as error:
        raise ValueError(f"{what} is {shown(value)}, {error}.") from None
    if not array.size and shape[0] is None:
        return array.reshape([0 if n is None else n for n in shape])
    if array.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, array.shape)):
        wanted = " × ".join("n" if n is None else str(n) for n in shape)
        raise ValueError(f"{what} has shape {array.shape}, expected {wanted} numbers.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} is {shown(array.tolist())}, expected finite numbers.")
    return array


def _mask_prompt(value: Any, size: tuple[int, int], place: str) -> Prompt:
    try:
        mask = as_mask(value, size)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    points = interior_points(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return Prompt(box, [(x + box[0], y + box[1]) for x, y in points], [int(PointLabel.FOREGROUND)] * len(points))


def interior_points(mask: np.ndarray, count: int = MASK_POINTS) -> list[tuple[float, float]]:
    """Up to `count` pixels (x, y) of a mask (H, W): the one farthest from its outline, then others far from those.

    Distances are taken on a thumbnail of at most 48 cells a side, so that the cost does not grow with the picture.
    """
    height, width = mask.shape
    step = max(1.0, max(height, width) / 48)
    centres_y = np.minimum(((np.arange(max(1, int(height / step))) + 0.5) * step).astype(int), height - 1)
    centres_x = np.minimum(((np.arange(max(1, int(width / step))) + 0.5) * step).astype(int), width - 1)
    thumbnail = np.pad(mask[np.ix_(centres_y, centres_x)], 1)
    inside, outside = (torch.from_numpy(np.argwhere(cells)).float() for cells in (thumbnail, ~thumbnail))
    if not len(inside):  # thinner than a cell everywhere: any pixel near the middle will do
        pixels = np.argwhere(mask)
        nearest = pixels[((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return [(float(nearest[1]), float(nearest[0]))]
    depth = torch.cdist(inside, outside).amin(dim=1)
    chosen = [int(depth.argmax())]
    candidates = depth >= depth.max() / 2
    while len(chosen) < count:
        spread = torch.cdist(inside, inside[chosen]).amin(dim=1) * candidates
        if spread.max() < 2:  # cells: anything nearer would repeat a point
            break
        chosen.append(int(spread.argmax()))
    cells = inside[chosen].long() - 1
    return [(float(centres_x[x]), float(centres_y[y])) for y, x in cells.tolist()]


def _as_points(prompt: Prompt) -> list[tuple[float, float, int]]:
    """A prompt as TAP reads it: box corners first, then points; without a box, one padding point at the end."""
    rows: list[tuple[float, float, int]] = []
    if prompt.box is not None:
        x1, y1, x2, y2 = prompt.box
        rows += [(x1, y1, PointLabel.TOP_LEFT), (x2, y2, PointLabel.BOTTOM_RIGHT)]
    rows += [(x, y, label) for (x, y), label in zip(prompt.points, prompt.labels)]
    if prompt.box is None:
        rows.append((0.0, 0.0, PointLabel.PADDING))
    return rows
