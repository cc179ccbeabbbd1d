"""Masks as COCO writes them, run lengths and polygons, in and out.

The readers raise errors that go on from "mask", which `as_mask` begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as repr_short
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

LONGEST_OUTLINE = 1_000_000
"""How long the outlines of one mask's polygons may be in all, in pixels."""

# --- run lengths ------------------------------------------------------------------------------------------------------


def mask_from_rle(rle: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths: column by column, the first run is not the region."""
    if not {"size", "counts"} <= set(rle):
        keys = ", ".join(map(str, rle))
        inside = ' Give what is under its "segmentation".' if "segmentation" in rle else ""
        raise ValueError(f'is a dictionary of {keys:.80}, expected an RLE: {{"size": [H, W], "counts": …}}.{inside}')
    given = _as_numbers(rle["size"])
    if given is None or given.tolist() != list(size):
        raise ValueError(
            f"is an RLE of size {repr_short(rle['size'])}, expected the picture's [height, width] {list(size)}."
        )
    _check_area(size)
    counts = rle["counts"]
    counts = _unpacked(counts) if isinstance(counts, (str, bytes)) else _as_numbers(counts)
    if counts is not None and counts.dtype.kind == "f" and (np.abs(counts) <= 1e15).all() and not (counts % 1).any():
        counts = counts.astype(np.int64)
    if counts is None or counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(
            f"has the counts {repr_short(rle['counts'])}, expected whole numbers or COCO's compressed text."
        )
    area = size[0] * size[1]
    if len(counts) and (counts.min() < 0 or counts.max() > area):
        raise ValueError(
            f"has counts from {counts.min()} to {counts.max()}, expected 0 to {area}, the number of its pixels."
        )
    if counts.sum() != area:
        raise ValueError(f"has counts that add up to {counts.sum()}, expected {area}, the number of its pixels.")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts.astype(np.int64))
    return np.ascontiguousarray(runs.reshape(size[1], size[0]).T)


def _unpacked(text: str | bytes) -> np.ndarray | None:
    """The counts in COCO's compressed text; None if it is not such a text.

    A number is written in groups of five bits, the lowest first, one to a character from "0" on, whose sixth bit says that
    more follow; the fifth bit of the last is the sign. From the fourth on, numbers are what a count adds to the one two before.
    """
    if isinstance(text, str):
        if not text.isascii():
            return None
        text = text.encode()
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups < 32)
    if not len(ends) or ends[-1] < len(groups) - 1 or groups.min() < 0 or groups.max() > 63:
        return None
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits, more than any picture's count needs
        return None
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((groups & 31) << shifts, starts)
    counts -= np.where(groups[ends] & 16, np.int64(1) << 5 * lengths, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def mask_to_rle(mask: np.ndarray | Tensor) -> dict[str, list[int]]:
    """A mask (H, W) as COCO's uncompressed run lengths: column by column, the first run counts zeros.

    `pycocotools.mask.frPyObjects(rle, *rle["size"])` packs it into COCO's short form, and `decode` reads that.
    """
    pixels = np.asarray(mask, dtype=bool)
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(pixels.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def coco_shape(box: Sequence[float], mask: dict[str, list[int]]) -> dict[str, Any]:
    """What COCO's annotation says of a region's shape, from its box, xyxy in pixels, and the run lengths of its mask."""
    x1, y1, x2, y2 = box
    bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
    return {"bbox": bbox, "segmentation": mask, "area": sum(mask["counts"][1::2])}


# --- polygons ---------------------------------------------------------------------------------------------------------


def mask_from_polygons(polygons: Any, size: tuple[int, int]) -> np.ndarray:
    """The union of polygons, each filled by COCO's rule.

    A polygon's outline is drawn on a grid of five by five places for each pixel. Where it crosses the middle of a column of
    pixels, everything below turns from outside to inside or back.
    """
    _check_area(size)
    height, width = size
    pairs = _as_numbers(polygons)
    one = pairs is not None and pairs.ndim == 2 and pairs.shape[1] == 2
    outlines = [_outline(polygon, size) for polygon in ([polygons] if one else polygons)]
    if not outlines:
        raise ValueError("is an empty list, expected polygons.")
    if max(np.abs(outline).max() for outline in outlines) <= 1:
        raise ValueError(
            "has polygons within 0 … 1, expected pixels: multiply x by the picture's width and y by its height."
        )
    if sum(np.abs(np.diff(outline, axis=0)).sum() for outline in outlines) > LONGEST_OUTLINE:
        raise ValueError(f"has polygons whose outlines are longer than {LONGEST_OUTLINE:,} pixels in all.")
    edges = [_crossings(outline, size) for outline in outlines]
    starts, ends = (np.concatenate([own[side::2] for own in edges]) for side in (0, 1))
    places, which = np.unique(np.concatenate([starts, ends]), return_inverse=True)
    depth = np.bincount(which.ravel(), np.repeat([1, -1], [len(starts), len(ends)]), len(places)).cumsum()
    filled = np.repeat(np.append(False, depth > 0), np.diff(places, prepend=0, append=height * width))
    return np.ascontiguousarray(filled.reshape(width, height).T)


def _outline(polygon: Any, size: tuple[int, int]) -> np.ndarray:
    """A polygon's points (N + 1, 2), the first once more at the end."""
    numbers = _as_numbers(polygon)
    is_flat = numbers is not None and numbers.ndim == 1 and numbers.size % 2 == 0
    if numbers is None or numbers.size < 6 or not (is_flat or (numbers.ndim > 1 and numbers.shape[-1] == 2)):
        raise ValueError(
            f"has the polygon {repr_short(polygon)}, expected x and y of at least three points: [[x1, y1, x2, y2, …], …] or "
            "[[x, y], …]."
        )
    points = numbers.astype(np.float64).reshape(-1, 2)
    if not (np.abs(points) <= 10 * max(size)).all():  # NaN is not, either
        raise ValueError(
            f"has a polygon with the point {points[np.abs(points).argmax() // 2].tolist()}, expected finite numbers in or near "
            f"its picture of {size[1]} × {size[0]} pixels."
        )
    return np.concatenate([points, points[:1]])


def _crossings(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where columns turn inside and out again, alternately, as places in column order; an even number of them."""
    height, width = size
    corners = np.trunc(5 * outline + 0.5).astype(np.int64)
    begin, step = corners[:-1], np.diff(corners, axis=0)
    lengths = np.abs(step).max(axis=1)
    edge = np.repeat(np.arange(len(lengths)), lengths + 1)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(lengths + 1) - lengths - 1, lengths + 1)
    is_steep = np.abs(step[:, 0]) < np.abs(step[:, 1])
    main = is_steep.astype(int)  # the axis along which the outline goes a place at a time
    rows = np.arange(len(lengths))
    forth = step[rows, main] >= 0
    low = np.where(forth[:, None], begin, begin + step)  # edges are drawn from their lower end, and walked as they go
    slope = np.where(forth, 1, -1) * step[rows, 1 - main] / np.maximum(lengths, 1)
    place = np.where(forth[edge], along, lengths[edge] - along)
    first = low[rows, main][edge] + place
    second = np.trunc(low[rows, 1 - main][edge] + slope[edge] * place + 0.5).astype(np.int64)
    x, y = np.where(is_steep[edge], second, first), np.where(is_steep[edge], first, second)
    moves = np.flatnonzero(x[1:] != x[:-1])
    column = (np.minimum(x[moves], x[moves + 1]) + 0.5) / 5 - 0.5
    row = (np.minimum(y[moves], y[moves + 1]) + 0.5) / 5 - 0.5
    inside = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = np.ceil(np.clip(row[inside], 0, height)).astype(np.int64)
    places, times = np.unique(column[inside].astype(np.int64) * height + row, return_counts=True)
    places = places[times % 2 == 1]
    return places if len(places) % 2 == 0 else np.append(places, height * width)


# --- numbers -----------------------------------------------------------------------------------------------------------


def as_array(value: Any) -> np.ndarray | None:
    """An array of lists, None if they are ragged."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError, RecursionError):  # what is ragged, or holds itself
        return None


def _as_numbers(value: Any) -> np.ndarray | None:
    """An array of what is numbers throughout, booleans aside; else None."""
    array = as_array(value)
    return array if array is not None and array.dtype.kind in "iuf" else None


def _check_area(size: tuple[int, int]) -> None:
    """Refuse a mask of more pixels than Pillow considers safe, before memory is allocated."""
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"has {size[0]} × {size[1]} pixels, expected at most {Image.MAX_IMAGE_PIXELS:,}, as of pictures."
        )
