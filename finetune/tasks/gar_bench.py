"""GAR-Bench-VQA (https://github.com/Haochen-Wang409/Grasp-Any-Region): questions with choices about masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.entries import mask_fault
from ..data.gar_bench import GarBenchSource
from ..data.problems import numbered, read_each
from ..data.source import literal
from ..records import Record
from .files import read_questions
from .items import EvaluationSet, Place
from .questions import Questions, choices_of
from .task import Published


@dataclass(kw_only=True)
class GarBench(Questions):
    """A list of {image, mask_rles, question, choices, answer, type}."""

    letters_alone = True

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        content, root = read_questions(path), found.root
        found.places = [
            Place(f"{n}/q0", {key: entry.get(key) for key in ("question", "image")}) for n, entry in enumerate(content)
        ]
        source = GarBenchSource(output=str(root / "records.jsonl"), images=str(root), annotations=str(path))

        def read(number: str, entry: dict[str, Any]) -> Record | None:
            if fault := _fault(entry):
                found.problems.add(fault, number)
                return None
            record = source.record_of(entry)
            regions = [replace(region, id=f"{number}/{i}") for i, region in enumerate(record.regions)]
            return replace(record, image_id=int(number), regions=regions)

        found.records = list(islice(read_each(numbered(content), read, found.problems), limit))


def _fault(entry: Mapping[str, Any]) -> str | None:
    """Why a question cannot be asked or scored; None if it can. Raises `KeyError` for an entry of another form."""
    masks, choices, answer = literal(entry["mask_rles"]), literal(entry.get("choices")), entry.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return "question without an answer"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return "question without choices"
    listed = choices_of("\n".join(choices))
    if listed and answer.strip() not in listed:
        return "question whose answer is none of its choices"
    if not isinstance(masks, list) or not masks:
        return "question without a mask"
    for mask in masks:
        if fault := mask_fault(mask, tuple(masks[0]["size"])):
            return f"question about a {fault}"
    return None


_SOURCE = "reference outputs of Haochen-Wang409/Grasp-Any-Region; its paper has"
GAR_BENCH = GarBench(
    name="gar_bench", title="GAR-Bench-VQA", version=2, whole=424,
    rules="the answer is the right choice's letter and nothing else; as meant: or begins with it, or is its words",
    published=(
        Published("GAR-1B", {"accuracy": 0.479}, f"{_SOURCE} .506"),
        Published("GAR-8B", {"accuracy": 0.578}, f"{_SOURCE} .599"),
    ),
)  # fmt: skip
