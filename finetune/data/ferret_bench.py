"""Ferret-Bench (https://github.com/apple/ml-ferret), in the layout that Osprey made of it: questions without answers.

CC BY-NC 4.0. Another language model judges the answers, so the records end with the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_bridge import number_regions

from ..config import knob
from ..records import Record, Region, Turn
from .entries import box_of, entry_name, mapping, mask_of, needed, sound, text
from .json_files import iter_items
from .source import PictureSource, literal


@dataclass(kw_only=True)
class FerretBenchSource(PictureSource):
    """Ferret-Bench; `images` is COCO's val2017, which is opened for the pictures' sizes."""

    annotations: str = knob(help="box_refer_caption.json or box_refer_reason.json")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        for number, entry in enumerate(iter_items(self.annotations), 1):
            with self.left_out.entry(self.annotations, entry_name(entry, number, "question_id")):
                yield self._record(mapping(entry))

    def _record(self, entry: dict[str, Any]) -> Record:
        picture = text(entry, "image")
        size = self.size_on_disk(picture)
        annotation = mapping(literal(needed(entry, "annotation")), "annotation")
        box, mask = box_of(needed(annotation, "bbox"), size), mask_of(needed(annotation, "segmentation"))
        turns = [Turn("user", number_regions(text(entry, "text"))[0])]
        source = f"Ferret-Bench {text(entry, 'category')}"
        regions = [Region(box, mask=mask)]
        return sound(Record(self.picture(picture), size[1], size[0], regions, turns, source, "CC BY-NC 4.0"))
