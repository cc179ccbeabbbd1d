"""A user's own records → records whose regions have ids, and COCO's JSON of them for average precision.

A record that cannot be read is refused. A region that the task cannot use is left out and named.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.validation import problems_of
from ..records import Record, Region, decode_mask, load_rows, mask_box
from .items import EvaluationSet

FATAL = ("missing key", "wrong type", "no prompt", "wrong box", "empty box", "wrong points", "wrong point labels",
         "wrong mask size", "wrong mask")  # fmt: skip
"""Kinds of problems from `python -m finetune.data validate` that make a record unusable."""


def read_own(data: str, needs: Collection[str], limit: int | None) -> EvaluationSet:
    """The first `limit` records of a file.

    needs: what a region must have, of "mask", "label" and "box", to be of use; if it must have nothing, all are kept.
    Raises `ValueError` for a region or a record that cannot be read.
    """
    found = EvaluationSet([], Path(data) if Path(data).is_dir() else Path(data).parent)
    for number, row in enumerate(islice(load_rows(data), limit)):
        for kind, words in problems_of(row, Path(), "skip"):
            if kind in FATAL:
                raise ValueError(
                    f"{data}, record {number + 1}: {kind}: {words}. "
                    f"python -m finetune.data validate --data {data} names all that is wrong."
                )
        record = replace(Record.from_dict(row), image_id=number)
        for i, region in enumerate(record.regions):
            region.id = f"{number}/{i}" if region.id is None else region.id
        if needs:
            found.kept[number] = kept = []
            for i, region in enumerate(record.regions):
                if fault := _fault(region, record.size, needs):
                    found.problems.add(fault, str(region.id))
                else:
                    kept.append(i)
            record.regions = [record.regions[i] for i in kept]
        found.records.append(record)
    return found


def _fault(region: Region, size: tuple[int, int], needs: Collection[str]) -> str | None:
    """Why a region cannot be used by a task that needs something of it; None if it can."""
    if "mask" in needs and not region.mask:
        return "region without a mask"
    if "label" in needs and not (isinstance(region.label, str) and region.label):
        return "region without a label"
    if region.mask and not decode_mask(region.mask, size).any():
        return "empty mask"
    return "region without a box" if "box" in needs and region.box is None and not region.mask else None


def share_pictures(found: EvaluationSet) -> None:
    """Give all records of a picture one `image_id`, its first record's number: average precision is computed per picture.

    `found.pictures` gets the other names of each picture: the numbers of its records, its path, and its file's name where
    no other picture has that. Raises `ValueError` if records of one picture differ in its size.
    """
    firsts: dict[str, Record] = {}
    names: dict[Any, int] = {}
    files: dict[str, set[int]] = defaultdict(set)
    for number, record in enumerate(found.records):
        image = record.image
        inside = image.get("bytes") if isinstance(image, dict) else None
        key = sha256(inside).hexdigest() if inside else str(image["path"] if isinstance(image, dict) else image)
        first = firsts.setdefault(key, record)
        if first.size != record.size:
            raise ValueError(
                f"Record {number + 1} says that its picture is {record.width} × {record.height}, but record "
                f"{first.image_id + 1}, of the same picture, {first.width} × {first.height}: correct one of them."
            )
        names[number] = record.image_id = first.image_id
        if isinstance(image, str):
            names[image] = first.image_id
            files[Path(image).name].add(first.image_id)
    found.pictures = {**{name: of.pop() for name, of in files.items() if len(of) == 1}, **names}


def one_record_a_picture(found: EvaluationSet) -> None:
    """One record for each picture, with the regions of all its records. A region that equals an earlier one is named."""
    pictures: dict[int, Record] = {}
    for record in found.records:
        whole = pictures.setdefault(record.image_id, replace(record, regions=[]))
        seen = {_same(region) for region in whole.regions}
        for region in record.regions:
            if _same(region) in seen:
                found.problems.add("region given twice in a picture, the first counts", str(region.id))
            else:
                whole.regions.append(region)
    found.records = list(pictures.values())


def _same(region: Region) -> str:
    """What makes two regions the same: a key to compare them by."""
    return json.dumps(replace(region, id=None).to_dict(), sort_keys=True)


def make_reference(found: EvaluationSet) -> None:
    """COCO's JSON of the records: labels are categories in alphabetical order, pictures have their first record's number.

    Of regions that are the same in everything, in records of one picture, the first is the truth.
    """
    names = sorted({r.label for record in found.records for r in record.regions if r.label})
    numbers = {name: i for i, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    seen: set[tuple[int, str]] = set()
    for record in found.records:
        for region in record.regions:
            box = region.box or (mask_box(region.mask, record.size) if region.mask else None)
            if not region.label or box is None:
                continue
            same = (record.image_id, _same(region))
            region.category_id = numbers[region.label]
            if same in seen:
                found.problems.add("region given twice in a picture, the first counts", str(region.id))
                continue
            seen.add(same)
            x1, y1, x2, y2 = box
            area = (x2 - x1) * (y2 - y1)
            if region.mask:  # COCO's size classes go by it
                area = int(decode_mask(region.mask, record.size).sum())
            annotations.append(
                {"id": len(annotations) + 1, "image_id": record.image_id, "category_id": numbers[region.label],
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0,
                 **({"segmentation": region.mask} if region.mask else {})}
            )  # fmt: skip
    images = {r.image_id: {"id": r.image_id, "height": r.height, "width": r.width} for r in found.records}
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    found.reference = {"images": list(images.values()), "annotations": annotations, "categories": categories}
