"""Cached conversations in the order of a run: batches to learn from, and an evaluation on held-out ones.

Knows records and caches, not how a bridge is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor

from .cache import RegionCache
from .data.collator import CachedSample, ConversationCollator, picture_size
from .data.mixture import Mixture
from .data.sample import Sample, check_size, cut_turns, load_samples
from .loop import ignore_ctrl_c
from .train_arguments import TrainArguments

_KEPT = 40_000
"""Records that a process keeps once it has read them."""


class Conversations(Dataset[CachedSample]):
    """The conversation at each position of a mixture, with a prompt variant of its own."""

    def __init__(self, arguments: TrainArguments) -> None:
        records = {path: load_samples(path).remove_columns("image") for path in dict.fromkeys(arguments.data)}
        caches = {path: RegionCache(path) for path in dict.fromkeys(arguments.caches)}
        self.samples, self.caches = (
            [records[path] for path in arguments.data],
            [caches[path] for path in arguments.caches],
        )
        self.paths = arguments.data
        self.seed, self.same_region = arguments.seed, arguments.same_region
        self.turns = arguments.turns or [0] * len(self.samples)
        self.questions = [re.compile(pattern) for pattern in arguments.questions]
        self.rows = self._rows(arguments)
        self._read: dict[tuple[int, int], tuple[Sample, list[int]]] = {}
        self.mixture = Mixture([len(rows) for rows in self.rows], arguments.weights or None, arguments.seed)

    def __getitem__(self, position: int) -> CachedSample:
        source, place, visit = self.mixture[position]
        row, cache = self.rows[source][place], self.caches[source]
        variant = (row + visit + self.seed) % len(cache.plan.variants)
        sample, regions = self._sample(source, row)
        tokens = cache.regions(row, variant)
        check_size(sample, picture_size(tokens), f"Record {row} of {self.paths[source]}, for which tokens are cached,")
        item = CachedSample(sample, tokens[regions], cache.grid(row))
        random = np.random.RandomState([self.seed, 3, position % 2**32])
        return _cut(item, self.turns[source], random, self.same_region)

    def _sample(self, source: int, row: int) -> tuple[Sample, list[int]]:
        """A record with the questions that are wanted of it, and the numbers of the regions that it keeps."""
        found = self._read.get((source, row))
        if found is None:
            sample = self.samples[source][row]
            found = sample, list(range(len(sample["regions"])))
            if self.questions:
                asked = _questions(sample["conversations"])
                pattern = self.questions[source]
                found = _of(sample, asked, [i for i, turns in enumerate(asked) if pattern.search(_words(turns))])
            if len(self._read) < _KEPT:
                self._read[source, row] = found
        return found

    def length(self, position: int) -> int:
        """How many questions the conversation at a position has, at most."""
        source, place, _ = self.mixture[position]
        if self.turns[source]:
            return self.turns[source]
        sample, _ = self._sample(source, self.rows[source][place])
        return len(_questions(sample["conversations"]))

    def _rows(self, arguments: TrainArguments) -> list[Sequence[int]]:
        """Which records of each of the data have a question that is wanted of it."""
        if not self.questions:
            return [range(len(samples)) for samples in self.samples]
        found: list[Sequence[int]] = [[] for _ in self.samples]
        for path in dict.fromkeys(arguments.data):
            sources = [i for i, other in enumerate(arguments.data) if other == path]
            rows: list[list[int]] = [[] for _ in sources]
            columns = self.samples[sources[0]].select_columns("conversations")
            for row, record in enumerate(tqdm(columns, desc=f"questions of {path}", leave=False)):
                asked = [_words(turns) for turns in _questions(record["conversations"])]
                for mine, source in zip(rows, sources):
                    if any(self.questions[source].search(words) for words in asked):
                        mine.append(row)
            for mine, source in zip(rows, sources):
                found[source] = mine
        for chosen, pattern, path in zip(found, arguments.questions, arguments.data):
            if not chosen:
                raise ValueError(f"No record of {path} has a question in which {pattern!r} is found.")
        return found


class _Steps(Sampler[list[int]]):
    """The positions of every batch from step `start` to the last one; the same whether or not the run began before.

    With `group_by_length`, conversations of each 8 steps that are about as long come into one step, and these steps in an
    order of chance.
    """

    WINDOW = 8

    def __init__(self, data: Conversations, arguments: TrainArguments, start: int, processes: int) -> None:
        self.data, self.start, self.steps = data, start, arguments.steps
        self.batch_size, self.drop_last = arguments.batch_size, False
        self.per_step = arguments.batch_size * arguments.gradient_accumulation_steps * processes
        self.seed = arguments.seed
        self._positions = lru_cache(maxsize=1)(self._grouped if arguments.group_by_length else self._in_order)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.per_step // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
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


def _words(turns: Sequence[dict[str, Any]]) -> str:
    """A question and its answer, a line each."""
    return "\n".join(turn["content"] for turn in turns)


def _cut(item: CachedSample, turns: int, random: np.random.RandomState, same_region: float = 0.0) -> CachedSample:
    """`turns` questions in a row of a conversation that has more, from a random one on.

    same_region: how often, instead of those that follow it, random ones that name the same regions, as many as there are.
    """
    is_same = bool(same_region) and random.random_sample() < same_region
    asked = _questions(item.sample["conversations"])
    if not turns or not asked or (len(asked) <= turns and not is_same):
        return item
    if not is_same:
        start = random.randint(len(asked) - turns + 1)
        return _taken(item, asked, range(start, start + turns))
    named = [frozenset(re.findall(r"region(\d+)", turns[0]["content"])) for turns in asked]
    first = random.randint(len(asked))
    others = [i for i, regions in enumerate(named) if regions == named[first] and i != first]
    return _taken(item, asked, sorted([first, *random.permutation(others)[: turns - 1].tolist()]))


def _questions(conversation: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The turns of a conversation by the question that they belong to."""
    found: list[list[dict[str, Any]]] = []
    for turn in conversation:
        if turn["role"] == "user":
            found.append([])
        if found:
            found[-1].append(turn)
    return found


def _taken(item: CachedSample, asked: list[list[dict[str, Any]]], chosen: Sequence[int]) -> CachedSample:
    """A conversation of some of its questions, all of which are `asked`, with the tokens of the regions that they name."""
    sample, regions = _of(item.sample, asked, chosen)
    return CachedSample(sample, item.regions if item.regions is None else item.regions[regions], item.grid)


def _of(sample: Sample, asked: list[list[dict[str, Any]]], chosen: Sequence[int]) -> tuple[Sample, list[int]]:
    """A record of some of its questions, all of which are `asked`, and the numbers of the regions that they name."""
    if len(chosen) == len(asked):
        return sample, list(range(len(sample["regions"])))
    before = takewhile(lambda turn: turn["role"] == "system", sample["conversations"])
    turns = [*before, *(turn for i in chosen for turn in asked[i])]
    return cut_turns({**sample, "conversations": turns}, 0, len(chosen))


def make_loader(
    arguments: TrainArguments, processor: RegionBridgeProcessor, start: int, processes: int
) -> DataLoader[CachedSample]:
    """Batches of the steps that are left; what a position holds does not depend on where the run began."""
    data = Conversations(arguments)
    return DataLoader(
        data,
        batch_sampler=_Steps(data, arguments, start, processes),
        collate_fn=ConversationCollator(processor, arguments.max_length, arguments.mask_history),
        num_workers=arguments.workers,
        worker_init_fn=ignore_ctrl_c,
    )


def summed_loss(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy summed over the words that the batch learns."""
    labels = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


@torch.no_grad()
def evaluate(
    arguments: TrainArguments, accelerator: Accelerator, model: torch.nn.Module, processor: RegionBridgeProcessor
) -> dict[str, float]:
    """Loss on held-out records, and how often the last answer of each is given word for word; each process does a part."""
    bridge = accelerator.unwrap_model(model).eval()
    samples, cache = load_samples(str(arguments.eval_data)), RegionCache(str(arguments.eval_cache))
    chosen = [i for i in range(min(arguments.eval_records, len(samples))) if samples[i]["conversations"]]
    collator = ConversationCollator(processor, arguments.max_length, arguments.mask_history)
    sums = torch.zeros(4, dtype=torch.float64)
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    for start in range(0, len(mine), arguments.batch_size):
        part = [
            _cut(
                CachedSample(samples[i], cache.regions(i), cache.grid(i)),
                max(arguments.turns, default=0),
                np.random.RandomState([arguments.seed, 4, i]),
                arguments.same_region,
            )
            for i in mine[start : start + arguments.batch_size]
        ]
        batch = {name: value.to(bridge.device) for name, value in collator(part).items()}
        truth = [item.sample["conversations"][-1]["content"] for item in part]
        right = sum(
            said == true
            for said, true in zip(answer_last(bridge, processor, part, arguments.eval_max_new_tokens), truth)
        )
        words = int((batch["labels"][:, 1:] != -100).sum())
        sums += torch.tensor([float(summed_loss(bridge, batch)), words, right, len(part)], dtype=torch.float64)
    loss, words, right, answers = accelerator.reduce(sums.float().to(accelerator.device)).tolist()  # MPS has no doubles
    return {"val_loss": loss / max(words, 1), "val_answer": right / max(answers, 1)}


def answer_last(
    bridge: RegionBridgeForConditionalGeneration,
    processor: RegionBridgeProcessor,
    items: list[CachedSample],
    max_new_tokens: int = 32,
) -> list[str]:
    """The bridge's own words in place of the last answer of each conversation."""
    collator = ConversationCollator(processor)
    cut = [
        CachedSample({**item.sample, "conversations": item.sample["conversations"][:-1]}, item.regions, item.grid)
        for item in items
    ]
    inputs = collator.prompts(cut).to(bridge.device)
    ids = bridge.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
