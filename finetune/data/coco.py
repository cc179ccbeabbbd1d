"""COCO's instances and panoptic segments (https://cocodataset.org/#format-data), and LVIS (https://www.lvisdataset.org/dataset).

For training, they become records of "What is <region>?". For evaluation, `CocoTruth` also gives regions their ids, and the
truth that average precision is measured against; it reads every file in this layout, with labels or captions.

Annotations are CC BY 4.0, pictures under the terms of Flickr's users. Tools that export to this layout deviate from it:
they write ids as text, a single polygon instead of a list, or mark all masks as crowds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tap_tokenizer import open_image

from ..config import knob
from ..records import Record, Region, decode_mask, encode_mask
from .annotations import AnnotationIndex
from .entries import (
    EntryError,
    Problems,
    answer,
    clipped_box,
    identity,
    is_crowd,
    is_number,
    listed,
    mapping,
    mask_fault,
    read_each,
    size_of,
    text,
)
from .source import RegionQuestionSource, inside
from .validation import UNREADABLE

T = TypeVar("T")

LICENSE = "annotations CC BY 4.0; pictures: Flickr, see the data set's own file"

DRAWN_SHARE = 1 / 3
"""From this share on, a tool has marked every mask that was drawn: CVAT and Datumaro write `iscrowd` for everything but
polygons. Of COCO's own annotations, about one in 80 is a crowd."""

DRAWN = "marked iscrowd, as some tools mark every mask that was drawn; --keep_crowds false leaves them out"
CROWD = "crowd: many objects drawn as one, marked iscrowd; --keep_crowds true keeps them"


@dataclass(kw_only=True)
class ListedPicturesSource(RegionQuestionSource):
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
    keep_crowds: bool | None = knob(
        default=None,
        help="keep regions that are marked iscrowd (many objects drawn as one); default: only if a third of the file or more "
        "is marked, or if it comes from CVAT, which marks every mask that was drawn",
    )

    def records(self) -> Iterator[Record]:
        self.require(self.annotations)
        with AnnotationIndex(self.annotations, self.left_out) as index:
            names = self._names(index)
            drawn = index.crowd_share() >= DRAWN_SHARE
            for path, size, _, annotations in self.pictures(index):
                regions: list[tuple[Region, str, str]] = []
                for key, annotation in annotations.items():
                    is_drawn = self.keep_crowds is None and (drawn or _is_of_cvat(annotation))
                    if is_crowd(annotation) and not (is_drawn or self.keep_crowds):
                        self.left_out.unwanted[CROWD] += 1
                        continue
                    with self.left_out.entry(self.annotations, key):
                        region, label = self._region(annotation, size, names)
                        regions.append((region, self.question, label))
                        self.left_out.doubtful[DRAWN] += is_crowd(annotation) and is_drawn
                yield from self.records_of(path, size, regions, self.name, LICENSE)

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

    def _region(self, annotation: dict[str, Any], size: tuple[int, int], names: dict[str, str]) -> tuple[Region, str]:
        """An annotation's region of a picture of (height, width) `size`, and its label. Raises `EntryError`."""
        label = _category_of(annotation, names)
        return self.region_of(annotation, size, label=label), label


def _category_of(entry: dict[str, Any], categories: Mapping[str, T]) -> T:
    """What is known of an entry's category. Raises `EntryError` for one that is not listed."""
    key = identity(entry, "category_id")
    if key not in categories:
        raise EntryError("unknown category", f'category_id is {key!r:.60}, which the file\'s "categories" lack')
    return categories[key]


def _is_of_cvat(annotation: dict[str, Any]) -> bool:
    attributes = annotation.get("attributes")
    return isinstance(attributes, dict) and "occluded" in attributes


@dataclass(kw_only=True)
class LvisSource(CocoSource):
    """LVIS v1 or v0.5; `images` is the folder that holds train2017 and val2017.

    In v1 a picture has no file name, only COCO's address, which also says in which folder of COCO 2017 it lies; v0.5 has
    one, by COCO 2014's names, which is not followed either.
    """

    name = "LVIS"

    def file_name(self, image: dict[str, Any]) -> str:
        return "/".join(text(image, "coco_url").split("/")[-2:])

    def label(self, category: dict[str, Any]) -> str:
        return answer(category, "name").replace("_", " ")


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
                category = _category_of(mapping(segment), categories)
                if is_crowd(segment):
                    self.left_out.unwanted["crowd: many objects drawn as one, marked iscrowd"] += 1
                elif self.things_only and not category.get("isthing"):
                    self.left_out.unwanted["stuff, because only things were asked for"] += 1
                else:
                    region, label = self._region(segment, category, numbers, size)
                    regions.append((region, self.question, label))
        return regions

    def _region(
        self, segment: dict[str, Any], category: dict[str, Any], numbers: np.ndarray, size: tuple[int, int]
    ) -> tuple[Region, str]:
        number = identity(segment, "id")
        mask = numbers == (int(number) if number.isdecimal() and len(number) < 10 else -1)
        if not mask.any():
            raise EntryError("empty mask", f"no pixel of its PNG has its number, {number!r:.60}")
        name = answer(category, "name").replace("-other", "").replace("-merged", "").replace("-stuff", "")
        return self.region_of(segment, size, mask=encode_mask(mask), label=name), name

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


@dataclass(kw_only=True)
class CocoTruth:
    """How a file in COCO's or LVIS's layout is read for evaluation: as records, and as the truth of average precision.

    root: the folder of the pictures. source: what the records call the data. captions: annotations, or (MDETR, GLaMM) their
    pictures, have captions. masks: a region without a mask is of no use. scored: annotations are the truth of average
    precision, so their category must be listed. crowds: regions that are marked iscrowd are asked about, too.

    An annotation that cannot be used, or that no model can be asked about, is named; of entries that are double the first
    counts.
    """

    root: Path
    source: str
    captions: bool = False
    masks: bool = False
    scored: bool = False
    crowds: bool = False

    def read(
        self, content: dict[str, Any], problems: Problems, limit: int | None = None
    ) -> tuple[list[Record], dict[str, Any]]:
        """Records of the first `limit` pictures, and the file without what cannot be used, as COCO's JSON.

        Of pictures beyond the limit nothing is named. Raises `KeyError` or `TypeError` for a file of another form.
        """
        categories = content.get("categories", [])
        names = {category["id"]: str(category["name"]) for category in categories}
        images = _distinct_pictures(content["images"], problems)
        by_id = {image["id"]: image for image in images}
        regions: dict[Any, list[Region]] = {image["id"]: [] for image in images[:limit]}
        annotations = []

        def read(key: str, a: dict[str, Any]) -> None:
            image = by_id.get(a["image_id"])
            if image is None:
                problems.add("annotation of a picture that is not listed", key)
                return
            asked = image["id"] in regions
            true, region = self._annotation(key, a, image, names, problems if asked else Problems())
            if true is not None:
                annotations.append(true)
            if region is not None and asked:
                regions[image["id"]].append(region)

        list(read_each(self._distinct_annotations(content["annotations"], problems), read, problems))
        records = [
            Record(self._picture_name(image), image["width"], image["height"], regions[image["id"]], source=self.source,
                   image_id=image["id"])
            for image in images[:limit]
        ]  # fmt: skip
        return records, {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(
        self, key: str, a: dict[str, Any], image: dict[str, Any], names: dict[Any, str], problems: Problems
    ) -> tuple[dict[str, Any] | None, Region | None]:
        """The annotation as truth of average precision, and the region to ask about; None where it cannot be that."""
        if self.scored and a.get("category_id") not in names:
            problems.add("annotation of an unknown category", key)
            return None, None
        size = (image["height"], image["width"])
        if self.masks and (fault := mask_fault(a.get("segmentation"), size)):
            problems.add(fault, key)
            return None, None
        true = _with_area(key, a, size, problems) if self.scored else a
        is_asked = not a.get("iscrowd") or self.crowds
        found = clipped_box(a.get("bbox"), image["width"], image["height"])
        if found is None:
            if is_asked:
                problems.add("box empty or outside its picture", key)
            return true if self.scored and self.masks else None, None  # a mask is true whatever its box is
        if not is_asked:
            return true, None
        box, change = found
        if change:
            problems.add(f"box {change}", key)
        region = Region(box, mask=a["segmentation"] if self.masks else None, id=key)
        if "category_id" in a:
            region.category_id, region.label = a["category_id"], names.get(a["category_id"], "")
        if self.captions:
            region.captions = _captions(a, image)
            if not region.captions:
                problems.add("empty reference", key)
                return true, None
        return true, region

    def _distinct_annotations(
        self, annotations: list[dict[str, Any]], problems: Problems
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Annotations with what names their regions: their id; for captions their place in the picture, as papers have it.

        An id that comes again is dropped; where ids name nothing, what is the same in everything.
        """
        places: dict[Any, int] = {}
        seen: set[str] = set()
        for number, a in enumerate(annotations):
            if not isinstance(a, dict) or a.get("image_id") is None:
                problems.add("annotation without image_id", f"annotation {number}")
                continue
            place = places.get(a["image_id"], 0)
            places[a["image_id"]] = place + 1
            is_named = not self.captions and a.get("id") is not None
            key = str(a["id"]) if is_named else f"{a['image_id']}_region_{place}"
            same = key if is_named else json.dumps(a, sort_keys=True)
            if same in seen and a.get("id") is not None:
                problems.add("annotation given twice, the first counts", key)
                continue
            seen.add(same)
            yield key, a

    def _picture_name(self, image: dict[str, Any]) -> str:
        """Where a picture lies under `root`: by its name, or by COCO's address with or without the split's folder."""
        if "file_name" in image and (self.root / image["file_name"]).is_file():
            return str(image["file_name"])
        parts = str(image.get("coco_url", image.get("file_name", ""))).split("/")
        inner = "/".join(parts[-2:])
        return inner if (self.root / inner).is_file() else parts[-1]


def _captions(a: dict[str, Any], image: dict[str, Any]) -> list[str]:
    if "caption" not in a and "caption" not in image:
        raise KeyError("caption")
    caption = a.get("caption", image.get("caption"))
    return [" ".join(caption.split())] if isinstance(caption, str) and caption.strip() else []


def _with_area(key: str, a: dict[str, Any], size: tuple[int, int], problems: Problems) -> dict[str, Any]:
    """The annotation with what pycocotools cannot do without."""
    area = a.get("area")
    if not is_number(area):
        if "area" in a:
            problems.add("area that is no number, taken from the box or the mask", key)
        found = clipped_box(a.get("bbox"), size[1], size[0])
        if found is not None:
            area = a["bbox"][2] * a["bbox"][3]
        else:
            area = int(decode_mask(a["segmentation"], size).sum()) if a.get("segmentation") else 0
    return {**a, "area": area, "iscrowd": int(bool(a.get("iscrowd")))}


def _distinct_pictures(images: list[dict[str, Any]], problems: Problems) -> list[dict[str, Any]]:
    """Pictures, each id once. Raises `ValueError` for one without a size, and for ids of several kinds."""
    found: dict[Any, dict[str, Any]] = {}
    for image in images:
        width, height = image["width"], image["height"]
        if not all(isinstance(n, int) and n > 0 for n in (width, height)):
            raise ValueError(
                f"Picture {image['id']} has width {width} and height {height}, expected whole numbers from 1."
            )
        if image["id"] in found:
            problems.add("picture listed twice, the first counts", str(image["id"]))
        else:
            found[image["id"]] = image
    if len({type(key) for key in found}) > 1:
        raise ValueError("Pictures have numbers and words for ids, expected one kind: give them all numbers.")
    return list(found.values())
