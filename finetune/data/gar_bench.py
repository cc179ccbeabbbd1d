"""GAR-Bench-VQA (https://github.com/Haochen-Wang409/Grasp-Any-Region): questions with choices about masks, for evaluation.

`<Prompt0>` is the first mask. Choices may name masks, too, so all masks are shown before the question. The answer is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import knob
from ..records import Record, Turn
from .entries import EntryError, entry_name, mapping, mask_of, needed, shown, size_of_rle, sound, text
from .json_files import iter_items
from .source import PictureSource, literal, masked_region, with_all_shown


@dataclass(kw_only=True)
class GarBenchSource(PictureSource):
    """GAR-Bench-VQA; `images` is the folder of its annotations, from which the pictures' paths start."""

    annotations: str = knob(help="GAR-Bench-VQA.json")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        for number, entry in enumerate(iter_items(self.annotations), 1):
            with self.left_out.entry(self.annotations, entry_name(entry, number, "id", "image")):
                yield sound(self.record_of(mapping(entry)))

    def record_of(self, entry: dict[str, Any]) -> Record:
        """One question of the file as a record. Raises `EntryError`."""
        masks, choices = literal(needed(entry, "mask_rles")), literal(needed(entry, "choices"))
        size = size_of_rle(masks, "mask_rles")
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise EntryError("wrong choices", f"choices is {shown(choices)}, expected a list of texts")
        regions = [masked_region(mask_of(mask), size) for mask in masks]
        question = "\n".join([text(entry, "question"), *choices, "Answer with the letter of the right choice."])
        turns = [
            Turn("user", re.sub(r"<Prompt(\d{1,9})>", lambda m: f"<region{int(m[1]) + 1}>", question)),
            Turn("assistant", text(entry, "answer")),
        ]
        source = f"GAR-Bench-VQA {text(entry, 'type')}"
        picture = self.picture(text(entry, "image"))
        return Record(picture, size[1], size[0], regions, with_all_shown(turns, len(regions)), source)
