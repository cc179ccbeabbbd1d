"""Counts and names the entries of a file that cannot be used, so that nothing is dropped silently.

`LeftOut` counts for a conversion, which prints the first few of each kind; `Problems` keeps every name, for `metrics.json`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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
                lines.append(f"{counts.total()} {'entry' if counts.total() == 1 else 'entries'} {words}:")
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


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun: 1 picture, 2 pictures."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, in one line."""
    return f"{', '.join(names[:most])}{', …' if len(names) > most else ''}"
