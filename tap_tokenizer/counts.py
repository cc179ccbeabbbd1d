"""How many of something, in words that people read."""

from __future__ import annotations


def counted(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun: 1 picture, 2,000 pictures. several: the noun's plural, if it is not its letters and an s."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
