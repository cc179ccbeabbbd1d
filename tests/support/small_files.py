"""Small pictures and JSON files for tests of readers, and the one way to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.data.source import Source
from finetune.data.validation import problems_of
from finetune.records import Record

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
"""A polygon of 20 × 20 pixels."""


def write_picture(path: Path, width: int = 60, height: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 60)).save(path)
    return path


def write_json(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def read_whole(source: Source, root: Path) -> list[Record]:
    """A source's records, none of which `validate` finds fault with."""
    records = list(source.limited())
    for record in records:
        assert problems_of(json.loads(json.dumps(record.to_dict())), root) == []
    return records


def talk_of(record: Record) -> list[str]:
    return [turn.content for turn in record.conversations]
