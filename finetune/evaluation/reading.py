"""Published files and records → what is evaluated: records whose regions have ids, and COCO's JSON for average precision.

Whatever cannot be used is named in `Problems`. Knows which file is read how; who answers and how it is scored is not its
business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.entries import EntryError
from ..data.sample import GLYPH_SCHEME, Sample, encode_mask, mask_box
from ..glyphs.questions import FAMILIES, draw_question, number_regions
from ..glyphs.scenes import draw_scene, make_scene
from .benchmarks import Benchmark
from .coco_reading import mask_fault, read_coco
from .gar_bench_cap import places_of as gar_cap_places
from .gar_bench_cap import read_gar_cap
from .mdvp_bench import places_of as mdvp_places
from .mdvp_bench import read_mdvp
from .own_records import one_record_a_picture, read_own, reference_of, share_pictures
from .paradlc_bench import read_paradlc
from .places import Place
from .problems import Problems, numbered, read_each
from .question_files import gar_places, pope_places, read_gar, read_pope
from .text_files import read_entries, read_json

GLYPH_SCENES = 200
"""Scenes of the GlyphScenes benchmark, unless `limit` says otherwise."""


@dataclass
class EvaluationSet:
    """Records to evaluate; `root` is the folder their pictures' paths start from.

    reference: COCO's JSON with the truth of all pictures, where average precision needs it. boxes: a detector's, by
    picture; None for the true ones. places: items in the order of the published file, where it is one of single questions
    or of labels. pictures: other names by which predictions may call a picture of one's own records.
    """

    records: list[Sample]
    root: Path
    problems: Problems = field(default_factory=Problems)
    reference: dict[str, Any] | None = None
    boxes: dict[Any, list[dict[str, Any]]] | None = None
    places: list[Place] = field(default_factory=list)
    pictures: dict[Any, int] = field(default_factory=dict)


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
        found = EvaluationSet([], Path(data) if Path(data).is_dir() else Path(data).parent)
        found.records = read_own(data, benchmark, found.problems, limit)
        if benchmark.task in ("detections", "masks"):
            found.pictures = share_pictures(found.records)
            if benchmark.task == "masks":
                found.records = one_record_a_picture(found.records, found.problems)
            found.reference = reference_of(found.records, found.problems)
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
        try:
            _read_published(Path(annotations), found, benchmark, limit)
        except (KeyError, TypeError, AttributeError, EntryError) as error:
            raise ValueError(f"{annotations} is not the file of {benchmark.name}: {error!r}.") from error
    if not found.records:
        raise ValueError(
            f"There is nothing to evaluate, for the file holds no records: is it the file of {benchmark.name}?"
        )
    return found


def _read_published(path: Path, found: EvaluationSet, benchmark: Benchmark, limit: int | None) -> None:
    """Fill in the records of a benchmark's own file, and the reference of a COCO or LVIS file."""
    if benchmark.layout in ("gar_bench", "gar_bench_cap", "pope", "mdvp_bench"):
        content = read_entries(path)
        if not any(isinstance(entry, dict) for entry in content):
            raise TypeError("expected an object for every question")
        content = [entry if isinstance(entry, dict) else {} for entry in content]  # which lacks everything
        found.places, records = _questions_of(content, path, found, benchmark)
        found.records = list(islice(records, limit))
    elif benchmark.layout == "paradlc_bench":
        found.records = list(islice(read_paradlc(path, benchmark.title, found.problems), limit))
    elif benchmark.layout == "records":
        raise ValueError(f"{benchmark.name} has no file of its own: give data=… with records.")
    else:
        content = read_json(path)
        if isinstance(content, dict):
            found.records, found.reference = read_coco(content, found.root, benchmark, found.problems, limit)
        elif benchmark.layout == "osprey":
            content = [entry if isinstance(entry, dict) else {} for entry in content]
            found.places = _osprey_places(content)
            found.records = list(islice(_osprey_records(content, found, benchmark), limit))
        else:
            kind = type(content).__name__
            raise TypeError(f"expected COCO's object of images, annotations and categories, got a {kind}")


def _questions_of(
    content: list[Any], path: Path, found: EvaluationSet, benchmark: Benchmark
) -> tuple[list[Place], Iterator[Sample]]:
    """The items of a file of single questions in its order, and its records."""
    root, problems = found.root, found.problems
    if benchmark.layout == "gar_bench":
        return gar_places(content), read_gar(content, path, root, problems)
    if benchmark.layout == "gar_bench_cap":
        return gar_cap_places(content), read_gar_cap(content, benchmark, problems)
    if benchmark.layout == "mdvp_bench":
        return mdvp_places(content), read_mdvp(content, root, benchmark.title, problems)
    return pope_places(content), read_pope(content, root, benchmark.title, problems)


def _osprey_places(content: list[Any]) -> list[Place]:
    """The named masks of Osprey's lists in their order."""
    return [
        Place(f"{number}/{i}", {"Answer": name, "image": entry.get("file_name")})
        for number, entry in enumerate(content)
        for i, name in enumerate(entry.get("categories") or [])
    ]


def _osprey_records(content: list[Any], found: EvaluationSet, benchmark: Benchmark) -> Iterator[Sample]:
    """Osprey's lists of {file_name, height, width, categories, annotations}."""

    def read(number: str, entry: dict[str, Any]) -> Sample:
        size = (entry["height"], entry["width"])
        names, annotations = entry["categories"], entry["annotations"]
        if len(names) != len(annotations):
            found.problems.add("entry with another number of names than of masks", number)
            names = annotations = []
        regions = []
        for i, (name, a) in enumerate(zip(names, annotations)):
            fault = mask_fault(a.get("segmentation"), size)
            box = None if fault else mask_box(a["segmentation"], size)
            if box is None:
                found.problems.add(fault or "empty mask", f"{number}/{i}")
                continue
            label = "" if name is None else str(name)
            regions.append({"id": f"{number}/{i}", "box": box, "mask": a["segmentation"], "label": label})
        return {
            "image": entry["file_name"], "image_id": int(number), "height": size[0], "width": size[1], "regions": regions,
            "conversations": [], "source": benchmark.title,
        }  # fmt: skip

    return read_each(numbered(content), read, found.problems)


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
