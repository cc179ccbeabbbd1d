"""What was wrong with inputs of an evaluation, by kind and name, so that nothing is dropped in silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ..data.entries import EntryError

MALFORMED = (KeyError, IndexError, TypeError, AttributeError, EntryError)
"""What reading an entry raises if it lacks what the file's form has."""

T = TypeVar("T")


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun: 1 picture, 2 pictures."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, in one line."""
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"


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
