"""Records that teach a bridge to find regions by words: candidates, and turns that ask which of them an expression means.

A question shows all candidates, each by its name, and ends with what `llm_bridge.find_question` writes; the answer is what
`llm_bridge.find_answer` writes. So a bridge learns the very words that `RegionChat.find` asks. Every question stands alone and
may be cut out of its record, unless only the first one shows the candidates, which makes a record of many questions short.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from llm_bridge import asked_phrase, find_answer, find_question, named_numbers, region_numbers, says_none

from ..records import Record, Region, Turn, decode_mask, encode_mask
from .entries import (
    EntryError,
    LeftOut,
    box_of,
    entry_name,
    identity,
    listed,
    mapping,
    mask_of,
    needed,
    sound_region,
    text,
)
from .json_files import JsonFile, iter_items, read_json_lines

LEAST_IOU = 0.5
"""A candidate covers an object if their IoU is at least this."""


@dataclass(frozen=True)
class Expression:
    """Words for some of a record's candidates, which are numbered from 0; for none of them, if `meant` is empty.

    type: what kind of expression it is, by which evaluations group them.
    """

    phrase: str
    meant: tuple[int, ...]
    type: str | None = None


def grounding_record(
    image: str,
    size: tuple[int, int],
    candidates: Sequence[Region],
    expressions: Sequence[Expression],
    source: str,
    terms: str | None,
    *,
    shown_once: bool = False,
) -> Record:
    """A record of a picture of (height, width) `size`, whose candidates stand in an order that its name alone decides.

    The regions of an answer are named in the order of their numbers. shown_once: only the first question shows the candidates,
    and the others are about them, so that the record may not be cut; `each_shown` undoes it. Raises `ValueError` for an
    expression that names a region by its number.
    """
    order = candidate_order(image, len(candidates))
    number = {candidate: place for place, candidate in enumerate(order, 1)}
    turns: list[Turn] = []
    for one in expressions:
        question = find_question(one.phrase, 0 if shown_once and turns else len(candidates))
        turns += [
            Turn("user", question, type=one.type),
            Turn("assistant", find_answer(sorted(number[i] for i in one.meant))),
        ]
    return Record(image, size[1], size[0], [candidates[i] for i in order], turns, source, terms)


def each_shown(record: Record) -> Record:
    """The same record with its candidates shown by every question to find regions, as without `shown_once`.

    A question that shows none is about all that were shown before it.
    """
    shown: list[int] = []
    turns: list[Turn] = []
    for turn in record.conversations:
        own = region_numbers(turn.content) if turn.role == "user" else []
        if turn.role == "user" and not own and asked_phrase(turn.content) is not None:
            turn = replace(turn, content="".join(f"<region{number}> " for number in shown) + turn.content)
        shown += [number for number in own if number not in shown]
        turns.append(turn)
    return replace(record, conversations=turns)


def meant_numbers(answer: str, count: int) -> list[int] | None:
    """Numbers from 1 to `count` of the regions that a true answer means, [] if it says none; None if it cannot be read.

    That is an answer that names no region, or one that is not there, and does not say none.
    """
    if says_none(answer):
        return []
    numbers = list(dict.fromkeys(named_numbers(answer)))
    return numbers if numbers and all(1 <= number <= count for number in numbers) else None


def candidate_order(name: str, count: int) -> list[int]:
    """A permutation of 0 … `count` - 1 that looks random and is always the same for a name."""
    seed = int(sha256(name.encode()).hexdigest()[:8], 16)
    return [int(i) for i in np.random.RandomState(seed).permutation(count)]


def overlaps(a: Sequence[Region], b: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """IoU (len(a), len(b)) of regions of a picture of (height, width) `size`: of their masks if all have one, else of boxes."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    if all(region.mask for region in (*a, *b)):
        forms: list[list[Any]] = [[encode_mask(decode_mask(region.mask, size)) for region in own] for own in (a, b)]
    else:
        forms = [[_xywh(region.around(size)) for region in own] for own in (a, b)]
        forms = [np.asarray(own, dtype=np.float64) for own in forms]  # type: ignore[misc]
    return np.asarray(coco_mask.iou(forms[0], forms[1], [0] * len(b)))


def _xywh(box: Sequence[float] | None) -> list[float]:
    x1, y1, x2, y2 = box or (0.0, 0.0, 0.0, 0.0)
    return [x1, y1, x2 - x1, y2 - y1]


def covering(objects: Sequence[Region], candidates: Sequence[Region], size: tuple[int, int]) -> list[int | None]:
    """For each object, the candidate that covers it best; None where no IoU is `LEAST_IOU` or more."""
    iou = overlaps(objects, candidates, size)
    return [int(row.argmax()) if len(row) and row.max() >= LEAST_IOU else None for row in iou]


def beside(objects: Sequence[Region], found: Sequence[Region], size: tuple[int, int]) -> list[Region]:
    """Those that were found and cover none of the objects."""
    iou = overlaps(found, objects, size)
    return [region for region, row in zip(found, iou) if not len(row) or row.max() < LEAST_IOU]


class CandidateFile:
    """Regions by picture that everything mode or a detector found, in a temporary database on disk instead of in memory.

    A file has either the lines that `tap-tokenizer everything FOLDER` writes, whose pictures are named by their paths, or
    COCO's results: a list, or the "annotations" of an object, whose pictures are named by their ids, or by the paths that
    its "images" give for these. Entries that cannot be used go to `left_out`.
    """

    def __init__(self, path: str | Path, left_out: LeftOut) -> None:
        self.path, self.left_out = Path(path), left_out
        self._database = sqlite3.connect("")  # an unnamed database lies in a file that vanishes with the connection
        self._database.execute("CREATE TABLE region (picture TEXT, file TEXT, name TEXT, content TEXT)")
        self._database.execute("CREATE TABLE image (id TEXT PRIMARY KEY, path TEXT)")
        for number, entry in enumerate(self._entries(), 1):
            name = entry_name(entry, number, "image", "image_id")
            with left_out.entry(path, name):
                self._database.executemany("INSERT INTO region VALUES (?, ?, ?, ?)", self._rows(mapping(entry), name))
        self._database.execute("CREATE INDEX region_picture ON region (picture)")
        self._database.execute("CREATE INDEX region_file ON region (file)")

    def _entries(self) -> Iterator[Any]:
        file = JsonFile(self.path)
        try:
            first = file.peek()
        finally:
            file.close()
        if first == "[":
            return iter_items(self.path)
        if self.path.suffix == ".jsonl":
            return read_json_lines(self.path)
        for number, image in enumerate(iter_items(self.path, "images.item", may_lack=True), 1):
            with self.left_out.entry(self.path, f"picture number {number}"):
                key = identity(mapping(image), "id")
                row = (key, text(image, "file_name") if image.get("file_name") else key)
                self._database.execute("INSERT OR IGNORE INTO image VALUES (?, ?)", row)
        return iter_items(self.path, "annotations.item")

    def _rows(self, entry: dict[str, Any], name: str) -> list[tuple[str, str, str, str]]:
        if "regions" not in entry:
            picture = self._path(identity(entry, "image_id"))
            return [(picture, Path(picture).name, name, json.dumps(entry))]
        regions = listed(entry, "regions")
        picture = identity(entry, "image")
        return [
            (picture, Path(picture).name, f"{name}, region number {i}", json.dumps(region))
            for i, region in enumerate(regions, 1)
        ]

    def _path(self, key: str) -> str:
        """What "images" call the picture with an id; the id itself if the file has none."""
        row = self._database.execute("SELECT path FROM image WHERE id = ?", (key,)).fetchone()
        if row is None and self._database.execute("SELECT 1 FROM image").fetchone():
            raise EntryError("picture not listed", f'its picture, {key!r:.60}, is not among the file\'s "images"')
        return str(row[0]) if row else key

    def has(self, names: Sequence[str]) -> bool:
        """Whether there are regions of the picture that the file may call by any of these names."""
        return bool(self._pictures(names))

    def _pictures(self, names: Sequence[str]) -> list[str]:
        """What the file calls a picture: one of its names, or else a path that ends as one of them does.

        Of several such paths, the one that has most folders in common. Raises `ValueError` if there are several of these.
        """
        exact = self._distinct("picture", names)
        paths = {} if exact else {path: _common_end(path, names) for path in self._distinct("file", _files(names))}
        nearest = exact or [path for path, count in paths.items() if count == max(paths.values())]
        if len(nearest) > 1 and not exact:
            raise ValueError(
                f"{self.path} has regions of {nearest[0]} and of {nearest[1]}, expected one of them to be {names[-1]}: name "
                "pictures by more of their paths."
            )
        return nearest

    def _distinct(self, column: str, values: Sequence[str]) -> list[str]:
        marks = ", ".join("?" * len(values))
        query = f"SELECT DISTINCT picture FROM region WHERE {column} IN ({marks})"
        return [row[0] for row in self._database.execute(query, tuple(values))]

    def regions(self, names: Sequence[str], size: tuple[int, int]) -> list[Region]:
        """The regions of a picture of (height, width) `size`, which the file may call by any of these names."""
        found: list[Region] = []
        pictures = self._pictures(names)
        marks = ", ".join("?" * len(pictures))
        query = f"SELECT name, content FROM region WHERE picture IN ({marks}) ORDER BY rowid"
        for name, content in self._database.execute(query, tuple(pictures)):
            with self.left_out.entry(self.path, name):
                found.append(_region_of(mapping(json.loads(content)), size))
        return found

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> CandidateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _files(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(Path(name).name for name in names))


def _common_end(path: str, names: Sequence[str]) -> int:
    """How many of the last parts of a path are those of a name, at most."""
    counts = []
    for name in names:
        pairs = zip(reversed(Path(path).parts), reversed(Path(name).parts))
        counts.append(len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))))
    return max(counts)


def _region_of(entry: dict[str, Any], size: tuple[int, int]) -> Region:
    """A region with "box" xyxy and "mask", as `tap-tokenizer` writes it, or with COCO's "bbox" xywh and "segmentation"."""
    mask = entry.get("mask") or entry.get("segmentation")
    if entry.get("box") is not None:
        x1, y1, x2, y2 = _four(entry["box"])
        box = box_of([x1, y1, x2 - x1, y2 - y1], size, "box")
    elif entry.get("bbox") is None and mask:
        region = Region(mask=mask_of(mask))
        box = sound_region(region, size).around(size) or []
    else:
        box = box_of(needed(entry, "bbox"), size)
    return sound_region(Region(box, mask=mask_of(mask) if mask else None), size)


def _four(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
        raise EntryError("wrong box", f"box is {box!r:.60}, expected four numbers: x1 y1 x2 y2")
    return box
