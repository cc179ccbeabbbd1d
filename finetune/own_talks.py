"""A language model's talks with itself: what is learned beside lessons so that reading regions costs it none of its language.

A chat model that is shown the beginning of a user's turn, and nothing else, writes what users ask (Magpie, arXiv 2406.08464,
sec. 2); then it answers. Such a talk is a record without a picture: learned with `loss: teacher`, it holds the language model,
adapter on, to what it says with the adapter off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    adapter_off,
    generate_text,
    region_numbers,
)

from .answer_checks import repeats, whole_sentences
from .batches import ConversationCollator
from .records import Record, Turn

CHUNK = 32
"""Talks that are begun together, and put on disk together."""

_SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
"""Nearly all that a language model might say, as often as it would."""

_WORD = "\u2063words\u2063"
"""A user's words that stand for any others, and that no template writes by itself."""


class OwnTalks:
    """Talks of a language model with itself, a question and its answer each, by chunks that are the same whoever makes them."""

    def __init__(
        self,
        bridge: RegionBridgeForConditionalGeneration,
        processor: RegionBridgeProcessor,
        count: int,
        answer_tokens: int,
        seed: int,
    ) -> None:
        """count: talks to begin; some are of no use. answer_tokens: of a question, and of an answer, at most."""
        self.bridge, self.processor, self.count = bridge.eval(), processor, count
        self.answer_tokens, self.seed = answer_tokens, seed
        self.collator = ConversationCollator(processor)
        written = processor.apply_chat_template([{"role": "user", "content": _WORD}], add_generation_prompt=True)
        self.beginning, _, after = written.partition(_WORD)
        self.end = after.strip().split("\n")[0]
        """What the template writes after the user's words, up to the end of the line."""
        if not self.beginning.strip() or not self.end or _WORD in after:
            raise ValueError(
                "The chat template changes the user's words, or writes nothing before or after them, so the language model "
                "cannot begin a talk: give talks 0."
            )

    @property
    def chunks(self) -> int:
        return -(-self.count // CHUNK)

    @torch.no_grad()
    def work(self, chunk: int) -> Iterator[dict[str, Any]]:
        """A line for each talk of a chunk: its record, or None and why it is of no use."""
        torch.manual_seed(self.seed * 1_000_003 + 500_009 + chunk)
        count = min(CHUNK, self.count - chunk * CHUNK)
        start = self.processor([self.beginning] * count, add_special_tokens=False)
        questions = [_in_a_line(words) for words in self._say(start, self.end)]
        problems = [_problem_of(question) for question in questions]
        asked = [question for question, problem in zip(questions, problems) if problem is None]
        answers = iter(self._answers(asked))
        for question, problem in zip(questions, problems):
            answer = next(answers) if problem is None else ""
            problem = problem or _problem_of(answer)
            turns = [Turn("user", question), Turn("assistant", answer)]
            record = Record(conversations=turns, source="the language model's own talk").to_dict()
            yield {"record": None if problem else record, "talk": problem or "kept"}

    def _answers(self, questions: list[str]) -> list[str]:
        if not questions:
            return []
        talks = [Record(conversations=[Turn("user", question)]) for question in questions]
        return self._say(self.collator.prompts(talks), "")

    def _say(self, inputs: Mapping[str, Tensor], end: str) -> list[str]:
        """What the language model says after each prompt, sampled, up to `end`, without a sentence that it did not finish."""
        inputs = {name: value.to(self.bridge.device) for name, value in inputs.items()}
        options: dict[str, Any] = {"max_new_tokens": self.answer_tokens, **_SAMPLED}
        if end and self.processor.tokenizer.convert_tokens_to_ids(end) not in self.processor.stop_token_ids:
            options |= {"stop_strings": [end], "tokenizer": self.processor.tokenizer}
        with adapter_off(self.bridge):
            said = generate_text(self.bridge, self.processor, inputs, **options)
        lengths = [len(ids) for ids in self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]]
        cut = [length >= self.answer_tokens - 1 and not (end and end in words) for words, length in zip(said, lengths)]
        return [whole_sentences(words.split(end)[0] if end else words, is_cut) for words, is_cut in zip(said, cut)]


def _in_a_line(words: str) -> str:
    return " ".join(words.split())


def _problem_of(words: str) -> str | None:
    """Why a question or an answer is of no use; None if it is of use."""
    if not any(letter.isalnum() for letter in words):
        return "empty"
    if "<region" in words or "<image>" in words or region_numbers(words, names=True):
        return "speaks of regions"
    return "repeats" if repeats(words) else None
