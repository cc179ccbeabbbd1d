"""A folder of pictures with a table of regions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a table of three regions."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    shutil.copyfile(DEMO, pictures / "a.png")
    with Image.open(DEMO) as image:
        image.convert("RGB").resize((256, 256)).save(pictures / "sub" / "b.jpg")
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,id\na.png,361,233,436,307,7\nsub/b.jpg,88,196,136,235,8\na.png,177,392,271,470,9\n"
    )
    return tmp_path
