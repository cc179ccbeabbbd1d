"""RefCOCO, RefCOCO+ and RefCOCOg (https://github.com/lichengunc/refer): expressions that single out one object.

Expressions come as a pickle, which is read without running anything in it. Boxes, masks and file names come from the
`instances.json` beside it, because the file names in the references carry a suffix that no picture has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tap_tokenizer import read_pickle

from ..config import knob
from ..records import Record, Region
from .annotations import AnnotationIndex
from .entries import (
    EntryError,
    answer,
    entry_name,
    identity,
    listed,
    mapping,
    size_of,
    text,
)
from .json_files import iter_items
from .source import RegionQuestionSource

QUESTION = "Describe <region> so that it cannot be taken for anything else in the picture."


@dataclass(kw_only=True)
class RefCocoSource(RegionQuestionSource):
    """RefCOCO/+/g; `images` is COCO's train2014."""

    references: str = knob(help="refs(unc).p, refs(google).p or refs(umd).p; or the same as JSON")
    annotations: str = knob(help="instances.json of the same folder")
    split: str = knob(default="train", help="train, val, test, testA or testB, whichever the references have")
    sentences: Literal["each", "first"] = knob(
        default="each",
        help="each: a record for every expression, the k-th ones of a picture's regions together; first: only the first ones",
    )
    question: str = knob(default=QUESTION, help="what is asked about every region; the answer is an expression")

    def records(self) -> Iterator[Record]:
        self.require(self.references, self.annotations)
        by_image: dict[str, dict[str, dict[str, Any]]] = {}
        splits: set[str] = set()
        for number, reference in enumerate(self._references(), 1):
            name = entry_name(reference, number, "ref_id")
            with self.left_out.entry(self.references, name):
                split = text(mapping(reference), "split")
                splits.add(split)
                if split == self.split:
                    by_image.setdefault(identity(reference, "image_id"), {})[name] = reference
                else:
                    self.left_out.unwanted[f"reference of another split than {self.split}"] += 1
        if not by_image and splits:
            raise ValueError(f"split is {self.split}, expected one of {sorted(splits)}.")
        with AnnotationIndex(self.annotations, self.left_out) as index:
            for image, references in by_image.items():
                yield from self._records(index.image(image), references, index)

    def _references(self) -> Iterator[Any]:
        if self.references.endswith(".json"):
            yield from iter_items(self.references)
            return
        found = read_pickle(self.references)
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"{self.references} holds a {type(found).__name__}, expected a list of references.")
        yield from found

    def _records(
        self, image: dict[str, Any] | None, references: dict[str, dict[str, Any]], index: AnnotationIndex
    ) -> Iterator[Record]:
        found: list[tuple[Region, list[str]]] = []
        for name, reference in references.items():
            with self.left_out.entry(self.references, name):
                if image is None:
                    words = f"{self.annotations} lacks picture {reference['image_id']!r:.60}: give the file that came with it"
                    raise EntryError("picture not listed", words)
                picture, size = self.picture(text(image, "file_name")), size_of(image)
                found.append(self._region(name, reference, size, index))
        rounds = max((len(expressions) for _, expressions in found), default=0)
        for k in range(rounds if self.sentences == "each" else min(rounds, 1)):
            having = [(region, self.question, expressions[k]) for region, expressions in found if k < len(expressions)]
            yield from self.records_of(picture, size, having, "RefCOCO", "pictures: Flickr, see COCO")

    def _region(
        self, name: str, reference: dict[str, Any], size: tuple[int, int], index: AnnotationIndex
    ) -> tuple[Region, list[str]]:
        """The region that a reference singles out, and its expressions, which are its captions, too."""
        key = identity(reference, "ann_id")
        annotation = index.annotation(key)
        if annotation is None:
            raise EntryError("annotation not listed", f"{self.annotations} lacks annotation {key!r:.60}")
        expressions = []
        for place, sentence in enumerate(listed(reference, "sentences"), 1):
            with self.left_out.entry(self.references, f"{name}, sentence number {place}"):
                expressions.append(answer(mapping(sentence), "sent"))
        if not expressions:
            raise EntryError("no expression", "none of its sentences says anything")
        return self.region_of(annotation, size, captions=expressions), expressions
