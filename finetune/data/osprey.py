"""Osprey-724K (https://huggingface.co/datasets/AntGroup-MI/Osprey-724K): five files of conversations about COCO's regions.

CC BY-NC 4.0. Conversations, short answers and parts call their picture `…_<COCO 2017 name>`, while LVIS's positives and
negatives give the plain name. Detailed descriptions have a text for each region instead of a conversation. The lists of LVIS's
and PACO's masks, on which Osprey evaluates, have another layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import knob
from ..records import Record, Region, Turn, mask_box
from .entries import (
    Problems,
    entry_name,
    listed,
    mapping,
    mask_fault,
    mask_of,
    needed,
    numbered,
    read_each,
    size_of,
    sound,
    text,
)
from .json_files import iter_items
from .source import PictureSource, masked_region, talk, with_all_shown

Kind = Literal["conversation", "detail_description", "short_form", "part_level", "lvis_positive_negative"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BRIEF = "Answer in a word or a short phrase."
DETAIL_QUESTIONS = (
    "Describe <region> in detail.",
    "Tell me everything that can be seen of <region>.",
    "What is <region> like? Be thorough.",
    "Give a full account of <region>.",
    "Explain what <region> is and how it looks.",
)


@dataclass(kw_only=True)
class OspreySource(PictureSource):
    """Osprey-724K; `images` is COCO's train2017."""

    annotations: str = knob(help="osprey_*.json")
    kind: Kind | None = knob(default=None, help="which of the five files it is; default: what its name says")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        kind = self.kind or next((name for name in KINDS if name in Path(self.annotations).stem), None)
        if kind is None:
            raise ValueError(f"{self.annotations} has none of {', '.join(KINDS)} in its name: say which with --kind.")
        for number, entry in enumerate(iter_items(self.annotations)):
            with self.left_out.entry(self.annotations, entry_name(entry, number + 1, "id", "file_name")):
                yield self._record(mapping(entry), number, kind)

    def _record(self, entry: dict[str, Any], number: int, kind: Kind) -> Record:
        name = text(entry, "file_name") if kind == "lvis_positive_negative" else text(entry, "file_name").split("_")[-1]
        size = size_of(entry)
        masks = [
            mask_of(needed(mapping(a, "one of its annotation"), "segmentation")) for a in listed(entry, "annotation")
        ]
        regions = [masked_region(mask, size) for mask in masks]
        described = kind == "detail_description"
        turns = _detailed(listed(entry, "description"), number) if described else talk(listed(entry, "conversations"))
        if kind in ("short_form", "part_level"):
            turns = [Turn("user", f"{t.content} {BRIEF}") if t.role == "user" else t for t in turns]
        source, turns = f"Osprey-724K {kind}", with_all_shown(turns, len(regions))
        return sound(Record(self.picture(name), size[1], size[0], regions, turns, source, "CC BY-NC 4.0"))


def _detailed(descriptions: list[Any], number: int) -> list[Turn]:
    turns = []
    for i, description in enumerate(descriptions):
        question = DETAIL_QUESTIONS[(number + i) % len(DETAIL_QUESTIONS)].replace("<region>", f"<region{i + 1}>")
        answer = re.sub(r"^\s*<[^>]*>:\s*", "", text({"description": description}, "description")).strip()
        turns += [Turn("user", question), Turn("assistant", answer)]
    return turns


def read_named_masks(content: Sequence[Any], source: str, problems: Problems) -> Iterator[Record]:
    """Osprey's lists for evaluation, {file_name, height, width, categories, annotations}: masks with names.

    Regions are called NUMBER/PLACE, after the entry's number and their place in it. What cannot be used is named.
    """

    def read(number: str, entry: dict[str, Any]) -> Record:
        size = (entry["height"], entry["width"])
        names, annotations = entry["categories"], entry["annotations"]
        if len(names) != len(annotations):
            problems.add("entry with another number of names than of masks", number)
            names = annotations = []
        regions = []
        for i, (name, a) in enumerate(zip(names, annotations)):
            fault = mask_fault(a.get("segmentation"), size)
            box = None if fault else mask_box(a["segmentation"], size)
            if box is None:
                problems.add(fault or "empty mask", f"{number}/{i}")
                continue
            label = "" if name is None else str(name)
            regions.append(Region(box, mask=a["segmentation"], label=label, id=f"{number}/{i}"))
        return Record(entry["file_name"], size[1], size[0], regions, source=source, image_id=int(number))

    return read_each(numbered(content), read, problems)
