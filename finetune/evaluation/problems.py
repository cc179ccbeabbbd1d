"""What was wrong with inputs of an evaluation, by kind and name, so that nothing is dropped in silence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


class Problems:
    """Names of what is wrong, by kind."""

    def __init__(self) -> None:
        self.named: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Note one problem; the same twice counts once."""
        if name not in self.named[kind]:
            self.named[kind].append(name)

    def extend(self, kind: str, names: Sequence[str]) -> None:
        """Note several of one kind."""
        if names:
            self.named[kind] = list(dict.fromkeys([*self.named[kind], *names]))

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Counts and names by kind, for `metrics.json`."""
        return {kind: {"count": len(names), "names": names} for kind, names in sorted(self.named.items())}

    def lines(self) -> list[str]:
        """A line for each kind, with the first names."""
        return [
            f"{kind}: {len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in sorted(self.named.items())
        ]
