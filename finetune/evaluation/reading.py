"""Published files and records → what is evaluated: records whose regions have ids, and COCO's JSON for average precision.

Whatever cannot be used is named in `Problems`. Knows files; who answers and how it is scored is not its business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.gar_bench import GarBenchSource
from ..data.glyph_questions import FAMILIES, draw_question
from ..data.glyph_records import number_regions
from ..data.glyph_scenes import draw_scene, make_scene
from ..data.sample import GLYPH_SCHEME, Sample, encode_mask, iterate, load_samples, mask_box
from .benchmarks import Benchmark
from .problems import Problems

GLYPH_SCENES = 200
"""Scenes of the GlyphScenes benchmark, unless `limit` says otherwise."""


@dataclass
class EvaluationSet:
    """Records to evaluate; `root` is the folder their pictures' paths start from.

    reference: COCO's JSON with the truth of all pictures, where average precision needs it.
    """

    records: list[Sample]
    root: Path
    problems: Problems = field(default_factory=Problems)
    reference: dict[str, Any] | None = None


def read_set(
    benchmark: Benchmark,
    *,
    data: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> EvaluationSet:
    """Read records of one's own (`data`), or a published file (`annotations`, `images`); GlyphScenes needs neither.

    limit: records, which are pictures, from the first. Raises `ValueError` for files that are missing, or not of the
    benchmark's form, before anything runs.
    """
    if data is not None and annotations is not None:
        raise ValueError("Got data and annotations: give records of your own, or the benchmark's file.")
    if data is not None:
        root = Path(data) if Path(data).is_dir() else Path(data).parent
        found = EvaluationSet([], root)
        found.records = [
            _numbered(s, n, found.problems) for n, s in enumerate(islice(iterate(load_samples(data)), limit))
        ]
        if benchmark.task in ("detections", "masks"):
            found.reference = reference_of(found.records)
    elif benchmark.layout == "glyph_scenes":
        found = EvaluationSet([_glyph_record(i, seed) for i in range(limit or GLYPH_SCENES)], Path())
    elif annotations is None or images is None:
        raise ValueError(f"{benchmark.name} needs its annotations=… with images=…, or data=… with records of your own.")
    elif not Path(annotations).is_file() or not Path(images).is_dir():
        missing = annotations if not Path(annotations).is_file() else images
        raise ValueError(
            f"Found nothing at {missing}: give the file and the folder of pictures that the benchmark offers."
        )
    else:
        found = EvaluationSet([], Path(images))
        readers = {
            "coco": _read_coco,
            "lvis": _read_coco,
            "osprey": _read_osprey,
            "gar_bench": _read_gar,
            "pope": _read_pope,
        }
        if benchmark.layout not in readers:
            raise ValueError(f"{benchmark.name} has no file of its own: give data=… with records.")
        try:
            found.records = list(islice(readers[benchmark.layout](Path(annotations), found, benchmark), limit))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{annotations} is not the file of {benchmark.name}: {error!r}.") from error
    if not found.records:
        raise ValueError(
            f"There is nothing to evaluate, for the file holds no records: is it the file of {benchmark.name}?"
        )
    return found


def _numbered(sample: Sample, number: int, problems: Problems) -> Sample:
    regions = [{"id": f"{number}/{i}", **region} for i, region in enumerate(sample["regions"])]
    return {**sample, "image_id": number, "regions": regions}


def _read_coco(path: Path, found: EvaluationSet, benchmark: Benchmark) -> Iterator[Sample]:
    """COCO's layout, and LVIS's: categories, or captions on annotations or (MDETR, GLaMM) on pictures."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"expected COCO's object of images, annotations and categories, got a {type(content).__name__}")
    found.reference = content
    names = {c["id"]: str(c["name"]) for c in content.get("categories", [])}
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    known = {image["id"] for image in content["images"]}
    found.problems.extend("annotations of a picture that is not listed", [str(i) for i in by_image if i not in known])
    for image in content["images"]:
        regions = []
        for number, a in enumerate(by_image.get(image["id"], [])):
            key = f"{image['id']}_region_{number}" if benchmark.task == "captions" else str(a.get("id", number))
            region = _coco_region(key, a, image, names, found.problems, benchmark)
            if region is not None:
                regions.append(region)
        yield {
            "image": _picture_name(image, found.root), "image_id": image["id"], "width": image["width"],
            "height": image["height"], "regions": regions, "conversations": [], "source": benchmark.title,
        }  # fmt: skip


def _coco_region(
    key: str, a: dict[str, Any], image: dict[str, Any], names: dict[Any, str], problems: Problems, benchmark: Benchmark
) -> dict[str, Any] | None:
    if a.get("iscrowd") and benchmark.task not in ("detections",):  # TAP's protocol labels crowds, too
        return None
    x, y, w, h = (float(v) for v in a["bbox"])
    if not np.isfinite([x, y, w, h]).all() or w <= 0 or h <= 0 or x >= image["width"] or y >= image["height"]:
        problems.add("box empty or outside its picture", key)
        return None
    box = [max(x, 0.0), max(y, 0.0), min(x + w, float(image["width"])), min(y + h, float(image["height"]))]
    region: dict[str, Any] = {"id": key, "box": box}
    if a.get("segmentation"):
        region["mask"] = a["segmentation"]
    if "category_id" in a:
        region |= {"category_id": a["category_id"], "label": names.get(a["category_id"], "")}
    if benchmark.task == "captions":
        caption = a.get("caption", image.get("caption"))
        if caption is None:
            raise KeyError("caption")
        if not caption.strip():
            problems.add("empty reference", key)
            return None
        region["captions"] = [" ".join(caption.split())]
    return region


def _picture_name(image: dict[str, Any], root: Path) -> str:
    """Where a picture lies under `root`: by its name, or by COCO's address with or without the split's folder."""
    if "file_name" in image and (root / image["file_name"]).is_file():
        return str(image["file_name"])
    parts = str(image.get("coco_url", image.get("file_name", ""))).split("/")
    inner = "/".join(parts[-2:])
    return inner if (root / inner).is_file() else parts[-1]


def _read_osprey(path: Path, found: EvaluationSet, benchmark: Benchmark) -> Iterator[Sample]:
    """Osprey's lists of {file_name, height, width, categories, annotations}; a COCO or LVIS file is read as such."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        yield from _read_coco(path, found, benchmark)
        return
    for number, entry in enumerate(content):
        size = (entry["height"], entry["width"])
        regions = []
        for i, (name, a) in enumerate(zip(entry["categories"], entry["annotations"])):
            box = mask_box(a["segmentation"], size)
            if box is None:
                found.problems.add("empty mask", f"{number}/{i}")
                continue
            regions.append({"id": f"{number}/{i}", "box": box, "mask": a["segmentation"], "label": name})
        yield {
            "image": entry["file_name"], "image_id": number, "height": size[0], "width": size[1], "regions": regions,
            "conversations": [], "source": benchmark.title,
        }  # fmt: skip


def _read_gar(path: Path, found: EvaluationSet, benchmark: Benchmark) -> Iterator[Sample]:
    source = GarBenchSource(output=str(found.root / "records.jsonl"), images=str(found.root), annotations=str(path))
    for number, sample in enumerate(source.records()):
        yield _numbered(sample, number, found.problems)


def _read_pope(path: Path, found: EvaluationSet, benchmark: Benchmark) -> Iterator[Sample]:
    """POPE's lines {question_id, image, text, label}; the region is the whole picture."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        try:
            with Image.open(found.root / entry["image"]) as picture:
                width, height = picture.size
        except OSError:
            width = height = 1  # the evaluation names it when it cannot open it
        yield {
            "image": entry["image"], "image_id": entry["question_id"], "width": width, "height": height,
            "regions": [{"id": str(entry["question_id"]), "box": [0, 0, width, height]}], "source": benchmark.title,
            "conversations": [
                {"role": "user", "content": f"<region1> is the whole picture. {entry['text']}"},
                {"role": "assistant", "content": entry["label"]},
            ],
        }  # fmt: skip


def _glyph_record(index: int, seed: int) -> Sample:
    """A scene of the test split with a question of every family that it has one for, each to be asked alone."""
    scene = make_scene(index, "test", seed)
    picture = draw_scene(scene)
    visible = set(np.flatnonzero(picture.masks.any(axis=(1, 2))).tolist())
    order: list[int] = []
    turns: list[dict[str, Any]] = []
    for k, family in enumerate(FAMILIES):
        question = draw_question(scene, family, np.random.RandomState([223, seed, index, k]))
        if question is None or not set(question.objects) <= visible:
            continue
        text, answer = number_regions(question, order)
        turns += [
            {"role": "user", "content": text, "type": family, "options": list(question.choices)},
            {"role": "assistant", "content": answer},
        ]
    height, width = picture.image.shape[:2]
    regions = [
        {"id": f"{index}/{i}", "box": picture.boxes[i].tolist(), "mask": encode_mask(picture.masks[i]),
         "label": scene.objects[i].kind}
        for i in order
    ]  # fmt: skip
    return {
        "image": f"{GLYPH_SCHEME}test/{seed}/{index}/512", "image_id": index, "width": width, "height": height,
        "regions": regions, "conversations": turns, "source": "GlyphScenes",
    }  # fmt: skip


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
            annotations.append(
                {"id": len(annotations) + 1, "image_id": sample["image_id"], "category_id": numbers[region["label"]],
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
                 **({"segmentation": region["mask"]} if region.get("mask") else {})}
            )  # fmt: skip
    images = [{"id": s["image_id"], "height": s["height"], "width": s["width"]} for s in records]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in numbers.items()],
    }
