"""Picture files that people bring: their size as they are seen, and what Pillow raises for those that are none."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import Image

from tap_tokenizer import upright_size

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures, or torn, or would fill all memory."""


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture as it is seen; 1 × 1 if it does not open, for whoever opens it then names it."""
    try:
        with Image.open(path) as picture:
            width, height = upright_size(picture)
    except UNREADABLE:
        return 1, 1
    return height, width
