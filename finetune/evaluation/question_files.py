"""Published files of questions → records with one question each: GAR-Bench-VQA and POPE.

A question without an answer that can be scored is named. Knows the files' forms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tap_tokenizer import open_image, upright_size

from ..data.gar_bench import GarBenchSource
from ..data.sample import Sample
from ..data.source import literal
from .coco_reading import mask_fault
from .problems import Problems
from .question_metrics import choices_of
from .text_files import read_json, read_json_lines

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or torn, or would fill all memory."""


def read_gar(path: Path, root: Path, problems: Problems) -> Iterator[Sample]:
    """GAR-Bench-VQA's questions; their pictures lie under `root`."""
    source = GarBenchSource(output=str(root / "records.jsonl"), images=str(root), annotations=str(path))
    content = read_json(path)
    if not isinstance(content, list):
        raise TypeError(f"expected a list of questions, got a {type(content).__name__}")
    for number, entry in enumerate(content):
        if fault := _gar_fault(entry):
            problems.add(fault, str(number))
            continue
        sample = source.record_of(entry)
        regions = [{"id": f"{number}/{i}", **region} for i, region in enumerate(sample["regions"])]
        yield {**sample, "image_id": number, "regions": regions}


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


def read_pope(path: Path, root: Path, title: str, problems: Problems) -> Iterator[Sample]:
    """POPE's lines {question_id, image, text, label}; the region is the whole picture, which lies under `root`."""
    seen = set()
    for entry in read_json_lines(path):
        number, label = entry["question_id"], entry["label"]
        if number in seen:
            problems.add("question given twice, the first counts", str(number))
            continue
        seen.add(number)
        if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
            problems.add("question whose label is neither yes nor no", str(number))
            continue
        width, height = _size_of(root / entry["image"])
        yield {
            "image": entry["image"], "image_id": number, "width": width, "height": height,
            "regions": [{"id": str(number), "box": [0, 0, width, height]}], "source": title,
            "conversations": [
                {"role": "user", "content": f"<region1> is the whole picture. {entry['text']}"},
                {"role": "assistant", "content": label.strip().lower()},
            ],
        }  # fmt: skip


def _size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
    try:
        with open_image(path) as picture:
            return upright_size(picture)
    except UNREADABLE:
        return 1, 1
