"""What comes from a browser, checked against limits: pictures as data URLs, and regions as they were drawn.

It trusts no input and writes nothing.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from tap_tokenizer import RegionPrompt, box_and_points, box_problems, counted, load_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What a picture may be, in Pillow's names."""


@dataclass(frozen=True)
class PageLimits:
    """What users may ask of the server.

    file_bytes, pixels: of a picture. regions: of a conversation. points, stroke_points: of a region. characters: of a
    question. new_tokens: of an answer. queue: requests that wait at once, of all users; places: of one user.
    users, memory: conversations that are kept, and their bytes. Those idle longest make room for new ones, once they have
    been idle for idle_seconds; where none has, newcomers are refused. return_seconds: how long a conversation is kept after
    its tab was closed, because a page that is loaded again looks the same.
    """

    file_bytes: int = 10_000_000
    pixels: int = 16_000_000
    regions: int = 24
    points: int = 64
    stroke_points: int = 5000
    characters: int = 2000
    new_tokens: int = 128
    queue: int = 40
    places: int = 4
    users: int = 64
    memory: int = 2_000_000_000
    idle_seconds: float = 600
    return_seconds: float = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("idle_seconds", "return_seconds") else 1
            if value < least:
                raise ValueError(f"{name} is {value}, expected {least} or more.")


class PictureLimits(Protocol):
    """How large the file of a picture may be, in bytes, and the picture, in pixels."""

    @property
    def file_bytes(self) -> int: ...

    @property
    def pixels(self) -> int: ...


Check = Callable[[tuple[int, int]], None]
"""Refuses a (height, width), by an error, before a picture's pixels are read."""


def read_picture(address: Any, limits: PictureLimits, check: Check | None = None) -> np.ndarray:
    """A picture (H, W, 3) from a data URL. Raises `ValueError` if it is not a picture, or exceeds the limits."""
    return load_rgb(decode_picture(address, limits, check))


def decode_picture(address: Any, limits: PictureLimits, check: Check | None = None) -> Image.Image:
    """The same in its own mode, for a mask may say what it says by its palette or transparency."""
    if not isinstance(address, str) or not address.startswith("data:") or ";base64," not in address:
        raise ValueError("Got no picture: choose a file, or paste a picture.")
    body = address.split(";base64,", 1)[1]
    if len(body) * 3 // 4 - 2 > limits.file_bytes:
        raise ValueError(
            f"The file has {len(body) * 0.75 / 1e6:.1f} MB, expected at most {limits.file_bytes / 1e6:g} MB."
        )
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error:
        raise ValueError("The picture arrived damaged: choose it again.") from None
    return decode_file(data, limits, check)


def decode_file(data: bytes, limits: PictureLimits, check: Check | None = None) -> Image.Image:
    """The same from what a file holds."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > limits.pixels:
            raise ValueError(
                f"The picture has {image.width} × {image.height} pixels, expected at most {limits.pixels / 1e6:g} "
                "million: make it smaller first."
            )
        if check is not None:
            check((image.height, image.width))
        image.load()
        return image
    except UnidentifiedImageError:
        raise ValueError(
            "The file is not a picture that can be read: give PNG, JPEG, WebP, BMP, GIF or TIFF."
        ) from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise ValueError("The picture is damaged or incomplete: give another.") from None


def read_regions(drawn: Any, size: tuple[int, int], limits: PageLimits, known: int = 0) -> list[RegionPrompt]:
    """Prompts of regions from what was drawn on a picture of (height, width) `size`, in its pixels.

    Each is {"box": [x1, y1, x2, y2]}, {"points": [[x, y], …], "point_labels": [1 or 0, …]}, or both; or
    {"strokes": [[[x, y], …], …], "stroke_labels": [1 or 0, …], "brush": diameter}, and points. In the order of the strokes, 1
    paints and 0 erases. `ValueError` names the region that is wrong, as the page does: `known` regions of the conversation
    came before.
    """
    if not isinstance(drawn, list):
        raise ValueError("The regions are not a list: reload the page.")
    if len(drawn) > limits.regions:
        raise ValueError(f"A conversation has at most {counted(limits.regions, 'region')}: start a new chat.")
    return [_read_region(region, size, f"region{i}", limits) for i, region in enumerate(drawn, start=known + 1)]


def _read_region(region: Any, size: tuple[int, int], name: str, limits: PageLimits) -> RegionPrompt:
    if not isinstance(region, dict):
        raise ValueError(f"{name} cannot be read: reload the page.")
    prompt: dict[str, Any] = {}
    if region.get("box") is not None:
        x1, y1, x2, y2 = _coordinates(region["box"], 4, name, size)
        prompt["box"] = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
        for problem in box_problems(np.array([prompt["box"]]), size).values():
            raise ValueError(f"{name}: its {problem.words}")
    if region.get("points") is not None:
        points = _list(region["points"], limits.points, "points", name)
        prompt["points"] = [_coordinates(point, 2, name, size) for point in points]
        prompt["point_labels"] = _labels(region.get("point_labels"), len(points), name)
    if region.get("strokes") not in (None, []):
        painted, erased = _painted(region, size, name, limits)
        prompt = _with_strokes(painted, erased, prompt.get("points", []), prompt.get("point_labels", []))
    if not prompt or prompt.get("points") == []:
        raise ValueError(f"{name} is empty: draw a box, a point or a stroke.")
    return RegionPrompt.read(prompt, name)


def _with_strokes(
    painted: np.ndarray, erased: np.ndarray, points: list[list[float]], labels: list[int]
) -> dict[str, Any]:
    """What was painted and erased, and the points that correct it, as a prompt: TAP is asked by boxes and points alone.

    The box holds all that was painted or pointed at; points off the region lie where something was erased.
    """
    on = box_and_points(painted)
    off = (box_and_points(erased).points or ()) if erased.any() else ()
    assert on.box is not None
    corners = [on.box[:2], on.box[2:], *(point for point, label in zip(points, labels) if label)]
    x, y = zip(*corners)
    given = [*(on.points or ()), *off, *points]
    return {
        "box": [min(x), min(y), max(x), max(y)],
        "points": [list(point) for point in given],
        "point_labels": [*(on.point_labels or ()), *[0] * len(off), *labels],
    }


def _list(values: Any, most: int, what: str, name: str) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{name} has {what} that cannot be read: reload the page.")
    if len(values) > most:
        raise ValueError(f"{name} has {len(values)} {what}, expected at most {most}: mark it with fewer.")
    return values


def _labels(values: Any, count: int, name: str) -> list[int]:
    """Of each point or stroke, whether it belongs to the region (1) or not (0); all do if nothing is said."""
    if values is None:
        return [1] * count
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(
            f"{name} has labels that do not fit its {counted(count, 'point or stroke', 'points or strokes')}: reload the page."
        )
    return [1 if label else 0 for label in values]


def _coordinates(values: Any, count: int, name: str, size: tuple[int, int]) -> list[float]:
    """Numbers x, y, x, y, … in a picture of (height, width) `size`."""
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name} has coordinates {values!r:.80}, expected {count} numbers.")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{name} has coordinates {values!r:.80}, expected numbers.")
    height, width = size
    if not all(-1 <= value <= side + 1 for value, side in zip(values, [width, height] * count)):
        raise ValueError(f"{name} leaves the picture of {width} × {height} pixels: mark it again.")
    return [float(value) for value in values]


def _painted(
    region: dict[str, Any], size: tuple[int, int], name: str, limits: PageLimits
) -> tuple[np.ndarray, np.ndarray]:
    """What the strokes of a round brush have painted and what they have erased, as masks (H, W); the last stroke counts."""
    brush, widest = region.get("brush", 1), max(4, max(size) // 10)
    if isinstance(brush, bool) or not isinstance(brush, (int, float)) or not 0 < brush <= widest:
        raise ValueError(f"{name} has a brush of {brush!r:.20} pixels, expected more than 0 and at most {widest}.")
    strokes = _list(region["strokes"], limits.stroke_points, "strokes", name)
    strokes = [_list(stroke, limits.stroke_points, "points in a stroke", name) for stroke in strokes]
    if (count := sum(map(len, strokes))) > limits.stroke_points:
        raise ValueError(
            f"{name} has {counted(count, 'point')} in its strokes, expected at most {limits.stroke_points}: paint less."
        )
    labels = _labels(region.get("stroke_labels"), len(strokes), name)
    painted, erased = (Image.new("1", (size[1], size[0])) for _ in range(2))
    half = max(brush / 2, 0.5)
    for stroke, label in zip(strokes, labels):
        points = [(x, y) for x, y in (_coordinates(point, 2, name, size) for point in stroke)]
        for mask, fill in ((painted, label), (erased, 1 - label)):
            pen = ImageDraw.Draw(mask)
            pen.line(points, fill=fill, width=max(1, round(brush)))
            for x, y in points:
                pen.ellipse((x - half, y - half, x + half, y + half), fill=fill)
    if painted.getbbox() is None:
        raise ValueError(f"Nothing of {name} is left: undo the last stroke, or remove the region.")
    return np.asarray(painted), np.asarray(erased)
