"""Visual Genome's region descriptions (https://homes.cs.washington.edu/~ranjay/visualgenome/api.html), CC BY 4.0.

Two layouts: the original's `region_descriptions.json` with `image_data.json`, and the COCO-style one of GRiT and others
(https://github.com/JialianW/GRiT), whose annotations carry a `caption`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..arguments import knob
from .json_stream import AnnotationIndex, iter_items
from .sample import Sample
from .source import CAPTION_QUESTION, PictureSource, ask_each, corners, groups, record

LICENSE = "CC BY 4.0"


@dataclass(kw_only=True)
class DescriptionSource(PictureSource):
    """Knobs of both layouts."""

    question: str = knob(default=CAPTION_QUESTION, help="asked of every region; the answer is its description")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")

    def described(
        self, picture: str, size: tuple[int, int], regions: Sequence[dict[str, Any]], source: str
    ) -> Iterator[Sample]:
        """Records of a picture whose regions have their description in "label"."""
        for some in groups(regions, self.regions_per_record):
            turns = ask_each(self.question, [region["label"] for region in some])
            yield record(picture, size, list(some), turns, source, LICENSE)


@dataclass(kw_only=True)
class VisualGenomeSource(DescriptionSource):
    """The original layout; `images` is the folder that holds VG_100K and VG_100K_2."""

    annotations: str = knob(help="region_descriptions.json")
    image_data: str = knob(help="image_data.json, which has the pictures' sizes and folders")
    splits: str | None = knob(default=None, help="densecap_splits.json, to take one split of it")
    split: Literal["train", "val", "test"] = knob(default="train", help="which split, if splits are given")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations, self.image_data, *([self.splits] if self.splits else []))
        wanted = set(iter_items(self.splits, f"{self.split}.item")) if self.splits else None
        pictures = {
            entry["image_id"]: ("/".join(entry["url"].split("/")[-2:]), (entry["height"], entry["width"]))
            for entry in iter_items(self.image_data)
        }
        for entry in iter_items(self.annotations):
            number = entry["regions"][0]["image_id"] if entry["regions"] else entry.get("id")
            if number not in pictures or (wanted is not None and number not in wanted):
                continue
            name, size = pictures[number]
            regions = []
            for r in entry["regions"]:
                box = corners((r["x"], r["y"], r["width"], r["height"]), size[1], size[0])  # some leave the picture
                if box is not None and r["phrase"].strip():
                    regions.append({"box": box, "label": " ".join(r["phrase"].split())})
            yield from self.described(self.picture(name), size, regions, "Visual Genome")


@dataclass(kw_only=True)
class GritSource(DescriptionSource):
    """COCO-style files whose annotations have a caption, masks optional: GRiT's train.json and test.json, and others."""

    annotations: str = knob(help="train.json or test.json")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        with AnnotationIndex(self.annotations) as index:
            for image in index.images():
                regions = []
                for a in index.annotations(image["id"]):
                    box = corners(a["bbox"], image["width"], image["height"])
                    if box is None or a.get("iscrowd") or a.get("ignore") or not a["caption"].strip():
                        continue
                    region = {"box": box, "label": " ".join(a["caption"].split())}
                    regions.append({**region, "mask": a["segmentation"]} if a.get("segmentation") else region)
                size = (image["height"], image["width"])
                yield from self.described(self.picture(image["file_name"]), size, regions, "region captions")
