"""Reads the values of a data set's entries (an id, a text, a size, a box, a mask), and counts and names faulty entries.

Whatever is wrong with a value raises `EntryError`. Nothing is dropped silently: `LeftOut` counts for a conversion, which
prints the first few of each kind; `Problems` keeps every name, for `metrics.json`. Each reader knows the layout of its files.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llm_bridge import region_numbers
from tap_tokenizer import counted

from ..records import Record, Region, Turn, decode_mask
from .validation import MOST_PIXELS, region_problems, talk_problems

NAMED = 5
"""How many entries are named for each reason, unless all are asked for."""


class EntryError(ValueError):
    """What is wrong with an entry. Entries are counted by `reason`; the message describes this one."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class LeftOut:
    """Entries that were left out, counted by reason.

    faults: those that cannot be used. named: a sentence about each, for at most `NAMED` per reason unless `show_all`.
    unwanted: those that are fine but were not asked for. doubtful: those that were kept despite a doubt.
    """

    def __init__(self, *, strict: bool = False, show_all: bool = False) -> None:
        self.strict, self.show_all = strict, show_all
        self.clear()

    def clear(self) -> None:
        """Start counting again."""
        self.faults: Counter[str] = Counter()
        self.unwanted: Counter[str] = Counter()
        self.doubtful: Counter[str] = Counter()
        self.named: list[str] = []

    @contextmanager
    def entry(self, file: str | Path, name: str) -> Iterator[None]:
        """Around the reading of one entry: an `EntryError` is counted and named; if `strict`, it is raised as `ValueError`."""
        try:
            yield
        except EntryError as fault:
            sentence = f"{file}, {name}: {fault}"
            if self.strict:
                raise ValueError(f"{sentence}. Correct it, or leave it out with --strict false.") from None
            self.faults[fault.reason] += 1
            if self.show_all or self.faults[fault.reason] <= NAMED:
                self.named.append(sentence)

    def summary(self) -> list[str]:
        """Lines that say how many entries were left out and why; none if all were kept without doubt."""
        lines = []
        for words, counts in (
            ("left out as faulty", self.faults),
            ("passed over", self.unwanted),
            ("taken, though in doubt", self.doubtful),
        ):
            if counts.total():
                lines.append(f"{counted(counts.total(), 'entry', 'entries')} {words}:")
                lines += [f"{count:>8} × {reason}" for reason, count in counts.most_common() if count]
        return lines


class Problems:
    """Names of the entries that have a problem, by the kind of problem."""

    def __init__(self) -> None:
        self.named: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, name: str) -> None:
        """Note a problem. The same one counts only once."""
        self.named[kind][name] = None

    def extend(self, kind: str, names: Sequence[str]) -> None:
        """Note several problems of one kind."""
        for name in names:
            self.add(kind, name)

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Counts and names by kind, for `metrics.json`."""
        return {kind: {"count": len(names), "names": list(names)} for kind, names in sorted(self.named.items())}


MALFORMED = (KeyError, IndexError, TypeError, AttributeError, EntryError)
"""What is raised when an entry does not have the form of its file."""

T = TypeVar("T")


def numbered(content: Iterable[Any], start: int = 0) -> Iterator[tuple[str, Any]]:
    """Entries, each with its place in the file as its name, counted from `start`."""
    return ((str(number), entry) for number, entry in enumerate(content, start))


def read_each(
    entries: Iterable[tuple[str, Any]], read: Callable[[str, Any], T | None], problems: Problems
) -> Iterator[T]:
    """What `read` makes of named entries, if anything; malformed entries are named in `problems`.

    If all are malformed, the file has another form, and the error of the first is raised.
    """
    first: Exception | None = None
    is_form = False
    for name, entry in entries:
        try:
            found = read(name, entry)
        except MALFORMED as error:
            first = first or error
            problems.add(_lack(error), name)
            continue
        is_form = True
        if found is not None:
            yield found
    if first is not None and not is_form:
        raise first


def _lack(error: Exception) -> str:
    """The kind of problem that a malformed entry is."""
    if isinstance(error, KeyError):
        return f"entry without {error.args[0]}"
    return f"entry whose {error}" if isinstance(error, EntryError) else "entry of another form"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, in one line."""
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"


# --- values of entries ------------------------------------------------------------------------------------------------


SLACK = 1.0
"""How far, in pixels, rounding may carry a box outside its picture, as everywhere."""

BORDER = 0.5
"""The same for a published file's box, in an evaluation, where every box that is clipped further is named."""

CUT = (
    "box cut, for it reaches more than a pixel outside its picture; expected x y width height in pixels of this picture"
)


def shown(value: Any) -> str:
    """A value as an error quotes it: short."""
    words = f"{value!r:.61}" if isinstance(value, (str, int, float, bool, type(None))) else _outline(value)
    return words if len(words) <= 60 else words[:59] + "…"


def _outline(value: Any) -> str:
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, (str, int, float, type(None))) for v in value):
        return f"[{', '.join(shown(v) for v in value)}]"
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    return (
        f"{kinds.get(type(value), type(value).__name__)} of {len(value)}" if hasattr(value, "__len__") else repr(value)
    )


def entry_name(entry: Any, number: int, *keys: str) -> str:
    """What an entry of a list is called: its number, from 1, and the first of these that it has, which identifies it."""
    found = next((f" ({key} {shown(entry[key])})" for key in keys if isinstance(entry, dict) and key in entry), "")
    return f"entry number {number}{found}"


def mapping(value: Any, name: str = "it") -> dict[str, Any]:
    """An entry, or what it has under a name, that is an object. Like all that follow, raises `EntryError` for others."""
    if not isinstance(value, dict):
        raise EntryError("no object", f"{name} is {shown(value)}, expected an object")
    return value


def needed(entry: dict[str, Any], key: str) -> Any:
    """What an entry has under a name."""
    if entry.get(key) is None:
        raise EntryError(f"no {key}", f"{key} is null" if key in entry else f"it lacks {key}")
    return entry[key]


def listed(entry: dict[str, Any], key: str) -> list[Any]:
    """A list of an entry."""
    value = needed(entry, key)
    if not isinstance(value, list):
        raise EntryError(f"wrong {key}", f"{key} is {shown(value)}, expected a list")
    return value


def text(entry: dict[str, Any], key: str) -> str:
    """A text of an entry that says something."""
    value = needed(entry, key)
    if not isinstance(value, str) or not value.strip():
        raise EntryError(
            f"no {key}" if isinstance(value, str) else f"wrong {key}", f"{key} is {shown(value)}, expected a text"
        )
    return _unicode(value, key)


def _unicode(value: str, key: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write one half of a pair
        raise EntryError(f"wrong {key}", f"{key} is {shown(value)}, which contains half a character") from None
    return value


def answer(entry: dict[str, Any], key: str) -> str:
    """A text of an entry that can answer a question: with single spaces, and without names of regions."""
    words = " ".join(text(entry, key).split())
    if "<region>" in words or region_numbers(words):
        raise EntryError("region in an answer", f"{key} is {shown(words)}, which names a region that no question shows")
    return words


def identity(entry: dict[str, Any], key: str) -> str:
    """An id as text, so that 7, 7.0 and "7" are the same."""
    value = needed(entry, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise EntryError(f"wrong {key}", f"{key} is {shown(value)}, expected a number or a text")
    return _unicode(str(value), key)


def is_crowd(annotation: dict[str, Any]) -> bool:
    """Whether COCO's mark of a crowd is set."""
    return str(annotation.get("iscrowd", 0)).strip().lower() in ("1", "1.0", "true")


def number(value: Any) -> float | None:
    """A finite number, which may stand as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def size_of(entry: dict[str, Any]) -> tuple[int, int]:
    """Height and width of an entry's picture."""
    size = []
    for key in ("height", "width"):
        value = number(needed(entry, key))
        if value is None or value < 1 or value != int(value):
            raise EntryError(f"wrong {key}", f"{key} is {shown(entry[key])}, expected a whole number of pixels")
        size.append(int(value))
    if size[0] * size[1] > MOST_PIXELS:
        raise EntryError("wrong size", f"it is {size[1]} × {size[0]}, more than {MOST_PIXELS:,} pixels")
    return size[0], size[1]


def size_of_rle(masks: Any, key: str) -> tuple[int, int]:
    """Height and width of the first mask of a list that is COCO's RLE, which says them."""
    if not isinstance(masks, list) or not masks:
        raise EntryError(
            f"no {key}" if masks == [] else f"wrong {key}", f"{key} is {shown(masks)}, expected a list of masks"
        )
    rle = next((mask for mask in masks if isinstance(mask, dict)), None)
    if rle is None:
        raise EntryError("no size", f"none of its {key} gives the picture's height and width, as COCO's RLE does")
    size = rle.get("size")
    if not isinstance(size, list) or len(size) != 2:
        raise EntryError("wrong mask size", f"the size of a mask is {shown(size)}, expected height and width")
    return size_of({"height": size[0], "width": size[1]})


def box_of(box_xywh: Any, size: tuple[int, int], key: str = "bbox") -> list[float]:
    """A box given as corner and size → xyxy inside a picture of (height, width) `size`."""
    values = [number(v) for v in box_xywh] if isinstance(box_xywh, (list, tuple)) else []
    if len(values) != 4 or None in values:
        raise EntryError(f"wrong {key}", f"{key} is {shown(box_xywh)}, expected four numbers: x y width height")
    x, y, w, h = (v for v in values if v is not None)
    if w <= 0 or h <= 0:
        raise EntryError("empty box", f"{key} is {shown(box_xywh)}, which has no area")
    box = _inside(x, y, w, h, size)
    if box is None:
        raise EntryError("box outside", f"{key} is {shown(box_xywh)}, outside its picture of {size[1]} × {size[0]}")
    return [round(v, 2) for v in box]


def _inside(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> list[float] | None:
    """The part of a box, xyxy, that lies inside a picture of (height, width) `size`; None if there is none."""
    box = [max(x, 0.0), max(y, 0.0), min(x + w, float(size[1])), min(y + h, float(size[0]))]
    return None if w <= 0 or h <= 0 or box[2] <= box[0] or box[3] <= box[1] else box


def is_cut(box_xywh: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether `box_of` cut more off this box than the pixel by which rounding may carry it outside."""
    x, y, w, h = (float(v) for v in box_xywh)
    return min(x, y) < -SLACK or x + w > size[1] + SLACK or y + h > size[0] + SLACK


def mask_of(segmentation: Any) -> Any:
    """A segmentation as a record holds it: COCO's RLE as it is, and a polygon alone, or as points, as a list of polygons."""
    if isinstance(segmentation, dict):
        return segmentation
    if not isinstance(segmentation, list) or not segmentation:
        raise EntryError("wrong mask", f"the mask is {shown(segmentation)}, expected polygons or COCO's RLE")
    if all(isinstance(v, (int, float)) for v in segmentation):
        return [segmentation]  # as VIA writes it
    if all(isinstance(v, list) and len(v) == 2 and not isinstance(v[0], list) for v in segmentation):
        return [[v for point in segmentation for v in point]]
    return segmentation


def mask_fault(mask: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask of a picture of (height, width) `size`, in a few words; None if nothing is."""
    if not mask:
        return "no mask"
    if isinstance(mask, dict) and list(mask.get("size") or []) != list(size):
        return "mask of another size than its picture"
    try:
        decode_mask(mask, size)
    except ValueError:
        return "mask with a broken polygon" if isinstance(mask, list) else "mask with broken counts"
    return None


def clipped_box(bbox: Any, width: int, height: int) -> tuple[list[float], str | None] | None:
    """A box xywh → xyxy inside a picture, at least a pixel wide and high, and what was done to it; None if nothing is left."""
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        return None
    x, y, w, h = (float(v) for v in bbox)
    box = _inside(x, y, w, h, (height, width))
    if box is None:
        return None
    if min(box[2] - box[0], box[3] - box[1]) < 1:
        (x1, x2), (y1, y2) = _widened(box[0], box[2], width), _widened(box[1], box[3], height)
        return [x1, y1, x2, y2], "thinner than a pixel, widened to one"
    is_beyond = x < -BORDER or y < -BORDER or x + w > width + BORDER or y + h > height + BORDER
    return box, "beyond its picture's border, clipped" if is_beyond else None


def _widened(low: float, high: float, end: int) -> tuple[float, float]:
    """A side of a box, at least a pixel long, between 0 and `end`."""
    if high - low >= 1:
        return low, high
    start = min(max((low + high - 1) / 2, 0.0), end - 1.0)
    return start, start + 1.0


def sound_region(region: Region, size: tuple[int, int]) -> Region:
    """A region that `validate` finds no fault with, on a picture of (height, width) `size`."""
    for kind, words in region_problems(region.to_dict(), size):
        raise EntryError(kind, f"{kind}: {words}")
    return region


def sound_talk(conversations: Sequence[Turn], regions: int) -> None:
    """Refuse turns about so many regions that `validate` finds fault with."""
    for kind, words in talk_problems([turn.to_dict() for turn in conversations], regions):
        raise EntryError(kind, f"{kind}: {words}")


def sound(record: Record) -> Record:
    """A record whose regions and turns `validate` finds no fault with."""
    for region in record.regions:
        sound_region(region, record.size)
    sound_talk(record.conversations, len(record.regions))
    return record
