"""What comes from a browser, checked against limits: pictures as data URLs, and regions as they were drawn.

Nobody is trusted here, and nothing is written. Knows pictures and numbers; no models, no web framework.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from tap_tokenizer import load_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What a picture may be, in Pillow's names."""


@dataclass(frozen=True)
class PageLimits:
    """What one user may ask of the server.

    file_bytes, pixels: of a picture. regions: of a conversation. characters: of a question. new_tokens: of an answer.
    queue: questions that wait at once, of all users. users: conversations that are kept; the one that has been idle
    longest goes first.
    """

    file_bytes: int = 10_000_000
    pixels: int = 16_000_000
    regions: int = 24
    characters: int = 2000
    new_tokens: int = 128
    queue: int = 40
    users: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more.")


def read_picture(address: Any, limits: PageLimits) -> np.ndarray:
    """A picture (H, W, 3) from a data URL; `ValueError` if it is none, or larger than the limits."""
    if not isinstance(address, str) or not address.startswith("data:") or ";base64," not in address:
        raise ValueError("Got no picture: choose a file, or paste a picture.")
    body = address.split(";base64,", 1)[1]
    if len(body) * 3 // 4 - 2 > limits.file_bytes:
        raise ValueError(
            f"The file has {len(body) * 0.75 / 1e6:.1f} MB, expected at most {limits.file_bytes / 1e6:g} MB."
        )
    try:
        image = Image.open(io.BytesIO(base64.b64decode(body, validate=True)), formats=FORMATS)
        if image.width * image.height > limits.pixels:
            raise ValueError(
                f"The picture has {image.width} × {image.height} pixels, expected at most {limits.pixels / 1e6:g} "
                "million: make it smaller first."
            )
        image.load()
        return load_rgb(image)
    except binascii.Error:
        raise ValueError("The picture arrived damaged: choose it again.") from None
    except UnidentifiedImageError:
        raise ValueError("The file is no picture that can be read: give PNG, JPEG, WebP, BMP, GIF or TIFF.") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise ValueError("The picture is damaged or incomplete: give another.") from None


def read_regions(drawn: Any, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Prompts of regions from what was drawn on a picture of (height, width) `size`, in its pixels.

    Each is {"box": [x1, y1, x2, y2]}, {"points": [[x, y], …], "point_labels": [1 or 0, …]}, both, or
    {"strokes": [[[x, y], …], …], "brush": diameter}, which becomes a mask.
    """
    if not isinstance(drawn, list):
        raise ValueError("The regions are no list: load the page again.")
    return [_read_region(region, size, f"region {i}") for i, region in enumerate(drawn, start=1)]


def _read_region(region: Any, size: tuple[int, int], name: str) -> dict[str, Any]:
    if not isinstance(region, dict):
        raise ValueError(f"{name} is no region: load the page again.")
    if region.get("strokes"):
        return {"mask": _painted(region, size, name)}
    prompt: dict[str, Any] = {}
    if region.get("box") is not None:
        x1, y1, x2, y2 = _coordinates(region["box"], 4, name)
        prompt["box"] = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
    if region.get("points"):
        prompt["points"] = [_coordinates(point, 2, name) for point in region["points"]]
        prompt["point_labels"] = [1 if label else 0 for label in region.get("point_labels", prompt["points"])]
    if not prompt:
        raise ValueError(f"{name} is empty: draw a box, a point or a stroke.")
    return prompt


def _coordinates(values: Any, count: int, name: str) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} has coordinates {values!r}, expected {count} numbers.")
    try:
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
    except OverflowError:  # an integer beyond all floats
        numbers = []
    if len(numbers) < count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} has coordinates {values!r:.80}, expected numbers.")
    return numbers


def _painted(region: dict[str, Any], size: tuple[int, int], name: str) -> np.ndarray:
    """Strokes of a round brush as a mask (H, W)."""
    (brush,) = _coordinates([region.get("brush", 1)], 1, name)
    if not 0 < brush <= 2 * max(size):
        raise ValueError(f"{name} has a brush of {brush} pixels, expected one that fits the picture.")
    mask = Image.new("1", (size[1], size[0]))
    pen, half = ImageDraw.Draw(mask), max(brush / 2, 0.5)
    for stroke in region["strokes"]:
        points = [(x, y) for x, y in (_coordinates(point, 2, name) for point in stroke)]
        pen.line(points, fill=1, width=max(1, round(brush)))
        for x, y in points:
            pen.ellipse((x - half, y - half, x + half, y + half), fill=1)
    return np.asarray(mask)
