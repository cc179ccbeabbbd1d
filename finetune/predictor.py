"""The predictions of an evaluation: who makes them, chunk by chunk, and the files in which they lie.

Each chunk of records is encoded once, and every system answers. A chunk is the unit of work. It is written to a file of its
own, completely or not at all, and when all are there, they become `predictions.jsonl`. A run that was stopped does what is
left, on any number of processes. A chunk's content depends on its records alone, so the bytes are the same however the work
was split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from llm_bridge import Candidates, PictureContext
from tap_tokenizer import RegionTokens, write_whole

from .answerers import Cast
from .batches import picture_size
from .cache import RegionCache, encode_regions, file_checksum
from .checkpoints import as_lines, joined_chunks, write_chunk_texts
from .data.json_files import read_json, read_json_lines
from .data.validation import UNREADABLE
from .records import Record, WrongSizeError, check_size, open_image
from .tasks.expressions import ExpressionItem, ExpressionTask
from .tasks.items import EvaluationSet, Item, Seen
from .tasks.predictions import Line
from .tasks.task import MASKS, DrawnTask, Task

PREDICTIONS, ABOUT, PARTS, METRICS = "predictions.jsonl", "about.json", "parts", "metrics.json"
CHECKSUM = "predictions.sha256"
"""Beside finished predictions, in the form of `sha256sum --check`, so that a file that was edited since is not scored."""


def refuse_changed(output: Path) -> None:
    """Raises `ValueError` if finished predictions are not as their run wrote them, or a part of unfinished ones is torn."""
    path, note = output / PREDICTIONS, output / CHECKSUM
    if path.is_file():
        written = note.read_text(encoding="utf-8").split()[:1] if note.is_file() else []
        found = file_checksum(path)
        if written != [found]:
            expected = f"{written[0][:16]}… as it was written" if written else f"that of {CHECKSUM}, which is not there"
            raise ValueError(
                f"{path} has checksum {found[:16]}…, expected {expected}: delete it to predict again, or score it as it "
                "is with --predictions and another output."
            )
    for part in sorted((output / PARTS).glob("*.jsonl")):
        try:
            torn = bool(list(read_json_lines(part))) and not part.read_bytes().endswith(b"\n")
            why = "ends within a line"
        except ValueError as error:
            torn, why = True, str(error).removeprefix(f"{part}, ").rstrip(".")
        if torn:
            raise ValueError(f"{part} is not a complete part of predictions ({why}): delete it to have it made again.")


def refuse_others(output: Path, about: dict[str, Any]) -> None:
    """Raises `ValueError` if the folder holds predictions or results of something else than `about`."""
    note = output / ABOUT
    if not note.is_file():
        if (output / METRICS).is_file():
            raise ValueError(
                f"{output} holds {METRICS} without {ABOUT}, expected both: choose another output, or delete it."
            )
        return
    old, plain = read_json(note), json.loads(json.dumps(about))
    changed = [key for key in {**plain, **old} if key not in old or key not in plain or old[key] != plain[key]]
    if changed:
        raise ValueError(
            f"{output} holds predictions with other {', '.join(changed)}: choose another output, or delete it."
        )


def prepare_output(output: Path, about: dict[str, Any]) -> bool:
    """Make the folder, or find it as an earlier run of the same left it; gives whether its predictions are complete.

    Raises `ValueError` if it holds predictions of something else.
    """
    refuse_others(output, about)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / ABOUT, json.dumps(about, indent=1, ensure_ascii=False))
    return (output / PREDICTIONS).is_file()


def write_predictions(
    output: Path, chunks: int, texts_of: Callable[[Sequence[int]], Iterable[tuple[int, str]]], state: PartialState
) -> None:
    """Have this process's share of the missing chunks made, and join all of them once every process is done."""
    parts = output / PARTS
    write_chunk_texts(parts, chunks, texts_of, state, "evaluating")
    if state.is_main_process:
        text = joined_chunks(parts, chunks)
        write_whole(output / CHECKSUM, f"{sha256(text.encode()).hexdigest()}  {PREDICTIONS}\n")
        write_whole(output / PREDICTIONS, text)
        shutil.rmtree(parts)
    state.wait_for_everyone()


class Predictor:
    """The work of an evaluation, chunk by chunk; a chunk's lines depend on its records alone."""

    def __init__(
        self, task: Task, found: EvaluationSet, items: list[list[Item]], cast: Cast, size: int, cache: str | None = None
    ) -> None:
        """items: of each record; size: records of a chunk; cache: of the task's own records."""
        self.task, self.found, self.items, self.cast, self.size = task, found, items, cast, size
        self.cache: RegionCache | None = None
        if cache is not None:
            self.cache = RegionCache(cache)
            context = cast.context or PictureContext(0, 0)
            self.cache.check(Path(str(task.options.data)), cast.tokenizer.fingerprint, context)
            if any(row.needs_picture for row in cast.rows):
                raise ValueError("A cache has no pictures, which the described row needs: leave one of them out.")

    @property
    def chunks(self) -> int:
        return -(-len(self.found.records) // self.size)

    def texts(self, chunks: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Chunks, one after the other, as their files hold them."""
        return ((chunk, self.text(chunk)) for chunk in chunks)

    def text(self, chunk: int) -> str:
        """One of them."""
        return as_lines(self.work(chunk))

    def work(self, chunk: int) -> list[Line]:
        """The lines of one chunk, row by row."""
        numbers = list(range(chunk * self.size, min((chunk + 1) * self.size, len(self.found.records))))
        if isinstance(self.task, DrawnTask):
            return [line for n in numbers for line in self._masks(self.task, self.found.records[n])]
        if isinstance(self.task, ExpressionTask):
            return [line for n in numbers for line in self._finds(self.task, self.found.records[n], self.items[n])]
        seen, failed = self._see(numbers)
        lines: list[Line] = []
        for row in self.cast.rows:
            with torch.no_grad():
                said = row.answer(seen, self.task) if seen else []
            lines += [_line(row.name, item.item, words) for item, words in zip(seen, said)]
            lines += [_line(row.name, item, {"answer": "", "problem": why}) for item, why in failed]
        return lines

    def _masks(self, task: DrawnTask, record: Record) -> list[Line]:
        keys = task.names(record, self.found)
        if not keys:
            return []
        picture = self._open(record)
        if isinstance(picture, str):
            return [{"row": MASKS, "id": key, "problem": picture} for key in keys]
        features = self.cast.tokenizer.embed_image([picture])
        return [{"row": MASKS, **line} for line in task.lines(self.cast.tokenizer, features, record, self.found)]

    def _finds(self, task: ExpressionTask, record: Record, items: Sequence[Item]) -> list[Line]:
        own = [item for item in items if isinstance(item, ExpressionItem)]
        picture = self._open(record) if own else ""
        if isinstance(picture, str):
            return [_line(row.name, item, {"problem": picture}) for row in self.cast.finders for item in own]
        lines: list[Line] = []
        if not self.cast.finders:
            return lines
        candidates = Candidates.of(self.cast.finders[0].chat.processor, picture, task.prompts(record))
        for row in self.cast.finders:
            found = row.find(picture, [item.phrase for item in own], candidates, task.max_new_tokens)
            lines += [_line(row.name, item, task.found_line(one, record.size)) for item, one in zip(own, found)]
        return lines

    def _see(self, numbers: list[int]) -> tuple[list[Seen], list[tuple[Item, str]]]:
        """Items with what is seen of them, and those whose picture does not open with why."""
        numbers = [n for n in numbers if self.items[n]]
        if self.cache is not None:
            cached = [(n, None, self._cached(self.cache, n), self.cache.context(n)) for n in numbers]
            for n, _, own, _ in cached:
                check_size(self.found.records[n], picture_size(own))
            return [
                Seen(i, picture, r[i.rows], context) for n, picture, r, context in cached for i in self.items[n]
            ], []
        opened = {n: self._open(self.found.records[n]) for n in numbers}
        failed = [(item, p) for n, p in opened.items() if isinstance(p, str) for item in self.items[n]]
        pictures = {n: p for n, p in opened.items() if isinstance(p, np.ndarray)}
        if not pictures:
            return [], failed
        features = self.cast.tokenizer.embed_image(list(pictures.values()))
        regions = encode_regions(self.cast.tokenizer, features, [self.found.records[n] for n in pictures])
        context = self.cast.context
        contexts = context.encode(self.cast.tokenizer, features) if context else [None] * len(pictures)
        return [
            Seen(item, picture, own[item.rows], shown)
            for (n, picture), own, shown in zip(pictures.items(), regions, contexts)
            for item in self.items[n]
        ], failed

    def _cached(self, cache: RegionCache, number: int) -> RegionTokens:
        """The tokens of a record's regions; those that the task has no use for were left out of the record."""
        regions, kept = cache.regions(number), self.found.kept.get(number)
        return regions if kept is None else regions[kept]

    def _open(self, record: Record) -> np.ndarray | str:
        """The picture, or the error of opening it."""
        try:
            return open_image(record, self.found.root)
        except WrongSizeError:
            return "picture has another size than the annotations say"
        except UNREADABLE:
            return "picture does not open"


def _line(row: str, item: Item, said: Line) -> Line:
    return {"id": item.id, "row": row, "asked": item.asked, **said, "truth": item.references}
