"""Visual Genome's region descriptions (https://homes.cs.washington.edu/~ranjay/visualgenome/api.html), CC BY 4.0.

There are two layouts: the original `region_descriptions.json` with `image_data.json`, and the COCO-style one of GRiT and others
(https://github.com/JialianW/GRiT), whose annotations have a `caption`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..config import knob
from ..records import Record, Region
from .annotations import AnnotationIndex
from .coco import ListedPicturesSource
from .entries import (
    EntryError,
    answer,
    box_of,
    entry_name,
    identity,
    is_crowd,
    listed,
    mapping,
    needed,
    size_of,
    sound_region,
    text,
)
from .json_files import iter_items
from .source import CAPTION_QUESTION, RegionQuestionSource

LICENSE = "CC BY 4.0"


@dataclass(kw_only=True)
class VisualGenomeSource(RegionQuestionSource):
    """The original layout; `images` is the folder that holds VG_100K and VG_100K_2."""

    annotations: str = knob(help="region_descriptions.json")
    question: str = knob(
        default=CAPTION_QUESTION, help="what is asked about every region; the answer is its description"
    )
    image_data: str = knob(help="image_data.json, which has the pictures' sizes and folders")
    splits: str | None = knob(default=None, help="densecap_splits.json, to take only one split")
    split: Literal["train", "val", "test"] = knob(default="train", help="which split to take, if --splits is given")

    def records(self) -> Iterator[Record]:
        self.require(self.annotations, self.image_data, *([self.splits] if self.splits else []))
        wanted = None
        if self.splits:
            wanted = {identity({"id": key}, "id") for key in iter_items(self.splits, f"{self.split}.item")}
        pictures = self._pictures()
        seen: set[str] = set()
        for number, entry in enumerate(iter_items(self.annotations), 1):
            name = entry_name(entry, number, "id", "image_id")
            with self.left_out.entry(self.annotations, name):
                regions = listed(mapping(entry), "regions")
                key = _picture_of(entry, regions)
                if wanted is not None and key not in wanted:
                    self.left_out.unwanted[f"picture of another split than {self.split}"] += 1
                    continue
                if not regions:
                    self.left_out.unwanted["picture without descriptions"] += 1
                    continue
                if key not in pictures:
                    raise EntryError(
                        "picture not listed", f"{self.image_data} lacks picture {key!r:.60}, or its entry is malformed"
                    )
                if key in seen:
                    raise EntryError("picture described twice", f"picture {key:.60} came before: the first counts")
                seen.add(key)
                path, size = pictures[key]
                yield from self.records_of(path, size, self._regions(name, regions, size), "Visual Genome", LICENSE)

    def _pictures(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """Path and (height, width) of each picture, by id."""
        found = {}
        for number, entry in enumerate(iter_items(self.image_data), 1):
            with self.left_out.entry(self.image_data, entry_name(entry, number, "image_id")):
                name = "/".join(text(mapping(entry), "url").split("/")[-2:])
                found[identity(entry, "image_id")] = self.picture(name), size_of(entry)
        return found

    def _regions(self, name: str, described: list[Any], size: tuple[int, int]) -> list[tuple[Region, str, str]]:
        regions = []
        for place, r in enumerate(described, 1):
            with self.left_out.entry(self.annotations, f"{name}, {_region_name(r, place)}"):
                sides = [needed(mapping(r), side) for side in ("x", "y", "width", "height")]
                box = box_of(sides, size, "x y width height")
                label = answer(r, "phrase")
                regions.append((sound_region(Region(box, label=label), size), self.question, label))
        return regions


def _picture_of(entry: dict[str, Any], regions: list[Any]) -> str:
    """The id of an entry's picture: as its regions have it, or else its own."""
    named = next((r for r in regions if isinstance(r, dict) and r.get("image_id") is not None), None)
    return identity(entry, "id") if named is None else identity(named, "image_id")


def _region_name(region: Any, place: int) -> str:
    is_named = isinstance(region, dict) and "region_id" in region
    return f"region {region['region_id']!s:.60}" if is_named else f"region number {place}"


@dataclass(kw_only=True)
class GritSource(ListedPicturesSource):
    """COCO-style files whose annotations have a caption, masks optional: GRiT's train.json and test.json, and others."""

    annotations: str = knob(help="train.json or test.json")
    question: str = knob(
        default=CAPTION_QUESTION, help="what is asked about every region; the answer is its description"
    )

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        with AnnotationIndex(self.annotations, self.left_out) as index:
            for path, size, _, annotations in self.pictures(index):
                regions = []
                for name, annotation in annotations.items():
                    if is_crowd(annotation) or annotation.get("ignore"):
                        self.left_out.unwanted["annotation marked iscrowd or ignore"] += 1
                        continue
                    with self.left_out.entry(self.annotations, name):
                        caption = answer(annotation, "caption")
                        regions.append((self.region_of(annotation, size, label=caption), self.question, caption))
                yield from self.records_of(path, size, regions, "region captions", LICENSE)
