"""RefCOCO, RefCOCO+ and RefCOCOg (https://github.com/lichengunc/refer): expressions that single out one object.

Expressions come as a pickle, which is read without running anything in it. Boxes, masks and file names come from the
`instances.json` beside it, because the file names in the references carry a suffix that no picture has.

The records ask for a description of each region, or, with `grounding`, which of many regions each expression means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from llm_bridge import find_question
from tap_tokenizer import read_pickle

from ..config import knob
from ..records import Record, Region
from .annotations import AnnotationIndex
from .entries import (
    EntryError,
    answer,
    entry_name,
    identity,
    is_crowd,
    listed,
    mapping,
    needed,
    size_of,
    text,
)
from .grounding import CandidateFile, Expression, beside, covering, grounding_record
from .json_files import iter_items
from .source import PictureSource, RegionQuestionSource

QUESTION = "Describe <region> so that it cannot be taken for anything else in the picture."
TERMS = "pictures: Flickr, see COCO"
ALONE = "picture without candidates in the file: its annotated objects alone are shown"
WITHOUT_CROWD = "reference to a crowd and other objects: only these are meant"


@dataclass
class PictureExpressions:
    """A picture with its annotated objects, by the ids of their annotations, and what expressions mean which of them.

    id: the picture's own. file_name: as the annotations have it; path: as records do. expressions: by reference and sentence,
    counted from 0 (REFERENCE/SENTENCE), each with the ids of the objects that it means. crowds: ids of annotations that are
    marked so; faults: why others are no objects, by their ids.
    """

    id: str
    file_name: str
    path: str
    size: tuple[int, int]
    objects: dict[str, Region]
    expressions: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    crowds: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class ReferringSource(PictureSource):
    """What readers of RefCOCO and of gRefCOCO share; `images` is COCO's train2014."""

    title: ClassVar[str]
    """What records call their source."""
    references: str = knob(help="refs(unc).p, refs(google).p or refs(umd).p; or the same as JSON")
    annotations: str = knob(help="instances.json of the same folder")
    split: str = knob(default="train", help="train, val, test, testA or testB, whichever the references have")
    sentences: Literal["each", "first"] = knob(
        default="each",
        help="each: a record for every expression, the k-th ones of a picture's regions together; first: only the first ones",
    )
    candidates: str | None = knob(
        default=None,
        help="grounding found or both: the regions of each picture, as `tap-tokenizer everything FOLDER --masks` or a detector "
        "wrote them (its lines, or COCO's results)",
    )
    expressions_per_record: int = knob(
        default=8, help="grounding: expressions in a record, at most; each question shows all candidates"
    )

    def grounded(self, grounding: str) -> Iterator[Record]:
        """Records that ask which candidates an expression means."""
        self.require(self.references, self.annotations, *([self.candidates] if self.candidates else []))
        if (self.candidates is None) == (grounding != "true"):
            raise ValueError(
                f"Got grounding {grounding} and candidates {self.candidates}: give candidates with found or both, and with "
                "nothing else."
            )
        if self.candidates is None:
            yield from self._grounded(None, grounding)
            return
        with CandidateFile(self.candidates, self.left_out) as found:
            yield from self._grounded(found, grounding)

    def _grounded(self, file: CandidateFile | None, grounding: str) -> Iterator[Record]:
        for picture in self.pictures(file):
            keys, objects = list(picture.objects), list(picture.objects.values())
            found = []
            if file is not None:
                found = file.regions(names_of(picture.id, picture.file_name), picture.size)
                if grounding == "both" and not found:
                    self.left_out.doubtful[ALONE] += 1
            if grounding == "found":
                candidates, covers = found, dict(zip(keys, covering(objects, found, picture.size)))
            else:
                candidates = [*objects, *beside(objects, found, picture.size)]
                covers = {key: i for i, key in enumerate(keys)}
            expressions = list(self._expressions(picture, covers))
            if expressions and not candidates:
                self.left_out.unwanted["picture without candidates"] += 1
                continue
            for start in range(0, len(expressions), self.expressions_per_record):
                some = expressions[start : start + self.expressions_per_record]
                yield grounding_record(picture.path, picture.size, candidates, some, self.title, TERMS)

    def _expressions(self, picture: PictureExpressions, covers: dict[str, int | None]) -> Iterator[Expression]:
        """The picture's expressions of candidates; one of an object that no candidate covers teaches nothing."""
        for name, (phrase, keys) in picture.expressions.items():
            with self.left_out.entry(self.references, f"expression {name}"):
                meant = [covers[key] for key in keys]
                if None in meant:
                    words = f"no candidate covers what {phrase!r:.60} means (IoU of .5 or more)"
                    raise EntryError("no candidate covers its object", words)
                kind = "none" if not keys else "one" if len(keys) == 1 else "several"
                yield Expression(phrase, tuple(dict.fromkeys(i for i in meant if i is not None)), kind)

    def pictures(self, file: CandidateFile | None = None) -> Iterator[PictureExpressions]:
        """The pictures of the split with their objects and expressions, in the order of the references.

        Raises `ValueError` for a split that the references do not have, and for a file that has candidates of none of them.
        """
        by_image = self._by_image()
        with AnnotationIndex(self.annotations, self.left_out) as index:
            if file is not None and not any(_has(file, index.image(image)) for image in by_image):
                raise ValueError(
                    f"{file.path} has regions of none of these pictures, expected pictures that are called as "
                    f"{self.annotations} calls them, by file name or id: give the regions of {self.images}."
                )
            for image, references in by_image.items():
                found = None
                with self.left_out.entry(self.references, f"references of picture {image}"):
                    found = self._picture(index.image(image), image, index)
                if found is None:
                    continue
                for name, reference in references.items():
                    with self.left_out.entry(self.references, name):
                        self._add(found, name, reference)
                if found.expressions:
                    yield found

    def _picture(self, image: dict[str, Any] | None, key: str, index: AnnotationIndex) -> PictureExpressions:
        if image is None:
            raise self._not_listed(key)
        file_name = text(image, "file_name")
        found = PictureExpressions(key, file_name, self.picture(file_name), size_of(image), {})
        for name, annotation in index.named_annotations(key).items():
            with self.left_out.entry(self.annotations, name):
                own = identity(annotation, "id")
                if is_crowd(annotation):
                    found.crowds.add(own)
                    continue
                try:
                    found.objects[own] = self.region_of(annotation, found.size)
                except EntryError as fault:
                    found.faults[own] = str(fault)
                    raise
        return found

    def _not_listed(self, image: Any) -> EntryError:
        return EntryError(
            "picture not listed",
            f"{self.annotations} lacks picture {image!r:.60}: give the file that came with it",
        )

    def _add(self, picture: PictureExpressions, name: str, reference: dict[str, Any]) -> None:
        """Add a reference's expressions to its picture's. Crowds among what it means are passed over, as ReLA does."""
        meant = self.meant(reference)
        keys = [key for key in meant if key not in picture.crowds]
        for key in keys:
            if key in picture.faults:
                raise EntryError("object that cannot be used", f"of annotation {key!r:.60}, {picture.faults[key]}")
            if key not in picture.objects:
                raise EntryError("annotation not listed", f"{self.annotations} lacks annotation {key!r:.60}")
        if meant and not keys:
            raise EntryError("crowd alone", f"annotation {meant[0]!r:.60} is a crowd, and nothing else is meant")
        if len(keys) < len(meant):
            self.left_out.doubtful[WITHOUT_CROWD] += 1
        number = identity(reference, "ref_id")
        sentences = listed(reference, "sentences")
        for place, sentence in enumerate(sentences[: 1 if self.sentences == "first" else None]):
            with self.left_out.entry(self.references, f"{name}, sentence number {place + 1}"):
                phrase = answer(mapping(sentence), "sent")
                try:
                    find_question(phrase)
                except ValueError as error:
                    raise EntryError("expression that cannot be asked", str(error)) from None
                picture.expressions[f"{number}/{place}"] = phrase, keys

    def meant(self, reference: dict[str, Any]) -> list[str]:
        """Ids of the annotations that a reference means."""
        return [identity(reference, "ann_id")]

    def _by_image(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The references of the split by picture, each by what errors call it."""
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
        return by_image

    def _references(self) -> Iterator[Any]:
        if self.references.endswith(".json"):
            yield from iter_items(self.references)
            return
        found = read_pickle(self.references)
        if not isinstance(found, (list, tuple)):
            raise ValueError(f"{self.references} holds a {type(found).__name__}, expected a list of references.")
        yield from found


def names_of(key: str, path: str) -> list[str]:
    """What a file of candidates may call a picture: by its id, its path in some folder, or its file's name."""
    return list(dict.fromkeys([key, path, Path(path).name]))


def _has(file: CandidateFile, image: dict[str, Any] | None) -> bool:
    return image is not None and file.has(names_of(str(image["id"]), str(image.get("file_name"))))


@dataclass(kw_only=True)
class RefCocoSource(ReferringSource, RegionQuestionSource):
    """RefCOCO/+/g; `images` is COCO's train2014."""

    title: ClassVar[str] = "RefCOCO"
    question: str = knob(default=QUESTION, help="what is asked about every region; the answer is an expression")
    grounding: Literal["none", "true", "found", "both"] = knob(
        default="none",
        help="true, found, both: ask which candidates each expression means, among all annotated objects of its picture, among "
        "what `candidates` has, or among both; none: ask for the expressions",
    )

    def records(self) -> Iterator[Record]:
        if self.grounding != "none":
            self._refuse_unread("question", "regions_per_record")
            yield from self.grounded(self.grounding)
            return
        self._refuse_unread("expressions_per_record")
        if self.candidates is not None:
            raise ValueError(
                f"Got candidates {self.candidates}, which only grounding reads: give grounding found or both."
            )
        self.require(self.references, self.annotations)
        by_image = self._by_image()
        with AnnotationIndex(self.annotations, self.left_out) as index:
            for image, references in by_image.items():
                yield from self._records(index.image(image), references, index)

    def _records(
        self, image: dict[str, Any] | None, references: dict[str, dict[str, Any]], index: AnnotationIndex
    ) -> Iterator[Record]:
        found: list[tuple[Region, list[str]]] = []
        for name, reference in references.items():
            with self.left_out.entry(self.references, name):
                if image is None:
                    raise self._not_listed(reference["image_id"])
                picture, size = self.picture(text(image, "file_name")), size_of(image)
                found.append(self._region(name, reference, size, index))
        rounds = max((len(expressions) for _, expressions in found), default=0)
        for k in range(rounds if self.sentences == "each" else min(rounds, 1)):
            having = [(region, self.question, expressions[k]) for region, expressions in found if k < len(expressions)]
            yield from self.records_of(picture, size, having, self.title, TERMS)

    def _refuse_unread(self, *names: str) -> None:
        """Refuse options that this kind of records has no use for."""
        defaults = {one.name: one.default for one in fields(self)}
        if unread := [name for name in names if getattr(self, name) != defaults[name]]:
            what = "asks which candidates are meant" if self.grounding != "none" else "asks about regions"
            raise ValueError(f"Got {', '.join(unread)} with grounding {self.grounding}, which {what}: leave it out.")

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


@dataclass(kw_only=True)
class GRefCocoSource(ReferringSource):
    """gRefCOCO (https://github.com/henghuiding/gRefCOCO): expressions of one object, of several, or of none."""

    title: ClassVar[str] = "gRefCOCO"
    references: str = knob(help="grefs(unc).json, or .p")
    grounding: Literal["true", "found", "both"] = knob(
        default="true",
        help="candidates: all annotated objects of the picture, what `candidates` has, or both",
    )

    def records(self) -> Iterator[Record]:
        yield from self.grounded(self.grounding)

    def meant(self, reference: dict[str, Any]) -> list[str]:
        """Ids of the annotations that a reference means; -1 stands for none."""
        value = needed(reference, "ann_id")
        keys = [identity({"ann_id": one}, "ann_id") for one in (value if isinstance(value, list) else [value])]
        return list(dict.fromkeys(key for key in keys if key != "-1"))
