"""What is evaluated: a set of records, a benchmark's or a user's own, and its items, each a question with its true answer."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llm_bridge import region_numbers
from tap_tokenizer import RegionTokens, counted, open_image, upright_size

from ..data.coco import CocoTruth
from ..data.entries import Problems, first_names
from ..data.validation import UNREADABLE, problems_of
from ..records import Record, Region, decode_mask, load_rows


@dataclass(frozen=True)
class Place:
    """An item's place in the published file, which identifies answers without ids.

    repeats: what answer files copy from the entry ("question", "gt", …); None for what the entry lacks.
    """

    id: str
    repeats: dict[str, Any]

    def fault(self, line: dict[str, Any]) -> str | None:
        """What shows that an answer's line belongs to another entry, in words; None if nothing does."""
        for key, true in self.repeats.items():
            said = line.get(key)
            if isinstance(said, str) and isinstance(true, str) and said.strip().lower() != true.strip().lower():
                return f"has the {key} {said!r:.60}, where the benchmark's file has {true!r:.60}"
        return None


@dataclass
class EvaluationSet:
    """Records to evaluate, whose regions have ids; their pictures' paths start from the folder `root`.

    reference: COCO's JSON with the truth of all pictures, if average precision needs it. boxes: a detector's boxes by
    picture; None for the true ones. places: items in the order of the published file, if it is one of single questions or of
    labels. told: what judges are told about a record, by its `image_id`. kept: which of the file's regions a record still
    has, by the record's number, if some were left out. pictures: other names by which predictions may call a picture of the
    user's own records.
    """

    records: list[Record]
    root: Path
    problems: Problems = field(default_factory=Problems)
    reference: dict[str, Any] | None = None
    boxes: dict[Any, list[dict[str, Any]]] | None = None
    places: list[Place] = field(default_factory=list)
    told: dict[Any, dict[str, Any]] = field(default_factory=dict)
    kept: dict[int, list[int]] = field(default_factory=dict)
    pictures: dict[Any, int] = field(default_factory=dict)

    def take_coco(self, content: Any, source: str, limit: int | None, **how: bool) -> None:
        """Take the first `limit` records of a file in COCO's or LVIS's layout, and the file as the reference.

        how: options of `CocoTruth`. Raises `TypeError` for a file that does not hold an object.
        """
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise TypeError(f"expected COCO's object of images, annotations and categories, got a {kind}")
        truth = CocoTruth(root=self.root, source=source, **how)
        self.records, self.reference = truth.read(content, self.problems, limit)

    def size_of(self, image: str) -> tuple[int, int]:
        """Height and width of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
        try:
            with open_image(self.root / image) as picture:
                width, height = upright_size(picture)
        except UNREADABLE:
            return 1, 1
        return height, width


@dataclass
class Item:
    """One question about regions of one picture.

    record: with the regions in question alone, and a conversation that ends with the question; rows: where those regions
    stand in the whole record; references: true answers; options: possible answers, if they are known.
    """

    id: str
    record: Record
    rows: list[int]
    references: list[str]
    type: str = ""
    options: list[str] = field(default_factory=list)

    @property
    def asked(self) -> str:
        return self.record.conversations[-1].content

    @property
    def first_region(self) -> int | None:
        """Where the first region of the question stands among the record's; None if there are no regions.

        A question that names none ("And how large is it?") is about the first region of the latest turn that does.
        """
        count = len(self.record.regions)
        for turn in reversed(self.record.conversations):
            named = [number for number in region_numbers(turn.content, names=True) if 1 <= number <= count]
            if named:
                return named[0] - 1
        return 0 if count else None


@dataclass
class Seen:
    """An item with what was seen: its picture (None if tokens come from a cache), region tokens, context features."""

    item: Item
    image: np.ndarray | None
    regions: RegionTokens
    context: Tensor | None = None


def refuse_doubles(items: Sequence[Item]) -> None:
    """Raise `ValueError` if two items have the same id, because a prediction could then belong to either."""
    counts = Counter(item.id for item in items)
    if double := [key for key, number in counts.items() if number > 1]:
        raise ValueError(
            f"The reference has {counted(len(double), 'id')} twice ({first_names(double)}): expected one region or "
            "question for each."
        )


# --- a user's own records ---------------------------------------------------------------------------------------------
#
# They become records whose regions have ids, and COCO's JSON of them for average precision. A record that cannot be read is
# refused. A region that the task cannot use is left out and named.


FATAL = ("missing key", "wrong type", "no prompt", "wrong box", "empty box", "wrong points", "wrong point labels",
         "wrong mask size", "wrong mask")  # fmt: skip
"""Kinds of problems from `python -m finetune.data validate` that make a record unusable."""


def read_own(data: str, needs: Collection[str], limit: int | None) -> EvaluationSet:
    """The first `limit` records of a file.

    needs: what a region must have, of "mask", "label" and "box", to be of use; if it must have nothing, all are kept.
    Raises `ValueError` for a region or a record that cannot be read.
    """
    found = EvaluationSet([], Path(data) if Path(data).is_dir() else Path(data).parent)
    for number, row in enumerate(islice(load_rows(data), limit)):
        for kind, words in problems_of(row, Path(), "skip"):
            if kind in FATAL:
                raise ValueError(
                    f"{data}, record {number + 1}: {kind}: {words}. "
                    f"python -m finetune.data validate --data {data} names all that is wrong."
                )
        record = replace(Record.from_dict(row), image_id=number)
        for i, region in enumerate(record.regions):
            region.id = f"{number}/{i}" if region.id is None else region.id
        if needs:
            found.kept[number] = kept = []
            for i, region in enumerate(record.regions):
                if fault := _fault(region, record.size, needs):
                    found.problems.add(fault, str(region.id))
                else:
                    kept.append(i)
            record.regions = [record.regions[i] for i in kept]
        found.records.append(record)
    return found


def _fault(region: Region, size: tuple[int, int], needs: Collection[str]) -> str | None:
    """Why a region cannot be used by a task that needs something of it; None if it can."""
    if "mask" in needs and not region.mask:
        return "region without a mask"
    if "label" in needs and not (isinstance(region.label, str) and region.label):
        return "region without a label"
    if region.mask and not decode_mask(region.mask, size).any():
        return "empty mask"
    return "region without a box" if "box" in needs and region.box is None and not region.mask else None


def share_pictures(found: EvaluationSet) -> None:
    """Give all records of a picture one `image_id`, its first record's number: average precision is computed per picture.

    `found.pictures` gets the other names of each picture: the numbers of its records, its path, and its file's name where
    no other picture has that. Raises `ValueError` if records of one picture differ in its size.
    """
    firsts: dict[str, Record] = {}
    names: dict[Any, int] = {}
    files: dict[str, set[int]] = defaultdict(set)
    for number, record in enumerate(found.records):
        image = record.image
        inside = image.get("bytes") if isinstance(image, dict) else None
        key = sha256(inside).hexdigest() if inside else str(image["path"] if isinstance(image, dict) else image)
        first = firsts.setdefault(key, record)
        if first.size != record.size:
            raise ValueError(
                f"Record {number + 1} says that its picture is {record.width} × {record.height}, but record "
                f"{first.image_id + 1}, of the same picture, {first.width} × {first.height}: correct one of them."
            )
        names[number] = record.image_id = first.image_id
        if isinstance(image, str):
            names[image] = first.image_id
            files[Path(image).name].add(first.image_id)
    found.pictures = {**{name: of.pop() for name, of in files.items() if len(of) == 1}, **names}


def one_record_a_picture(found: EvaluationSet) -> None:
    """One record for each picture, with the regions of all its records. A region that equals an earlier one is named."""
    pictures: dict[int, Record] = {}
    for record in found.records:
        whole = pictures.setdefault(record.image_id, replace(record, regions=[]))
        seen = {_same(region) for region in whole.regions}
        for region in record.regions:
            if _same(region) in seen:
                found.problems.add("region given twice in a picture, the first counts", str(region.id))
            else:
                whole.regions.append(region)
    found.records = list(pictures.values())


def _same(region: Region) -> str:
    """What makes two regions the same: a key to compare them by."""
    return json.dumps(replace(region, id=None).to_dict(), sort_keys=True)


def make_reference(found: EvaluationSet) -> None:
    """COCO's JSON of the records: labels are categories in alphabetical order, pictures have their first record's number.

    Of regions that are the same in everything, in records of one picture, the first is the truth.
    """
    names = sorted({r.label for record in found.records for r in record.regions if r.label})
    numbers = {name: i for i, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    seen: set[tuple[int, str]] = set()
    for record in found.records:
        for region in record.regions:
            box = region.around(record.size)
            if not region.label or box is None:
                continue
            same = (record.image_id, _same(region))
            region.category_id = numbers[region.label]
            if same in seen:
                found.problems.add("region given twice in a picture, the first counts", str(region.id))
                continue
            seen.add(same)
            x1, y1, x2, y2 = box
            area = (x2 - x1) * (y2 - y1)
            if region.mask:  # COCO's size classes go by it
                area = int(decode_mask(region.mask, record.size).sum())
            annotations.append(
                {"id": len(annotations) + 1, "image_id": record.image_id, "category_id": numbers[region.label],
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0,
                 **({"segmentation": region.mask} if region.mask else {})}
            )  # fmt: skip
    images = {r.image_id: {"id": r.image_id, "height": r.height, "width": r.width} for r in found.records}
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    found.reference = {"images": list(images.values()), "annotations": annotations, "categories": categories}
