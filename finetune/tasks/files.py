"""Files that people bring to an evaluation, and what is wrong in them, by kind and name, so that nothing is dropped unseen.

Text is UTF-8, with a byte-order mark or without. What cannot be read at all is refused; an entry that cannot be used is
named in `Problems`, and the others are read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tap_tokenizer import check_regular_file, open_image, upright_size

from ..data.entries import EntryError
from ..data.json_text import JsonError, parse_json
from ..data.validation import UNREADABLE

MALFORMED = (KeyError, IndexError, TypeError, AttributeError, EntryError)
"""What reading an entry raises if it lacks what the file's form has."""

T = TypeVar("T")


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun: 1 picture, 2 pictures."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, in one line."""
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Problems:
    """Names of what is wrong, by kind."""

    def __init__(self) -> None:
        self.named: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, kind: str, name: str) -> None:
        """Note one problem; the same twice counts once."""
        self.named[kind][name] = None

    def extend(self, kind: str, names: Sequence[str]) -> None:
        """Note several of one kind."""
        for name in names:
            self.add(kind, name)

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Counts and names by kind, for `metrics.json`."""
        return {kind: {"count": len(names), "names": list(names)} for kind, names in sorted(self.named.items())}


def read_text(path: str | Path) -> str:
    """A file's text. Raises `ValueError` with the file's name where it is missing, no file with an end, or no UTF-8."""
    try:
        if not Path(path).is_dir():
            check_regular_file(path)
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from None
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"Found no file at {path}, expected a text file: give its path.") from None


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises `ValueError` with the file's name if it is not JSON."""
    try:
        return parse_json(read_text(path))
    except JsonError as error:
        raise ValueError(f"{path} is {error}, expected one whole JSON value: is it torn?") from None


def read_entries(path: str | Path) -> list[Any]:
    """The entries of a file that is one JSON list, or has a JSON object on every line; its first sign tells which."""
    text = read_text(path)
    return list(read_json(path)) if text.lstrip().startswith("[") else list(_objects(path, text))


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; blank lines are none. Raises `ValueError` with the line's number."""
    return _objects(path, read_text(path))


def _objects(path: str | Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = parse_json(line)
        except JsonError as error:
            raise ValueError(f"{path}, line {number} is {error}.") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number} holds a {type(found).__name__}, expected an object.")
        yield found


def read_questions(path: str | Path) -> list[dict[str, Any]]:
    """`read_entries` of a benchmark's file; an entry that is no object is an empty one, which lacks everything.

    Raises `TypeError` if none is an object.
    """
    entries = read_entries(path)
    if not any(isinstance(entry, dict) for entry in entries):
        raise TypeError("expected an object for every question")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def numbered(content: Iterable[Any], start: int = 0) -> Iterator[tuple[str, Any]]:
    """Entries named by their places, from `start`."""
    return ((str(number), entry) for number, entry in enumerate(content, start))


def read_each(
    entries: Iterable[tuple[str, Any]], read: Callable[[str, Any], T | None], problems: Problems
) -> Iterator[T]:
    """What `read` makes of entries with names, which may be nothing; one that is malformed is named.

    If all are malformed, the first one's error is raised: then the file is of another form.
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


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
    try:
        with open_image(path) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return 1, 1
    return height, width
