"""COCO's panoptic segments (https://cocodataset.org/#format-data), things and stuff → records of "What is <region>?"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tap_tokenizer import open_image

from ..config import knob
from ..records import Record, Region, encode_mask
from .annotations import AnnotationIndex
from .coco import LICENSE, ListedPicturesSource
from .entries import CUT, answer, box_of, identity, is_crowd, is_cut, listed, mapping, needed, sound_region, text
from .problems import EntryError
from .source import inside
from .validation import UNREADABLE


@dataclass(kw_only=True)
class CocoPanopticSource(ListedPicturesSource):
    """COCO panoptic: every segment, things and stuff, with its mask from a PNG whose colour is the segment's number."""

    annotations: str = knob(help="panoptic_*.json")
    segments: str = knob(help="folder of the PNGs that show the segments")
    things_only: bool = knob(default=False, help="leave out stuff, such as sky and grass")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations, self.segments)
        with AnnotationIndex(self.annotations, self.left_out) as index:
            categories = {identity(category, "id"): category for category in index.categories().values()}
            for path, size, _, annotations in self.pictures(index):
                for key, annotation in annotations.items():
                    regions: list[tuple[Region, str, str]] = []
                    with self.left_out.entry(self.annotations, key):
                        regions = self._regions(key, annotation, size, categories)
                    yield from self.records_of(path, size, regions, "COCO panoptic", LICENSE)

    def _regions(
        self, key: str, annotation: dict[str, Any], size: tuple[int, int], categories: dict[str, dict[str, Any]]
    ) -> list[tuple[Region, str, str]]:
        segments = listed(annotation, "segments_info")
        self.left_out.unwanted["picture without segments"] += not segments
        numbers = self._numbers(text(annotation, "file_name"), size)
        regions = []
        for place, segment in enumerate(segments, 1):
            with self.left_out.entry(self.annotations, f"{key}, segment number {place}"):
                category = categories.get(identity(mapping(segment), "category_id"))
                if category is None:
                    words = f'category_id is {segment["category_id"]!r:.60}, which the file\'s "categories" lack'
                    raise EntryError("unknown category", words)
                if is_crowd(segment):
                    self.left_out.unwanted["crowd: many objects drawn as one, marked iscrowd"] += 1
                elif self.things_only and not category.get("isthing"):
                    self.left_out.unwanted["stuff, because only things were asked for"] += 1
                else:
                    region, label = self._region(segment, category, numbers, size)
                    regions.append((region, self.question, label))
                    if is_cut(segment["bbox"], size):
                        self.left_out.doubtful[CUT] += 1
        return regions

    def _region(
        self, segment: dict[str, Any], category: dict[str, Any], numbers: np.ndarray, size: tuple[int, int]
    ) -> tuple[Region, str]:
        number = identity(segment, "id")
        mask = numbers == (int(number) if number.isdecimal() and len(number) < 10 else -1)
        if not mask.any():
            raise EntryError("empty mask", f"no pixel of its PNG has its number, {number!r:.60}")
        box = box_of(needed(segment, "bbox"), size)
        name = answer(category, "name").replace("-other", "").replace("-merged", "").replace("-stuff", "")
        return sound_region(Region(box, mask=encode_mask(mask), label=name), size), name

    def _numbers(self, name: str, size: tuple[int, int]) -> np.ndarray:
        """The numbers (H, W) of a PNG of segments."""
        path = inside(Path(self.segments), name, self.follow_links)
        if not path.is_file():
            raise EntryError("missing segments", f"found no file {name!r:.80} in {self.segments}")
        try:
            with open_image(path) as picture:
                red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int64), -1, 0)
        except UNREADABLE as error:
            raise EntryError("unreadable segments", f"{name!r:.80} cannot be opened: {error}") from None
        if red.shape != size:
            found = f"{red.shape[1]} × {red.shape[0]}"
            raise EntryError("wrong size", f"{name!r:.80} is {found}, but its picture is {size[1]} × {size[0]}")
        return np.asarray(red + 256 * green + 65536 * blue)
