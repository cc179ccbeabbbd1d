"""The systems that answer: TAP's caption decoder and concept head, an instruct model that is told in words what they say, and
the language model that reads region tokens, with controls that show how much of its score it owes to seeing.

Each gives a line for every item, with its words unedited. `load_cast` loads them by the names of their models, and says why a
system cannot take part.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llm_bridge import (
    Candidates,
    FoundRegions,
    PictureContext,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    find_among,
    generate_text,
    region_features,
    region_numbers,
    replace_regions,
)
from tap_tokenizer import ConceptBank, RegionTokens, TapRegionTokenizer, in_fast_dtype

from .batches import picture_size
from .data.grounding import candidate_order
from .tasks.classification import plain_name
from .tasks.expressions import ExpressionTask
from .tasks.items import EvaluationSet, Seen
from .tasks.predictions import Line
from .tasks.task import MASKS, DrawnTask, Task

CAPTIONS, CONCEPTS, DESCRIBED, LANGUAGE = "caption decoder", "concept head", "described", "language model"
QUESTION_ONLY, SHUFFLED = f"{LANGUAGE}, question only", f"{LANGUAGE}, shuffled regions"
ROWS = (CAPTIONS, CONCEPTS, DESCRIBED, LANGUAGE)
CONTROLS = (QUESTION_ONLY, SHUFFLED)
View = Literal["full", "question only", "shuffled"]
VIEWS: dict[str, View] = {LANGUAGE: "full", QUESTION_ONLY: "question only", SHUFFLED: "shuffled"}


class Answerer(ABC):
    """A system that answers and has a row in the table."""

    name: str
    needs_picture = False

    @abstractmethod
    def answer(self, seen: Sequence[Seen], task: Task) -> list[Line]:
        """A line for each item, with its "answer" and whatever else the task's score needs."""


class CaptionDecoder(Answerer):
    """The native decoder's caption of the first region in question."""

    name = CAPTIONS

    def __init__(self, tokenizer: TapRegionTokenizer) -> None:
        self.tokenizer = tokenizer

    def answer(self, seen: Sequence[Seen], task: Task) -> list[Line]:
        return [task.answer_unasked(item, words) for words, item in zip(self._captions(seen), seen)]

    def _captions(self, seen: Sequence[Seen]) -> list[str]:
        firsts = [item.item.first_region for item in seen]
        asked = [item.regions[[first]] for item, first in zip(seen, firsts) if first is not None]
        said = iter(self.tokenizer.caption(RegionTokens.concatenate(asked)) if asked else [])
        return ["" if first is None else next(said) for first in firsts]


class ConceptHead(Answerer):
    """The most probable concept of the first region in question, or all categories that are probable enough."""

    name = CONCEPTS

    def __init__(self, bank: ConceptBank, categories: dict[str, Any] | None = None) -> None:
        self.bank = bank
        self.categories = categories or {}
        """Ids by plain name, if the answers are labels."""

    def answer(self, seen: Sequence[Seen], task: Task) -> list[Line]:
        lines = []
        for item in seen:
            first = item.item.first_region
            scores = None if first is None else self.bank.scores(item.regions[[first]].embeds)[0].cpu()
            words = "" if scores is None else self.bank.names[int(scores.argmax())]
            line = task.answer_unasked(item, words)
            if self.categories and scores is not None:
                line["labels"] = {
                    str(self.categories[plain_name(name)]): float(p)
                    for name, p in zip(self.bank.names, scores)
                    if p > 1e-3 and plain_name(name) in self.categories
                }
            lines.append(line)
        return lines


class DescribedModel(Answerer):
    """An instruct model that is told in words what TAP sees. It is asked each question alone."""

    name = DESCRIBED
    needs_picture = True

    def __init__(self, chat: RegionChat, max_new_tokens: int | None) -> None:
        self.chat, self.max_new_tokens = chat, max_new_tokens

    def answer(self, seen: Sequence[Seen], task: Task) -> list[Line]:
        return [task.answer(item, self._ask(item)) for item in seen]

    def _ask(self, seen: Seen) -> str:
        record = seen.item.record
        named = sorted(n for n in region_numbers(seen.item.asked, names=True) if 1 <= n <= len(record.regions))
        new = {number: place for place, number in enumerate(named, 1)}  # by its place among those that are named
        content: list[dict[str, Any]] = [{"type": "image", "image": seen.image}]
        for number, place in new.items():
            content.append(
                {"type": "region", "name": f"region{place}", **record.regions[number - 1].prompt(record.size).as_dict()}
            )
        text = replace_regions(seen.item.asked, lambda number, _: f"region{new[number]}" if number in new else None)
        inputs = self.chat.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": f"\n{text}"}]}],
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, enable_thinking=False,
        ).to(self.chat.model.device)  # fmt: skip
        return generate_text(self.chat.model, self.chat.processor, inputs, max_new_tokens=self.max_new_tokens)[0]


class Bridge(Answerer):
    """The language model on region tokens.

    view: "full"; "question only", without any region; "shuffled", with those of another picture's question.
    """

    def __init__(
        self,
        bridge: RegionBridgeForConditionalGeneration,
        processor: RegionBridgeProcessor,
        max_new_tokens: int | None,
        batch_size: int,
        view: View = "full",
    ) -> None:
        self.bridge, self.processor, self.view = bridge, processor, view
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.name = next(name for name, own in VIEWS.items() if own == view)

    def answer(self, seen: Sequence[Seen], task: Task) -> list[Line]:
        rows: list[Tensor] = [region_features(item.regions, self.processor.experts) for item in seen]
        contexts = [item.context for item in seen]
        sizes = [picture_size(item.regions) for item in seen]
        problems: dict[int, str] = {}
        if self.view == "shuffled":
            others = other_pictures([item.item.record.image for item in seen], [len(own) for own in rows])
            problems = {i: "no other picture to swap with" for i, other in enumerate(others) if other is None}
            shown = [i if other is None else other for i, other in enumerate(others)]
            rows, contexts, sizes = [rows[i] for i in shown], [contexts[i] for i in shown], [sizes[i] for i in shown]
        conversations = []
        for i, item in enumerate(seen):
            turns = [{"role": turn.role, "content": turn.content} for turn in item.item.record.conversations]
            rows[i] = rows[i][: max((n for turn in turns for n in region_numbers(turn["content"])), default=0)]
            if self.view == "question only":
                turns = [{**t, "content": replace_regions(t["content"], lambda n, _: f"region{n}")} for t in turns]
                rows[i], contexts[i] = rows[i][:0], None
            conversations.append(turns)
        said: list[str] = []
        for start in range(0, len(seen), self.batch_size):
            part = slice(start, start + self.batch_size)
            try:
                said += self._ask(conversations[part], rows[part], contexts[part], sizes[part])
            except ValueError:  # one of them cannot be asked, a conversation that is too long say: which one?
                for i in range(len(seen))[part]:
                    one = slice(i, i + 1)
                    try:
                        said += self._ask(conversations[one], rows[one], contexts[one], sizes[one])
                    except ValueError as error:
                        said.append("")
                        problems[i] = str(error)
        lines = [task.answer(item, words) for words, item in zip(said, seen)]
        return [{**line, "problem": problems[i]} if i in problems else line for i, line in enumerate(lines)]

    @torch.no_grad()
    def _ask(
        self,
        conversations: list[Any],
        rows: list[Tensor],
        contexts: list[Tensor | None],
        sizes: list[tuple[int, int]],
    ) -> list[str]:
        inputs = self.processor.chat_batch(conversations, rows, contexts, sizes, padding_side="left")
        inputs = inputs.to(self.bridge.device)
        return generate_text(self.bridge, self.processor, inputs, max_new_tokens=self.max_new_tokens)


class Finder:
    """A language model that is asked which of a picture's candidates an expression means, each expression alone.

    is_shuffled: it is shown the candidates in another order than the one in which its answer is read, a control: what it finds
    then is what it would find without seeing them.
    """

    def __init__(self, name: str, chat: RegionChat, *, is_shuffled: bool = False) -> None:
        self.name, self.chat, self.is_shuffled = name, chat, is_shuffled
        chat.warns_of_limitation = chat.warns_of_finding = False

    def find(
        self, picture: np.ndarray, phrases: Sequence[str], candidates: Candidates, max_new_tokens: int | None
    ) -> list[FoundRegions]:
        """What each phrase means among the candidates of a picture."""
        shown = candidates
        if self.is_shuffled:
            order = candidate_order("shuffled", len(candidates.prompts))
            shown = Candidates(candidates.regions, [candidates.prompts[i] for i in order])
        chat = self.chat
        return [
            find_among(chat.speaker, chat.processor, picture, phrase, shown, max_new_tokens=max_new_tokens)
            for phrase in phrases
        ]


def other_pictures(pictures: Sequence[Any], regions: Sequence[int]) -> list[int | None]:
    """For each question, the number of one about another picture that shows as many regions; None where there is none.

    pictures: what each question is about; regions: how many it shows.
    """
    found: list[int | None] = []
    for i, (picture, count) in enumerate(zip(pictures, regions)):
        others = [j for j, other in enumerate(pictures) if regions[j] == count and other != picture]
        found.append(others[(7 * i) % len(others)] if others else None)
    return found


@dataclass
class Cast:
    """The participants: the region tokenizer, the answering rows in order, and why others do not answer."""

    tokenizer: TapRegionTokenizer
    rows: list[Answerer] = field(default_factory=list)
    finders: list[Finder] = field(default_factory=list)
    """Those that answer instead, in order, where expressions are to be found."""
    not_run: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str | None] = field(default_factory=dict)
    context: PictureContext | None = None
    """How much of the whole picture the language model is shown, if it reads any context."""


def load_cast(
    task: Task,
    found: EvaluationSet,
    *,
    model: str | None,
    region_tokenizer: str | None,
    variant: str | None,
    concepts: str | None,
    described_model: str | None,
    rows: list[str],
    batch_size: int,
    device: str,
) -> Cast:
    """Load what the wanted rows need. Raises `ValueError` for unknown names of rows."""
    if unknown := [name for name in rows if name not in (*ROWS, *CONTROLS)]:
        raise ValueError(f"rows has {', '.join(unknown)}, expected some of {', '.join((*ROWS, *CONTROLS))}.")
    tokenizer = bank = None
    if region_tokenizer is not None:
        tokenizer = TapRegionTokenizer.from_pretrained(
            region_tokenizer, variant=variant, concepts=concepts, device=device
        )
    elif concepts is not None:
        bank = ConceptBank.load(concepts)
    bridge = processor = None
    if model is not None and not isinstance(task, DrawnTask):
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(model, dtype="auto").to(device)
        bridge = in_fast_dtype(bridge).eval()
        processor = RegionBridgeProcessor.from_pretrained(model, region_tokenizer=tokenizer, device=device)
        processor.attach(bridge)
        tokenizer = processor.region_tokenizer
    elif model is not None and tokenizer is None:
        tokenizer = RegionBridgeProcessor.from_pretrained(model, device=device).region_tokenizer
    if tokenizer is None:
        raise ValueError("No region tokenizer was saved with the model: give region_tokenizer=….")
    cast = Cast(tokenizer, fingerprints={"region tokenizer": tokenizer.fingerprint})
    if isinstance(task, DrawnTask):
        cast.not_run = dict.fromkeys(ROWS, f"it says words and draws no mask; the {MASKS} is the only row")
        return cast
    if isinstance(task, ExpressionTask):
        _finders(cast, bridge, processor, described_model, rows, device)
        return cast
    _own_words(cast, task, found, bank or tokenizer.concepts, rows)
    _described(cast, described_model, rows, task.max_new_tokens, device)
    if bridge is not None and processor is not None:
        for name, view in VIEWS.items():
            if name in rows and (name == LANGUAGE or task.asks_questions):
                cast.rows.append(Bridge(bridge, processor, task.max_new_tokens, batch_size, view))
        cast.context = processor.context if processor.context.slots else None
        cast.fingerprints[LANGUAGE] = fingerprint(bridge)
    elif LANGUAGE in rows:
        cast.not_run[LANGUAGE] = "give --model"
    return cast


def _finders(
    cast: Cast,
    bridge: RegionBridgeForConditionalGeneration | None,
    processor: RegionBridgeProcessor | None,
    described_model: str | None,
    rows: list[str],
    device: str,
) -> None:
    """Those that find regions by words, with the control of shuffled candidates."""
    silent = [name for name in (CAPTIONS, CONCEPTS, QUESTION_ONLY) if name in rows]
    cast.not_run = dict.fromkeys(silent, "it cannot be asked which of many regions an expression means")
    if DESCRIBED in rows and described_model is None:
        cast.not_run[DESCRIBED] = "give any instruct model by --described_model"
    elif DESCRIBED in rows:
        chat = RegionChat.from_pretrained(
            str(described_model), mode="described", region_tokenizer=cast.tokenizer, device=device
        )
        cast.finders.append(Finder(DESCRIBED, chat))
        cast.fingerprints[DESCRIBED] = fingerprint(chat.model)
    if bridge is None or processor is None:
        cast.not_run |= {name: "give --model" for name in (LANGUAGE, SHUFFLED) if name in rows}
        return
    chat = RegionChat(bridge, processor)
    cast.finders += [Finder(name, chat, is_shuffled=name == SHUFFLED) for name in (LANGUAGE, SHUFFLED) if name in rows]
    cast.fingerprints[LANGUAGE] = fingerprint(bridge)


def _own_words(cast: Cast, task: Task, found: EvaluationSet, bank: ConceptBank | None, rows: list[str]) -> None:
    """The caption decoder and the concept head."""
    if CAPTIONS in rows:
        if cast.tokenizer.text_tokenizer is None:
            cast.not_run[CAPTIONS] = "the region tokenizer has no caption vocabulary"
        else:
            cast.rows.append(CaptionDecoder(cast.tokenizer))
    if CONCEPTS not in rows:
        return
    if bank is None:
        cast.not_run[CONCEPTS] = "the region tokenizer has no concept bank: give --concepts"
        return
    categories = task.categories(found)
    if categories:
        names = {plain_name(name) for name in bank.names}
        lacking = [name for name in categories if name not in names]
        if len(lacking) == len(categories):
            cast.not_run[CONCEPTS] = "the concept bank has none of the categories: give --concepts of this benchmark"
            return
        found.problems.extend(f"{CONCEPTS}: category that the concept bank lacks, never found", lacking)
    cast.rows.append(ConceptHead(bank, categories))
    cast.fingerprints["concepts"] = bank.digest


def _described(
    cast: Cast, described_model: str | None, rows: list[str], max_new_tokens: int | None, device: str
) -> None:
    """The instruct model that is told what TAP sees."""
    if DESCRIBED not in rows:
        return
    if described_model is None:
        cast.not_run[DESCRIBED] = "give any instruct model by --described_model"
        return
    chat = RegionChat.from_pretrained(described_model, mode="described", region_tokenizer=cast.tokenizer, device=device)
    cast.rows.append(DescribedModel(chat, max_new_tokens))
    cast.fingerprints[DESCRIBED] = fingerprint(chat.model)


def fingerprint(model: torch.nn.Module) -> str:
    """Which weights a model has: SHA-256, 16 hex digits, over names, shapes and 64 values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
