"""Which of several things a question means."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from finetune.choices import Likelihoods


class Words:
    """A tokenizer of words, and a model that has seen how often each follows the last question."""

    device = torch.device("cpu")

    def __init__(self, follows: dict[str, dict[str, float]]) -> None:
        self.ids: dict[str, int] = {}
        self.follows, self.asked, self.passes = follows, 0, 0

    def tokenize(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.ids.setdefault(word, len(self.ids) + 1) for word in text.split()]}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        self.asked += len(input_ids)
        self.passes += 1
        words = {number: word for word, number in self.ids.items()}
        logits = torch.zeros(*input_ids.shape, 40)
        for row, own in enumerate(input_ids.tolist()):
            for place in range(len(own)):
                said = [words.get(number, "") for number in own[: place + 1]]
                if said[-2:] == ["Answer:", "a"]:
                    for thing, logit in self.follows[" ".join(said[1:-2])].items():
                        logits[row, place, self.ids.setdefault(thing, len(self.ids) + 1)] = logit
        return SimpleNamespace(logits=logits)


def likelihoods(follows: dict[str, dict[str, float]], batch_size: int = 2) -> tuple[Likelihoods, Words]:
    words = Words(follows)
    return Likelihoods(words, words.tokenize, batch_size), words  # type: ignore[arg-type]


SEEN = {"Which one?": {"cat": 5.0, "hat": 0.0}, "Which of these is worn?": {"cat": 5.0, "hat": 3.0, "rat": 2.0}}


def test_what_is_likely_whatever_is_asked_does_not_win_by_that() -> None:
    known, _ = likelihoods(SEEN)
    assert known.choose("Which of these is worn?", ["a cat", "a hat"]) == 1
    cat, hat = known.scores("Which of these is worn?", ["a cat", "a hat"])
    assert hat - cat == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize(
    ("cat", "hat", "chosen"),
    [
        (0.0, 6.0, 1),
        (5.5, 6.0, None),  # which of the two is not clear
        (-9.0, 0.0, None),  # the question makes neither likelier
    ],
)
def test_a_choice_that_is_not_sure_is_none(cat: float, hat: float, chosen: int | None) -> None:
    question = "Which of these is worn?"
    known, _ = likelihoods({"Which one?": {"cat": -1.0, "hat": -1.0}, question: {"cat": cat, "hat": hat}})
    assert known.choose(question, ["a cat", "a hat"]) == 1
    assert known.surest([question], ["a cat", "a hat"]) == (None if chosen is None else (question, chosen))


def test_of_several_questions_the_surest_is_asked() -> None:
    asked = {"Which of these purrs?": {"cat": 6.0, "hat": 3.0}, "Which of these is worn?": {"cat": 0.0, "hat": 6.0}}
    known, _ = likelihoods({"Which one?": {"cat": -1.0, "hat": -1.0}, **asked})
    assert known.surest(list(asked), ["a cat", "a hat"]) == ("Which of these is worn?", 1)


def test_several_questions_are_read_together() -> None:
    asked = {f"Which of these is {n}?": {"cat": 0.0, "hat": float(n)} for n in range(8)}
    known, model = likelihoods({"Which one?": {"cat": -1.0, "hat": -1.0}, **asked}, batch_size=18)
    known.surest(list(asked), ["a cat", "a hat"])
    assert (model.asked, model.passes) == (18, 1)


def test_what_is_said_has_the_probability_of_its_words_after_the_text() -> None:
    known, _ = likelihoods({"Which one?": {"cat": 2.0}})
    (cat,) = known.log_probabilities([("Question: Which one?\nAnswer: a", " cat")])
    assert cat == pytest.approx(2.0 - math.log(math.exp(2.0) + 39), abs=1e-4)


def test_nothing_is_asked_twice() -> None:
    known, model = likelihoods(SEEN)
    known.scores("Which of these is worn?", ["a cat", "a hat", "a cat"])
    assert model.asked == 4
    known.scores("Which of these is worn?", ["a hat", "a rat"])
    assert model.asked == 6
