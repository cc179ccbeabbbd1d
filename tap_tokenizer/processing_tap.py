"""Prompts in the user's pixels → dense points, labels and a mask in the model frame. Bad input is refused here.

Boxes, points and masks are given in pixels of the original picture as one sees it; only this file and the image
processor know the model frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .image_processing_tap import ImageInput, TapImageProcessor, as_image_list
from .mask_boxes import box_of_mask
from .prompt_encoder import PointLabel
from .prompts import RegionPrompt, prompts_in_picture, read_prompts

MASK_POINTS = 3
"""How many interior points stand for a mask, beside its box."""


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
        is_batch, sizes = isinstance(images, (list, tuple)), inputs["original_sizes"]
        lists = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        prompts = read_prompts(len(sizes) if is_batch else None, **lists)
        return BatchFeature({**inputs, **self.prepare_prompts(sizes, prompts, is_batch=is_batch)})

    def prepare_prompts(
        self, original_sizes: Tensor, prompts: Sequence[Sequence[RegionPrompt]], *, is_batch: bool
    ) -> dict[str, Tensor]:
        """The prompts of each picture, whose `original_sizes` are (B, 2), → R regions in the model frame.

        input_points (R, P, 2) and input_labels (R, P): every prompt as points, padded to the longest; prompt_mask (R, P):
        False on that padding; image_index (R,); prompt_boxes (R, 4): the given box, clipped, or the mask's, in the
        user's pixels; NaN for a region that has neither. is_batch: whether errors say which picture they are about.
        """
        placed: list[RegionPrompt] = []
        image_index: list[int] = []
        for index, ((height, width), given) in enumerate(zip(original_sizes.tolist(), prompts)):
            placed += prompts_in_picture(given, (height, width), f"Image {index}: " if is_batch else "")
            image_index += [index] * len(given)
        placed = [prompt if prompt.mask is None else box_and_points(prompt.mask) for prompt in placed]
        scales = self.image_processor.image_size / original_sizes.amax(dim=1).double()
        rows = [_as_points(prompt) for prompt in placed]
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
            "prompt_boxes": torch.tensor([p.box or absent for p in placed], dtype=torch.float32).reshape(-1, 4),
        }


def box_and_points(mask: np.ndarray) -> RegionPrompt:
    """The prompt for a mask (H, W) of booleans, not all False: its box and points well inside it."""
    x1, y1, x2, y2 = box_of_mask(mask)
    points = tuple((x1 + x, y1 + y) for x, y in interior_points(mask[y1:y2, x1:x2]))
    return RegionPrompt((x1, y1, x2, y2), points, (PointLabel.FOREGROUND,) * len(points))


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


def _as_points(prompt: RegionPrompt) -> list[tuple[float, float, int]]:
    """A prompt as TAP reads it: box corners first, then points; without a box, one padding point at the end."""
    rows: list[tuple[float, float, int]] = []
    if prompt.box is not None:
        x1, y1, x2, y2 = prompt.box
        rows += [(x1, y1, PointLabel.TOP_LEFT), (x2, y2, PointLabel.BOTTOM_RIGHT)]
    rows += [(x, y, label) for (x, y), label in zip(prompt.points or (), prompt.point_labels or ())]
    if prompt.box is None:
        rows.append((0.0, 0.0, PointLabel.PADDING))
    return rows
