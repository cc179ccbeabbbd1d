"""What every reader of a data set shares: where its pictures lie, and turns of a conversation made from plain answers.

A reader is a dataclass of knobs with `records()`, which yields records one by one in an order that does not change. Knows
the record's form; each data set's own form is known to its file.
"""

from __future__ import annotations

import ast
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import knob
from .sample import Sample, mask_box

LABEL_QUESTION = "What is <region>?"
ROLES = {"human": "user", "gpt": "assistant"}
CAPTION_QUESTION = "Describe <region> in a few words."


@dataclass(kw_only=True)
class Source(ABC):
    """Knobs of every reader."""

    output: str = knob(help="file to write: .jsonl, pictures by path; or .parquet, pictures inside")
    limit: int | None = knob(default=None, help="records to write at most")

    @abstractmethod
    def records(self) -> Iterator[Sample]:
        """The records, always in the same order."""

    def limited(self, start: int = 0) -> Iterator[Sample]:
        """Records from number `start` on, up to `limit` in all."""
        return islice(self.records(), start, self.limit)


@dataclass(kw_only=True)
class PictureSource(Source):
    """Knobs of readers whose pictures are files."""

    images: str = knob(help="folder of the pictures")

    def picture(self, name: str) -> str:
        """A picture's path as a record holds it: from the folder of the output."""
        return Path(os.path.relpath(Path(self.images) / name, Path(self.output).parent)).as_posix()

    def require(self, *paths: str) -> None:
        """Refuse, before work starts, files and folders that are not there."""
        for path in (*paths, self.images):
            if not Path(path).exists():
                raise ValueError(f"Found nothing at {path}: give the file or folder that the data set's page offers.")


def corners(box_xywh: Sequence[float], width: int, height: int) -> list[float] | None:
    """A box given as corner and size → xyxy inside the picture; None if nothing of it is inside."""
    x, y, w, h = (float(v) for v in box_xywh)
    if not np.isfinite([x, y, w, h]).all():
        return None
    box = [max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)]
    return [round(v, 2) for v in box] if box[2] > box[0] and box[3] > box[1] else None


def ask_each(question: str, answers: Sequence[str]) -> list[dict[str, str]]:
    """One question about each region in order, with its answer; `<region>` in the question becomes `<regionN>`."""
    turns = []
    for number, answer in enumerate(answers, 1):
        turns.append({"role": "user", "content": question.replace("<region>", f"<region{number}>")})
        turns.append({"role": "assistant", "content": answer})
    return turns


def number_regions(text: str, start: int = 0) -> tuple[str, int]:
    """`<region>`, `<region>` → `<region1>`, `<region2>`, after `start` regions before; and how many there are by now."""
    count = start

    def name(_: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"<region{count}>"

    return re.sub("<region>", name, text), count


def with_all_shown(turns: Sequence[dict[str, str]], regions: int) -> list[dict[str, str]]:
    """Turns in which users show every region before the assistant speaks of it.

    If one is not shown, or named by the assistant first, the first question begins with a list of all.
    """
    shown: set[int] = set()
    named_first = False
    for turn in turns:
        numbers = {int(n) for n in re.findall(r"<region(\d+)>", turn["content"])}
        if turn["role"] == "user":
            shown |= numbers
        else:
            named_first |= not numbers <= shown
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None or (len(shown) >= regions and not named_first):
        return list(turns)
    names = ", ".join(f"<region{n}>" for n in range(1, regions + 1))
    opening = {**turns[first], "content": f"The picture has {names}.\n{turns[first]['content']}"}
    return [*turns[:first], opening, *turns[first + 1 :]]


def with_box(region: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A region with its mask's box; as it was if the mask is empty, which `validate` then names."""
    box = mask_box(region["mask"], size)
    return region if box is None else {"box": box, **region}


def talk(conversations: list[dict[str, str]]) -> list[dict[str, str]]:
    """LLaVA's turns ("from", "value") → ours; picture tokens go, for the record's picture is never in question."""
    return [
        {"role": ROLES[turn["from"]], "content": re.sub(r"<(?:image|video)>\s*", "", turn["value"]).strip()}
        for turn in conversations
    ]


def literal(value: Any) -> Any:
    """A list or mapping that some files hold as Python text."""
    return ast.literal_eval(value) if isinstance(value, str) else value


def record(
    image: str,
    size: tuple[int, int],
    regions: list[dict[str, Any]],
    conversations: list[dict[str, str]],
    source: str,
    terms: str | None,
) -> Sample:
    """A record of a picture of (height, width) `size`."""
    return {
        "image": image,
        "width": int(size[1]),
        "height": int(size[0]),
        "regions": regions,
        "conversations": conversations,
        "source": source,
        "license": terms,
    }


def groups(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Runs of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
