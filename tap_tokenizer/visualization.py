"""Draws regions on a picture: masks, boxes, points and words. Takes and returns PIL images.

Lines have a dark rim and words a dark plate, so that they are legible on light and dark pictures.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .image_processing_tap import ImageInput, load_rgb
from .mask_boxes import box_of_mask
from .region_tokens import RegionTokens

_GOLDEN_ANGLE = 0.61803398875


def region_colour(index: int) -> tuple[int, int, int]:
    """A bright colour for region `index`. Successive numbers get clearly different colours."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _GOLDEN_ANGLE) % 1.0, 0.68, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_regions(
    image: ImageInput,
    regions: RegionTokens | None = None,
    *,
    masks: Tensor | np.ndarray | None = None,
    boxes: Tensor | Sequence[Sequence[float]] | None = None,
    points: Sequence[Sequence[Sequence[float]]] | None = None,
    point_labels: Sequence[Sequence[int]] | None = None,
    labels: Sequence[str] | None = None,
    opacity: float = 0.45,
    names: bool = True,
) -> Image.Image:
    """The picture with its regions drawn on it.

    Give `regions` to draw their masks and boxes, or give masks (R, H, W), boxes (R, 4) xyxy or points, all in pixels of the
    picture. labels: words for each region, shown beside its name ("1", "2", …, unless `names` is False). Points with
    label 0 are drawn as crosses.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, expected 0 to 1.")
    if regions is not None:
        masks = regions.masks if masks is None else masks
        boxes = regions.boxes if boxes is None else boxes
    picture = load_rgb(image)
    height, width = picture.shape[:2]
    layers = _as_masks(masks, (height, width))
    corners = torch.as_tensor(boxes, dtype=torch.float32).cpu().reshape(-1, 4).tolist() if boxes is not None else []
    count = max(len(layers), len(corners), len(points or []))
    if labels is not None and len(labels) != count:
        raise ValueError(f"Got {len(labels)} labels, expected {count}: give one for each region.")
    canvas = picture.astype(np.float32)
    for i, mask in enumerate(layers):
        canvas[mask] += (np.array(region_colour(i), dtype=np.float32) - canvas[mask]) * opacity
    drawn = Image.fromarray(canvas.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(max(width, height) / 320))
    font = ImageFont.load_default(max(12, max(width, height) / 42))
    for i, mask in enumerate(layers):
        _draw_outline(drawn, mask, region_colour(i), line)
    for i, box in enumerate(corners):
        pen.rectangle(_clip(box, width, height), outline=(0, 0, 0), width=line + 2)
        pen.rectangle(_clip(box, width, height), outline=region_colour(i), width=line)
    for i, own in enumerate(points or []):
        for j, (x, y) in enumerate(own):
            is_on = point_labels is None or bool(point_labels[i][j])
            _draw_point(pen, x, y, 3 * line + 1, region_colour(i), is_on)
    plates: list[tuple[float, float, float, float]] = []
    for i in range(count):
        words = " ".join(part for part in (str(i + 1) if names else "", labels[i] if labels else "") if part)
        if words:
            anchor = corners[i] if i < len(corners) else _anchor(layers, points, i)
            plates.append(_draw_words(pen, words, anchor, region_colour(i), font, (width, height), plates))
    return drawn


def _as_masks(masks: Any, size: tuple[int, int]) -> list[np.ndarray]:
    if masks is None:
        return []
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if array.ndim != 3 or array.shape[1:] != size:
        raise ValueError(
            f"masks have shape {array.shape}, expected (R, {size[0]}, {size[1]}), the size of the picture."
        )
    return list(array.astype(bool))


def _draw_outline(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    """Draw a mask's edge: those of its pixels that have a neighbour outside."""
    edge = mask.copy()
    for _ in range(line):
        padded = np.pad(edge, 1)
        edge = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image.paste(colour, mask=Image.fromarray(mask & ~edge))


def _draw_point(
    pen: ImageDraw.ImageDraw, x: float, y: float, r: int, colour: tuple[int, int, int], is_on: bool
) -> None:
    if is_on:
        pen.ellipse((x - r - 1, y - r - 1, x + r + 1, y + r + 1), fill=(0, 0, 0))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=(255, 255, 255), width=max(1, r // 4))
        return
    for width, shade in ((r, (0, 0, 0)), (max(1, r // 2), colour)):
        pen.line((x - r, y - r, x + r, y + r), fill=shade, width=width)
        pen.line((x - r, y + r, x + r, y - r), fill=shade, width=width)


def _anchor(layers: list[np.ndarray], points: Any, index: int) -> list[float]:
    """The box to write at for a region without a box: that of its mask, or its first point."""
    if index < len(layers) and layers[index].any():
        x1, y1, x2, y2 = box_of_mask(layers[index])
        return [float(x1), float(y1), float(x2 - 1), float(y2 - 1)]
    if points is not None and index < len(points) and len(points[index]):
        x, y = points[index][0]
        return [float(x), float(y), float(x), float(y)]
    return [0.0, 0.0, 0.0, 0.0]


def _draw_words(
    pen: ImageDraw.ImageDraw,
    words: str,
    anchor: Sequence[float],
    colour: tuple[int, int, int],
    font: Any,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Draw words on a dark plate with a coloured edge: above the anchor, or below or in it if that place is not free."""
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    pad = max(2, round((bottom - top) / 5))
    wide, high = right - left + 3 * pad + 2, bottom - top + 2 * pad
    x = min(max(0.0, anchor[0]), max(0.0, size[0] - wide))
    places = [anchor[1] - high - 1, anchor[3] + 1, anchor[1] + 1, anchor[3] - high - 1]
    inside = [min(max(0.0, y), max(0.0, size[1] - high)) for y in places]
    y = next((y for y in inside if not any(_touch((x, y, x + wide, y + high), other) for other in taken)), inside[0])
    pen.rectangle((x, y, x + wide, y + high), fill=(18, 18, 22))
    pen.rectangle((x, y, x + pad, y + high), fill=colour)
    pen.text((x + 2 * pad + 1 - left, y + pad - top), words, font=font, fill=(255, 255, 255))
    return x, y, x + wide, y + high


def _touch(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _clip(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    x1, y1 = min(max(0.0, x1), width - 1), min(max(0.0, y1), height - 1)
    return x1, y1, max(x1, min(x2, width - 1)), max(y1, min(y2, height - 1))
