"""`Source`, which every reader of a data set extends, what readers share, and `convert`, which writes their records to a file.

A reader is a dataclass of options with a method `records()`. It yields records one by one, always in the same order, and
reports every entry without a record to `left_out`. Each reader's own file knows the layout of its data set.
"""

from __future__ import annotations

import ast
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Image as Picture
from datasets.arrow_writer import ParquetWriter
from tqdm.auto import tqdm

from llm_bridge import region_numbers
from tap_tokenizer import check_regular_file, only_writer, open_image, upright_size

from ..config import knob
from ..records import FEATURES, GLYPH_SCHEME, Record, Region, Turn, mask_box
from .entries import CUT, NAMED, EntryError, LeftOut, box_of, is_cut, mapping, mask_of, needed, sound_region, text
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

    def region_of(self, annotation: dict[str, Any], size: tuple[int, int], mask: Any = None, **known: Any) -> Region:
        """The region of an annotation in COCO's layout, with what is known of it, on a picture of (height, width) `size`.

        Its box is cut to the picture, which is a doubt. mask: default: its segmentation, if it has one. Raises `EntryError`.
        """
        if mask is None and annotation.get("segmentation"):
            mask = mask_of(annotation["segmentation"])
        region = sound_region(Region(box_of(needed(annotation, "bbox"), size), mask=mask, **known), size)
        if is_cut(annotation["bbox"], size):
            self.left_out.doubtful[CUT] += 1
        return region


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
        raise EntryError("picture outside its folder", f"{name!r:.80} is not inside {folder}")
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


# --- records → a file -------------------------------------------------------------------------------------------------


PACKED_TOGETHER = 64
"""Pictures of a parquet file that are in memory at once."""


def convert(source: Source) -> int:
    """Write a source's records to its output and return how many there are. Those that an earlier run wrote are kept.

    `source.left_out` then tells what there is no record of. Raises `ValueError` if there is none of anything.
    """
    output = Path(source.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"output is {output.name}, expected a name that ends in .jsonl or .parquet.")
    with only_writer(output):
        if output.exists():
            raise ValueError(f"{output} exists already: choose another output, or delete it.")
        return _convert(source, output)


def _convert(source: Source, output: Path) -> int:
    # what is not yet whole is named after all that shapes it, so that no other run goes on with it
    knobs = {key: value for key, value in asdict(source).items() if key not in _SHAPELESS}
    files = [Path(value) for value in knobs.values() if isinstance(value, str) and os.path.isfile(value)]
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]  # an edited file is another source
    key = sha256(json.dumps([type(source).__name__, knobs, states], sort_keys=True).encode()).hexdigest()[:12]
    unfinished = output.with_name(f"{output.name}.{key}.partial")
    done = count = _whole_lines(unfinished)
    source.left_out.clear()  # all entries are read again, also those whose records are there
    try:
        with unfinished.open("a", encoding="utf-8") as file:
            for record in tqdm(source.limited(done), initial=done, desc="converting", unit="record"):
                file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise _no_record(source.left_out)
    finally:
        if unfinished.is_file() and not unfinished.stat().st_size:
            unfinished.unlink()  # nothing to go on with
    if output.suffix == ".parquet":
        count = _pack(unfinished, output, source.left_out)
        unfinished.unlink()
    else:
        unfinished.rename(output)
    return count


_SHAPELESS = ("output", "workers", "strict", "show_all", "left_out")
"""Fields of a source that shape none of its records."""


def _no_record(left_out: LeftOut) -> ValueError:
    words = "The source yields no records"
    if not left_out.summary():
        return ValueError(f"{words}: check its split and limit, and that its files belong together.")
    said = " ".join(line.strip() for line in left_out.summary())
    return ValueError(f"{words}. {said}" + (f"; the first: {left_out.named[0]}" if left_out.named else ""))


def _whole_lines(path: Path) -> int:
    """How many records an unfinished file holds; the torn end of a run that was killed is cut off."""
    if not path.is_file():
        return 0
    lines = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines += 1
                whole += len(line)
        file.truncate(whole)
    return lines


def _pack(lines: Path, output: Path, left_out: LeftOut) -> int:
    """Write a JSONL file as parquet with the pictures' bytes inside, in bounded memory; returns the number of records.

    What is not yet whole is one file, `output` with .partial behind its name, which the next run writes anew.
    """
    features = FEATURES.copy()
    features["image"] = Picture(decode=False)
    partial = output.with_name(output.name + ".partial")
    count = 0
    try:
        with (
            ParquetWriter(features=features, path=str(partial), writer_batch_size=PACKED_TOGETHER) as writer,
            lines.open(encoding="utf-8") as file,
        ):
            for number, line in enumerate(tqdm(file, desc="packing pictures", unit="record"), 1):
                record = json.loads(line)
                path = lines.parent / record["image"]
                if record["image"].startswith(GLYPH_SCHEME):
                    raise ValueError(
                        "GlyphScenes has no picture files: write .jsonl, whose pictures are drawn when opened."
                    )
                with left_out.entry(output, f"record {number}"):
                    if not path.is_file():
                        raise EntryError("missing picture", f"found none at {path}, and a parquet file holds them all")
                    inside = {**record, "image": {"bytes": path.read_bytes(), "path": path.name}}
                    writer.write(features.encode_example(inside))
                    count += 1
            if not count:
                raise _no_record(left_out)
            writer.finalize()
    except BaseException:
        partial.unlink(missing_ok=True)  # it holds people's pictures
        raise
    partial.replace(output)
    return count
