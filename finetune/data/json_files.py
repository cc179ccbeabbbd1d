"""Reads JSON and text files: small ones at once, and large JSON files value by value in bounded memory.

They must be UTF-8; a byte-order mark is ignored. The parser is Python's. NaN and numbers of any size are accepted, and nesting
is limited.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from tap_tokenizer import check_regular_file

MAX_DEPTH = 100
"""How deep lists and objects may lie inside each other. The data sets that are read here need fewer than ten."""

_CHUNK = 1 << 20
_NEAR_END = 64
"""Characters within which a fault may come from a text that goes on: no number, name or escape is longer."""
_TEXTS = re.compile(r'"(?:[^"\\]+|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[{]|[\]}]")
_SPACE = re.compile(r"[ \t\n\r]*")
_FIRST_BYTES = {
    b"\x1f\x8b": "is compressed: unpack it first",
    b"PK\x03\x04": "is a zip archive: unpack it first",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
}


class JsonError(ValueError):
    """A text that is not JSON or is nested too deeply; the message says what is wrong and where."""


def parse_json(text: str | bytes) -> Any:
    """The value of a complete JSON text; bytes are UTF-8, with or without a byte-order mark. Raises `JsonError`."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise JsonError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    start = _space_end(text, 0)
    try:
        value, end = _decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error}") from None
    if (rest := _space_end(text, end)) < len(text):
        raise JsonError(f"not JSON: there is more text after its end, at character {rest}")
    return value


class JsonFile:
    """A JSON file that is read value by value, so that no more than its largest value is in memory.

    Every fault is a `ValueError` that names the file and the character, counted from 0.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise ValueError(f"Found no file at {path}: give a JSON file.")
        self.path = path
        self._buffer, self._at, self._before = "", 0, 0  # the text in memory, the place in it, and characters before it
        with open(path, "rb") as file:
            head = file.read(4)
        for first, words in _FIRST_BYTES.items():
            if head.startswith(first):
                raise ValueError(f"{path} {words}.")
        self._file: TextIO = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115 (`close` closes it)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self._at = _space_end(self._buffer, self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that comes next, whole."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                goes_on = error.pos > len(self._buffer) - _NEAR_END or error.msg.startswith("Unterminated")
                if goes_on and self._more():
                    continue
                raise self._fault(error.msg, error.pos) from None
            except JsonError as error:
                raise self._fault(str(error), self._at) from None
            may_go_on = (
                isinstance(value, (int, float)) and end > len(self._buffer) - 4
            )  # 1, 1. and 1e+ are parts of 1e+5
            if may_go_on and self._more():
                continue
            self._at = end
            return value

    def members(self) -> Iterator[str]:
        """Names of the object that comes next; whoever iterates reads the value of each, or all of the items in it."""
        yield from self._each("{}", self._name)

    def items(self) -> Iterator[Any]:
        """Items of the list that comes next."""
        yield from self._each("[]", self.value)

    def end(self) -> None:
        """Refuse a file that goes on after its value."""
        if self.peek():
            raise self._fault("there is more text after its end", self._at)

    def _each(self, marks: str, read: Any) -> Iterator[Any]:
        self._take(marks[0])
        if self.peek() == marks[1]:
            return self._take(marks[1])
        while True:
            yield read()
            if self.peek() == marks[1]:
                return self._take(marks[1])
            self._take(",")

    def _name(self) -> str:
        if self.peek() != '"':
            raise self._fault("expected a name in double quotes", self._at)
        name = str(self.value())
        self.peek()
        self._take(":")
        return name

    def _take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self._fault(f"expected {mark!r}", self._at)
        self._at += 1

    def _more(self) -> bool:
        """Read on, as much as is in memory already, so that a long value is not parsed anew too often."""
        rest = self._buffer[self._at :]
        try:
            read = self._file.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 ({error.reason}): save it as UTF-8.") from None
        if read:
            self._before += self._at
            self._buffer, self._at = rest + read, 0
        return bool(read)

    def _fault(self, words: str, place: int) -> ValueError:
        if place >= len(self._buffer) or words.startswith("Unterminated"):
            words = f"it ends in the middle of a value ({words})"
        return ValueError(f"{self.path} is not a complete JSON file: {words}, at character {self._before + place}.")


def iter_items(path: str | Path, prefix: str = "item", *, may_lack: bool = False) -> Iterator[Any]:
    """Items of a list inside a JSON file: "item" for a list at the top, "images.item" for one under a name.

    Raises `ValueError` for a file that is no JSON, or has no such list; may_lack: not for an object without the name.
    """
    name = prefix.removesuffix("item").removesuffix(".")
    with closing(JsonFile(path)) as file:
        if not name:
            if file.peek() != "[":
                raise ValueError(f"{path} holds {_kind(file)}, expected a list of entries: is it the right file?")
            yield from file.items()
        else:
            yield from _items_under(name, file, may_lack)
        file.end()


def _items_under(name: str, file: JsonFile, may_lack: bool) -> Iterator[Any]:
    if file.peek() != "{":
        raise ValueError(f'{file.path} holds {_kind(file)}, expected an object with "{name}", in the layout of COCO.')
    found = False
    for member in file.members():
        is_wanted = member == name
        if is_wanted and file.peek() != "[":
            raise ValueError(f'{file.path} holds {_kind(file)} for "{name}", expected a list.')
        found |= is_wanted
        if file.peek() != "[":
            file.value()
            continue
        for item in file.items():
            if is_wanted:
                yield item
    if not found and not may_lack:
        raise ValueError(f'{file.path} holds no "{name}": expected a file in the layout of COCO.')


def _kind(file: JsonFile) -> str:
    kinds = {"{": "an object", "[": "a list", '"': "a text", "": "nothing", "n": "null", "t": "true", "f": "false"}
    return kinds.get(file.peek(), "a number")


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The value at a place and where it ends. Raises `json.JSONDecodeError`, or `JsonError` for nesting without end."""
    try:
        value, end = _decoder.raw_decode(text, start)
    except RecursionError:
        raise JsonError(f"nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses numbers of thousands of digits
        value, end = _decoder_of_long_numbers.raw_decode(text, start)
    if _depth(text, start, end) > MAX_DEPTH:
        raise JsonError(f"nested more than {MAX_DEPTH} deep")
    return value, end


def _depth(text: str, start: int, end: int) -> int:
    if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
        return 0  # most are, and need no closer look
    depth = deepest = 0
    for mark in _BRACKETS.findall(_TEXTS.sub("", text[start:end])):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _space_end(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    assert match is not None
    return match.end()


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 1000 else float(digits)


_decoder = json.JSONDecoder()
_decoder_of_long_numbers = json.JSONDecoder(parse_int=_integer)


# --- whole files ------------------------------------------------------------------------------------------------------


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
    is_list = read_text(path).lstrip().startswith("[")
    return list(read_json(path) if is_list else read_json_lines(path))


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; blank lines are none. Raises `ValueError` with the line's number."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
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
