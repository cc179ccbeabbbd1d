"""Where items stand in a published file, by which answers without ids are told apart. Knows no file's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """An item by its place in the published file.

    repeats: what answer files copy from the entry ("question", "gt", …); None where the entry has no such thing.
    """

    id: str
    repeats: dict[str, Any]

    def fault(self, line: dict[str, Any]) -> str | None:
        """What in an answer's line is another entry's, in words; None if nothing is."""
        for key, true in self.repeats.items():
            said = line.get(key)
            if isinstance(said, str) and isinstance(true, str) and said.strip().lower() != true.strip().lower():
                return f"has the {key} {said!r:.60}, where the benchmark's file has {true!r:.60}"
        return None
