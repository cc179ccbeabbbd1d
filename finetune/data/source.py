"""`Source`, which every reader of a data set extends: it finds pictures, and turns plain answers into conversations.

A reader is a dataclass of options with a method `records()`. It yields records one by one, always in the same order, and
reports every entry without a record to `left_out`. Each reader's own file knows the layout of its data set.
"""

from __future__ import annotations

import ast
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llm_bridge import region_numbers
from tap_tokenizer import check_regular_file, open_image, upright_size

from ..config import knob
from ..records import Record, Region, Turn, mask_box
from .entries import mapping, text
from .problems import NAMED, EntryError, LeftOut
from .validation import UNREADABLE, region_problems

LABEL_QUESTION = "What is <region>?"
ROLES = {"human": "user", "gpt": "assistant"}
CAPTION_QUESTION = "Describe <region> in a few words."


@dataclass(kw_only=True)
class Source(ABC):
    """Options of every reader."""

    output: str = knob(
        help="file to write: .jsonl, which names the pictures' paths, or .parquet, which holds the pictures"
    )
    limit: int | None = knob(default=None, help="write at most this many records")
    left_out: LeftOut = field(default_factory=LeftOut, init=False, repr=False, compare=False)
    """The entries from which `records` has made no record so far."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """The records, always in the same order."""

    def limited(self, start: int = 0) -> Iterator[Record]:
        """Records from number `start` on, up to `limit` in all."""
        return islice(self.records(), start, self.limit)


@dataclass(kw_only=True)
class PictureSource(Source):
    """Options of readers whose pictures are files."""

    images: str = knob(help="folder of the pictures")
    strict: bool = knob(default=False, help="stop at the first entry that cannot be used, instead of leaving it out")
    show_all: bool = knob(default=False, help=f"name every entry that is left out, not just {NAMED} per reason")
    follow_links: bool = knob(default=False, help="also accept pictures that are links to files outside their folder")

    def __post_init__(self) -> None:
        self.left_out = LeftOut(strict=self.strict, show_all=self.show_all)

    def picture(self, name: str) -> str:
        """A picture's path, relative to the folder of the output, as records hold it. Raises `EntryError` as `inside` does."""
        path = inside(Path(self.images), name, self.follow_links)
        return Path(os.path.relpath(path, Path(self.output).parent)).as_posix()

    def size_on_disk(self, name: str) -> tuple[int, int]:
        """Height and width of a picture file, upright. Raises `EntryError` if it is missing or does not open."""
        path = inside(Path(self.images), name, self.follow_links)
        if not os.path.isfile(path):
            raise EntryError("missing picture", f"found no file {name!r:.80} in {self.images}")
        try:
            with open_image(path) as picture:
                width, height = upright_size(picture)
        except UNREADABLE as error:
            raise EntryError("unreadable picture", f"{name!r:.80} cannot be opened: {error}") from None
        return height, width

    def require(self, *paths: str) -> None:
        """Refuse missing files and folders before work starts."""
        for path in (*paths, self.images):
            if not Path(path).exists():
                raise ValueError(f"Found nothing at {path}: give the file or folder that the data set's page offers.")
            if not Path(path).is_dir():
                check_regular_file(path)


@dataclass(kw_only=True)
class RegionQuestionSource(PictureSource):
    """Options of readers that ask about each region separately."""

    question: str = knob(default=LABEL_QUESTION, help="what is asked about every region; the answer is its category")
    regions_per_record: int = knob(
        default=16, help="regions in a record, at most; a picture with more regions gives several records"
    )

    def records_of(
        self,
        image: str,
        size: tuple[int, int],
        asked: Sequence[tuple[Region, str, str]],
        source: str,
        terms: str | None,
    ) -> Iterator[Record]:
        """Records of a picture of (height, width) `size`; asked: its regions, each with its question and answer."""
        for start in range(0, len(asked), self.regions_per_record):
            some = asked[start : start + self.regions_per_record]
            turns = [turn for n, (_, words, answer) in enumerate(some, 1) for turn in question_about(words, n, answer)]
            yield Record(image, size[1], size[0], [region for region, *_ in some], turns, source, terms)


def inside(folder: Path, name: str, follow_links: bool = False) -> Path:
    """The path of a file that a data set names. It must lie inside its folder, because a stranger's file may name anything.

    Backslashes separate folders, unless a file has them in its name. Raises `EntryError` for a name that leads out of the
    folder, by itself or, unless `follow_links`, through a symbolic link.
    """
    if "\0" in name:
        raise EntryError("wrong file name", f"{name!r:.80} contains a null byte")
    root = os.path.abspath(folder)
    path = os.path.abspath(folder / name)
    if "\\" in name and not os.path.exists(path):
        path = os.path.abspath(folder / name.replace("\\", "/"))
    if not path.startswith(os.path.join(root, "")):
        raise EntryError("picture outside its folder", f"{name!r:.80} does not lie inside {folder}")
    if not follow_links:
        real_root = os.path.join(os.path.realpath(root), "")
        if not os.path.realpath(path).startswith(real_root):
            raise EntryError(
                "link out of the folder",
                f"{name!r:.80} is a link to a file outside {folder}: --follow_links true accepts it",
            )
    return Path(path)


def question_about(question: str, number: int, answer: str) -> list[Turn]:
    """A question about a region, with its answer; `<region>` in the question becomes `<regionN>`."""
    return [Turn("user", question.replace("<region>", f"<region{number}>")), Turn("assistant", answer)]


def with_all_shown(turns: Sequence[Turn], regions: int) -> list[Turn]:
    """Turns in which users show every region before the assistant speaks of it.

    If one is not shown, or named by the assistant first, the first question begins with a list of all.
    """
    shown: set[int] = set()
    named_first = False
    for turn in turns:
        numbers = set(region_numbers(turn.content))
        if turn.role == "user":
            shown |= numbers
        else:
            named_first |= not numbers <= shown
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or (len(shown) >= regions and not named_first):
        return list(turns)
    names = ", ".join(f"<region{n}>" for n in range(1, regions + 1))
    opening = replace(turns[first], content=f"The picture has {names}.\n{turns[first].content}")
    return [*turns[:first], opening, *turns[first + 1 :]]


def masked_region(mask: Any, size: tuple[int, int]) -> Region:
    """A region with a mask, and with the box around it unless it is empty. Raises `EntryError` for a broken mask."""
    for kind, words in region_problems({"mask": mask}, size):
        if kind != "empty mask":
            raise EntryError(kind, f"{kind}: {words}")
    return Region(box=mask_box(mask, size), mask=mask)


def talk(conversations: list[Any]) -> list[Turn]:
    """LLaVA's turns ("from", "value") → ours, without picture tokens: a record has only one picture."""
    turns = []
    for turn in conversations:
        speaker = text(mapping(turn, "a turn"), "from")
        if speaker not in ROLES:
            raise EntryError("wrong turn", f"a turn is from {speaker!r:.60}, expected {' or '.join(ROLES)}")
        turns.append(Turn(ROLES[speaker], re.sub(r"<(?:image|video)>\s*", "", text(turn, "value")).strip()))
    return turns


def literal(value: Any) -> Any:
    """A list or mapping that some files hold as Python text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise EntryError("wrong text", f"{value!r:.60} is not a list or mapping in Python's notation") from None
