"""How likely an answer is to a language model, and which of several things is likeliest to it.

Asked to choose from a list, a small language model picks a thing by its place in the list. How likely each thing is as the
answer when no list is given tells them apart far better, once how likely it is whatever is asked has been subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .examples import as_text

CLEAR, FITTING = 1.5, 3.0
"""For a choice to be sure, the nats by which the likeliest thing must be ahead of the next one, and the nats by which the
question must make it likelier."""

_ANY = "Which one?"
"""The question that asks for no thing in particular."""


class Likelihoods:
    """How likely it is to a language model that something is said after a text; what was computed once is remembered."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._known: dict[tuple[str, str], float] = {}

    def choose(self, question: str, things: Sequence[str]) -> int:
        """The index of the likeliest thing."""
        scores = self.scores(question, things)
        return scores.index(max(scores))

    def surest(self, questions: Sequence[str], things: Sequence[str]) -> tuple[str, int] | None:
        """The question whose answer is surest, and the index of the thing that it means; None if no answer is sure."""
        self.log_probabilities([pair for asked in (*questions, _ANY) for pair in _pairs(asked, things)])  # all at once
        found, ahead = None, CLEAR
        for question in questions:
            scores = self.scores(question, things)
            first, second = sorted(scores, reverse=True)[:2]
            if first >= FITTING and first - second >= ahead:
                found, ahead = (question, scores.index(first)), first - second
        return found

    def scores(self, question: str, things: Sequence[str]) -> list[float]:
        """For each thing, log p(thing | question) − log p(thing), in nats. Things are named with their article: "a cat"."""
        known = self.log_probabilities([*_pairs(question, things), *_pairs(_ANY, things)])
        return [asked - ever for asked, ever in zip(known[: len(things)], known[len(things) :])]

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """For each text and what is said after it: the log-probability of the latter, in nats."""
        new = sorted({pair for pair in pairs if pair not in self._known}, key=lambda pair: (sum(map(len, pair)), pair))
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            self._known |= dict(zip(part, self._read(part)))
        return [self._known[pair] for pair in pairs]

    @torch.no_grad()
    def _read(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        rows, starts = [], []
        for text, said in pairs:
            before, whole = self._ids(text), self._ids(text + said)
            rows.append(torch.tensor(whole))
            starts.append(sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(before, whole))))
        ids = pad_sequence(rows, batch_first=True).to(self.model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return [
            -float(F.cross_entropy(own[start - 1 : len(row) - 1].float(), words[start : len(row)], reduction="sum"))
            for own, words, row, start in zip(logits, ids, rows, starts)
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])


def _pairs(question: str, things: Sequence[str]) -> list[tuple[str, str]]:
    """A question as a text, with each thing as what is said after it."""
    return [(as_text(question), f" {thing}") for thing in things]
