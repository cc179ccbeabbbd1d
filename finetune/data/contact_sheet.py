"""Draws records on a contact sheet: each picture with its regions, and the beginning of its conversation below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tap_tokenizer import draw_regions

from ..records import Record, Region, decode_mask, mask_box, open_image

TILE = 420
TEXT_LINES = 7
FONT_SIZE = 14


def contact_sheet(records: Sequence[Record], root: Path, columns: int = 3) -> Image.Image:
    """A sheet of tiles, row by row; masks filled, boxes and points outlined, regions named as in the talk."""
    if not records:
        raise ValueError("Got no records to show: the file is empty, or start lies behind its end.")
    tiles = [_tile(record, root) for record in records]
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * TILE, sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            sheet.paste(tile, (j * TILE, sum(heights[:i])))
    return sheet


def _tile(record: Record, root: Path) -> Image.Image:
    picture = open_image(record, root)
    size, regions = (picture.shape[0], picture.shape[1]), record.regions
    masks = [np.zeros(size, bool) if region.mask is None else decode_mask(region.mask, size) for region in regions]
    drawn = draw_regions(
        picture,
        masks=np.stack(masks) if masks else None,
        boxes=[_outline(region, size) for region in regions] or None,
        points=[region.points or [] for region in regions],
        point_labels=[region.point_labels or [1] * len(region.points or []) for region in regions],
    )
    room = TILE - 12
    drawn.thumbnail((room, room))
    lines: list[str] = []
    for turn in record.conversations:
        mark = {"user": "Q: ", "assistant": "A: "}.get(turn.role, "")
        lines += textwrap.wrap(mark + turn.content, 56) or [mark]
    height = drawn.height + 16 + min(len(lines), TEXT_LINES) * (FONT_SIZE + 4)
    tile = Image.new("RGB", (TILE, height + 8), "white")
    tile.paste(drawn, ((TILE - drawn.width) // 2, 6))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(lines[:TEXT_LINES]):
        more = " …" if number == TEXT_LINES - 1 and len(lines) > TEXT_LINES else ""
        pen.text((8, drawn.height + 10 + number * (FONT_SIZE + 4)), line + more, fill="black", font=font)
    return tile


def _outline(region: Region, size: tuple[int, int]) -> list[float]:
    """The box to draw of a region: its own, its mask's, or the one around its points."""
    if region.box is not None:
        return region.box
    around = None if region.mask is None else mask_box(region.mask, size)
    if around is not None or not region.points:
        return around or [0.0, 0.0, 0.0, 0.0]
    xs, ys = np.asarray(region.points, dtype=float).T
    return [float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())]
