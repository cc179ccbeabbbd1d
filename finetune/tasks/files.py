"""Reads the files that are given to an evaluation. They must be UTF-8; a byte-order mark is ignored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tap_tokenizer import check_regular_file, open_image, upright_size

from ..data.json_files import JsonError, parse_json
from ..data.validation import UNREADABLE


def read_text(path: str | Path) -> str:
    """A file's text. Raises `ValueError` with the file's name if it is missing, not a regular file, or not UTF-8."""
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
        raise ValueError(f"{path} is {error}, expected one whole JSON value: is it truncated?") from None


def read_entries(path: str | Path) -> list[Any]:
    """The entries of a file that is one JSON list, or has a JSON object on every line; its first character tells which."""
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


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
    try:
        with open_image(path) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return 1, 1
    return height, width
