"""A language model's talks with itself: what is learned beside lessons so that reading regions costs it none of its language.

A chat model that is shown the beginning of a user's turn, and nothing else, writes what users ask (Magpie, arXiv 2406.08464,
sec. 2); then it answers. Such a talk is a record without a picture, which has its own words for what a teacher is `told`:
learned with `loss: teacher`, it holds the language model, adapter on, to what it says with the adapter off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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
        written = processor.apply_chat_template([{"role": "user", "content": _WORD}])
        if written.count(_WORD) != 1:
            raise ValueError(
                "The chat template changes the user's words, so the language model cannot begin a talk: give talks 0."
            )
        self.beginning = written.split(_WORD)[0]

    @property
    def chunks(self) -> int:
        return -(-self.count // CHUNK)

    @torch.no_grad()
    def work(self, chunk: int) -> Iterator[dict[str, Any]]:
        """A line for each talk of a chunk: its record, or None and why it is of no use."""
        torch.manual_seed(self.seed * 1_000_003 + 500_009 + chunk)
        count = min(CHUNK, self.count - chunk * CHUNK)
        start = self.processor.tokenizer([self.beginning] * count, add_special_tokens=False, return_tensors="pt")
        questions = [_in_a_line(words) for words in self._say(dict(start))]
        problems = [_problem_of(question) for question in questions]
        asked = [question for question, problem in zip(questions, problems) if problem is None]
        answers = iter(self._answers(asked))
        for question, problem in zip(questions, problems):
            answer = next(answers) if problem is None else ""
            problem = problem or _problem_of(answer)
            turns = [Turn("user", question, told=question), Turn("assistant", answer)]
            record = Record(conversations=turns, source="the language model's own talk").to_dict()
            yield {"record": None if problem else record, "talk": problem or "kept"}

    def _answers(self, questions: list[str]) -> list[str]:
        if not questions:
            return []
        talks = [Record(conversations=[Turn("user", question)]) for question in questions]
        return self._say(self.collator.prompts(talks))

    def _say(self, inputs: Any) -> list[str]:
        """What the language model says after each prompt, sampled, without a sentence that it had no time to end."""
        inputs = {name: value.to(self.bridge.device) for name, value in inputs.items()}
        with adapter_off(self.bridge):
            said = generate_text(self.bridge, self.processor, inputs, max_new_tokens=self.answer_tokens, **_SAMPLED)
        tokenized = self.processor.tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
        return [whole_sentences(words, len(ids) >= self.answer_tokens - 1) for words, ids in zip(said, tokenized)]


def _in_a_line(words: str) -> str:
    return " ".join(words.split())


def _problem_of(words: str) -> str | None:
    """Why a question or an answer is of no use; None if it is of use."""
    if not any(letter.isalnum() for letter in words):
        return "empty"
    if "<region" in words or "<image>" in words or region_numbers(words, names=True):
        return "speaks of regions"
    return "repeats" if repeats(words) else None
