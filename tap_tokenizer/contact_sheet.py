"""A picture of regions that were found: each in its surroundings, outlined, with its score and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .counts import counted
from .foreign_files import stays_inside
from .image_processing_tap import load_rgb
from .region_index import RegionHit

TILE, GAP, WORDS = 224, 12, 52
PAPER, INK, FAINT, MARK = (250, 250, 248), (28, 28, 32), (110, 110, 118), (214, 69, 40)
SURROUNDINGS = 0.6
"""How much of a region's longer side is shown around it, on each side."""


def draw_hits(hits: Sequence[RegionHit], folder: str | Path, *, columns: int = 5) -> Image.Image:
    """The regions that `RegionIndex.search` found, best first, row by row; `folder` is where their pictures lie.

    Under each stand its score, its caption or name, and its picture. One whose picture cannot be read, or does not lie in the
    folder, is an empty tile that says so. Raises `ValueError` if there are no regions.
    """
    if not hits or columns < 1:
        raise ValueError(
            f"Got {counted(len(hits), 'region')} in {counted(columns, 'column')}, expected at least one of each."
        )
    columns = min(columns, len(hits))
    rows = -(-len(hits) // columns)
    step = TILE + WORDS + GAP
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * step + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for i, hit in enumerate(hits):
        x, y = GAP + i % columns * (TILE + GAP), GAP + i // columns * step
        sheet.paste(_tile(hit, Path(folder)), (x, y))
        words = hit.caption or hit.name or ""
        pen.text((x, y + TILE + 5), _fitting(pen, f"{i + 1}.  {hit.score:.3f}  {words}", bold), INK, bold)
        pen.text((x, y + TILE + 27), _fitting(pen, hit.picture, small), FAINT, small)
    return sheet


def _tile(hit: RegionHit, folder: Path) -> Image.Image:
    if not stays_inside(hit.picture):  # an index of somebody else's must not show what lies elsewhere
        return _empty_tile("The picture is not in the folder.")
    try:
        picture = load_rgb(folder / hit.picture)
    except (ValueError, OSError):
        return _empty_tile("The picture cannot be read.")
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = hit.box
    side = max(x2 - x1, y2 - y1) * (1 + 2 * SURROUNDINGS)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    crop = [max(0, round(left)), max(0, round(top)), min(width, round(left + side)), min(height, round(top + side))]
    shown = Image.fromarray(np.ascontiguousarray(picture[crop[1] : crop[3], crop[0] : crop[2]]))
    scale = TILE / max(shown.size)
    tile = ImageOps.pad(shown, (TILE, TILE), Image.Resampling.LANCZOS, color=(235, 235, 232))
    dx, dy = (TILE - shown.width * scale) / 2, (TILE - shown.height * scale) / 2
    box = [
        dx + (x1 - crop[0]) * scale,
        dy + (y1 - crop[1]) * scale,
        dx + (x2 - crop[0]) * scale,
        dy + (y2 - crop[1]) * scale,
    ]
    pen = ImageDraw.Draw(tile)
    pen.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=(255, 255, 255), width=4)
    pen.rectangle(box, outline=MARK, width=2)
    return tile


def _empty_tile(words: str) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), (225, 225, 222))
    ImageDraw.Draw(tile).text((12, TILE // 2 - 8), words, INK, ImageFont.load_default(13))
    return tile


def _fitting(pen: ImageDraw.ImageDraw, words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Words that are as wide as a tile at most, cut with an ellipsis."""
    if pen.textlength(words, font) <= TILE:
        return words
    while words and pen.textlength(words + "…", font) > TILE:
        words = words[:-1]
    return words + "…"
