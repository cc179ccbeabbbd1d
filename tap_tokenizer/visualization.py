"""Draws regions on a picture: masks, boxes, points and words. Takes and returns PIL images.

A region wears its colour as an outline and a veil that hardly shows, so that the object keeps its own colours. Lines have a
dark rim and words a dark plate, so that they are legible on light and dark pictures. All sizes follow the picture's, down to a
least one.
"""

from __future__ import annotations

import colorsys
import math
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
Colour = tuple[int, int, int]
Frame = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
PLATE, WORDS = (18, 18, 22), (255, 255, 255)
RIM = (0, 0, 0, 140)
"""The shade of a line's rim, and how much of it is seen, of 255."""


def region_colour(index: int) -> Colour:
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
    opacity: float = 0.05,
    names: bool = True,
    legend: bool = False,
) -> Image.Image:
    """The picture with its regions drawn on it.

    Give `regions` to draw their masks (and the box of one whose mask is empty), or give masks (R, H, W), boxes (R, 4) xyxy or
    points, all in pixels of the picture. labels: words for each region, shown beside its name ("1", "2", …, unless `names` is
    False) and out of each other's way. opacity: of the veil over a mask. legend: write the words beneath the picture, which
    becomes taller, and only the names on it. Points with label 0 are drawn as crosses.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, expected 0 to 1.")
    picture = load_rgb(image)
    height, width = picture.shape[:2]
    layers = _as_masks(masks if masks is not None or regions is None else regions.masks, (height, width))
    corners: list[list[float] | None] = [None] * len(layers)
    if boxes is not None:
        corners = [*torch.as_tensor(boxes, dtype=torch.float32).cpu().reshape(-1, 4).tolist()]
    elif regions is not None:
        corners = [None if mask.any() else box for mask, box in zip(layers, regions.boxes.tolist())]
    count = max(len(layers), len(corners), len(points or []))
    if labels is not None and len(labels) != count:
        raise ValueError(f"Got {len(labels)} labels, expected {count}: give one for each region.")
    if legend and (labels is None or not names):
        raise ValueError("Got legend without labels and names: give labels=…, and leave names as it is.")
    line = max(2.0, max(width, height) / 320)
    canvas = picture.astype(np.float32)
    for i, mask in enumerate(layers):
        _draw_mask(canvas, mask, region_colour(i), opacity, line)
    drawn = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(drawn, "RGBA")
    for i, box in enumerate(corners):
        if box is not None:
            _draw_box(pen, _clip(box, width, height), round(line), region_colour(i))
    for i, own in enumerate(points or []):
        for j, (x, y) in enumerate(own):
            is_on = point_labels is None or bool(point_labels[i][j])
            _draw_point(pen, x, y, 3 * round(line) + 1, region_colour(i), is_on)
    anchors = [_anchor(corners, layers, points, i) for i in range(count)]
    written = [
        " ".join(part for part in (str(i + 1) if names else "", labels[i] if labels and not legend else "") if part)
        for i in range(count)
    ]
    font = ImageFont.load_default(max(13, max(width, height) / 36))
    plates = [_Plate(pen, words, i, font, 0.6 * width) for i, words in enumerate(written) if words]
    for plate, frame in zip(plates, _placed(plates, anchors, (width, height))):
        plate.draw(pen, frame)
    return _with_legend(drawn, labels, font) if legend and labels else drawn


def _as_masks(masks: Any, size: tuple[int, int]) -> list[np.ndarray]:
    if masks is None:
        return []
    array = masks.detach().cpu().numpy() if isinstance(masks, Tensor) else np.asarray(masks)
    if array.ndim != 3 or array.shape[1:] != size:
        raise ValueError(
            f"masks have shape {array.shape}, expected (R, {size[0]}, {size[1]}), the size of the picture."
        )
    return list(array.astype(bool))


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float, line: float) -> None:
    """Draw a veil and a smooth outline, `line` pixels wide without its dark rim, on a picture (H, W, 3) of float32."""
    if not mask.any():
        return
    from scipy.ndimage import distance_transform_edt, gaussian_filter  # here: it takes longer to load than most need it

    x1, y1, x2, y2 = box_of_mask(mask)
    rim = _rim(line)
    room = math.ceil(line) + rim + 2
    part = slice(max(0, y1 - room), y2 + room), slice(max(0, x1 - room), x2 + room)
    inside = np.pad(mask[part], room, mode="edge")  # the picture's edge is no edge of the region
    soft = gaussian_filter(inside.astype(np.float32), line / 3) > 0.5
    soft = soft if soft.any() else inside
    distance = np.where(soft, distance_transform_edt(soft), distance_transform_edt(~soft)) - 0.5
    distance = distance[room:-room, room:-room, None]
    shown, shade = canvas[part], np.array(colour, dtype=np.float32)
    shown += (shade - shown) * (opacity * mask[part][..., None])
    shown *= 1 - RIM[3] / 255 * np.clip(line / 2 + rim + 0.5 - distance, 0, 1)
    shown += (shade - shown) * np.clip(line / 2 + 0.5 - distance, 0, 1)


def _rim(line: float) -> int:
    """How many pixels of a dark rim a line of this width has on either side."""
    return max(1, round(line / 4))


def _draw_box(pen: ImageDraw.ImageDraw, box: Frame, line: int, colour: Colour) -> None:
    """Draw a frame, `line` pixels wide without its dark rim, inside a box."""
    x1, y1, x2, y2 = box
    rim = _rim(line)
    for inset in (-rim, line):  # the rim outside, and the one inside
        if x1 + inset <= x2 - inset and y1 + inset <= y2 - inset:
            pen.rectangle((x1 + inset, y1 + inset, x2 - inset, y2 - inset), outline=RIM, width=rim)
    pen.rectangle(box, outline=colour, width=line)


def _draw_point(pen: ImageDraw.ImageDraw, x: float, y: float, r: int, colour: Colour, is_on: bool) -> None:
    if is_on:
        pen.ellipse((x - r - 1, y - r - 1, x + r + 1, y + r + 1), fill=(0, 0, 0))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=(255, 255, 255), width=max(1, r // 4))
        return
    for width, shade in ((r, (0, 0, 0)), (max(1, r // 2), colour)):
        pen.line((x - r, y - r, x + r, y + r), fill=shade, width=width)
        pen.line((x - r, y + r, x + r, y - r), fill=shade, width=width)


def _anchor(corners: Sequence[Any], layers: list[np.ndarray], points: Any, index: int) -> Frame:
    """The box to write at: a region's own, that of its mask, or its first point."""
    if index < len(corners) and corners[index] is not None:
        x1, y1, x2, y2 = corners[index]
        return x1, y1, x2, y2
    if index < len(layers) and layers[index].any():
        x1, y1, x2, y2 = box_of_mask(layers[index])
        return float(x1), float(y1), float(x2 - 1), float(y2 - 1)
    if points is not None and index < len(points) and len(points[index]):
        x, y = points[index][0]
        return float(x), float(y), float(x), float(y)
    return 0.0, 0.0, 0.0, 0.0


class _Plate:
    """Words of region `index` on a dark plate with an edge of its colour; broken into lines that are at most `widest` wide."""

    def __init__(self, pen: ImageDraw.ImageDraw, words: str, index: int, font: Any, widest: float) -> None:
        self.index, self.font = index, font
        self.words = _wrapped(pen, words, font, widest)
        left, top, right, bottom = pen.multiline_textbbox((0, 0), self.words, font=font)
        self.pad = max(2, round(font.size / 6))
        self.shift = 2 * self.pad + 1 - left, self.pad - top
        self.wide, self.high = right - left + 3 * self.pad + 2, bottom - top + 2 * self.pad

    def draw(self, pen: ImageDraw.ImageDraw, frame: Frame) -> None:
        """Draw it in a frame of its size."""
        x, y, _, bottom = frame
        pen.rounded_rectangle(frame, self.pad, fill=PLATE)
        pen.rectangle((x, y + 1, x + self.pad, bottom - 1), fill=region_colour(self.index))
        pen.multiline_text((x + self.shift[0], y + self.shift[1]), self.words, font=self.font, fill=WORDS)


def _wrapped(pen: ImageDraw.ImageDraw, words: str, font: Any, widest: float) -> str:
    """Words in lines that are at most `widest` pixels wide, as far as their spaces allow."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > widest:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _placed(plates: Sequence[_Plate], anchors: Sequence[Frame], size: tuple[int, int]) -> list[Frame]:
    """Where plates stand. Those that were placed first make room for later ones: each is placed again beside all others."""
    frames: list[Frame] = []
    for plate in plates:
        frames.append(_place(plate, anchors, frames, size))
    for _ in range(2):
        for i, plate in enumerate(plates):
            frames[i] = _place(plate, anchors, [*frames[:i], *frames[i + 1 :]], size)
    return frames


def _place(plate: _Plate, anchors: Sequence[Frame], taken: Sequence[Frame], size: tuple[int, int]) -> Frame:
    """Where a plate stands: near its region, inside the picture, off other plates, and if possible off other regions."""
    x1, y1, x2, y2 = anchors[plate.index]
    wide, high, gap = plate.wide, plate.high, plate.pad
    others = [anchor for i, anchor in enumerate(anchors) if i != plate.index]
    columns = (x1, x2 - wide, (x1 + x2 - wide) / 2)
    rows = (y1 - high - gap, y2 + gap, y1 + gap, y2 - high - gap, y1 - 2 * (high + gap), y2 + high + 2 * gap)
    places = [(x, y) for y in rows for x in columns]
    places += [(x, y) for x in (x2 + gap, x1 - wide - gap) for y in (y1, y2 - high, (y1 + y2 - high) / 2)]
    best, least = None, math.inf
    for left, top in places:
        x, y = min(max(0.0, left), max(0.0, size[0] - wide)), min(max(0.0, top), max(0.0, size[1] - high))
        frame = (x, y, x + wide, y + high)
        spaced = (x - gap, y - gap, x + wide + gap, y + high + gap)
        cost = 100 * sum(_shared(spaced, other) for other in taken) + sum(_shared(frame, other) for other in others)
        cost += math.hypot(x - left, y - top) + 0.3 * _shared(frame, (x1, y1, x2, y2))
        if cost < least:
            best, least = frame, cost
    assert best is not None
    return best


def _shared(a: Frame, b: Frame) -> float:
    """How many pixels two frames share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _with_legend(drawn: Image.Image, labels: Sequence[str], font: Any) -> Image.Image:
    """The picture above a list of its regions' names and words."""
    pen = ImageDraw.Draw(drawn)
    edge = round(font.size)
    lines = [f"{i}  {label}" for i, label in enumerate(labels, start=1)]
    rows = [_wrapped(pen, line, font, drawn.width - 4 * edge) for line in lines]
    heights = [(row.count("\n") + 1) * 1.35 * font.size for row in rows]
    whole = Image.new("RGB", (drawn.width, drawn.height + round(sum(heights)) + edge), WORDS)
    whole.paste(drawn)
    pen, y = ImageDraw.Draw(whole), drawn.height + edge / 2
    for i, (row, high) in enumerate(zip(rows, heights)):
        middle = y + 0.675 * font.size
        square = (edge * 0.6, middle - 0.4 * edge, edge * 1.4, middle + 0.4 * edge)
        pen.rounded_rectangle(square, max(1, edge // 6), fill=region_colour(i), outline=PLATE)
        pen.multiline_text((2.2 * edge, y), row, font=font, fill=PLATE)
        y += high
    return whole


def _clip(box: Sequence[float], width: int, height: int) -> Frame:
    x1, y1, x2, y2 = box
    x1, y1 = min(max(0.0, x1), width - 1), min(max(0.0, y1), height - 1)
    return x1, y1, max(x1, min(x2, width - 1)), max(y1, min(y2, height - 1))
