"""LVIS (https://www.lvisdataset.org/dataset): 1203 categories with masks on COCO's pictures → "What is <region>?".

In v1 a picture has no file name, only COCO's address, which also says in which folder of COCO 2017 it lies; v0.5 has one,
by COCO 2014's names, which is not followed either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .coco import CocoSource
from .entries import answer, text


@dataclass(kw_only=True)
class LvisSource(CocoSource):
    """LVIS v1 or v0.5; `images` is the folder that holds train2017 and val2017."""

    name = "LVIS"

    def file_name(self, image: dict[str, Any]) -> str:
        return "/".join(text(image, "coco_url").split("/")[-2:])

    def label(self, category: dict[str, Any]) -> str:
        return answer(category, "name").replace("_", " ")
