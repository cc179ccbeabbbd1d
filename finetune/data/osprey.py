"""Osprey-724K (https://huggingface.co/datasets/AntGroup-MI/Osprey-724K): five files of talk about COCO's regions.

CC BY-NC 4.0. Conversations, short answers and parts name their picture `…_<COCO 2017 name>`; positives and negatives of
LVIS give the name as it is; detailed descriptions have no conversation but a text for each region.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..arguments import knob
from .entries import entry_name, listed, mapping, mask_of, needed, size_of, sound, text
from .json_stream import iter_items
from .sample import Sample
from .source import PictureSource, record, talk, with_all_shown, with_box

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
    kind: Kind | None = knob(default=None, help="which of the five files it is; default: as its name says")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        kind = self.kind or next((name for name in KINDS if name in Path(self.annotations).stem), None)
        if kind is None:
            raise ValueError(f"{self.annotations} has none of {', '.join(KINDS)} in its name: say which by --kind.")
        for number, entry in enumerate(iter_items(self.annotations)):
            with self.left_out.entry(self.annotations, entry_name(entry, number + 1, "id", "file_name")):
                yield self._record(mapping(entry), number, kind)

    def _record(self, entry: dict[str, Any], number: int, kind: Kind) -> Sample:
        name = text(entry, "file_name") if kind == "lvis_positive_negative" else text(entry, "file_name").split("_")[-1]
        size = size_of(entry)
        masks = [
            mask_of(needed(mapping(a, "one of its annotation"), "segmentation")) for a in listed(entry, "annotation")
        ]
        regions = [with_box({"mask": mask}, size) for mask in masks]
        described = kind == "detail_description"
        turns = _detailed(listed(entry, "description"), number) if described else talk(listed(entry, "conversations"))
        if kind in ("short_form", "part_level"):
            turns = [{**t, "content": f"{t['content']} {BRIEF}"} if t["role"] == "user" else t for t in turns]
        source, turns = f"Osprey-724K {kind}", with_all_shown(turns, len(regions))
        return sound(record(self.picture(name), size, regions, turns, source, "CC BY-NC 4.0"))


def _detailed(descriptions: list[Any], number: int) -> list[dict[str, str]]:
    turns = []
    for i, description in enumerate(descriptions):
        question = DETAIL_QUESTIONS[(number + i) % len(DETAIL_QUESTIONS)].replace("<region>", f"<region{i + 1}>")
        answer = re.sub(r"^\s*<[^>]*>:\s*", "", text({"description": description}, "description")).strip()
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns
