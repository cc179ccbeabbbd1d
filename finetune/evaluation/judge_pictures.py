"""Pictures that a judge is shown: a region with its surroundings and its mask, or the picture with numbered marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.sample import Sample, decode_mask

LEAST = 56
"""A region's surroundings are measured as if it were at least so many pixels wide and high."""


def region_mask(sample: Sample, row: int) -> np.ndarray:
    """The mask (H, W) of a record's region; its box, filled, where it has none."""
    region, size = sample["regions"][row], (sample["height"], sample["width"])
    if region.get("mask"):
        return decode_mask(region["mask"], size)
    filled = np.zeros(size, dtype=bool)
    x1, y1, x2, y2 = (round(v) for v in region["box"])
    filled[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return filled


def surroundings(picture: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies within three times a mask's box, and the mask there as bytes 0 and 255; the whole of an empty mask.

    The cut is that of the scripts of GAR-Bench and ParaDLC-Bench.
    """
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not len(rows):
        return picture, mask.astype(np.uint8) * 255
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    height, width = max(bottom - top, LEAST), max(right - left, LEAST)
    y, x = int((top + bottom) / 2 - height / 2), int((left + right) / 2 - width / 2)
    part = (slice(max(y - height, 0), y + 2 * height), slice(max(x - width, 0), x + 2 * width))
    return picture[part], mask[part].astype(np.uint8) * 255


def numbered(picture: np.ndarray, regions: Sequence[dict[str, Any]]) -> np.ndarray:
    """The picture, a little darker, with regions drawn as green boxes or points and their numbers from 1."""
    drawn = Image.fromarray((picture * 0.8).astype(np.uint8))
    brush = ImageDraw.Draw(drawn)
    for number, region in enumerate(regions, 1):
        if region.get("box") is not None:
            x1, y1, x2, y2 = region["box"]
            brush.rectangle((x1, y1, x2, y2), outline=(0, 255, 0), width=2)
        else:
            x1, y1 = region["points"][0]
            brush.ellipse((x1 - 4, y1 - 4, x1 + 4, y1 + 4), fill=(0, 255, 0))
        place = (x1 + 4, y1 + 4)
        brush.rectangle(brush.textbbox(place, str(number)), fill=(0, 0, 0))
        brush.text(place, str(number), fill=(255, 255, 255))
    return np.asarray(drawn)
