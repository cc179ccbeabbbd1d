"""COCO: instances (https://cocodataset.org/#format-data) and panoptic segments → records of "What is <region>?".

Annotations are CC BY 4.0, pictures under the terms of Flickr's users. Tools that export to this layout deviate from it:
they write ids as text, a single polygon instead of a list, or mark all masks as crowds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tap_tokenizer import open_image

from ..arguments import knob
from .entries import (
    CUT,
    EntryError,
    answer,
    box_of,
    identity,
    is_crowd,
    is_cut,
    listed,
    mapping,
    mask_of,
    needed,
    size_of,
    sound_region,
    text,
)
from .json_stream import AnnotationIndex
from .sample import Sample, encode_mask
from .source import LABEL_QUESTION, PictureSource, ask_each, groups, inside, record
from .validation import UNREADABLE

LICENSE = "annotations CC BY 4.0; pictures: Flickr, see the data set's own file"

DRAWN_SHARE = 1 / 3
"""About one in 80 of COCO's own annotations is a crowd. If this many are marked, a tool has marked every mask that was
drawn: CVAT and Datumaro write `iscrowd` for everything but polygons."""

DRAWN = "marked iscrowd, as some tools mark every mask that was drawn; --keep_crowds false leaves them out"
CROWD = "crowd: many objects drawn as one, marked iscrowd; --keep_crowds true keeps them"


@dataclass(kw_only=True)
class ListedPicturesSource(PictureSource):
    """Readers of files in COCO's layout."""

    annotations: str

    def pictures(
        self, index: AnnotationIndex
    ) -> Iterator[tuple[str, tuple[int, int], dict[str, Any], dict[str, dict[str, Any]]]]:
        """(path, (height, width), entry, annotations by what they are called) of every picture that can be used."""
        index.name_strays()
        for image in index.images():
            name = f"picture {identity(image, 'id'):.60}"
            annotations = index.named_annotations(image["id"])
            found = None
            with self.left_out.entry(self.annotations, name):
                found = self.picture(self.file_name(image)), size_of(image), image, annotations
            if found is not None:
                self.left_out.unwanted["picture without annotations"] += not annotations
                yield found
                continue
            for key in annotations:
                with self.left_out.entry(self.annotations, key):
                    raise EntryError("picture left out", f"its {name} is left out")

    def file_name(self, image: dict[str, Any]) -> str:
        """Where a picture lies under `images`."""
        return text(image, "file_name")


@dataclass(kw_only=True)
class CocoSource(ListedPicturesSource):
    """COCO instances: each object with its box, mask and category."""

    annotations: str = knob(help="instances_*.json")
    question: str = knob(default=LABEL_QUESTION, help="asked of every region; the answer is its category")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")
    keep_crowds: bool | None = knob(
        default=None,
        help="keep regions that are marked iscrowd (many objects drawn as one); default: only if a third of the file or more "
        "is marked, or if it comes from CVAT, which marks every mask that was drawn",
    )

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        with AnnotationIndex(self.annotations, self.left_out) as index:
            names = self._names(index)
            drawn = index.crowd_share() >= DRAWN_SHARE
            for path, size, _, annotations in self.pictures(index):
                regions = []
                for key, annotation in annotations.items():
                    is_drawn = self.keep_crowds is None and (drawn or _is_of_cvat(annotation))
                    if is_crowd(annotation) and not (is_drawn or self.keep_crowds):
                        self.left_out.unwanted[CROWD] += 1
                        continue
                    with self.left_out.entry(self.annotations, key):
                        regions.append(self.region(annotation, size, names))
                        self.left_out.doubtful[DRAWN] += is_crowd(annotation) and is_drawn
                        if is_cut(annotation["bbox"], size):
                            self.left_out.doubtful[CUT] += 1
                for some in groups(regions, self.regions_per_record):
                    turns = ask_each(self.question, [region["label"] for region in some])
                    yield record(path, size, list(some), turns, self.name, LICENSE)

    name = "COCO instances"

    def _names(self, index: AnnotationIndex) -> dict[str, str]:
        """What categories are called in answers, by id as text."""
        names = {}
        for number, category in index.categories().items():
            with self.left_out.entry(self.annotations, f"category {number!s:.60}"):
                names[identity(category, "id")] = self.label(category)
        return names

    def label(self, category: dict[str, Any]) -> str:
        """What a category is called in an answer."""
        return answer(category, "name")

    def region(self, annotation: dict[str, Any], size: tuple[int, int], names: dict[str, str]) -> dict[str, Any]:
        """A region of an annotation of a picture of (height, width) `size`. Raises `EntryError`."""
        category = identity(annotation, "category_id")
        if category not in names:
            raise EntryError(
                "unknown category", f'category_id is {category!r:.60}, which the file\'s "categories" lack'
            )
        region = {"box": box_of(needed(annotation, "bbox"), size), "label": names[category]}
        if annotation.get("segmentation"):
            region["mask"] = mask_of(annotation["segmentation"])
        return sound_region(region, size)


def _is_of_cvat(annotation: dict[str, Any]) -> bool:
    attributes = annotation.get("attributes")
    return isinstance(attributes, dict) and "occluded" in attributes


@dataclass(kw_only=True)
class CocoPanopticSource(ListedPicturesSource):
    """COCO panoptic: every segment, things and stuff, with its mask from a PNG whose colour is the segment's number."""

    annotations: str = knob(help="panoptic_*.json")
    segments: str = knob(help="folder of the PNGs of segments")
    question: str = knob(default=LABEL_QUESTION, help="asked of every region; the answer is its category")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")
    things_only: bool = knob(default=False, help="leave out stuff: sky, grass, …")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations, self.segments)
        with AnnotationIndex(self.annotations, self.left_out) as index:
            categories = {identity(category, "id"): category for category in index.categories().values()}
            for path, size, _, annotations in self.pictures(index):
                for key, annotation in annotations.items():
                    regions: list[dict[str, Any]] = []
                    with self.left_out.entry(self.annotations, key):
                        regions = self._regions(key, annotation, size, categories)
                    for some in groups(regions, self.regions_per_record):
                        turns = ask_each(self.question, [region["label"] for region in some])
                        yield record(path, size, list(some), turns, "COCO panoptic", LICENSE)

    def _regions(
        self, key: str, annotation: dict[str, Any], size: tuple[int, int], categories: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
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
                    regions.append(self._region(segment, category, numbers, size))
                    if is_cut(segment["bbox"], size):
                        self.left_out.doubtful[CUT] += 1
        return regions

    def _region(
        self, segment: dict[str, Any], category: dict[str, Any], numbers: np.ndarray, size: tuple[int, int]
    ) -> dict[str, Any]:
        number = identity(segment, "id")
        mask = numbers == (int(number) if number.isdecimal() and len(number) < 10 else -1)
        if not mask.any():
            raise EntryError("empty mask", f"no pixel of its PNG has its number, {number!r:.60}")
        box = box_of(needed(segment, "bbox"), size)
        name = answer(category, "name").replace("-other", "").replace("-merged", "").replace("-stuff", "")
        return sound_region({"box": box, "mask": encode_mask(mask), "label": name}, size)

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
