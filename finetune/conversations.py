"""Cached conversations in the order of a run: batches to learn from, and an evaluation on held-out ones.

Knows records and caches, not how a bridge is trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor

from .data.collator import CachedSample, ConversationCollator
from .data.mixture import Mixture
from .data.sample import cut_turns, load_samples
from .loop import ignore_ctrl_c
from .region_cache import RegionCache
from .train_arguments import TrainArguments


class Conversations(Dataset[CachedSample]):
    """The records of a mixture at the positions that are asked for, each with a prompt variant of its own."""

    def __init__(self, arguments: TrainArguments, mixture: Mixture, positions: range) -> None:
        self.samples = [load_samples(path).remove_columns("image") for path in arguments.data]
        self.caches = [RegionCache(path) for path in arguments.caches]
        self.mixture, self.positions = mixture, positions
        self.seed, self.turns, self.same_region = arguments.seed, arguments.turns, arguments.same_region
        self.questions = [re.compile(pattern) for pattern in arguments.questions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> CachedSample:
        source, row, visit = self.mixture[self.positions[place]]
        cache = self.caches[source]
        variant = (row + visit + self.seed) % len(cache.plan.variants)
        item = CachedSample(self.samples[source][row], cache.regions(row, variant), cache.grid(row))
        turns = self.turns[source] if self.turns else 0
        random = np.random.RandomState([self.seed, 3, self.positions[place] % 2**32])
        if self.questions:
            item = _only(item, self.questions[source])
        return _cut(item, turns, random, self.same_region)


def _only(item: CachedSample, pattern: re.Pattern[str]) -> CachedSample:
    """A conversation's questions in which `pattern` is found; all of them if that is none."""
    asked = _questions(item)
    return _of(
        item, asked, [i for i, turns in enumerate(asked) if pattern.search(turns[0]["content"])] or range(len(asked))
    )


def _cut(item: CachedSample, turns: int, random: np.random.RandomState, same_region: bool = False) -> CachedSample:
    """`turns` questions in a row of a conversation that has more, from a random one on.

    same_region: instead of those that follow it, random ones that name the same regions, as many as there are.
    """
    asked = _questions(item)
    if not turns or not asked or (len(asked) <= turns and not same_region):
        return item
    if not same_region:
        start = random.randint(len(asked) - turns + 1)
        return _of(item, asked, range(start, start + turns))
    named = [frozenset(re.findall(r"region(\d+)", turns[0]["content"])) for turns in asked]
    first = random.randint(len(asked))
    others = [i for i, regions in enumerate(named) if regions == named[first] and i != first]
    return _of(item, asked, sorted([first, *random.permutation(others)[: turns - 1].tolist()]))


def _questions(item: CachedSample) -> list[list[dict[str, Any]]]:
    """The turns of a conversation by the question that they belong to."""
    found: list[list[dict[str, Any]]] = []
    for turn in item.sample["conversations"]:
        if turn["role"] == "user":
            found.append([])
        if found:
            found[-1].append(turn)
    return found


def _of(item: CachedSample, asked: list[list[dict[str, Any]]], chosen: Sequence[int]) -> CachedSample:
    """A conversation of some of its questions, all of which are `asked`, and of the regions that they name."""
    if len(chosen) == len(asked):
        return item
    before = takewhile(lambda turn: turn["role"] == "system", item.sample["conversations"])
    turns = [*before, *(turn for i in chosen for turn in asked[i])]
    sample, rows = cut_turns({**item.sample, "conversations": turns}, 0, len(chosen))
    return CachedSample(sample, item.regions[rows], item.grid)


def make_loader(
    arguments: TrainArguments, processor: RegionBridgeProcessor, start: int, processes: int
) -> DataLoader[CachedSample]:
    """Batches of the steps that are left; what a position holds does not depend on where the run began."""
    per_step = arguments.batch_size * arguments.gradient_accumulation_steps * processes
    sizes = [RegionCache(path).plan.samples for path in arguments.caches]
    mixture = Mixture(sizes, arguments.weights or None, arguments.seed)
    positions = range(start * per_step, arguments.steps * per_step)
    return DataLoader(
        Conversations(arguments, mixture, positions),
        batch_size=arguments.batch_size,
        collate_fn=ConversationCollator(processor, arguments.max_length),
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
    collator = ConversationCollator(processor, arguments.max_length)
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
