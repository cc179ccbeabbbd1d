"""RefCOCO, RefCOCO+ and RefCOCOg (https://github.com/lichengunc/refer): expressions that single out one object.

Expressions come as a pickle, which is read without running anything in it; boxes, masks and file names come from the
`instances.json` beside it, for the references' own file names carry a suffix that no picture has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tap_tokenizer import read_pickle

from ..arguments import knob
from .json_stream import AnnotationIndex
from .sample import Sample
from .source import PictureSource, ask_each, corners, groups, record

QUESTION = "Describe <region> so that it cannot be taken for anything else in the picture."


@dataclass(kw_only=True)
class RefCocoSource(PictureSource):
    """RefCOCO/+/g; `images` is COCO's train2014."""

    references: str = knob(help="refs(unc).p, refs(google).p or refs(umd).p; or the same as JSON")
    annotations: str = knob(help="instances.json of the same folder")
    split: str = knob(default="train", help="train, val, test, testA or testB, as the references have them")
    sentences: Literal["each", "first"] = knob(
        default="each",
        help="each: the k-th expressions of a picture's regions are its k-th record; first: only the first",
    )
    question: str = knob(default=QUESTION, help="asked of every region; the answer is an expression")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")

    def records(self) -> Iterator[Sample]:
        self.require(self.references, self.annotations)
        by_image: dict[Any, list[dict[str, Any]]] = {}
        everything = self._references()
        for reference in everything:
            if reference["split"] == self.split:
                by_image.setdefault(reference["image_id"], []).append(reference)
        if not by_image:
            raise ValueError(f"split is {self.split}, expected one of {sorted({r['split'] for r in everything})}.")
        with AnnotationIndex(self.annotations) as index:
            for number, references in by_image.items():
                image = index.image(number)
                if image is None:
                    raise ValueError(f"{self.annotations} lacks picture {number}: give the file that came with it.")
                yield from self._records(image, references, index)

    def _references(self) -> list[dict[str, Any]]:
        if self.references.endswith(".json"):
            with open(self.references, encoding="utf-8") as file:
                return list(json.load(file))
        return list(read_pickle(self.references))

    def _records(
        self, image: dict[str, Any], references: list[dict[str, Any]], index: AnnotationIndex
    ) -> Iterator[Sample]:
        found: list[tuple[dict[str, Any], list[str]]] = []
        for reference in references:
            annotation = index.annotation(reference["ann_id"])
            box = None if annotation is None else corners(annotation["bbox"], image["width"], image["height"])
            expressions = [" ".join(s["sent"].split()) for s in reference["sentences"] if s["sent"].strip()]
            if annotation is not None and box is not None and expressions:
                region = {"box": box, "mask": annotation["segmentation"], "captions": expressions}
                found.append((region, expressions))
        rounds = max((len(expressions) for _, expressions in found), default=0)
        for k in range(rounds if self.sentences == "each" else min(rounds, 1)):
            having = [(region, expressions[k]) for region, expressions in found if k < len(expressions)]
            for some in groups(having, self.regions_per_record):
                turns = ask_each(self.question, [words for _, words in some])
                size = (image["height"], image["width"])
                yield record(
                    self.picture(image["file_name"]), size, [region for region, _ in some], turns, "RefCOCO",
                    "pictures: Flickr, see COCO",
                )  # fmt: skip
