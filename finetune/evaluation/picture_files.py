"""Picture files that people bring: their size as they are seen."""

from __future__ import annotations

from pathlib import Path

from tap_tokenizer import open_image, upright_size

from ..data.validation import UNREADABLE


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
    try:
        with open_image(path) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return 1, 1
    return height, width
