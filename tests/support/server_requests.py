"""What tests send to the server: pictures as data URLs, and the name of its model."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

MODEL = "region-chat-tiny"
BOX = [177, 392, 271, 470]
"""Of the cloud on the demo's picture."""


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def picture_file(width: int = 64, height: int = 48, kind: str = "PNG", mode: str = "RGB", colour: Any = 80) -> bytes:
    file = io.BytesIO()
    Image.new(
        mode, (width, height), colour if mode == "L" or isinstance(colour, tuple) else (colour,) * len(mode)
    ).save(file, kind)
    return file.getvalue()
