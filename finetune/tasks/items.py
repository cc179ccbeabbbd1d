"""What is evaluated: a set of records and its items, each a question with its true answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llm_bridge import region_numbers
from tap_tokenizer import RegionTokens

from ..data.coco import CocoTruth
from ..data.problems import Problems, counted, first_names
from ..records import Record


@dataclass(frozen=True)
class Place:
    """An item's place in the published file, which identifies answers without ids.

    repeats: what answer files copy from the entry ("question", "gt", …); None for what the entry lacks.
    """

    id: str
    repeats: dict[str, Any]

    def fault(self, line: dict[str, Any]) -> str | None:
        """What shows that an answer's line belongs to another entry, in words; None if nothing does."""
        for key, true in self.repeats.items():
            said = line.get(key)
            if isinstance(said, str) and isinstance(true, str) and said.strip().lower() != true.strip().lower():
                return f"has the {key} {said!r:.60}, where the benchmark's file has {true!r:.60}"
        return None


@dataclass
class EvaluationSet:
    """Records to evaluate, whose regions have ids; their pictures' paths start from the folder `root`.

    reference: COCO's JSON with the truth of all pictures, if average precision needs it. boxes: a detector's boxes by
    picture; None for the true ones. places: items in the order of the published file, if it is one of single questions or of
    labels. told: what judges are told about a record, by its `image_id`. kept: which of the file's regions a record still
    has, by the record's number, if some were left out. pictures: other names by which predictions may call a picture of the
    user's own records.
    """

    records: list[Record]
    root: Path
    problems: Problems = field(default_factory=Problems)
    reference: dict[str, Any] | None = None
    boxes: dict[Any, list[dict[str, Any]]] | None = None
    places: list[Place] = field(default_factory=list)
    told: dict[Any, dict[str, Any]] = field(default_factory=dict)
    kept: dict[int, list[int]] = field(default_factory=dict)
    pictures: dict[Any, int] = field(default_factory=dict)

    def take_coco(self, content: Any, source: str, limit: int | None, **how: bool) -> None:
        """Take the first `limit` records of a file in COCO's or LVIS's layout, and the file as the reference.

        how: options of `CocoTruth`. Raises `TypeError` for a file that does not hold an object.
        """
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise TypeError(f"expected COCO's object of images, annotations and categories, got a {kind}")
        truth = CocoTruth(root=self.root, source=source, **how)
        self.records, self.reference = truth.read(content, self.problems, limit)


@dataclass
class Item:
    """One question about regions of one picture.

    record: with the regions in question alone, and a conversation that ends with the question; rows: where those regions
    stand in the whole record; references: true answers; options: possible answers, if they are known.
    """

    id: str
    record: Record
    rows: list[int]
    references: list[str]
    type: str = ""
    options: list[str] = field(default_factory=list)

    @property
    def asked(self) -> str:
        return self.record.conversations[-1].content

    @property
    def first_region(self) -> int | None:
        """Where the first region of the question stands among the record's; None if there are no regions.

        A question that names none ("And how large is it?") is about the first region of the latest turn that does.
        """
        count = len(self.record.regions)
        for turn in reversed(self.record.conversations):
            named = [number for number in region_numbers(turn.content, names=True) if 1 <= number <= count]
            if named:
                return named[0] - 1
        return 0 if count else None


@dataclass
class Seen:
    """An item with what was seen: its picture (None if tokens come from a cache), region tokens, context features."""

    item: Item
    image: np.ndarray | None
    regions: RegionTokens
    context: Tensor | None = None


def refuse_doubles(items: Sequence[Item]) -> None:
    """Raise `ValueError` if two items have the same id, because a prediction could then belong to either."""
    counts = Counter(item.id for item in items)
    if double := [key for key, number in counts.items() if number > 1]:
        raise ValueError(
            f"The reference has {counted(len(double), 'id')} twice ({first_names(double)}): expected one region or "
            "question for each."
        )
