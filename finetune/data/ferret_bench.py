"""Ferret-Bench (https://github.com/apple/ml-ferret), in the layout that Osprey made of it: questions without answers.

CC BY-NC 4.0. Its answers are judged by another language model, so its records end with the question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tap_tokenizer import open_image, upright_size

from ..arguments import knob
from .json_stream import iter_items
from .sample import Sample
from .source import PictureSource, corners, literal, number_regions, record


@dataclass(kw_only=True)
class FerretBenchSource(PictureSource):
    """Ferret-Bench; `images` is COCO's val2017, which is opened for the pictures' sizes."""

    annotations: str = knob(help="box_refer_caption.json or box_refer_reason.json")

    def records(self) -> Iterator[Sample]:
        self.require(self.annotations)
        for entry in iter_items(self.annotations):
            with open_image(Path(self.images) / entry["image"]) as picture:
                width, height = upright_size(picture)
            annotation = literal(entry["annotation"])
            region = {"box": corners(annotation["bbox"], width, height), "mask": annotation["segmentation"]}
            turns = [{"role": "user", "content": number_regions(entry["text"])[0]}]
            source = f"Ferret-Bench {entry['category']}"
            yield record(self.picture(entry["image"]), (height, width), [region], turns, source, "CC BY-NC 4.0")
