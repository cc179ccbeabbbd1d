"""COCO: instances (https://cocodataset.org/#format-data) and panoptic segments → records of "What is <region>?".

Annotations are CC BY 4.0, pictures under the terms of Flickr's users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tap_tokenizer import open_image

from ..arguments import knob
from .json_stream import AnnotationIndex
from .sample import Sample, encode_mask
from .source import LABEL_QUESTION, PictureSource, ask_each, corners, groups, record

LICENSE = "annotations CC BY 4.0; pictures: Flickr, see the data set's own file"


@dataclass(kw_only=True)
class CocoSource(PictureSource):
    """COCO instances: each object with its box, mask and category."""

    annotations: str = knob(help="instances_*.json")
    question: str = knob(default=LABEL_QUESTION, help="asked of every region; the answer is its category")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")
    keep_crowds: bool = knob(default=False, help="keep regions of many objects drawn as one (iscrowd)")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        with AnnotationIndex(self.annotations) as index:
            names = {key: self.label(category) for key, category in index.categories().items()}
            for image in index.images():
                found = [a for a in index.annotations(image["id"]) if self.keep_crowds or not a.get("iscrowd")]
                regions = [region for a in found if (region := self.region(a, image, names)) is not None]
                for some in groups(regions, self.regions_per_record):
                    turns = ask_each(self.question, [region["label"] for region in some])
                    size = (image["height"], image["width"])
                    yield record(self.picture(self.file_name(image)), size, list(some), turns, self.name, LICENSE)

    name = "COCO instances"

    def file_name(self, image: dict[str, Any]) -> str:
        """Where a picture lies under `images`."""
        return str(image["file_name"])

    def label(self, category: dict[str, Any]) -> str:
        """What a category is called in an answer."""
        return str(category["name"])

    def region(self, annotation: dict[str, Any], image: dict[str, Any], names: dict[Any, str]) -> dict[str, Any] | None:
        """A region of an annotation; None if its box is empty or lies outside."""
        box = corners(annotation["bbox"], image["width"], image["height"])
        if box is None or annotation["category_id"] not in names:
            return None
        region = {"box": box, "label": names[annotation["category_id"]]}
        return {**region, "mask": annotation["segmentation"]} if annotation.get("segmentation") else region


@dataclass(kw_only=True)
class CocoPanopticSource(PictureSource):
    """COCO panoptic: every segment, things and stuff, with its mask from a PNG whose colour is the segment's number."""

    annotations: str = knob(help="panoptic_*.json")
    segments: str = knob(help="folder of the PNGs of segments")
    question: str = knob(default=LABEL_QUESTION, help="asked of every region; the answer is its category")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")
    things_only: bool = knob(default=False, help="leave out stuff: sky, grass, …")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations, self.segments)
        with AnnotationIndex(self.annotations) as index:
            categories = index.categories()
            for image in index.images():
                for annotation in index.annotations(image["id"]):
                    regions = self._regions(annotation, image, categories)
                    for some in groups(regions, self.regions_per_record):
                        turns = ask_each(self.question, [region["label"] for region in some])
                        size = (image["height"], image["width"])
                        yield record(
                            self.picture(image["file_name"]), size, list(some), turns, "COCO panoptic", LICENSE
                        )

    def _regions(
        self, annotation: dict[str, Any], image: dict[str, Any], categories: dict[Any, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        with open_image(Path(self.segments) / annotation["file_name"]) as picture:
            red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.int64), -1, 0)
        numbers = red + 256 * green + 65536 * blue
        regions = []
        for segment in annotation["segments_info"]:
            category = categories[segment["category_id"]]
            mask = numbers == segment["id"]
            if segment.get("iscrowd") or (self.things_only and not category.get("isthing")) or not mask.any():
                continue
            box = corners(segment["bbox"], image["width"], image["height"])
            if box is not None:
                name = category["name"].replace("-other", "").replace("-merged", "").replace("-stuff", "")
                regions.append({"box": box, "mask": encode_mask(mask), "label": name})
        return regions
