"""Records → the batches that a bridge learns from: a mixture of sources, turns of a conversation, tensors.

What stands at a position depends on the seed and the position alone, and not on where a run began.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm
from transformers import BatchFeature

from llm_bridge import RegionBridgeProcessor, asked_phrase, region_features, region_numbers, replace_regions
from tap_tokenizer import RegionTokens

from .cache import RegionCache, encode_regions
from .config import Source
from .examples import is_text, read_texts
from .records import Record, Records, Turn, check_size, cut_turns, load_records, open_image

_BLOCK = 4096
"""Positions in a block of a mixture. In each block, every source has its share."""

_KEPT = 40_000
"""How many records a process keeps after it has read them."""


@dataclass
class CachedRecord:
    """A record, the region tokens of its regions, and its picture's context features (slots, F) if there are any.

    regions: None for a conversation without a picture. is_taught: whether its answers are learned from a teacher, who reads
    what each question has `told`.
    """

    record: Record
    regions: RegionTokens | None
    context: Tensor | None = None
    is_taught: bool = False


# --- which record comes when ------------------------------------------------------------------------------------------


class Mixture:
    """An endless sequence of (data set, record, visit) drawn from data sets of given sizes.

    Each data set is gone through in a new random order every time; how often it comes follows its weight, by default its
    size, evenly in every block of 4096 positions. `visit` counts how many times the record has come before.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"Got data sets of {list(sizes)} records: every one needs at least one.")
        weights = list(sizes) if weights is None else list(weights)
        if len(weights) != len(sizes) or min(weights) <= 0:
            raise ValueError(
                f"Got {len(weights)} weights for {len(sizes)} data sets, expected a positive one for each."
            )
        self.sizes, self.seed = list(sizes), seed
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._order = lru_cache(maxsize=4)(self._draw_order)
        self._permutation = lru_cache(maxsize=2 * len(sizes))(self._draw_permutation)

    def __reduce__(self) -> tuple[type[Mixture], tuple[list[int], list[float], int]]:
        return Mixture, (self.sizes, self.shares.tolist(), self.seed)

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        block, place = divmod(position, _BLOCK)
        sources, before = self._order(block)
        source = int(sources[place])
        drawn = int(before[source]) + int((sources[:place] == source).sum())
        visit, row = divmod(drawn, self.sizes[source])
        return source, int(self._permutation(source, visit)[row]), visit

    def _draw_order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each place of a block, and how many of each came before it."""
        before = self._quota(block * _BLOCK)
        here = self._quota((block + 1) * _BLOCK) - before
        sources = np.repeat(np.arange(len(self.sizes)), here)
        np.random.RandomState([self.seed, 1, block]).shuffle(sources)
        return sources, before

    def _quota(self, positions: int) -> np.ndarray:
        """How many of the first `positions` belong to each data set."""
        edges = np.floor(np.concatenate([[0.0], np.cumsum(self.shares)]) * positions + 1e-9).astype(np.int64)
        edges[-1] = positions
        return np.diff(edges)

    def _draw_permutation(self, source: int, visit: int) -> np.ndarray:
        return np.random.RandomState([self.seed, 2, source, visit]).permutation(self.sizes[source])


class Conversations(Dataset[CachedRecord]):
    """The conversation at each position of a mixture, with a prompt variant of its own.

    Records without a conversation are passed over; `silent` says how many those are, by file.
    """

    def __init__(self, sources: Sequence[Source], seed: int = 0) -> None:
        records = {source.records: load_records(source.records).without_pictures() for source in sources}
        folders = {source.cache for source in sources}
        caches = {folder: None if folder is None else RegionCache(folder) for folder in folders}
        asked = {path: own.with_conversation() for path, own in records.items()}
        if empty := [path for path, rows in asked.items() if not rows]:
            raise ValueError(f"No record of {empty[0]} has a conversation: give records that ask something.")
        self.silent = {
            path: len(own) - len(asked[path]) for path, own in records.items() if len(asked[path]) < len(own)
        }
        self.sources, self.seed = sources, seed
        self.records = [records[source.records] for source in sources]
        self.caches = [caches[source.cache] for source in sources]
        self.rows = [asked[source.records] for source in sources]
        self._read: dict[tuple[int, int], Record] = {}
        weights = [source.weight for source in sources if source.weight is not None]
        self.mixture = Mixture(list(map(len, self.rows)), weights or None, seed)

    def _drawn(self, position: int) -> tuple[int, int, int]:
        """The source at a position, its record, and the visit."""
        number, place, visit = self.mixture[position]
        return number, self.rows[number][place], visit

    def __getitem__(self, position: int) -> CachedRecord:
        number, row, visit = self._drawn(position)
        source, record, cache = self.sources[number], self._record(number, row), self.caches[number]
        if cache is None:
            item = CachedRecord(record, None)
        else:
            tokens = cache.regions(row, (row + visit + self.seed) % len(cache.plan.variants))
            check_size(record, picture_size(tokens), f"Record {row} of {source.records}, for which tokens are cached,")
            item = CachedRecord(record, tokens, cache.context(row))
        random = np.random.RandomState([self.seed, 3, position % 2**32])
        item = some_turns(item, source.turns, random)
        if source.loss == "answers":
            return item
        item = _told_alike(item, random)
        return replace(item, is_taught=not read_texts(item.record))

    def _record(self, number: int, row: int) -> Record:
        found = self._read.get((number, row))
        if found is None:
            found = self.records[number][row]
            if len(self._read) < _KEPT:
                self._read[number, row] = found
        return found

    def asks_to_find(self) -> bool:
        """Whether a question of any source asks which regions an expression means, as `RegionChat.find` does."""
        return any(asked_phrase(turn.content) for number in range(len(self.sources)) for turn in self._asked(number))

    def taught(self) -> dict[str, tuple[int, int]]:
        """By file, of each source with a teacher: the questions that are learned from its distribution, and all of them."""
        found = {}
        for number, source in enumerate(self.sources):
            if source.loss == "teacher":
                in_chats = [not is_text(turn.told or "") for turn in self._asked(number)]
                found[source.records] = (sum(in_chats), len(in_chats))
        return found

    def _asked(self, number: int) -> Iterator[Turn]:
        """Every question of a source's records."""
        alone = Records(self.records[number].rows.select_columns("conversations"))
        title = f"questions of {self.sources[number].records}"
        for record in tqdm(alone, desc=title, total=len(alone), leave=False):
            yield from (turns[0] for turns in _questions(record.conversations))

    def length(self, position: int) -> int:
        """How many questions the conversation at a position has, at most."""
        number, row, _ = self._drawn(position)
        return self.sources[number].turns or len(_questions(self._record(number, row).conversations))


class StepSampler(Sampler[list[int]]):
    """The positions of every batch of some steps; the same whether or not the run began before them.

    With `group_by_length`, conversations of each 8 steps that are about as long come into one step, and these steps in an
    order of chance.
    """

    WINDOW = 8

    def __init__(
        self, data: Conversations, steps: range, batch_size: int, batches: int, seed: int, group_by_length: bool
    ) -> None:
        """batches: how many there are in a step, in all processes together."""
        self.data, self.steps, self.seed = data, steps, seed
        self.batch_size, self.drop_last = batch_size, False
        self.per_step = batch_size * batches
        self._positions = lru_cache(maxsize=1)(self._grouped if group_by_length else self._in_order)

    def __len__(self) -> int:
        return len(self.steps) * self.per_step // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            window, place = divmod(step, self.WINDOW)
            mine = self._positions(window)[place]
            for i in range(0, self.per_step, self.batch_size):
                yield mine[i : i + self.batch_size]

    def _in_order(self, window: int) -> list[list[int]]:
        """The positions of each step of a window."""
        positions = range(window * self.WINDOW * self.per_step, (window + 1) * self.WINDOW * self.per_step)
        return self._by_step(list(positions))

    def _grouped(self, window: int) -> list[list[int]]:
        positions = [position for step in self._in_order(window) for position in step]
        steps = self._by_step(sorted(positions, key=self.data.length))
        return [steps[i] for i in np.random.RandomState([self.seed, 5, window]).permutation(self.WINDOW)]

    def _by_step(self, positions: list[int]) -> list[list[int]]:
        return [positions[i : i + self.per_step] for i in range(0, len(positions), self.per_step)]


# --- the turns of a conversation ----------------------------------------------------------------------------------------


def _questions(conversation: Sequence[Turn]) -> list[list[Turn]]:
    """The turns of a conversation by the question that they belong to."""
    found: list[list[Turn]] = []
    for turn in conversation:
        if turn.role == "user":
            found.append([])
        if found:
            found[-1].append(turn)
    return found


def some_turns(item: CachedRecord, turns: int, random: np.random.RandomState) -> CachedRecord:
    """`turns` successive questions of a conversation that has more, beginning with a random one; 0 for all."""
    asked = _questions(item.record.conversations)
    if not turns or len(asked) <= turns:
        return item
    return _cut(item, random.randint(len(asked) - turns + 1), turns)


def _told_alike(item: CachedRecord, random: np.random.RandomState) -> CachedRecord:
    """The questions around a random one that its teacher read in the same form: in its chat, or as texts to continue.

    Together they could not be learned: what was said in the chat has a distribution over words, what follows a text has none.
    """
    forms = [is_text(turns[0].told or "") for turns in _questions(item.record.conversations)]
    if len(set(forms)) < 2:
        return item
    chosen = random.randint(len(forms))
    rows = (list(group) for _, group in groupby(range(len(forms)), key=forms.__getitem__))
    own = next(row for row in rows if chosen in row)
    return _cut(item, own[0], len(own))


def _cut(item: CachedRecord, start: int, count: int) -> CachedRecord:
    """`count` questions of a conversation from question number `start` on, and the regions that they are about."""
    record, rows = cut_turns(item.record, start, count)
    return replace(item, record=record, regions=None if item.regions is None else item.regions[rows])


# --- conversations → tensors --------------------------------------------------------------------------------------------


Item: TypeAlias = CachedRecord | Record | Mapping[str, Any]
"""What a batch is made of: a record with its cached region tokens, or a record alone, also as a row of a `datasets.Dataset`."""


class ConversationCollator:
    """Conversations → input_ids, attention_mask, labels and region features; −100 wherever nothing is learned.

    If some are taught, `is_taught` (B,) marks them, `in_words` (B,) those without regions, and `told` holds input_ids,
    attention_mask and labels of the taught ones as their teacher reads them, without any region: the words that are learned are
    the same.

    Items are records with their cached region tokens, or records alone, whose regions are then encoded here, by the
    processor's region tokenizer, every time that they come: leave the number of a DataLoader's workers at 0 if it is on a
    GPU. A record without a picture is a conversation in words.

    max_length: in tokens; a longer conversation loses its last questions.
    images: the folder that paths of pictures start from.
    """

    def __init__(
        self,
        processor: RegionBridgeProcessor,
        max_length: int | None = None,
        images: str | Path = ".",
    ) -> None:
        processor.check_turn_ends()
        self.processor = processor
        self.max_length = max_length
        self.images = images

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        items = self._encoded(items)
        batch, told = self._lessons(items)
        if self.max_length is not None and _longest(batch, told) > self.max_length:
            batch, told = self._lessons([self._fit(item) for item in items])
        if not (batch["labels"] != -100).any():
            raise ValueError(
                "Got conversations in which the assistant says nothing: give at least one answer to learn from."
            )
        if "region_features" not in batch:
            batch.update(self._no_regions(len(items)))
        if told is not None:
            batch |= {"told": told, "is_taught": torch.tensor([item.is_taught for item in items])}
            batch["in_words"] = torch.tensor([item.regions is None for item in items])
            _check_same_words(batch)
        return batch

    def _lessons(self, items: Sequence[CachedRecord]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Conversations with what is learned of each, and, if some are taught, these as their teacher reads them."""
        taught = [_as_told(item) for item in items if item.is_taught]
        return self._lesson(items), self._lesson(taught) if taught else None

    def _lesson(self, items: Sequence[CachedRecord]) -> dict[str, Any]:
        batch = self._batch(items, return_assistant_tokens_mask=True, padding_side="right")
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
        return dict(batch)

    def _encoded(self, items: Sequence[Item]) -> list[CachedRecord]:
        """The items, those that are records alone with the region tokens and context features of their pictures."""
        found = [item if isinstance(item, CachedRecord) else CachedRecord(_as_record(item), None) for item in items]
        alone = [i for i, item in enumerate(items) if not isinstance(item, CachedRecord)]
        seen = [i for i in alone if found[i].record.image is not None]
        if seen:
            for i, item in zip(seen, self._cached([found[i].record for i in seen])):
                found[i] = item
        return found

    def _cached(self, records: Sequence[Record]) -> list[CachedRecord]:
        """Records with what a cache would hold of them; all pictures are encoded at once."""
        tokenizer, context = self.processor.region_tokenizer, self.processor.context
        if tokenizer is None:
            raise ValueError("Records need region tokens: load the processor with its region tokenizer, or cache them.")
        features = tokenizer.embed_image([open_image(record, self.images) for record in records])
        sizes = features.original_sizes.tolist()
        records = [
            record if record.width else replace(record, width=width, height=height)
            for record, (height, width) in zip(records, sizes)
        ]
        contexts = list(context.encode(tokenizer, features)) if context.slots else [None] * len(records)
        return list(map(CachedRecord, records, encode_regions(tokenizer, features, records), contexts))

    def _no_regions(self, count: int) -> dict[str, Tensor]:
        """Region features of a batch without any region, of which none is read: the projector still takes part.

        Without it, a loss that only the projector is trained for has no gradient, and processes that train together wait
        for the one that has no region.
        """
        if self.processor.region_tokenizer is None:
            return {}
        nothing = torch.zeros(1, self.processor.feature_layout.size)
        features = self.processor.pad_features([nothing, *[None] * (count - 1)])
        return {**features, "region_mask": torch.zeros_like(features["region_mask"])}

    def _fit(self, item: CachedRecord) -> CachedRecord:
        """A conversation without those of its last questions that do not fit into `max_length`."""
        assert self.max_length is not None
        while (length := _longest(*self._lessons([item]))) > self.max_length:
            questions = len(_questions(item.record.conversations))
            if questions < 2:
                picture = item.record.image if isinstance(item.record.image, str) else "a picture"
                raise ValueError(
                    f"A question about {picture} has {length} tokens with its answer, more than "
                    f"max_length {self.max_length}: raise max_length, or shorten the record."
                )
            item = _cut(item, 0, questions - 1)
        return item

    def prompts(self, items: Sequence[Item]) -> BatchFeature:
        """Conversations that end with a question → inputs of `generate`."""
        return self._batch(self._encoded(items), padding_side="left")

    def _batch(self, items: Sequence[CachedRecord], **options: Any) -> BatchFeature:
        return self.processor.chat_batch(
            [self._messages(item) for item in items],
            [self._features(item) for item in items],
            [item.context if self.processor.context.slots else None for item in items],
            [(0, 0) if item.regions is None else picture_size(item.regions) for item in items],
            **options,
        )

    def _features(self, item: CachedRecord) -> Tensor:
        """Features of the regions that the conversation speaks of, which are the first ones of the record."""
        if item.regions is None:
            return torch.empty(0, 1, 0)
        return region_features(item.regions[: _regions_shown(item.record)], self.processor.experts)

    def _messages(self, item: CachedRecord) -> list[dict[str, Any]]:
        return [{"role": turn.role, "content": turn.content} for turn in item.record.conversations]


def _as_told(item: CachedRecord) -> CachedRecord:
    """A conversation as its teacher reads it: what each question has `told`, or else its words, and no regions."""
    turns = item.record.conversations
    if item.regions is not None and not any(turn.told for turn in turns):
        raise ValueError(
            f"{item.record.name} has a teacher, but no question that says in words what the regions are (`told`): make "
            "records with finetune.distill, or learn their answers with loss: answers."
        )
    words = [replace(turn, content=turn.told or _without_markers(turn.content)) for turn in turns]
    return CachedRecord(Record(item.record.image, conversations=words), None)


def _without_markers(text: str) -> str:
    """`<region1>` → region1."""
    return replace_regions(text, lambda number, is_shown: f"region{number}")


def _longest(batch: Mapping[str, Any], told: Mapping[str, Any] | None) -> int:
    """Tokens of the longest conversation, as it is or as its teacher reads it."""
    return max(part["input_ids"].shape[1] for part in (batch, told) if part is not None)


def _check_same_words(batch: Mapping[str, Any]) -> None:
    """Refuse conversations whose answers become other tokens after a question in other words."""
    own, told = batch["labels"][batch["is_taught"]], batch["told"]["labels"]
    if own[own != -100].tolist() != told[told != -100].tolist():
        raise ValueError(
            "The answers of a taught conversation become other tokens after the question as its teacher reads it, so they "
            "cannot be compared word by word: use another chat template, or loss: answers."
        )


def picture_size(regions: RegionTokens) -> tuple[int, int]:
    """(height, width), in pixels, of the picture that all of some regions belong to."""
    number = int(regions.image_index[0]) if len(regions) else 0
    height, width = regions.image_sizes[number].tolist()
    return height, width


def _regions_shown(record: Record) -> int:
    """How many regions a conversation shows: the largest N of its <regionN>, as records number them without gaps."""
    numbers = [number for turn in record.conversations for number in region_numbers(turn.content)]
    return max(numbers, default=0)


def _as_record(item: Record | Mapping[str, Any]) -> Record:
    if isinstance(item, Record):
        return item
    if "conversations" not in item:
        raise ValueError(
            f"Got an item with {', '.join(map(str, item)) or 'nothing'}, expected a record with conversations: if a "
            "trainer has removed them, set its remove_unused_columns=False."
        )
    return Record.from_dict(item)
