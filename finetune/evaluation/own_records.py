"""Records of one's own → records whose regions have ids, and COCO's JSON of them for average precision.

What keeps a record from being read is refused; a region that a task has no use for is named. Knows the record's form.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from ..data.sample import Sample, decode_mask, iterate, load_samples, mask_box
from ..data.validation import problems_of
from .benchmarks import Benchmark
from .problems import Problems

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
            found[-1]["regions"] = [r for r in regions if not _is_useless(r, found[-1], benchmark, problems)]
    return found


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


def reference_of(records: list[Sample]) -> dict[str, Any]:
    """COCO's JSON of records: labels are categories in alphabetical order, pictures have their numbers."""
    names = sorted({r["label"] for s in records for r in s["regions"] if r.get("label")})
    numbers = {name: i for i, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    for sample in records:
        size = (sample["height"], sample["width"])
        for region in sample["regions"]:
            box = region.get("box") or (mask_box(region["mask"], size) if region.get("mask") else None)
            if not region.get("label") or box is None:
                continue
            region["category_id"] = numbers[region["label"]]
            x1, y1, x2, y2 = box
            area = (x2 - x1) * (y2 - y1)
            if region.get("mask"):  # COCO's size classes go by it
                area = int(decode_mask(region["mask"], size).sum())
            annotations.append(
                {"id": len(annotations) + 1, "image_id": sample["image_id"], "category_id": numbers[region["label"]],
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0,
                 **({"segmentation": region["mask"]} if region.get("mask") else {})}
            )  # fmt: skip
    images = [{"id": s["image_id"], "height": s["height"], "width": s["width"]} for s in records]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
    }
