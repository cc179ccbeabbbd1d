"""Finding by words: the language model is shown candidates under their names, and answers with the names of those meant.

The question and the answers have one form of words, which training records use as well. The model's vocabulary does not
change: names are plain text, whose likelihood is that of their tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tap_tokenizer import RegionPrompt, RegionTokens

from .chat_markup import spoken_numbers, user_content
from .generation import generate_text, logits_after
from .processing_bridge import RegionBridgeProcessor
from .prompt_checks import ContextFullError, check_context

FIND_QUESTION = "Which region is {phrase}? Answer with its name, or none."
"""What the language model is asked, after all candidates."""
NONE = "none"
"""What it answers where no candidate is meant."""


def find_question(phrase: str) -> str:
    """The question for the regions that a phrase means, e.g. "the red umbrella"."""
    words = " ".join(phrase.split()).rstrip(" .?!") if isinstance(phrase, str) else ""
    if not words:
        raise ValueError(f'Got the phrase {phrase!r}, expected words such as "the red umbrella".')
    if "<region" in words or spoken_numbers(words):
        raise ValueError(
            f"Got the phrase {phrase!r}, which names a region: candidates get names of their own, so say it in words."
        )
    return FIND_QUESTION.format(phrase=words)


def find_answer(numbers: Sequence[int]) -> str:
    """The answer that names regions by their numbers from 1: "region3", "region2 and region5", or "none"."""
    names = [f"region{number}" for number in numbers]
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part) or NONE


def answered_numbers(answer: str, count: int) -> list[int]:
    """Numbers from 1 to `count` of the regions that an answer names, each once; [] if it says none, or nothing of use."""
    if re.match(rf"\W*{NONE}\b", answer, re.IGNORECASE):
        return []
    return [number for number in dict.fromkeys(spoken_numbers(answer)) if 1 <= number <= count]


@dataclass(frozen=True, eq=False, repr=False)
class FoundRegions(RegionTokens):
    """The regions that a phrase means, the most probable first; without any regions where it means none.

    Files that `save` writes hold the regions alone.
    """

    names: list[str] = field(default_factory=list)
    """Their names in the conversation that goes on from here."""
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(R,), on the CPU: how probable the language model finds each one's name as the answer, among all candidates and none."""
    none_probability: float = 1.0
    """How probable it finds that none is meant."""
    candidate_probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(N,), of all candidates in their order; with `none_probability` they add up to 1. Those that did not reach the last
    round have 0."""
    answer: str = ""
    """What the language model wrote in the last round, in which candidates have other names; "" if there were none."""
    rounds: int = 0
    """How many times the language model was asked."""

    def __getitem__(self, index: Any) -> FoundRegions:
        found = super().__getitem__(index)
        rows = self._places(index)
        assert isinstance(found, FoundRegions)
        return replace(found, names=[self.names[i] for i in rows.tolist()], probabilities=self.probabilities[rows])


def found_regions(candidates: RegionTokens, choice: Choice, first: int) -> FoundRegions:
    """The chosen ones of all candidates, which are named from region number `first` on."""
    chosen = candidates[choice.rows]
    return FoundRegions(
        **{one.name: getattr(chosen, one.name) for one in fields(RegionTokens)},
        names=[f"region{number}" for number in range(first, first + len(choice.rows))],
        probabilities=choice.probabilities[choice.rows],
        none_probability=choice.none_probability,
        candidate_probabilities=choice.probabilities,
        answer=choice.answer,
        rounds=choice.rounds,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Which of N candidates are meant: their rows, the most probable first; and how probable each is, (N,), and none."""

    rows: list[int]
    probabilities: Tensor
    none_probability: float = 1.0
    answer: str = ""
    rounds: int = 0

    def or_best(self) -> list[int]:
        """The chosen rows, or else the most probable one."""
        return self.rows or [int(self.probabilities.argmax())]


def choose(
    model: PreTrainedModel,
    processor: RegionBridgeProcessor,
    picture: np.ndarray,
    question: str,
    candidates: Sequence[RegionPrompt],
    *,
    most: int | None = None,
    threshold: float | None = None,
    max_new_tokens: int = 64,
) -> Choice:
    """Ask which of the candidates of one picture are meant.

    most: how many are shown at once; by default, as many as the language model's context holds. If there are more, they are
    asked about in groups. What is chosen of each group, or else its most probable candidate, goes on, until all that are left
    fit in a last round. If nothing was dropped, only the more probable half of each group goes on.
    threshold: nothing is chosen if "none" is more probable than this, and otherwise at least one candidate is; by default, the
    answer decides as it is written.
    """
    left = list(range(len(candidates)))
    most, rounds = most or len(left), 0
    if not left:
        return Choice([], torch.zeros(0))
    while True:
        size = -(-len(left) // -(-len(left) // most))  # groups of about the same size
        groups = [left[start : start + size] for start in range(0, len(left), size)]
        prompts = [_prompt(processor, picture, question, [candidates[i] for i in group]) for group in groups]
        try:
            for inputs in prompts:
                check_context(model.config, inputs["input_ids"].shape[1], max_new_tokens)
        except ContextFullError:
            if size <= 2:
                raise
            most = -(-size // 2)
            continue
        choices = [
            _ask(model, processor, inputs.to(model.device), len(group), max_new_tokens)
            for inputs, group in zip(prompts, groups)
        ]
        rounds += len(groups)
        if len(groups) == 1:
            return _last(choices[0], left, len(candidates), threshold, rounds)
        winners = [[group[row] for row in one.or_best()] for group, one in zip(groups, choices)]
        if sum(map(len, winners)) == len(left):
            winners = [own[: -(-len(own) // 2)] for own in winners]
        left = sorted(i for own in winners for i in own)


def check_choice(most: int | None, threshold: float | None, dashes: str = "") -> None:
    """Refuse options of `choose` that make no sense; `dashes` stand before their names in the shell."""
    if most is not None and most < 2:
        raise ValueError(f"{dashes}most is {most}, expected 2 or more: candidates are compared with each other.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"{dashes}threshold is {threshold}, expected a probability from 0 to 1.")


def _last(choice: Choice, left: Sequence[int], count: int, threshold: float | None, rounds: int) -> Choice:
    """The last round's choice among all `count` candidates, of which those in `left` took part."""
    rows = choice.rows
    if threshold is not None:
        rows = [] if choice.none_probability > threshold else choice.or_best()
    probabilities = torch.zeros(count)
    probabilities[list(left)] = choice.probabilities
    return replace(choice, rows=[left[row] for row in rows], probabilities=probabilities, rounds=rounds)


def _prompt(
    processor: RegionBridgeProcessor, picture: np.ndarray, question: str, candidates: Sequence[RegionPrompt]
) -> Any:
    """The model's inputs for one question about candidates, which are region1, region2, …"""
    message = {"role": "user", "content": user_content(question, candidates, picture)}
    return processor.apply_chat_template(
        [message],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        enable_thinking=False,
    )


def _ask(model: PreTrainedModel, processor: RegionBridgeProcessor, inputs: Any, count: int, new: int) -> Choice:
    """Ask once, about `count` candidates."""
    (answer,) = generate_text(model, processor, inputs, max_new_tokens=new)
    words = [*(f"region{number}" for number in range(1, count + 1)), NONE]
    ids = [tuple(processor.answer_ids(inputs["input_ids"][0], name)) for name in words]
    probabilities = name_log_probabilities(model, inputs, ids).softmax(dim=0)
    own = probabilities[:-1].float()
    rows = sorted((number - 1 for number in answered_numbers(answer, count)), key=lambda row: -own[row])
    return Choice(rows, own, float(probabilities[-1]), answer)


def name_log_probabilities(model: PreTrainedModel, inputs: Any, names: Sequence[tuple[int, ...]]) -> Tensor:
    """Log-probability (N,), float64, that an answer to one prompt begins with each name, given as ids.

    What goes on to a longer name does not count: "region1" is not meant where "region12" is written. As names share their
    beginnings, few of these have to be read.
    """
    beginnings = {name[:i] for name in names for i in range(len(name))}
    rows = sorted(one for one in beginnings if not any(len(o) > len(one) and o[: len(one)] == one for o in beginnings))
    after: dict[tuple[int, ...], Tensor] = {}
    for row, logits in zip(rows, logits_after(model, inputs, rows)):
        for i, own in enumerate(logits.double().log_softmax(dim=-1).cpu()):
            after[row[:i]] = own
    found = []
    for name in names:
        total = sum(after[name[:i]][one] for i, one in enumerate(name))
        longer = {other[len(name)] for other in names if len(other) > len(name) and other[: len(name)] == name}
        if longer:
            total = total + torch.log1p(-after[name][list(longer)].exp().sum().clamp(max=1 - 1e-12))
        found.append(torch.as_tensor(total))
    return torch.stack(found)
