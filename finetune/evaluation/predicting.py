"""Chunks of records → lines: pictures are opened and seen once, and every row answers. Knows rows by what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_bridge import PictureContext
from tap_tokenizer import RegionTokens

from ..batches import picture_size
from ..cache import RegionCache, encode_regions
from ..data.sample import Sample, WrongSizeError, check_size, open_image
from ..data.validation import UNREADABLE
from ..records import Record
from .benchmarks import Benchmark
from .items import Item, Seen
from .loading import Cast
from .mask_rows import ious_of_prompts, masks_from_boxes, names_of_boxes
from .reading import EvaluationSet
from .rows import MASKS

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments


class Predictor:
    """The work of an evaluation, chunk by chunk; a chunk's lines depend on its records alone."""

    def __init__(
        self,
        arguments: EvaluateArguments,
        benchmark: Benchmark,
        found: EvaluationSet,
        items: list[list[Item]],
        cast: Cast,
    ) -> None:
        self.benchmark, self.found, self.items, self.cast = benchmark, found, items, cast
        self.seed, self.size = arguments.seed, arguments.batch_size
        self.cache: RegionCache | None = None
        if arguments.cache is not None:
            self.cache = RegionCache(arguments.cache)
            self.cache.check(
                Path(str(arguments.data)), cast.tokenizer.fingerprint, cast.context or PictureContext(0, 0)
            )
            if any(row.needs_picture for row in cast.rows):
                raise ValueError("A cache has no pictures, which the described row needs: leave one of them out.")

    @property
    def chunks(self) -> int:
        return -(-len(self.found.records) // self.size)

    def work(self, chunk: int) -> list[dict[str, Any]]:
        """The lines of one chunk, row by row."""
        numbers = list(range(chunk * self.size, min((chunk + 1) * self.size, len(self.found.records))))
        if self.benchmark.task in ("masks", "prompts"):
            return [line for n in numbers for line in self._masks(self.found.records[n])]
        seen, failed = self._see(numbers)
        lines: list[dict[str, Any]] = []
        for row in self.cast.rows:
            with torch.no_grad():
                said = row.answer(seen, self.benchmark.task) if seen else []
            lines += [_line(row.name, item.item, words) for item, words in zip(seen, said)]
            lines += [_line(row.name, item, {"answer": "", "problem": why}) for item, why in failed]
        return lines

    def _masks(self, sample: Sample) -> list[dict[str, Any]]:
        keys = names_of_boxes(sample, self.found.boxes)
        if not keys:
            return []
        picture = self._open(sample)
        if isinstance(picture, str):
            return [{"row": MASKS, "id": key, "problem": picture} for key in keys]
        features = self.cast.tokenizer.embed_image([picture])
        if self.benchmark.task == "prompts":
            found = ious_of_prompts(self.cast.tokenizer, features, sample, self.seed)
        else:
            boxes = None if self.found.boxes is None else self.found.boxes.get(sample["image_id"], [])
            found = masks_from_boxes(self.cast.tokenizer, features, sample, boxes)
        return [{"row": MASKS, **line} for line in found]

    def _see(self, numbers: list[int]) -> tuple[list[Seen], list[tuple[Item, str]]]:
        """Items with what is seen of them, and those whose picture does not open with why."""
        numbers = [n for n in numbers if self.items[n]]
        if self.cache is not None:
            cached = [(n, None, self._cached(self.cache, n), self.cache.grid(n)) for n in numbers]
            for n, _, own, _ in cached:
                check_size(self.found.records[n], picture_size(own))
            return [Seen(i, picture, r[i.rows], grid) for n, picture, r, grid in cached for i in self.items[n]], []
        opened = {n: self._open(self.found.records[n]) for n in numbers}
        failed = [(item, p) for n, p in opened.items() if isinstance(p, str) for item in self.items[n]]
        pictures = {n: p for n, p in opened.items() if isinstance(p, np.ndarray)}
        if not pictures:
            return [], failed
        features = self.cast.tokenizer.embed_image(list(pictures.values()))
        regions = encode_regions(
            self.cast.tokenizer, features, [Record.from_dict(self.found.records[n]) for n in pictures]
        )
        context = self.cast.context
        grids = context.encode(self.cast.tokenizer, features) if context else [None] * len(pictures)
        return [
            Seen(item, picture, own[item.rows], grid)
            for (n, picture), own, grid in zip(pictures.items(), regions, grids)
            for item in self.items[n]
        ], failed

    def _cached(self, cache: RegionCache, number: int) -> RegionTokens:
        """The tokens of a record's regions; those that the task has no use for were left out of the record."""
        regions, rows = cache.regions(number), self.found.records[number].get("rows")
        return regions if rows is None else regions[list(rows)]

    def _open(self, sample: Sample) -> np.ndarray | str:
        """The picture, or why there is none."""
        try:
            return open_image(sample, self.found.root)
        except WrongSizeError:
            return "picture has another size than the annotations say"
        except UNREADABLE:
            return "picture does not open"


def _line(row: str, item: Item, said: dict[str, Any]) -> dict[str, Any]:
    return {"id": item.id, "row": row, "asked": item.asked, **said, "truth": item.references}
