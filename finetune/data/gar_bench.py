"""GAR-Bench-VQA (https://github.com/Haochen-Wang409/Grasp-Any-Region): questions with choices about masks, for evaluation.

`<Prompt0>` is the first mask; choices name masks, too, so all are shown before the question. The answer is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..arguments import knob
from .json_stream import iter_items
from .sample import Sample
from .source import PictureSource, literal, record, with_all_shown, with_box


@dataclass(kw_only=True)
class GarBenchSource(PictureSource):
    """GAR-Bench-VQA; `images` is the folder of its annotations, from which the pictures' paths start."""

    annotations: str = knob(help="GAR-Bench-VQA.json")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        for entry in iter_items(self.annotations):
            yield self.record_of(entry)

    def record_of(self, entry: dict[str, Any]) -> Sample:
        """One question of the file as a record."""
        masks, choices = literal(entry["mask_rles"]), literal(entry["choices"])
        size = tuple(masks[0]["size"])
        regions = [with_box({"mask": mask}, size) for mask in masks]
        question = "\n".join([entry["question"], *choices, "Answer with the letter of the right choice."])
        turns = [
            {"role": "user", "content": re.sub(r"<Prompt(\d+)>", lambda m: f"<region{int(m[1]) + 1}>", question)},
            {"role": "assistant", "content": entry["answer"]},
        ]
        source = f"GAR-Bench-VQA {entry['type']}"
        return record(self.picture(entry["image"]), size, regions, with_all_shown(turns, len(regions)), source, None)
