"""Records → items: one thing to say each, with its truth, and what was seen of it. Knows tasks, not models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tap_tokenizer import RegionTokens

from ..data.problems import Problems, counted, first_names
from ..data.sample import Sample, cut_turns
from .benchmarks import QUESTION_TASKS, Benchmark

REGION_NAME = re.compile(r"<region(\d+)>|\bregion(\d+)\b")
"""A region's name in a text: `<region1>` where it is shown, region1 where it was shown before."""


def named_regions(text: str) -> list[int]:
    """Numbers (from 1) of the regions that a text names, each once, in the order of its words."""
    return list(dict.fromkeys(int(shown or again) for shown, again in REGION_NAME.findall(text)))


@dataclass
class Item:
    """One question about regions of one picture.

    sample: the record with the regions in question alone, and a conversation that ends with the question; rows: where
    those regions stand in the whole record; references: true answers; options: possible answers, if they are known.
    """

    id: str
    sample: Sample
    rows: list[int]
    references: list[str]
    type: str = ""
    options: list[str] = field(default_factory=list)

    @property
    def asked(self) -> str:
        return str(self.sample["conversations"][-1]["content"])

    @property
    def first_region(self) -> int | None:
        """Where the first region of the question stands among the record's; None if there are no regions.

        A question that names none ("And how large is it?") is about the first region of the latest turn that does.
        """
        count = len(self.sample["regions"])
        for turn in reversed(self.sample["conversations"]):
            named = [number for number in named_regions(turn["content"]) if 1 <= number <= count]
            if named:
                return named[0] - 1
        return 0 if count else None


@dataclass
class Seen:
    """An item with what was seen: its picture (None if tokens come from a cache), region tokens, context features."""

    item: Item
    image: np.ndarray | None
    regions: RegionTokens
    grid: Tensor | None = None


def items_of(sample: Sample, benchmark: Benchmark, question: str, history: str, problems: Problems) -> list[Item]:
    """The items of one record for a task; what lacks a truth is named in `problems`."""
    if benchmark.task in QUESTION_TASKS:
        return _questions(sample, benchmark, history, problems)
    items = []
    for row, region in enumerate(sample["regions"]):
        truth = [words for words in _references(region, benchmark) if isinstance(words, str) and words.strip()]
        if not truth and benchmark.task != "descriptions":
            problems.add("region without a reference", str(region["id"]))
            continue
        if len(truth) < len(_references(region, benchmark)):
            problems.add("empty reference", str(region["id"]))
        turn = {"role": "user", "content": question.replace("<region>", "<region1>")}
        alone = {**sample, "regions": [region], "conversations": [turn]}
        items.append(Item(str(region["id"]), alone, [row], truth, str(sample.get("source") or "")))
    return items


def _references(region: dict[str, Any], benchmark: Benchmark) -> list[Any]:
    """What a region's truth should be: its captions, or its label; whether they are texts is not looked at."""
    if benchmark.task == "captions" and region.get("captions"):
        return list(region["captions"]) if isinstance(region["captions"], list) else [region["captions"]]
    return [region["label"]] if region.get("label") else []


def _questions(sample: Sample, benchmark: Benchmark, history: str, problems: Problems) -> list[Item]:
    """Every question of a record that has an answer; others are named."""
    turns = sample["conversations"]
    items = []
    for place, i in enumerate(i for i, turn in enumerate(turns) if turn["role"] == "user"):
        key = f"{sample['image_id']}/q{place}"
        if fault := _answer_fault(turns[i + 1 : i + 2], benchmark):
            problems.add(fault, key)
            continue
        cut, rows = cut_turns(sample, place, 1) if history == "none" else cut_turns(sample, 0, place + 1)
        last = max(n for n, turn in enumerate(cut["conversations"]) if turn["role"] == "user")
        truth = cut["conversations"][last + 1]["content"]
        cut = {**cut, "conversations": cut["conversations"][: last + 1]}
        kind = turns[i].get("type") or sample.get("source") or "records"
        items.append(Item(key, cut, rows, [truth], kind, turns[i].get("options") or []))
    return items


def _answer_fault(following: list[dict[str, Any]], benchmark: Benchmark) -> str | None:
    """Why the turn after a question (or none) cannot be its answer; None if it can."""
    answer = following[0].get("content") if following and following[0]["role"] == "assistant" else None
    if not isinstance(answer, str) or not answer.strip():
        return "question without an answer"
    if benchmark.task == "yes_no" and plain_truth(answer) not in ("yes", "no"):
        return "question whose answer is neither yes nor no"
    return None


def plain_truth(answer: str) -> str:
    """A true yes or no as it is compared: "Yes." → "yes"."""
    return answer.strip().rstrip(".").lower()


def refuse_doubles(items: Sequence[Item]) -> None:
    """Raises `ValueError` if two items have one id, for then no prediction belongs to either."""
    counts = Counter(item.id for item in items)
    if double := [key for key, number in counts.items() if number > 1]:
        raise ValueError(
            f"The reference has {counted(len(double), 'id')} twice ({first_names(double)}): expected one region or "
            "question for each."
        )
