"""PixelRefer's image instructions (https://github.com/DAMO-NLP-SG/PixelRefer): conversations with a `<region>` for each mask.

VideoRefer's layout is read, too. In place of `masks` it has `annotation`: the frames of each object with their masks. A record
has one picture, so entries about videos are passed over; an object in a picture has one frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_bridge import number_regions

from ..config import knob
from ..records import Record, Turn
from .entries import EntryError, entry_name, listed, mapping, mask_of, needed, shown, size_of, size_of_rle, sound, text
from .json_files import iter_items
from .source import PictureSource, masked_region, talk, with_all_shown


@dataclass(kw_only=True)
class PixelReferSource(PictureSource):
    """PixelRefer's and VideoRefer's JSON lists."""

    annotations: str = knob(help="JSON list of entries with image, conversations, and masks or annotation")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        for number, entry in enumerate(iter_items(self.annotations), 1):
            with self.left_out.entry(self.annotations, entry_name(entry, number, "id", "image", "video")):
                if mapping(entry).get("image") is None and entry.get("video") is not None:
                    self.left_out.unwanted["video, for a record is one picture"] += 1
                else:
                    yield self._record(entry)

    def _record(self, entry: dict[str, Any]) -> Record:
        picture = self.picture(text(entry, "image"))
        is_of_videorefer = entry.get("masks") is None and entry.get("annotation") is not None
        masks = [_mask(value) for value in listed(entry, "annotation" if is_of_videorefer else "masks")]
        if entry.get("height") is not None and entry.get("width") is not None:
            size = size_of(entry)
        elif any(isinstance(mask, dict) for mask in masks):
            size = size_of_rle(masks, "masks")
        else:
            size = self.size_on_disk(text(entry, "image"))
        turns, count = [], 0
        for turn in talk(listed(entry, "conversations")):
            content, count = number_regions(turn.content, count)
            turns.append(Turn(turn.role, content))
        regions = [masked_region(mask, size) for mask in masks]
        return sound(Record(picture, size[1], size[0], regions, with_all_shown(turns, len(regions)), "PixelRefer"))


def _mask(value: Any) -> Any:
    """A mask as PixelRefer writes it, or inside VideoRefer's object: {frame: {"segmentation": mask}}."""
    if value is None:
        raise EntryError("no mask", "one of its masks is null")
    if not isinstance(value, dict) or "counts" in value:
        return mask_of(value)
    if "segmentation" in value:
        return _mask(value["segmentation"])
    if len(value) != 1 or not all(isinstance(frame, dict) for frame in value.values()):
        raise EntryError(
            "wrong mask", f"one of its masks is {shown(value)}, expected a mask, or one frame with its segmentation"
        )
    return _mask(needed(next(iter(value.values())), "segmentation"))
