"""ParaDLC-Bench (https://github.com/MSALab-PKU/PerceptionDLM): DLC-Bench's questions about several regions of a picture.

Its `annotations.json` is a list of pictures, {file_name, height, width, image_id, annotations: [{index, mask_rle}]}; the
`qa.json` beside it has the questions of the regions that are evaluated, by IMAGE_INDEX, and `class_names.json` their names.
The judge sees each region with its surroundings and its mask, and is told the class. A region without a positive question
has a positive score of 0. Every region is described by itself, from its mask's box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.entries import mask_fault
from ..data.problems import Problems, numbered, read_each
from ..data.sample import Sample, mask_box
from .dlc_bench import DlcBench
from .items import Item
from .judge_pictures import region_mask, surroundings
from .judges import Prompt
from .text_files import read_json

RECOGNITION_QUESTION = (
    "The region in the picture is of the class {class_name}. Is the description about that, or something similar?"
)
"""Our wording, version 1."""


def read_paradlc(path: Path, title: str, problems: Problems) -> Iterator[Sample]:
    """The pictures with those of their regions that `qa.json` beside the file asks about."""
    questions = path.with_name("qa.json")
    if not questions.is_file():
        raise ValueError(
            f"Found nothing at {questions}, which says what regions are evaluated: lay it beside {path.name}."
        )
    asked, seen = read_json(questions), set()

    def read(_: str, entry: dict[str, Any]) -> Sample:
        size = (entry["height"], entry["width"])
        regions = []
        for annotation in entry["annotations"]:
            key = f"{entry['image_id']}_{annotation['index']}"
            if key not in asked:
                continue
            seen.add(key)
            mask = annotation["mask_rle"]
            fault = mask_fault(mask, size)
            box = None if fault else mask_box(mask, size)
            if box is None:
                problems.add(fault or "empty mask", key)
                continue
            regions.append({"id": key, "box": box, "mask": mask, "label": annotation.get("category_name") or ""})
        return {
            "image": entry["file_name"], "image_id": entry["image_id"], "height": size[0], "width": size[1],
            "regions": regions, "conversations": [], "source": title,
        }  # fmt: skip

    yield from read_each(numbered(read_json(path)), read, problems)
    problems.extend("questions of a region that is not listed", [key for key in asked if key not in seen])


class ParaDlcBench(DlcBench):
    """DLC-Bench's questions, of a judge that sees the region."""

    sees = True
    published = "GPT-5.2, its own prompt"
    recognition = RECOGNITION_QUESTION
    no_positive = 0.0
    more_names = True

    def prompts(self, item: Item, answer: str, picture: Callable[[], np.ndarray]) -> list[Prompt]:
        shown, mask = surroundings(picture(), region_mask(item.sample, 0))
        return [
            ["The picture:\n", shown, "\nThe mask of the region:\n", mask, f"\n{text}\n"]
            for text in super().prompts(item, answer, picture)
            if isinstance(text, str)
        ]
