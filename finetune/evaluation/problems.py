"""What was wrong with inputs of an evaluation, by kind and name, so that nothing is dropped in silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


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
