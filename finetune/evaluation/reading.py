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

from ..data.coco import CocoTruth
from ..data.osprey import read_named_masks
from ..data.problems import EntryError, Problems
from ..data.sample import Sample
from ..glyphs.benchmark import EVALUATION_SCENES, benchmark_records
from .benchmarks import Benchmark
from .gar_bench_cap import places_of as gar_cap_places
from .gar_bench_cap import read_gar_cap
from .mdvp_bench import places_of as mdvp_places
from .mdvp_bench import read_mdvp
from .own_records import one_record_a_picture, read_own, reference_of, share_pictures
from .paradlc_bench import read_paradlc
from .places import Place
from .question_files import gar_places, pope_places, read_gar, read_pope
from .text_files import read_entries, read_json


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
        records = benchmark_records(seed=seed, count=limit or EVALUATION_SCENES)
        found = EvaluationSet([record.to_dict() for record in records], Path())
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
            truth = CocoTruth(
                root=found.root, source=benchmark.title, captions=benchmark.task == "captions",
                masks=benchmark.task in ("masks", "prompts"), scored=benchmark.task in ("masks", "detections"),
                crowds=benchmark.task == "detections",  # TAP's protocol labels crowds, too
            )  # fmt: skip
            pictures, found.reference = truth.read(content, found.problems, limit)
            found.records = [record.to_dict() for record in pictures]
        elif benchmark.layout == "osprey":
            content = [entry if isinstance(entry, dict) else {} for entry in content]
            found.places = _osprey_places(content)
            named = list(islice(read_named_masks(content, benchmark.title, found.problems), limit))
            found.records = [record.to_dict() for record in named]
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
