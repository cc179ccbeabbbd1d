"""The records that training, caching and evaluation read: a picture, its regions, and a conversation about them.

    {"image": "pictures/0001.jpg", "width": 640, "height": 480,
     "regions": [{"box": [12, 30, 200, 220], "label": "dog"}, {"points": [[5, 9]], "point_labels": [1]}, {"mask": …}],
     "conversations": [{"role": "user", "content": "What is <region1> doing?"}, {"role": "assistant", "content": "…"}],
     "source": "my data", "license": "CC BY 4.0"}

Coordinates are pixels of the picture, boxes xyxy; a mask is COCO's RLE ({"size": [h, w], "counts": …}) or a list of
polygons. `<regionN>` in the text is the N-th region of the record, from 1. Records are kept as JSONL or parquet and read
through `datasets`; a picture is a path beside the file, or lies inside a parquet file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Json, List, Value, load_dataset
from datasets import Image as Picture
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from pycocotools import mask as coco_mask

from llm_bridge import asked_phrase, region_numbers, replace_regions, with_meant_regions
from tap_tokenizer import RegionPrompt, as_mask, box_of_mask, check_regular_file, load_rgb
from tap_tokenizer import open_image as picture_from

from .glyphs.scenes import draw_scene, make_scene

FEATURES = Features(
    {
        "image": Value("string"),
        "width": Value("int64"),
        "height": Value("int64"),
        "regions": List(Json()),
        "conversations": List(Json()),
        "source": Value("string"),
        "license": Value("string"),
    }
)
"""Columns of a JSONL file; in parquet, `image` may be a `datasets.Image` instead."""

GLYPH_SCHEME = "glyph-scene:"
"""`image` of a record from GlyphScenes, which is drawn when it is opened: glyph-scene:SPLIT/SEED/INDEX/LONG_SIDE."""

_GLYPH_ADDRESS = re.compile(rf"{GLYPH_SCHEME}(.{{1,80}})/(\d{{1,18}})/(\d{{1,18}})/(\d{{1,9}})", re.ASCII)


@dataclass(slots=True)
class Region:
    """A region of a picture, prompted with a box, points, both, or a mask, and what is known about it.

    captions: true descriptions, for evaluation. id, category_id: names that evaluation gives it.
    """

    box: list[float] | None = None
    points: list[list[float]] | None = None
    point_labels: list[int] | None = None
    mask: dict[str, Any] | list[Any] | None = None
    label: str | None = None
    captions: list[str] | None = None
    id: str | None = None
    category_id: Any = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Region:
        """A region as files hold it. Unknown keys are ignored."""
        get = row.get
        return cls(
            get("box"), get("points"), get("point_labels"), get("mask"), get("label"), get("captions"), get("id"),
            get("category_id"),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The region as files hold it: the fields that it has, in their order."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    def prompt(self, size: tuple[int, int], name: str = "The region") -> RegionPrompt:
        """What a tokenizer is given in a picture of (height, width) `size`: box, points or both; the mask only without them.

        name: what errors call the region. Raises `ValueError` for a region without a prompt, or with one of another form.
        """
        if self.box is None and self.points is None:
            return RegionPrompt(mask=decode_mask(self.mask, size))
        labels = self.point_labels or None
        given = {"box": self.box, "points": self.points, "point_labels": None if self.points is None else labels}
        return RegionPrompt.read(given, name)

    def around(self, size: tuple[int, int]) -> list[float] | None:
        """The box xyxy, or else the one around the mask; None where there is neither, or the mask is empty."""
        return self.box or (mask_box(self.mask, size) if self.mask else None)


@dataclass(slots=True)
class Turn:
    """What a user or the assistant says in a conversation.

    role: "system", "user" or "assistant". For evaluation, a question may have a `type`, by which it is scored, and its
    possible answers, `options`. told: the question as a teacher reads it who sees no region: with the regions in words, as a
    turn of a chat or, if it ends with "Answer:", as a text to go on with.
    """

    role: str
    content: str
    type: str | None = None
    options: list[str] | None = None
    told: str | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Turn:
        """A turn as files hold it; what is missing is empty."""
        get = row.get
        return cls(get("role", ""), get("content", ""), get("type"), get("options"), get("told"))

    def to_dict(self) -> dict[str, Any]:
        """The turn as files and chat templates hold it: the fields that it has, in their order."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(slots=True)
class Record:
    """A picture, its regions, and a conversation about them; without a picture, a conversation in words.

    image: a path, {"bytes": …, "path": …} as parquet files hold it, or anything that `tap_tokenizer.load_rgb` reads.
    width, height: of the picture, in pixels; 0 where nobody says. image_id: a name that evaluation gives the picture.
    """

    image: Any = None
    width: int = 0
    height: int = 0
    regions: list[Region] = field(default_factory=list)
    conversations: list[Turn] = field(default_factory=list)
    source: str | None = None
    license: str | None = None
    image_id: Any = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Record:
        """A record as files hold it. Raises `ValueError` if a region or a turn is no object.

        Nothing else is looked at: `python -m finetune.data validate` names all that is wrong with records.
        """
        get = row.get
        try:
            return cls(
                get("image"), get("width") or 0, get("height") or 0, list(map(Region.from_dict, get("regions") or ())),
                list(map(Turn.from_dict, get("conversations") or ())), get("source"), get("license"), get("image_id"),
            )  # fmt: skip
        except (AttributeError, TypeError):
            raise ValueError(
                f"{Record(get('image')).name} has regions or conversations that are not lists of objects: "
                "python -m finetune.data validate says what and where."
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """The record as files hold it."""
        row = {
            "image": self.image, "width": self.width, "height": self.height,
            "regions": [region.to_dict() for region in self.regions],
            "conversations": [turn.to_dict() for turn in self.conversations],
            "source": self.source, "license": self.license,
        }  # fmt: skip
        return row if self.image_id is None else {**row, "image_id": self.image_id}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture, in pixels."""
        return self.height, self.width

    @property
    def name(self) -> str:
        """What an error calls the record: after its picture."""
        path = self.image.get("path") if isinstance(self.image, dict) else self.image
        return f"The record of {path or 'a picture without a name'}"

    def prompts(self) -> list[RegionPrompt]:
        """The prompts of the record's regions; errors call them Region 0, Region 1, …"""
        return [region.prompt(self.size, f"Region {i}") for i, region in enumerate(self.regions)]


class Records:
    """The records of a file, each read when it is asked for. `rows` is the `datasets.Dataset` behind them."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Record:
        return Record.from_dict(self.rows[number])

    def __iter__(self) -> Iterator[Record]:
        return map(Record.from_dict, self.rows)

    def with_conversation(self) -> list[int]:
        """The numbers of the records in which something is said."""
        column = self.rows.select_columns("conversations").with_format("arrow")[:]["conversations"]
        return [number for number, turns in enumerate(column) if turns.is_valid and len(turns)]

    def first_seen(self) -> int | None:
        """The number of the first record that has a picture or a region, or None if all are conversations in words."""
        table = self.rows.select_columns(["image", "regions"]).with_format("arrow")[:]
        rows = enumerate(zip(table["image"], table["regions"]))
        return next((i for i, (image, own) in rows if image.is_valid or (own.is_valid and len(own))), None)

    def without_pictures(self) -> Records:
        """The same records with None for `image`, so that pictures inside a parquet file are not read."""
        return Records(self.rows.remove_columns("image"))


def load_records(path: str | Path) -> Records:
    """The records of a JSONL or parquet file, or of a folder of parquet files."""
    return Records(load_rows(path))


def load_rows(path: str | Path, *, streaming: bool = False) -> Dataset | IterableDataset:
    """The same as a data set whose rows are dictionaries, as files hold them, for programs that know no `Record`."""
    try:
        return _load(Path(path), streaming)
    except (DatasetGenerationError, CastError) as error:
        raise ValueError(
            f"{path} holds something that is not a record: python -m finetune.data validate --data {path} says what and where."
        ) from error


def _load(path: Path, streaming: bool) -> Dataset | IterableDataset:
    if not path.exists():
        raise ValueError(f"Found no records at {path}: give a JSONL or parquet file.")
    if not path.is_dir():
        check_regular_file(path)
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty: expected a record on every line.")
    if path.suffix in (".jsonl", ".json"):
        return load_dataset("json", data_files=str(path), features=FEATURES, split="train", streaming=streaming)
    files = sorted(str(p) for p in path.glob("*.parquet")) if path.is_dir() else str(path)
    if not files or (isinstance(files, str) and path.suffix != ".parquet"):
        raise ValueError(f"{path} holds no records: expected .jsonl, .parquet, or a folder of .parquet files.")
    rows = load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    inside = isinstance((rows.features or {}).get("image"), Picture)
    return rows.cast_column("image", Picture(decode=False)) if inside else rows


class WrongSizeError(ValueError):
    """A record's picture, or what was made of it, has another size than the record says."""


def open_image(record: Record, root: str | Path) -> np.ndarray:
    """The picture of a record as RGB bytes (H, W, 3), upright; `root` is the folder that its path starts from.

    Raises `WrongSizeError` if it is not as large as the record says: its regions would lie elsewhere.
    """
    image = record.image
    if image is None:
        raise ValueError(
            "Got a record without a picture: keep conversations in words in a file of their own, which needs no cache."
        )
    if isinstance(image, str) and image.startswith(GLYPH_SCHEME):
        found = _GLYPH_ADDRESS.fullmatch(image)
        if found is None:
            raise ValueError(f"image is {image[:80]!r}, expected {GLYPH_SCHEME}SPLIT/SEED/INDEX/LONG_SIDE.")
        split, seed, index, long_side = found.groups()
        picture = draw_scene(make_scene(int(index), split, int(seed)), int(long_side)).image
    elif isinstance(image, dict) and image.get("bytes"):  # a datasets.Image that is not decoded
        picture = load_rgb(picture_from(image["bytes"]))
    elif isinstance(image, (str, dict)):
        picture = load_rgb(Path(root) / (image["path"] if isinstance(image, dict) else image))
    else:
        picture = load_rgb(image)
    if record.width:
        check_size(record, (picture.shape[0], picture.shape[1]))
    return picture


def check_size(record: Record, size: tuple[int, int], name: str | None = None) -> None:
    """Raise `WrongSizeError` unless a picture of (height, width) `size`, upright, is as large as its record says.

    name: what to call the record; default: its own name.
    """
    if size != record.size:
        raise WrongSizeError(
            f"{name or record.name} says that its picture has {record.width} × {record.height} pixels, but "
            f"it has {size[1]} × {size[0]}: give the picture that the regions were drawn on, or correct the record."
        )


def decode_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """COCO's RLE, compressed or not, or a list of polygons, → booleans (H, W) of a picture of (height, width) `size`.

    Raises `ValueError` for anything else, and for what does not fit the size; see `tap_tokenizer.as_mask`. May be empty.
    """
    if not isinstance(mask, (dict, list)):
        raise ValueError(f"mask is of type {type(mask).__name__}, expected polygons or COCO's RLE.")
    return as_mask(mask, size, may_be_empty=True)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Booleans (H, W) → COCO's compressed RLE, with text for counts so that it fits JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def mask_box(mask: Any, size: tuple[int, int]) -> list[float] | None:
    """The box xyxy around a mask of a picture of (height, width) `size`; None if the mask is empty."""
    box = box_of_mask(decode_mask(mask, size))
    return [float(side) for side in box] if any(box) else None


def cut_turns(record: Record, start: int, count: int) -> tuple[Record, list[int]]:
    """A record of `count` questions with their answers, from question number `start` on, and which regions it keeps.

    Regions are numbered anew as the cut first names them; a system message stays in front. A first question that names no
    region ("What colour is it?") shows those that it means, which an earlier one showed or named. Otherwise this is only for
    conversations whose questions stand alone: one that leans on an earlier answer loses what it leans on. `ValueError` if one
    asks to find regions that only an earlier one shows: it would lose all that it may choose from.
    """
    turns = record.conversations
    asked = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not 0 <= start < len(asked) or count < 1:
        raise ValueError(f"Got questions {start} to {start + count} of {len(asked)}: cut inside the conversation.")
    stop = asked[start + count] if start + count < len(asked) else len(turns)
    first, others = turns[asked[start]], turns[asked[start] + 1 : stop]
    if start and (lost := _without_candidates([first, *others])) is not None and record.regions:
        raise ValueError(
            f"{record.name} has a question for {lost!r:.60} that leaves it to an earlier one to show its candidates, expected "
            "one that shows them itself: ask all questions of such records in a row (turns 0), or make them without shown_once."
        )
    named = (region_numbers(turns[i].content, names=True) for i in reversed(asked[:start]))
    meant = [number for number in next(filter(None, named), []) if 0 < number <= len(record.regions)]
    first = replace(first, content=with_meant_regions(first.content, meant))
    kept = [*(turn for turn in turns[: asked[0]] if turn.role == "system"), first, *others]
    order: list[int] = []

    def renumber(number: int, is_shown: bool) -> str | None:
        if not 0 < number <= len(record.regions):
            return None
        if number not in order:
            order.append(number)
            return f"<region{len(order)}>"  # shown here, even where the whole conversation had shown it before
        name = f"region{order.index(number) + 1}"
        return f"<{name}>" if is_shown else name

    conversations = [
        replace(
            turn,
            content=replace_regions(turn.content, renumber),
            told=turn.told and replace_regions(turn.told, renumber),
        )
        for turn in kept
    ]
    rows = [number - 1 for number in order]
    return replace(record, regions=[record.regions[i] for i in rows], conversations=conversations), rows


def _without_candidates(turns: list[Turn]) -> str | None:
    """The phrase of the first question to find regions before which none is shown; None if there is no such question."""
    for turn in turns:
        if turn.role == "user":
            if region_numbers(turn.content):
                return None
            if (phrase := asked_phrase(turn.content)) is not None:
                return phrase
    return None
