"""Reads a region's mask, from any common form, as booleans (H, W): pictures, arrays, run lengths, polygons.

Everything that accepts masks reads them here. The processor decides what is done with a mask.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, strided

from .coco_masks import as_array, mask_from_polygons, mask_from_rle
from .image_processing_tap import open_image, upright, upright_size

NOISE = 1 / 16
"""How far compression may shift the colour of a flat area, as a share of the largest value."""

COUNTED = 32
"""Whole numbers up to this are labels, not shades: each one counts, however small its area is."""

FEW = 8
"""A picture of no more colours was drawn with a sharp pen, and each of them means something."""

LONGEST_PATH = 4096


def as_mask(value: Any, size: tuple[int, int], *, may_be_empty: bool = False) -> np.ndarray:
    """Read the mask of one region of a picture of (height, width) `size`, as booleans of that size.

    value: a PIL image of any mode, or the path of a picture file; an array or tensor (H, W), (H, W, 1), (1, H, W), or with
    three or four colour channels, of booleans, integers or floats; COCO's RLE, {"size": [H, W], "counts": …}, compressed
    (bytes or str) or not (a list); polygons in pixels, [[x1, y1, x2, y2, …], …] or [[x, y], …], filled as COCO fills them.

    The region is whatever is brighter than half of the largest value; in colour, the brightest channel counts. Palettes are
    read by their colours. Transparent pixels are not part of the region; if colour says nothing, transparency is the mask.

    Raises `ValueError` for everything else, such as masks of a different size, label maps, photographs and, unless
    `may_be_empty`, empty masks. Sizes are checked before pixels are decoded or memory is allocated.
    """
    name = "mask"
    size = (int(size[0]), int(size[1]))
    if isinstance(value, str) and len(value) > LONGEST_PATH:
        raise ValueError(
            f"mask is a string of {len(value):,} characters, expected a path. For the counts of an RLE, give a dictionary "
            "with their size."
        )
    if isinstance(value, (str, os.PathLike)):
        name, value = f"mask {value}", open_image(Path(value))
    try:
        mask = _read(value, size)
        if not may_be_empty and not mask.any():
            raise ValueError("is empty, expected at least one pixel of a region. In a picture, the region is white.")
        return mask
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def _read(value: Any, size: tuple[int, int]) -> np.ndarray:
    """`as_mask`, with errors that go on from "mask"."""
    if isinstance(value, Image.Image):
        return _from_picture(value, size)
    if isinstance(value, dict):
        return mask_from_rle(value, size)
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized or value.layout is not strided:
            raise ValueError(
                f"is a tensor without plain numbers ({value.layout}), expected a dense tensor with values."
            )
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, (list, tuple)):
        rows = as_array(value)
        if rows is None or rows.shape != size or not np.isin(rows, (0, 1, 255)).all():
            return mask_from_polygons(value, size)
        value = rows
    if hasattr(value, "__array__"):  # also kinds of arrays with rules of their own; what one hides is not the region
        value = np.asarray(np.ma.filled(value, 0) if isinstance(value, np.ma.MaskedArray) else value)
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"is of type {type(value).__name__}, expected a picture, its path, an array, an RLE or polygons."
        )
    if value.ndim == 3 and value.shape[1:] == (1, 2) and value.shape[:2] != size:  # a contour, as OpenCV writes it
        value = value[:, 0]
    if value.ndim == 2 and value.shape[1] == 2 and value.shape != size:
        return mask_from_polygons(value.tolist(), size)
    return _from_array(value, size)


# --- pictures and arrays ----------------------------------------------------------------------------------------------


def _from_picture(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    wrong_size = "is {} × {} pixels, expected the picture's {} × {}."
    if sorted(picture.size) != sorted(size):  # before anything is decoded, as some files are for their orientation
        raise ValueError(wrong_size.format(*picture.size, *size[::-1]))
    try:
        width, height = upright_size(picture)
        picture = upright(picture)
        written = np.asarray(picture)
        is_number = picture.mode in ("1", "L", "F") or picture.mode.startswith("I")
        rgba = None if is_number and not picture.has_transparency_data else np.asarray(picture.convert("RGBA"))
    except Exception as error:  # decoders raise whatever damaged bytes make them stumble over
        raise ValueError(f"cannot be decoded ({error}): the file may be incomplete.") from None
    if (height, width) != size:
        raise ValueError(wrong_size.format(width, height, *size[::-1]))
    if rgba is None:
        return _from_array(written, size)
    if picture.mode == "P" and _is_plain(rgba) and not (_is_plain(written) and rgba[..., :3].any()):
        return _from_array(written, size)  # such a palette says nothing, or is none
    return _from_colours(_visible(rgba[..., :3], rgba[..., 3:]), written)


def _visible(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Of RGB (H, W, 3) and alpha (H, W, 1), what tells the region: colours over black, or alpha where colour says nothing.

    That is where all that can be seen has one colour, or is cut out of a photograph.
    """
    if _is_plain(alpha) and (alpha.any() or not _is_plain(colours)):
        return colours
    seen = alpha[..., 0] > alpha.max() / 2
    codes = _codes(colours)
    levels = _levels(colours, codes, _flat(codes) & seen)
    main = levels.colours[levels.counts == levels.counts.max(initial=0)][:1]
    others = (_distance(levels.colours, main) > NOISE * 255) & (levels.counts > seen.sum() / 200)
    if not others.any():
        return alpha
    return (colours.astype(np.uint16) * alpha // 255).astype(np.uint8)


def _from_array(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if array.ndim == 3 and array.shape[1:] == size and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.shape[:2] != size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
        raise ValueError(f"has shape {array.shape}, expected the picture's (height, width) {size}.")
    if array.dtype.kind not in "buif":
        raise ValueError(f"holds {array.dtype}, expected booleans or numbers.")
    if array.dtype.kind == "b" and array.shape[2:] in ((), (1,)):
        return array.reshape(size)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("holds NaN or infinity, expected booleans or finite numbers.")
    if (array < 0).any():
        raise ValueError(
            f"holds numbers below 0, down to {array.min():g}. If they are logits, give mask > 0. If a number such as −1 marks "
            "what belongs to no object, give mask == 1."
        )
    if array.shape[2:] in ((), (1,)):
        return _from_colours(array.reshape(*size, 1), array.reshape(size))
    if array.dtype != np.uint8:
        array = (array * (255 / (float(array.max()) or 1))).astype(np.uint8)
    return _from_picture(Image.fromarray(np.ascontiguousarray(array)), size)


def _from_colours(colours: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Colours or numbers (H, W, C), none below 0, → the mask; `written`: what stands for each in the file, (H, W, …)."""
    if colours.shape[-1] == 3 and (colours == colours[..., :1]).all():
        colours = colours[..., :1]
    light = colours.max(axis=-1)
    mask: np.ndarray = light > light.max() / 2
    places = _labels(colours, light, mask)
    if len(places):
        raise ValueError(_told(written.reshape(mask.size, -1)[places]))
    if colours.dtype.kind != "f" and (between := _between(light)):
        raise ValueError(
            f"is not a mask: {between:.0%} of its pixels are neither black nor white. Give a picture that is white where the "
            "region is and black elsewhere."
        )
    return mask


def _is_plain(colours: np.ndarray) -> bool:
    return bool((colours == colours[:1, :1]).all())


def _between(light: np.ndarray) -> float:
    """The share of pixels between dark and light where that is too large for a mask with such details, else 0.

    A wide blur leaves as much between, but no steps from a pixel to the next.
    """
    low, top = float(light.min()), float(light.max())
    margin = (top - low) / 8
    between = float(((light > low + margin) & (light < top - margin)).mean())
    if between <= 1 / 8:
        return 0.0
    step = 2 * margin if between < 1 / 3 else margin
    sharp = max(int((np.abs(np.diff(light.astype(np.float32), axis=axis)) > step).sum()) for axis in (0, 1))
    return between if sharp > light.size / 2000 else 0.0


# --- label maps -------------------------------------------------------------------------------------------------------


@dataclass
class _Levels:
    """The colours of some pixels: values (N,) as of `_codes`, colours (N, C), how many pixels have each, and one that does.

    places (N,) count pixels in reading order.
    """

    values: np.ndarray
    colours: np.ndarray
    counts: np.ndarray
    places: np.ndarray


def _levels(colours: np.ndarray, codes: np.ndarray, where: np.ndarray) -> _Levels:
    """The levels of colours (H, W, C) at the pixels `where` (H, W). Runs are counted, which are fewer than pixels."""
    row, is_in = codes.ravel(), where.ravel()
    goes_on = is_in[1:] & is_in[:-1] & (row[1:] == row[:-1])
    starts, ends = is_in.copy(), is_in.copy()
    starts[1:] &= ~goes_on
    ends[:-1] &= ~goes_on
    begin, end = np.flatnonzero(starts), np.flatnonzero(ends)
    values, first, runs = np.unique(row[begin], return_index=True, return_inverse=True)
    counts = np.bincount(runs.ravel(), end - begin + 1, len(values))
    places = begin[first]
    return _Levels(values, colours.reshape(row.size, -1)[places].astype(np.float64), counts, places)


def _codes(colours: np.ndarray) -> np.ndarray:
    """One number (H, W) for each colour (H, W, C)."""
    codes = colours[..., 0]
    for channel in range(1, colours.shape[-1]):
        codes = codes.astype(np.int32) << 8 | colours[..., channel]
    return codes


def _flat(codes: np.ndarray) -> np.ndarray:
    """Which pixels of (H, W) are as all their eight neighbours."""
    down, right = codes[1:] == codes[:-1], codes[:, 1:] == codes[:, :-1]
    column = np.ones(codes.shape, bool)
    column[1:] &= down
    column[:-1] &= down
    flat = column.copy()
    flat[:, 1:] &= column[:, :-1] & right
    flat[:, :-1] &= column[:, 1:] & right
    return flat


def _labels(colours: np.ndarray, light: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A pixel of each label, in reading order, if colours (H, W, C) are a label map; none if they are a mask.

    A mask has two levels, and between them what edges, blur and compression leave: narrow bands, or what is near to a level.
    Any other colour that fills an area is a label; where no edge is soft, so is one that is near to a level.
    """
    top, region = float(light.max()), mask.sum()
    is_counted = colours.shape[-1] == 1 and top <= COUNTED and bool((light == np.floor(light)).all())
    codes = _codes(colours)
    levels = _levels(colours, codes, np.ones_like(mask) if is_counted else _flat(codes))
    shade = levels.colours.max(axis=1, initial=0)
    sides = [np.flatnonzero(shade <= top / 2), np.flatnonzero(shade > top / 2)]
    settled = [side[levels.counts[side].argmax()] for side in sides if len(side)]
    others = np.ones(len(shade), bool)
    others[settled] = False
    if others.any() and not is_counted:
        is_far = _distance(levels.colours, levels.colours[settled]) > NOISE * top
        outline = sum(int(np.diff(mask, axis=axis).sum()) for axis in (0, 1))
        known = np.append(levels.values, codes.flat[light.argmax()])
        if np.isin(codes, known, invert=True).sum() > outline / 4:
            others &= is_far & (levels.counts > region / 20)
        else:
            telling = others & (is_far | (levels.counts > region / 200))
            is_soft = telling.sum() > 8 and levels.counts[telling].sum() < 0.75 * region  # enlarged without smoothing
            others &= telling.any() and not is_soft
    if not others.any():
        return np.empty(0, int) if is_counted or len(sides[1]) == 0 else _narrow_labels(colours, codes, levels, light)
    others[settled] = True
    others[(shade == shade[others].min()) & (shade <= top / 2)] = False  # the background
    return levels.places[others] if len(sides[1]) else np.append(levels.places[others], light.argmax())


def _narrow_labels(colours: np.ndarray, codes: np.ndarray, wide: _Levels, light: np.ndarray) -> np.ndarray:
    """`_labels` that fill no area, such as a margin, of a picture of a `FEW` colours, of which the levels `wide` do.

    Any colour is one that no soft edge between the two levels has: edges are blends of both.
    """
    if len(wide.values) > FEW:
        return np.empty(0, int)
    if len(wide.values) + len(np.unique(codes[np.isin(codes, wide.values, invert=True)])) > FEW:
        return np.empty(0, int)
    top = float(light.max())
    levels = _levels(colours, codes, np.ones(codes.shape, bool))
    shade = levels.colours.max(axis=1)
    dark, bright = (np.where(side, levels.counts, 0).argmax() for side in (shade <= top / 2, shade > top / 2))
    start, step = levels.colours[dark], levels.colours[bright] - levels.colours[dark]
    share = ((levels.colours - start) @ step / max(step @ step, 1)).clip(0, 1)[:, None]
    others = np.abs(levels.colours - start - share * step).max(axis=1) > top / 4
    others &= levels.counts > (light > top / 2).sum() / 200
    return levels.places[np.append(np.flatnonzero(others), bright)] if others.any() else np.empty(0, int)


def _distance(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of colours (N, C), how far each is from the nearest of `others` (M, C), by the channel that differs most."""
    return np.abs(colours[:, None] - others).max(axis=2).min(axis=1, initial=np.inf)


def _told(labels: np.ndarray) -> str:
    """What to say of a label map with these labels (N, C)."""
    rows = [tuple(row) for row in np.unique(labels, axis=0).tolist()]
    names = [
        (f"{row[0]:g}" if isinstance(row[0], float) else str(row[0])) if len(row) == 1 else str(row) for row in rows
    ]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    write = f"mask == {names[0]}" if len(rows[0]) == 1 else f"(mask == {names[0]}).all(axis=-1)"
    void = " 255 often marks what belongs to no object." if "255" in names else ""
    return (
        f"is a label map with the labels {shown}, expected one region.{void} Give a single label ({write}, with mask as an "
        "array), or a picture that is white where the region is and black elsewhere. If these are shades of one region, give "
        "mask > half of its largest value."
    )
