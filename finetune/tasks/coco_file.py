"""COCO's layout and LVIS's → records whose regions have ids, and the truth that average precision is measured against.

An annotation that cannot be used, or that no model can be asked about, is named; of entries that are double the first
counts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import Record, Region, decode_mask
from .files import Problems, is_number, read_each
from .items import EvaluationSet

BORDER = 0.5
"""Pixels that a box may lie beyond its picture's border by rounding, unnamed."""


def read_coco(
    content: Any,
    found: EvaluationSet,
    title: str,
    limit: int | None = None,
    *,
    needs: Collection[str] = (),
    has_captions: bool = False,
    asks_crowds: bool = False,
) -> None:
    """Fill `found` with records of a file's first `limit` pictures, and with its content as the reference.

    needs: what an annotation must have, of "mask" and "label", which is a known category. has_captions: whether annotations
    have captions (or MDETR's and GLaMM's pictures), by which regions are then named, after their place in the picture.
    asks_crowds: whether regions of crowds are asked about. Of pictures beyond the limit nothing is named. Raises `KeyError`
    or `TypeError` for a file of another form.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise TypeError(f"expected COCO's object of images, annotations and categories, got a {kind}")
    problems = found.problems
    categories = content.get("categories", [])
    names = {c["id"]: str(c["name"]) for c in categories}
    reading = _Reading(names, "label" in needs, "mask" in needs, has_captions, asks_crowds)
    images = _distinct_pictures(content["images"], problems)
    by_id = {image["id"]: image for image in images}
    regions: dict[Any, list[Region]] = {image["id"]: [] for image in images[:limit]}
    annotations = []

    def read(key: str, a: dict[str, Any]) -> None:
        image = by_id.get(a["image_id"])
        if image is None:
            problems.add("annotation of a picture that is not listed", key)
            return
        asked = image["id"] in regions
        true, region = reading.annotation(key, a, image, problems if asked else Problems())
        if true is not None:
            annotations.append(true)
        if region is not None and asked:
            regions[image["id"]].append(region)

    list(read_each(_distinct_annotations(content["annotations"], has_captions, problems), read, problems))
    found.records = [
        Record(_picture_name(image, found.root), image["width"], image["height"], regions[image["id"]], source=title,
               image_id=image["id"])
        for image in images[:limit]
    ]  # fmt: skip
    found.reference = {"images": images, "annotations": annotations, "categories": categories}


def mask_fault(mask: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask of a picture of (height, width) `size`, in a few words; None if nothing is."""
    if not mask:
        return "no mask"
    if isinstance(mask, dict) and list(mask.get("size") or []) != list(size):
        return "mask of another size than its picture"
    try:
        decode_mask(mask, size)
    except ValueError:
        return "mask with a broken polygon" if isinstance(mask, list) else "mask with broken counts"
    return None


def clipped_box(bbox: Any, width: int, height: int) -> tuple[list[float], str | None] | None:
    """A box xywh → xyxy inside a picture, at least a pixel wide and high, and what was done to it; None if nothing is left."""
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        return None
    x, y, w, h = (float(v) for v in bbox)
    box = [max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))]
    if w <= 0 or h <= 0 or box[2] <= box[0] or box[3] <= box[1]:
        return None
    if min(box[2] - box[0], box[3] - box[1]) < 1:
        (x1, x2), (y1, y2) = _widened(box[0], box[2], width), _widened(box[1], box[3], height)
        return [x1, y1, x2, y2], "thinner than a pixel, widened to one"
    is_beyond = x < -BORDER or y < -BORDER or x + w > width + BORDER or y + h > height + BORDER
    return box, "beyond its picture's border, clipped" if is_beyond else None


def _widened(low: float, high: float, end: int) -> tuple[float, float]:
    """A side of a box, at least a pixel long, between 0 and `end`."""
    if high - low >= 1:
        return low, high
    start = min(max((low + high - 1) / 2, 0.0), end - 1.0)
    return start, start + 1.0


@dataclass
class _Reading:
    """How annotations of one file are read; names: of categories, by id."""

    names: dict[Any, str]
    needs_label: bool
    needs_mask: bool
    has_captions: bool
    asks_crowds: bool

    def annotation(
        self, key: str, a: dict[str, Any], image: dict[str, Any], problems: Problems
    ) -> tuple[dict[str, Any] | None, Region | None]:
        """The annotation as truth of average precision, and the region to ask about; None where it cannot be that."""
        if self.needs_label and a.get("category_id") not in self.names:
            problems.add("annotation of an unknown category", key)
            return None, None
        size = (image["height"], image["width"])
        if self.needs_mask and (fault := mask_fault(a.get("segmentation"), size)):
            problems.add(fault, key)
            return None, None
        true = _with_area(key, a, size, problems) if self.needs_label else a
        is_asked = not a.get("iscrowd") or self.asks_crowds
        found = clipped_box(a.get("bbox"), image["width"], image["height"])
        if found is None:
            if is_asked:
                problems.add("box empty or outside its picture", key)
            return true if self.needs_label and self.needs_mask else None, None  # its mask is true whatever its box is
        if not is_asked:
            return true, None
        box, change = found
        if change:
            problems.add(f"box {change}", key)
        region = Region(box, mask=a["segmentation"] if self.needs_mask else None, id=key)
        if "category_id" in a:
            region.category_id, region.label = a["category_id"], self.names.get(a["category_id"], "")
        if self.has_captions:
            region.captions = _captions(a, image)
            if not region.captions:
                problems.add("empty reference", key)
                return true, None
        return true, region


def _captions(a: dict[str, Any], image: dict[str, Any]) -> list[str]:
    if "caption" not in a and "caption" not in image:
        raise KeyError("caption")
    caption = a.get("caption", image.get("caption"))
    return [" ".join(caption.split())] if isinstance(caption, str) and caption.strip() else []


def _with_area(key: str, a: dict[str, Any], size: tuple[int, int], problems: Problems) -> dict[str, Any]:
    """The annotation with what pycocotools cannot do without."""
    area = a.get("area")
    if not is_number(area):
        if "area" in a:
            problems.add("area that is no number, taken from the box or the mask", key)
        found = clipped_box(a.get("bbox"), size[1], size[0])
        if found is not None:
            area = a["bbox"][2] * a["bbox"][3]
        else:
            area = int(decode_mask(a["segmentation"], size).sum()) if a.get("segmentation") else 0
    return {**a, "area": area, "iscrowd": int(bool(a.get("iscrowd")))}


def _distinct_pictures(images: list[dict[str, Any]], problems: Problems) -> list[dict[str, Any]]:
    """Pictures, each id once. Raises `ValueError` for one without a size, and for ids of several kinds."""
    found: dict[Any, dict[str, Any]] = {}
    for image in images:
        width, height = image["width"], image["height"]
        if not all(isinstance(n, int) and n > 0 for n in (width, height)):
            raise ValueError(
                f"Picture {image['id']} has width {width} and height {height}, expected whole numbers from 1."
            )
        if image["id"] in found:
            problems.add("picture listed twice, the first counts", str(image["id"]))
        else:
            found[image["id"]] = image
    if len({type(key) for key in found}) > 1:
        raise ValueError("Pictures have numbers and words for ids, expected one kind: give them all numbers.")
    return list(found.values())


def _distinct_annotations(
    annotations: list[dict[str, Any]], by_place: bool, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Annotations with what names their regions: their id; for captions their place in the picture, as papers have it.

    An id that comes again is dropped; where ids name nothing, what is the same in everything.
    """
    places: dict[Any, int] = {}
    seen: set[str] = set()
    for number, a in enumerate(annotations):
        if not isinstance(a, dict) or a.get("image_id") is None:
            problems.add("annotation without image_id", f"annotation {number}")
            continue
        place = places.get(a["image_id"], 0)
        places[a["image_id"]] = place + 1
        is_named = not by_place and a.get("id") is not None
        key = str(a["id"]) if is_named else f"{a['image_id']}_region_{place}"
        same = key if is_named else json.dumps(a, sort_keys=True)
        if same in seen and a.get("id") is not None:
            problems.add("annotation given twice, the first counts", key)
            continue
        seen.add(same)
        yield key, a


def _picture_name(image: dict[str, Any], root: Path) -> str:
    """Where a picture lies under `root`: by its name, or by COCO's address with or without the split's folder."""
    if "file_name" in image and (root / image["file_name"]).is_file():
        return str(image["file_name"])
    parts = str(image.get("coco_url", image.get("file_name", ""))).split("/")
    inner = "/".join(parts[-2:])
    return inner if (root / inner).is_file() else parts[-1]
