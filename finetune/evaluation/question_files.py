"""Published files of questions → records with one question each: GAR-Bench-VQA and POPE.

A question without an answer that can be scored is named. Knows the files' forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.entries import mask_fault
from ..data.gar_bench import GarBenchSource
from ..data.problems import Problems, numbered, read_each
from ..data.sample import Sample
from ..data.source import literal
from .picture_files import size_of
from .places import Place
from .question_metrics import choices_of


def read_gar(content: Sequence[Any], path: Path, root: Path, problems: Problems) -> Iterator[Sample]:
    """GAR-Bench-VQA's questions; their pictures lie under `root`."""
    source = GarBenchSource(output=str(root / "records.jsonl"), images=str(root), annotations=str(path))

    def read(number: str, entry: dict[str, Any]) -> Sample | None:
        if fault := _gar_fault(entry):
            problems.add(fault, number)
            return None
        sample = source.record_of(entry).to_dict()
        regions = [{"id": f"{number}/{i}", **region} for i, region in enumerate(sample["regions"])]
        return {**sample, "image_id": int(number), "regions": regions}

    return read_each(numbered(content), read, problems)


def _gar_fault(entry: dict[str, Any]) -> str | None:
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


def gar_places(content: Sequence[Any]) -> list[Place]:
    """GAR-Bench-VQA's items in the file's order."""
    return [Place(f"{n}/q0", {key: entry.get(key) for key in ("question", "image")}) for n, entry in enumerate(content)]


def read_pope(content: Sequence[Any], root: Path, title: str, problems: Problems) -> Iterator[Sample]:
    """POPE's entries {question_id, image, text, label}; the region is the whole picture, which lies under `root`."""
    seen = set()

    def read(_: str, entry: dict[str, Any]) -> Sample | None:
        number, label = entry["question_id"], entry["label"]
        if number is None:
            raise KeyError("question_id")
        if number in seen:
            problems.add("question given twice, the first counts", str(number))
            return None
        seen.add(number)
        if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
            problems.add("question whose label is neither yes nor no", str(number))
            return None
        if not isinstance(entry["text"], str) or not entry["text"].strip():
            problems.add("question without words", str(number))
            return None
        height, width = size_of(root / entry["image"])
        return {
            "image": entry["image"], "image_id": number, "width": width, "height": height,
            "regions": [{"id": str(number), "box": [0, 0, width, height]}], "source": title,
            "conversations": [
                {"role": "user", "content": f"<region1> is the whole picture. {entry['text']}"},
                {"role": "assistant", "content": label.strip().lower()},
            ],
        }  # fmt: skip

    ids = [entry.get("question_id") for entry in content]
    named = ((f"entry {n}" if key is None else str(key), content[n]) for n, key in enumerate(ids))
    return read_each(named, read, problems)


def pope_places(content: Sequence[Any]) -> list[Place]:
    """POPE's items in the file's order."""
    return [
        Place(f"{entry.get('question_id')}/q0", {"question": entry.get("text"), "image": entry.get("image")})
        for entry in content
    ]
