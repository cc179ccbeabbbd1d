"""What stands in the rows of every table: TAP's caption decoder and concept head, an instruct model that is told what they
say, and the language model that reads region tokens; with controls that show how much of its score it owes to seeing.

Each gives a line for every item, with its words unedited. Knows models, not scores.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat, region_features
from tap_tokenizer import ConceptBank, RegionTokens, TapRegionTokenizer

from ..batches import picture_size
from ..data.sample import decode_mask
from .benchmarks import Task
from .items import REGION_NAME, Seen, named_regions
from .question_metrics import overlap_answer

CAPTIONS, CONCEPTS, DESCRIBED, LANGUAGE = "caption decoder", "concept head", "described", "language model"
MASKS = "mask decoder"
QUESTION_ONLY, SHUFFLED = f"{LANGUAGE}, question only", f"{LANGUAGE}, shuffled regions"
ROWS = (CAPTIONS, CONCEPTS, DESCRIBED, LANGUAGE)
CONTROLS = (QUESTION_ONLY, SHUFFLED)


class Row(ABC):
    """One who answers."""

    name: str
    needs_picture = False

    @abstractmethod
    def answer(self, seen: Sequence[Seen], task: Task) -> list[dict[str, Any]]:
        """A line of what each item is answered with: "answer", and what else the task's score needs."""


class CaptionRow(Row):
    """The native decoder's caption of the first region in question."""

    name = CAPTIONS

    def __init__(self, tokenizer: TapRegionTokenizer) -> None:
        self.tokenizer = tokenizer

    def answer(self, seen: Sequence[Seen], task: Task) -> list[dict[str, Any]]:
        return [_said(words, item, task) for words, item in zip(_first_captions(self.tokenizer, seen), seen)]


def _first_captions(tokenizer: TapRegionTokenizer, seen: Sequence[Seen]) -> list[str]:
    firsts = [item.item.first_region for item in seen]
    asked = [item.regions[[first]] for item, first in zip(seen, firsts) if first is not None]
    said = iter(tokenizer.caption(RegionTokens.concatenate(asked)) if asked else [])
    return ["" if first is None else next(said) for first in firsts]


class ConceptRow(Row):
    """The most probable concept of the first region in question; for detections, all that are probable enough."""

    name = CONCEPTS

    def __init__(self, bank: ConceptBank, categories: dict[str, Any] | None = None) -> None:
        self.bank = bank
        self.categories = categories or {}
        """Ids by plain name, for detections."""

    def answer(self, seen: Sequence[Seen], task: Task) -> list[dict[str, Any]]:
        lines = []
        for item in seen:
            first = item.item.first_region
            scores = None if first is None else self.bank.scores(item.regions[[first]].embeds)[0].cpu()
            words = "" if scores is None else self.bank.names[int(scores.argmax())]
            line = _said(words, item, task)
            if task == "detections" and scores is not None:
                line["labels"] = {
                    str(self.categories[plain_name(name)]): float(p)
                    for name, p in zip(self.bank.names, scores)
                    if p > 1e-3 and plain_name(name) in self.categories
                }
            lines.append(line)
        return lines


def plain_name(name: str) -> str:
    """A category's name as the original's concept files spell it: lower case, spaces for underscores and hyphens."""
    return re.sub(r"[_\-\s]+", " ", name.lower()).strip()


def _said(words: str, seen: Seen, task: Task) -> dict[str, Any]:
    """TAP's own words as an answer: to a question, by the words that they share with its possible answers."""
    if task in ("questions", "yes_no"):
        options = ["yes", "no"] if task == "yes_no" else seen.item.options
        return {"answer": overlap_answer(seen.item.asked, words, options), "words": words}
    return {"answer": words, **_score(seen, task)}


def _score(seen: Seen, task: Task) -> dict[str, float]:
    return {"iou": float(seen.regions.scores[0])} if task == "detections" else {}


class DescribedRow(Row):
    """An instruct model that is told in words what TAP sees; it gets each question alone."""

    name = DESCRIBED
    needs_picture = True

    def __init__(self, chat: RegionChat, max_new_tokens: int) -> None:
        self.chat, self.max_new_tokens = chat, max_new_tokens

    def answer(self, seen: Sequence[Seen], task: Task) -> list[dict[str, Any]]:
        lines = []
        for item in seen:
            content: list[dict[str, Any]] = [{"type": "image", "image": item.image}]
            text = item.item.sample["conversations"][-1]["content"]
            regions = item.item.sample["regions"]
            named = [number for number in sorted(named_regions(text)) if 1 <= number <= len(regions)]
            for new, number in enumerate(named, 1):
                content.append({"type": "region", "name": f"region{new}", **_prompt(regions[number - 1], item)})
            text = REGION_NAME.sub(partial(_renamed, named), text)
            inputs = self.chat.processor.apply_chat_template(
                [{"role": "user", "content": [*content, {"type": "text", "text": f"\n{text}"}]}],
                tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, enable_thinking=False,
            ).to(self.chat.model.device)  # fmt: skip
            with torch.no_grad():
                ids = self.chat.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            words = self.chat.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            lines.append({"answer": words.strip(), **_score(item, task)})
        return lines


def _renamed(named: list[int], match: re.Match[str]) -> str:
    """A region's name by its place among those that a question names."""
    number = int(match[1] or match[2])
    return f"region{named.index(number) + 1}" if number in named else match[0]


def _prompt(region: dict[str, Any], seen: Seen) -> dict[str, Any]:
    if region.get("box") is not None:
        return {"box": region["box"]}
    if region.get("points") is not None:
        return {key: region[key] for key in ("points", "point_labels") if key in region}
    return {"mask": decode_mask(region["mask"], (seen.item.sample["height"], seen.item.sample["width"]))}


class BridgeRow(Row):
    """The language model on region tokens.

    view: "full"; "question only", without any region; "shuffled", with those of another picture's question.
    """

    def __init__(
        self,
        bridge: RegionBridgeForConditionalGeneration,
        processor: RegionBridgeProcessor,
        max_new_tokens: int,
        batch_size: int,
        view: Literal["full", "question only", "shuffled"] = "full",
    ) -> None:
        self.bridge, self.processor, self.view = bridge, processor, view
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.name = {"full": LANGUAGE, "question only": QUESTION_ONLY, "shuffled": SHUFFLED}[view]

    def answer(self, seen: Sequence[Seen], task: Task) -> list[dict[str, Any]]:
        rows: list[Tensor] = [region_features(item.regions, self.processor.experts) for item in seen]
        grids = [item.grid for item in seen]
        sizes = [picture_size(item.regions) for item in seen]
        swapped = [True] * len(seen)
        if self.view == "shuffled":
            rows, grids, sizes, swapped = _swap(seen, rows, grids, sizes)
        conversations = []
        for i, item in enumerate(seen):
            turns = [{k: t[k] for k in ("role", "content")} for t in item.item.sample["conversations"]]
            named = {int(n) for turn in turns for n in re.findall(r"<region(\d+)>", turn["content"])}
            rows[i] = rows[i][: max(named, default=0)]
            if self.view == "question only":
                turns = [{**t, "content": re.sub(r"<(region\d+)>", r"\1", t["content"])} for t in turns]
                rows[i], grids[i] = rows[i][:0], None
            elif self.processor.context.slots:
                turns[0] = {**turns[0], "content": "<image>\n" + turns[0]["content"]}
            conversations.append(turns)
        problems = {i: "no other picture to swap with" for i, ok in enumerate(swapped) if not ok}
        said: list[str] = []
        for start in range(0, len(seen), self.batch_size):
            part = slice(start, start + self.batch_size)
            try:
                said += self._ask(conversations[part], rows[part], grids[part], sizes[part])
            except ValueError:  # one of them cannot be asked, a conversation that is too long say: which one?
                for i in range(len(seen))[part]:
                    one = slice(i, i + 1)
                    try:
                        said += self._ask(conversations[one], rows[one], grids[one], sizes[one])
                    except ValueError as error:
                        said.append("")
                        problems[i] = str(error)
        lines = [{"answer": words, **_score(item, task)} for words, item in zip(said, seen)]
        return [{**line, "problem": problems[i]} if i in problems else line for i, line in enumerate(lines)]

    @torch.no_grad()
    def _ask(
        self,
        conversations: list[Any],
        rows: list[Tensor],
        grids: list[Tensor | None],
        sizes: list[tuple[int, int]],
    ) -> list[str]:
        inputs = self.processor.chat_batch(conversations, rows, grids, sizes, padding_side="left").to(
            self.bridge.device
        )
        ids = self.bridge.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        texts = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]


def _swap(
    seen: Sequence[Seen], rows: list[Tensor], grids: list[Tensor | None], sizes: list[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor | None], list[tuple[int, int]], list[bool]]:
    """Each item's features replaced by those of another picture's item with as many regions; and whether there was one."""
    new_rows, new_grids, new_sizes, found = list(rows), list(grids), list(sizes), []
    for i, item in enumerate(seen):
        picture = item.item.sample["image"]
        others = [j for j, o in enumerate(seen) if len(rows[j]) == len(rows[i]) and o.item.sample["image"] != picture]
        found.append(bool(others))
        if others:
            j = others[(7 * i) % len(others)]
            new_rows[i], new_grids[i], new_sizes[i] = rows[j], grids[j], sizes[j]
    return new_rows, new_grids, new_sizes, found
