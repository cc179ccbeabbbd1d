"""Regions as JSON tells of them, so that the names in an answer lead to what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tap_tokenizer import RegionTokens


def region_records(names: Sequence[str], regions: RegionTokens) -> list[dict[str, Any]]:
    """Each region's name, box (xyxy, in pixels of its picture) and mask (COCO's run lengths, uncompressed)."""
    rows = zip(names, regions.boxes.tolist(), regions.coco_rle(), strict=True)
    return [{"name": name, "box": [round(x, 2) for x in box], "mask": mask} for name, box, mask in rows]
