"""Says in words what is wrong with records: each problem names the record, what was found, and what was expected.

JSONL is read line by line, so that a broken line or an unknown key is named and the check goes on. Nothing is repaired.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from llm_bridge import region_numbers
from tap_tokenizer import box_problems, open_image, point_problems, upright_size

from ..records import GLYPH_SCHEME, decode_mask, load_rows
from .json_files import JsonError, parse_json

RECORD_KEYS = {"image", "width", "height", "regions", "conversations", "source", "license"}
NEEDED_KEYS = ("image", "width", "height", "regions", "conversations")
PROMPT_KEYS = ("box", "points", "mask")
REGION_KEYS = {*PROMPT_KEYS, "point_labels", "label", "captions"}
TURN_KEYS = {"role", "content", "type", "options", "told"}
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or torn, or would fill all memory."""

MOST_PIXELS = 178_956_970
"""Pillow opens no picture of more unless it is told to, so no record is of one."""

Pictures = Literal["skip", "header", "decode"]


def read_raw(path: Path) -> Iterator[dict[str, Any] | str]:
    """Records as they stand in the file; a line that is no JSON object comes as the words of what is wrong with it."""
    if path.suffix != ".jsonl":
        yield from load_rows(path, streaming=True)
        return
    if not path.is_file():
        raise ValueError(f"Found no records at {path}: give a JSONL or parquet file.")
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                record = parse_json(line if number == 0 else line.decode("utf-8"))  # a byte-order mark stands first
            except UnicodeDecodeError as error:
                yield f"the line is not UTF-8: {error.reason} at byte {error.start}"
                continue
            except JsonError as error:
                yield f"the line is {error}"
                continue
            yield (
                record if isinstance(record, dict) else f"the line holds a {type(record).__name__}, expected an object"
            )


def problems_of(record: dict[str, Any] | str, root: Path, pictures: Pictures = "header") -> list[tuple[str, str]]:
    """(kind, words) of all that is wrong with a record; `root` is the folder that its picture's path starts from."""
    if isinstance(record, str):
        return [("broken line", record)]
    found = [("unknown key", f"{key!r} in the record") for key in sorted(set(record) - RECORD_KEYS)]
    if (
        record.get("image", "") is None
        and record.get("regions") == []
        and isinstance(record.get("conversations"), list)
    ):
        return [*found, *_problems_in_words(record["conversations"])]
    missing = [key for key in NEEDED_KEYS if record.get(key) is None]
    if missing:
        return [*found, ("missing key", f"the record lacks {', '.join(missing)}")]
    shapes = {"width": int, "height": int, "regions": list, "conversations": list}
    wrong = [key for key, kind in shapes.items() if not isinstance(record[key], kind) or record[key] is True]
    if wrong or min(record["width"], record["height"]) < 1:
        return [*found, ("wrong type", f"{', '.join(wrong) or 'width or height'} is not what a record holds there")]
    if record["width"] * record["height"] > MOST_PIXELS:
        return [*found, ("wrong size", f"{record['width']} × {record['height']} has more than {MOST_PIXELS:,} pixels")]
    found += _picture_problems(record, root, pictures)
    for number, region in enumerate(record["regions"], 1):
        if not isinstance(region, dict):
            found.append(("wrong type", f"region {number} is a {type(region).__name__}, expected an object"))
            continue
        for kind, words in region_problems(region, (record["height"], record["width"])):
            found.append((kind, f"region {number}: {words}"))
    return [*found, *talk_problems(record["conversations"], len(record["regions"]))]


def _problems_in_words(conversations: list[Any]) -> Iterator[tuple[str, str]]:
    """(kind, words) of all that is wrong with the turns of a record without a picture."""
    if not conversations:
        yield "empty text", "there is neither a picture nor a word"
    yield from talk_problems(conversations, 0)
    for i, turn in enumerate(conversations, 1):
        if isinstance(turn, dict) and "<image>" in str(turn.get("content")):
            yield "missing picture", f"turn {i} has <image>, but there is none"


def _picture_problems(record: dict[str, Any], root: Path, pictures: Pictures) -> list[tuple[str, str]]:
    image = record["image"]
    if pictures == "skip" or (isinstance(image, str) and image.startswith(GLYPH_SCHEME)):
        return []
    inside, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, image)
    source: Any = inside if isinstance(inside, bytes) else None
    if source is None and isinstance(path, str):
        source = root / path
        if not os.path.isfile(source):  # which says no to names that no file can have, too
            return [("missing picture", f"found no file at {source!s:.200}")]
    if source is None:
        return [("wrong type", f"image is a {type(image).__name__}, expected a path or a picture")]
    try:
        with open_image(source) as picture:
            size = upright_size(picture)
            if pictures == "decode":
                picture.load()
    except UNREADABLE as error:
        return [("unreadable picture", f"{image if isinstance(image, str) else 'the picture inside'}: {error}")]
    if size != (record["width"], record["height"]):
        said = f"{record['width']} × {record['height']}"
        return [("wrong size", f"the picture is {size[0]} × {size[1]}, the record says {said}")]
    return []


def region_problems(region: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(kind, words) of all that is wrong with a region of a picture of (height, width) `size`."""
    for key in sorted(set(region) - REGION_KEYS):
        yield "unknown key", repr(key)
    given = [key for key in PROMPT_KEYS if region.get(key) is not None]
    if not given:
        yield "no prompt", f"expected one of {', '.join(PROMPT_KEYS)}"
    if "box" in given:
        yield from _box_problems(region["box"], size)
    if "points" in given:
        yield from _point_problems(region["points"], region.get("point_labels"), size)
    if "mask" in given:
        yield from _mask_problems(region["mask"], size)


def _numbers(value: Any, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """An array of finite numbers of a shape (None: any length from 1), or None."""
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = array.ndim == len(shape) and all(n > 0 and w in (None, n) for n, w in zip(array.shape, shape))
    return array if fits and np.isfinite(array).all() else None


def _box_problems(box: Any, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    array = _numbers(box, (4,))
    if array is None:
        yield "wrong box", f"{box!s:.80}, expected four finite numbers x1 y1 x2 y2"
        return
    yield from box_problems(array[None], size).values()


def _point_problems(points: Any, labels: Any, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    array = _numbers(points, (None, 2))
    if array is None:
        yield "wrong points", f"{points!s:.80}, expected a list of x y"
        return
    yield from point_problems(array, size).values()
    fits = isinstance(labels, list) and len(labels) == len(array) and all(n in (0, 1) for n in labels)
    if labels is not None and not fits:
        yield "wrong point labels", f"{labels!s:.80} for {len(array)} points, expected a 0 or 1 for each"


def _mask_problems(mask: Any, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    if isinstance(mask, dict) and _numbers(mask.get("size"), (2,)) is not None and list(mask["size"]) != list(size):
        yield "wrong mask size", f"{mask.get('size')!s:.80}, the picture has [{size[0]}, {size[1]}]"
        return
    try:
        pixels = decode_mask(mask, size)
    except ValueError as error:
        yield "wrong mask", str(error)
        return
    if not pixels.any():
        yield "empty mask", "no pixel of it is inside the picture"


def talk_problems(conversations: Sequence[Any], regions: int) -> Iterator[tuple[str, str]]:
    """(kind, words) of all that is wrong with turns about so many regions."""
    shown: set[int] = set()
    last = None
    for i, turn in enumerate(conversations, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or "role" not in turn:
            yield "wrong turn", f"turn {i} is {turn!r:.60}, expected role and content"
            return
        for key in sorted(set(turn) - TURN_KEYS):
            yield "unknown key", f"{key!r} in turn {i}"
        expected = ("user",) if last == "system" else ("system", "user") if last is None else (
            "assistant" if last == "user" else "user",)  # fmt: skip
        if turn["role"] not in expected:
            yield "wrong turn", f"turn {i} is the {turn['role']}'s, expected the {' or '.join(expected)}'s"
        if not turn["content"].strip():
            yield "empty text", f"turn {i} says nothing"
        if "<region>" in turn["content"]:
            yield "unnumbered region", f"turn {i} has <region>, expected <region1>, <region2>, …"
        numbers = set(region_numbers(turn["content"]))
        if turn["role"] == "assistant" and numbers - shown:
            names = ", ".join(f"<region{n}>" for n in sorted(numbers - shown))
            yield "unseen region", f"turn {i} answers with {names}, which no question has shown"
        shown |= numbers
        last = turn["role"]
    expected_numbers = set(range(1, regions + 1))
    context = set(range(max(shown, default=len(expected_numbers)) + 1, len(expected_numbers) + 1))
    if conversations and shown | context != expected_numbers:  # the last ones may be there as context alone
        extra, unused = sorted(shown - expected_numbers), sorted(expected_numbers - shown - context)
        words = (
            [f"the text has region{'s' if len(extra) > 1 else ''} {extra} of {len(expected_numbers)}"] if extra else []
        )
        words += [f"no text shows {unused}"] if unused else []
        yield "regions do not match", "; ".join(words)
