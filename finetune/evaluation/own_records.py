"""Records of one's own → records whose regions have ids, and COCO's JSON of them for average precision.

What keeps a record from being read is refused; a region that a task has no use for is named. Knows the record's form.
"""

from __future__ import annotations

import json
from collections import defaultdict
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.problems import Problems
from ..data.sample import Sample, decode_mask, iterate, load_samples, mask_box
from ..data.validation import problems_of
from .benchmarks import Benchmark

FATAL = ("missing key", "wrong type", "no prompt", "wrong box", "empty box", "wrong points", "wrong point labels",
         "wrong mask size", "wrong mask")  # fmt: skip
"""Kinds of what `python -m finetune.data validate` finds that no model can be asked about."""


def read_own(data: str, benchmark: Benchmark, problems: Problems, limit: int | None) -> list[Sample]:
    """The first `limit` records. Raises `ValueError` for a region or a record that cannot be read."""
    found = []
    for number, sample in enumerate(islice(iterate(load_samples(data)), limit)):
        for kind, words in problems_of(sample, Path(), "skip"):
            if kind in FATAL:
                raise ValueError(
                    f"{data}, record {number + 1}: {kind}: {words}. "
                    f"python -m finetune.data validate --data {data} names all that is wrong."
                )
        regions = [{"id": f"{number}/{i}", **region} for i, region in enumerate(sample["regions"])]
        found.append({**sample, "image_id": number, "regions": regions})
        if benchmark.task in ("masks", "prompts", "detections"):
            rows = [row for row, r in enumerate(regions) if not _is_useless(r, found[-1], benchmark, problems)]
            found[-1] |= {"regions": [regions[row] for row in rows], "rows": rows}
    return found


def share_pictures(records: list[Sample]) -> dict[Any, int]:
    """Give records of one picture one `image_id`, the number of its first record, for average precision is a picture's.

    Gives the other names of each picture: the numbers of its records, its path, and its file's name where no other picture
    has that. Raises `ValueError` if records of one
    picture differ in its size.
    """
    firsts: dict[str, Sample] = {}
    names: dict[Any, int] = {}
    files: dict[str, set[int]] = defaultdict(set)
    for number, sample in enumerate(records):
        image = sample["image"]
        inside = image.get("bytes") if isinstance(image, dict) else None
        key = sha256(inside).hexdigest() if inside else str(image["path"] if isinstance(image, dict) else image)
        first = firsts.setdefault(key, sample)
        if (first["width"], first["height"]) != (sample["width"], sample["height"]):
            raise ValueError(
                f"Record {number + 1} says that its picture is {sample['width']} × {sample['height']}, but record "
                f"{first['image_id'] + 1}, of the same picture, {first['width']} × {first['height']}: correct one of them."
            )
        names[number] = sample["image_id"] = first["image_id"]
        if isinstance(image, str):
            names[image] = first["image_id"]
            files[Path(image).name].add(first["image_id"])
    return {**{name: of.pop() for name, of in files.items() if len(of) == 1}, **names}


def one_record_a_picture(records: list[Sample], problems: Problems) -> list[Sample]:
    """One record of each picture, with the regions of all its records; one that is the same as an earlier one is named."""
    pictures: dict[int, Sample] = {}
    for sample in records:
        whole = pictures.setdefault(sample["image_id"], {**sample, "regions": []})
        seen = {_same(region) for region in whole["regions"]}
        for region in sample["regions"]:
            if _same(region) in seen:
                problems.add("region given twice in a picture, the first counts", region["id"])
            else:
                whole["regions"].append(region)
    return list(pictures.values())


def _same(region: dict[str, Any]) -> str:
    """What two regions have in common that are one."""
    return json.dumps({key: value for key, value in region.items() if key != "id"}, sort_keys=True)


def _is_useless(region: dict[str, Any], sample: Sample, benchmark: Benchmark, problems: Problems) -> bool:
    """Whether a task of masks or boxes can do nothing with a region; then it is named."""
    size = (sample["height"], sample["width"])
    if benchmark.task in ("masks", "prompts") and not region.get("mask"):
        problems.add("region without a mask", region["id"])
    elif benchmark.task in ("masks", "detections") and not isinstance(region.get("label") or None, str):
        problems.add("region without a label", region["id"])
    elif region.get("mask") and not decode_mask(region["mask"], size).any():
        problems.add("empty mask", region["id"])
    elif benchmark.task != "prompts" and region.get("box") is None and not region.get("mask"):
        problems.add("region without a box", region["id"])
    else:
        return False
    return True


def reference_of(records: list[Sample], problems: Problems) -> dict[str, Any]:
    """COCO's JSON of records: labels are categories in alphabetical order, pictures have their first record's number.

    Of regions that are the same in everything, in records of one picture, the first is the truth.
    """
    names = sorted({r["label"] for s in records for r in s["regions"] if r.get("label")})
    numbers = {name: i for i, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    seen: set[tuple[int, str]] = set()
    for sample in records:
        size = (sample["height"], sample["width"])
        for region in sample["regions"]:
            box = region.get("box") or (mask_box(region["mask"], size) if region.get("mask") else None)
            if not region.get("label") or box is None:
                continue
            same = (sample["image_id"], _same(region))
            region["category_id"] = numbers[region["label"]]
            if same in seen:
                problems.add("region given twice in a picture, the first counts", region["id"])
                continue
            seen.add(same)
            x1, y1, x2, y2 = box
            area = (x2 - x1) * (y2 - y1)
            if region.get("mask"):  # COCO's size classes go by it
                area = int(decode_mask(region["mask"], size).sum())
            annotations.append(
                {"id": len(annotations) + 1, "image_id": sample["image_id"], "category_id": numbers[region["label"]],
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0,
                 **({"segmentation": region["mask"]} if region.get("mask") else {})}
            )  # fmt: skip
    images = {s["image_id"]: {"id": s["image_id"], "height": s["height"], "width": s["width"]} for s in records}
    return {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
    }
