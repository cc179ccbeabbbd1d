"""ParaDLC-Bench (https://github.com/MSALab-PKU/PerceptionDLM): DLC-Bench's questions about several regions of a picture.

Its `annotations.json` is a list of pictures, {file_name, height, width, image_id, annotations: [{index, mask_rle}]}. The
`qa.json` beside it has questions about the regions to evaluate, by IMAGE_INDEX, and `class_names.json` has their names. The
judge sees each region with its surroundings and its mask, and is told the class. A region without a positive question gets a
positive score of 0. Each region is described separately, from its mask's box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.entries import mask_fault, numbered, read_each
from ..data.json_files import read_json
from ..records import Record, Region, mask_box
from .dlc_bench import DlcBench
from .items import EvaluationSet, Item
from .judges import Prompt, region_mask, surroundings
from .task import Published

RECOGNITION_QUESTION = (
    "The region in the picture is of the class {class_name}. Is the description about that, or something similar?"
)
"""Our wording, version 1."""


@dataclass(kw_only=True)
class ParaDlcBench(DlcBench):
    """DLC-Bench's questions, for a judge that sees the region."""

    needed = "--judge"
    sees = True
    published_judge = "GPT-5.2, its own prompt"
    recognition = RECOGNITION_QUESTION
    no_positive = 0.0
    more_names = True

    @property
    def qa(self) -> str | None:
        annotations = self.options.annotations
        beside = None if annotations is None else str(Path(annotations).with_name("qa.json"))
        return self.options.qa or beside

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        """The pictures, with only those regions that the `qa.json` beside the file asks about."""
        questions = path.with_name("qa.json")
        if not questions.is_file():
            raise ValueError(
                f"Found nothing at {questions}, which says what regions are evaluated: put it beside {path.name}."
            )
        asked, seen = read_json(questions), set()

        def read(_: str, entry: dict[str, Any]) -> Record:
            size = (entry["height"], entry["width"])
            regions = []
            for annotation in entry["annotations"]:
                key = f"{entry['image_id']}_{annotation['index']}"
                if key not in asked:
                    continue
                seen.add(key)
                mask = annotation["mask_rle"]
                fault = mask_fault(mask, size)
                box = None if fault else mask_box(mask, size)
                if box is None:
                    found.problems.add(fault or "empty mask", key)
                    continue
                regions.append(Region(box, mask=mask, label=annotation.get("category_name") or "", id=key))
            return Record(entry["file_name"], size[1], size[0], regions, source=self.title, image_id=entry["image_id"])

        found.records = list(islice(read_each(numbered(read_json(path)), read, found.problems), limit))
        if limit is None or len(found.records) < limit:
            found.problems.extend("questions of a region that is not listed", [key for key in asked if key not in seen])

    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        shown, mask = surroundings(picture(), region_mask(item.record, 0))
        return [
            ["The picture:\n", shown, "\nThe mask of the region:\n", mask, f"\n{text}\n"]
            for text in super().prompts(item, answer, picture, told)
            if isinstance(text, str)
        ]


PARADLC_BENCH = ParaDlcBench(
    name="paradlc_bench", title="ParaDLC-Bench", whole=299, whole_pictures=100,
    rules="mean of positive and negative score by a judge who sees the region; every region described by itself",
    published=(
        Published("GAR-8B", {"average": 0.695}, "README of MSALab-PKU/PerceptionDLM"),
        Published("LLaDA-V-8B", {"average": 0.352}, "README of MSALab-PKU/PerceptionDLM"),
        Published("PerceptionDLM-8B", {"average": 0.624}, "README of MSALab-PKU/PerceptionDLM"),
    ),
)  # fmt: skip
