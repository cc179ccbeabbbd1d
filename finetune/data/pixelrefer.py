"""PixelRefer's image instructions (https://github.com/DAMO-NLP-SG/PixelRefer): talk with a `<region>` for each mask.

Entries of videos are passed over: a record is one picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..arguments import knob
from .json_stream import iter_items
from .sample import Sample
from .source import PictureSource, number_regions, record, talk, with_all_shown, with_box


@dataclass(kw_only=True)
class PixelReferSource(PictureSource):
    """PixelRefer's JSON lists."""

    annotations: str = knob(help="JSON list of entries with image, conversations and masks")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        for entry in iter_items(self.annotations):
            if "image" not in entry:
                continue
            masks = entry["masks"]
            rle = next((mask for mask in masks if isinstance(mask, dict)), None)
            size = tuple(rle["size"]) if rle is not None else (entry["height"], entry["width"])
            turns, count = [], 0
            for turn in talk(entry["conversations"]):
                text, count = number_regions(turn["content"], count)
                turns.append({**turn, "content": text})
            regions = [with_box({"mask": mask}, size) for mask in masks]
            turns = with_all_shown(turns, len(regions))
            yield record(self.picture(entry["image"]), size, regions, turns, "PixelRefer", None)
