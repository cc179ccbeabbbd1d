"""Finding by words: the language model is shown candidates under their names, and answers with the names of those meant.

The question and the answer each have one form of words, which `find` and training records share. The model's vocabulary does
not change: names are plain text, whose likelihood is that of their tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tap_tokenizer import RegionPrompt, RegionTokens, before_step, counted

from .chat_markup import named_places, spoken_numbers, user_content
from .generation import Ids, LocalSpeaker, Speaker, Tally, speaker_of
from .processing_bridge import RegionBridgeProcessor
from .prompt_checks import ContextFullError, check_context, context_room

logger = logging.getLogger(__name__)

FIND_QUESTION = "Find {phrase}. Answer with names of regions, or none."
"""What the language model is asked, after all candidates."""
DESCRIBE_QUESTION = "Describe the picture, and name each region that you speak of."
"""What the language model is asked to describe, after all regions."""
NONE = "none"
"""What it answers if no candidate is meant."""
SHORT_ANSWER = 64
"""Tokens that every answer may have, unless it is said how many; more, where the names of all candidates take more."""
_ASKED = re.compile(r"(?:<region\d+> )*" + re.escape(FIND_QUESTION).replace(re.escape("{phrase}"), "(.+)"), re.DOTALL)


def find_question(phrase: str, candidates: int = 0) -> str:
    """The question for the regions that a phrase means, such as "the red umbrella", "every open door" or "everything blue".

    candidates: how many regions the question shows first, as `<region1> <region2> …`, as in records. A phrase that
    says nothing, or that names a region, is refused.
    """
    words = " ".join(phrase.split()).rstrip(" .?!") if isinstance(phrase, str) else ""
    if not words:
        raise ValueError(f'Got the phrase {phrase!r}, expected words such as "the red umbrella".')
    if "<region" in words or spoken_numbers(words):
        raise ValueError(
            f"Got the phrase {phrase!r}, which names a region: candidates get names of their own, so say it in words."
        )
    shown = "".join(f"<region{number}> " for number in range(1, candidates + 1))
    return shown + FIND_QUESTION.format(phrase=words)


def asked_phrase(question: str) -> str | None:
    """The phrase of a text that `find_question` wrote; None for any other text."""
    found = _ASKED.fullmatch(question)
    return found[1] if found else None


def find_answer(numbers: Sequence[int]) -> str:
    """The answer that names regions by their numbers from 1: "region3", "region2 and region5", or "none"."""
    names = [f"region{number}" for number in numbers]
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part) or NONE


def answered_numbers(answer: str, count: int) -> list[int]:
    """Numbers from 1 to `count` of the regions that an answer names, each once; [] if it says none, or nothing of use."""
    if says_none(answer):
        return []
    return [number for number in dict.fromkeys(named_numbers(answer)) if 1 <= number <= count]


def named_numbers(answer: str) -> list[int]:
    """Numbers of all regions that an answer names, whether or not there are so many."""
    return [number for _, number in named_places(answer)]


def says_none(answer: str) -> bool:
    """Whether an answer says that no candidate is meant."""
    return re.match(rf"\W*{NONE}\b", answer, re.IGNORECASE) is not None


@dataclass(frozen=True, eq=False, repr=False)
class FoundRegions(RegionTokens):
    """The regions that a phrase means, the best first; no regions if it means none.

    The best is the one that the language model names first. The others follow by how probable each is as the first.
    Files that `save` writes hold the regions alone.
    """

    names: list[str] = field(default_factory=list)
    """Their names in the conversation that goes on from here."""
    rows: list[int] = field(default_factory=list)
    """Which candidates they are, counted from 0."""
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(R,), on the CPU: how probable the language model finds each one's name where it wrote it. The name that it wrote first
    is compared with the other candidates and none; a later one with the candidates that it had not named yet, once it has
    named the others. So they need not fall from the first to the last."""
    none_probability: float = 1.0
    """How probable it finds that none is meant."""
    candidate_probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(N,), how probable each candidate is as the first that is named, in their order; with `none_probability` they add up to
    1. Those that did not reach the last round have 0."""
    answer: str = ""
    """What the language model wrote in the last round, in which candidates have other names; "" if there were none."""
    rounds: int = 0
    """How many times the language model was asked."""

    def __getitem__(self, index: Any) -> FoundRegions:
        found = super().__getitem__(index)
        places = self._places(index)
        assert isinstance(found, FoundRegions)
        names, rows = ([own[i] for i in places.tolist()] for own in (self.names, self.rows))
        return replace(found, names=names, rows=rows, probabilities=self.probabilities[places])


@dataclass(frozen=True)
class Candidates:
    """What may be found in a picture: its region tokens, with masks, and what marks each for the language model."""

    regions: RegionTokens
    prompts: list[RegionPrompt]

    @classmethod
    def of(
        cls,
        processor: RegionBridgeProcessor,
        picture: np.ndarray,
        given: Sequence[RegionPrompt] | None = None,
        regions: RegionTokens | None = None,
    ) -> Candidates:
        """The prompts that are given, or regions of this picture that were encoded before, or else all that is found in it.

        Regions are shown to the language model by their boxes, because that is how bridges are taught to read them.
        """
        if regions is not None and given is not None:
            raise ValueError("Got regions and prompts: give the candidates in one way.")
        tokenizer, features = processor.encoder.tokenizer, processor.embed_image(picture)
        if given is not None:
            return cls(tokenizer.encode(features=features, prompts=given), list(given))
        if regions is None:
            regions = tokenizer.encode_everything(features=features)
        size = list(picture.shape[:2])
        if regions.image_sizes.tolist() != [size]:
            raise ValueError(
                f"Got regions of pictures of (height, width) {regions.image_sizes.tolist()!r:.60}, and a picture of {size}: "
                "give regions of this picture alone."
            )
        if regions.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"These regions were encoded by the tokenizer {regions.fingerprint}, this chat has {tokenizer.fingerprint}: "
                "encode them with chat.region_tokenizer."
            )
        return cls(regions, [RegionPrompt(box=(x1, y1, x2, y2)) for x1, y1, x2, y2 in regions.boxes.tolist()])


def find_among(
    model: PreTrainedModel | Speaker,
    processor: RegionBridgeProcessor,
    picture: np.ndarray,
    phrase: str,
    candidates: Candidates,
    *,
    most: int | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    gone: Event | None = None,
) -> FoundRegions:
    """What a phrase means among candidates; those that are found are named region1, region2, ….

    model: a language model in this process, or one that a server runs. threshold: by default, that of the bridge's config.
    gone: as for `choose`. See `RegionChat.find` for the rest.
    """
    question = find_question(phrase)
    check_choice(most, threshold)
    speaker = speaker_of(model, processor)
    if threshold is None:
        threshold = getattr(speaker.config, "find_threshold", None)
    choice = choose(
        speaker, picture, question, candidates.prompts,
        most=most, threshold=threshold, max_new_tokens=max_new_tokens, gone=gone,
    )  # fmt: skip
    chosen = candidates.regions[choice.rows]
    return FoundRegions(
        **{one.name: getattr(chosen, one.name) for one in fields(RegionTokens)},
        names=[f"region{number}" for number in range(1, len(choice.rows) + 1)],
        rows=choice.rows,
        probabilities=torch.tensor(choice.shares),
        none_probability=choice.none_probability,
        candidate_probabilities=choice.probabilities,
        answer=choice.answer,
        rounds=choice.rounds,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Which of N candidates are meant, the best first: their rows, and the probability of each where it was named.

    probabilities: (N,), of each candidate as the first that is named.
    """

    rows: list[int]
    shares: list[float]
    probabilities: Tensor
    none_probability: float = 1.0
    answer: str = ""
    rounds: int = 0

    def or_best(self) -> Choice:
        """The same choice, or else that of the most probable candidate."""
        if self.rows:
            return self
        best = int(self.probabilities.argmax())
        return replace(self, rows=[best], shares=[float(self.probabilities[best])])


def choose(
    speaker: Speaker,
    picture: np.ndarray,
    question: str,
    candidates: Sequence[RegionPrompt],
    *,
    most: int | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    gone: Event | None = None,
) -> Choice:
    """Ask which of the candidates of one picture are meant.

    most: how many are shown at once; by default, as many as the language model's context holds. If there are more, they are
    asked about in groups. What is chosen of each group, or else its most probable candidate, goes on, until all that are left
    fit in a last round. If nothing was dropped, only the better half of each group goes on.
    threshold: nothing is chosen if "none" is more probable than this, and otherwise at least one candidate is; by default, the
    answer decides as it is written.
    max_new_tokens: length of an answer, at most; by default, enough to name all candidates that are shown, as far as the
    context has room for more than `SHORT_ANSWER`.
    gone: cuts an answer off once it is set; what was chosen then means nothing.
    """
    left = list(range(len(candidates)))
    most, rounds = most or len(left), 0
    if not left:
        return Choice([], [], torch.zeros(0))
    while True:
        size = -(-len(left) // -(-len(left) // most))  # groups of about the same size
        groups = [left[start : start + size] for start in range(0, len(left), size)]
        prompts = [_prompt(speaker, picture, question, [candidates[i] for i in group]) for group in groups]
        try:
            for inputs in prompts:
                check_context(speaker.config, inputs["input_ids"].shape[1], max_new_tokens or SHORT_ANSWER)
        except ContextFullError:
            if size <= 2:
                raise
            most = -(-size // 2)
            continue
        choices = [_ask(speaker, inputs, len(group), max_new_tokens, gone) for inputs, group in zip(prompts, groups)]
        rounds += len(groups)
        if len(groups) == 1:
            return _last(choices[0], left, len(candidates), threshold, rounds)
        winners = [[group[row] for row in one.or_best().rows] for group, one in zip(groups, choices)]
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
    if threshold is not None:
        is_none = choice.none_probability > threshold
        choice = replace(choice, rows=[], shares=[]) if is_none else choice.or_best()
    probabilities = torch.zeros(count)
    probabilities[list(left)] = choice.probabilities
    return replace(choice, rows=[left[row] for row in choice.rows], probabilities=probabilities, rounds=rounds)


def _prompt(speaker: Speaker, picture: np.ndarray, question: str, candidates: Sequence[RegionPrompt]) -> Any:
    """The prompt of one question about candidates, which are region1, region2, …"""
    before_step()
    message = {"role": "user", "content": user_content(question, candidates, picture)}
    return speaker.read([message], thinking=False)


def _ask(speaker: Speaker, prompt: Any, count: int, new: int | None, gone: Event | None) -> Choice:
    """Ask once, about `count` candidates."""
    before_step()
    tally = Tally(gone or Event())
    answer = speaker.say(prompt, tally=tally, max_new_tokens=new or _room_for_names(speaker, prompt, count))
    before_step()
    named = answered_numbers(answer, count)
    is_torn = tally.is_cut and bool(named)
    if is_torn:
        named = answered_numbers(answer.rstrip("0123456789"), count)  # the last one may begin a longer name
        logger.warning(
            "An answer about %s was cut off after %s: it may have meant more of them. Give a larger max_new_tokens, or show "
            "fewer at once, with most.", counted(count, "candidate"), counted(len(named), "whole name"),
        )  # fmt: skip
    temperature = getattr(speaker.config, "find_temperature", 1.0)

    def probabilities(words: Sequence[str]) -> Tensor:
        return (_likelihoods(speaker, prompt, words) / temperature).softmax(dim=0).float()

    first = probabilities(first_names(count))
    shares: dict[int, float] = {}
    for number in named:
        if not shares:
            shares[number] = float(first[number - 1])
            continue
        left = [other for other in range(1, count + 1) if other not in shares]
        before = next(answer[:place] for place, found in named_places(answer) if found == number)
        own = probabilities([f"{before}{other}" for other in left])
        shares[number] = float(own[left.index(number)])
    # shares of later names are no measure of order: they are given what was named before
    order = [*named[:1], *sorted(named[1:], key=lambda number: -float(first[number - 1]))]
    rows = [number - 1 for number in order]
    choice = Choice(rows, [shares[number] for number in order], first[:-1], float(first[-1]), answer)
    return choice.or_best() if is_torn else choice


def _room_for_names(speaker: Speaker, prompt: Any, count: int) -> int:
    """How many tokens an answer may have that names all candidates, within the context."""
    ids = prompt["input_ids"]
    names = len(speaker.processor.answer_ids(ids[0], find_answer(range(1, count + 1)))) + 1  # and the end
    room = context_room(speaker.config, ids.shape[1])
    return max(SHORT_ANSWER, names if room is None else min(names, room))


def first_names(count: int) -> list[str]:
    """What an answer about `count` candidates may begin with: each one's name, and none."""
    return [*(f"region{number}" for number in range(1, count + 1)), NONE]


def likelihoods(model: PreTrainedModel, processor: RegionBridgeProcessor, inputs: Any, words: Sequence[str]) -> Tensor:
    """Log-probability (N,), float64, that the answer to one prompt begins with each of these words, and no longer ones.

    It counts from where the words part: what all of them begin with has probability 1.
    """
    return _likelihoods(LocalSpeaker(model, processor), inputs, words)


def _likelihoods(speaker: Speaker, prompt: Any, words: Sequence[str]) -> Tensor:
    ids = [tuple(speaker.processor.answer_ids(prompt["input_ids"][0], one)) for one in words]
    return name_log_probabilities(speaker, prompt, ids)


def name_log_probabilities(speaker: Speaker, prompt: Any, names: Sequence[Ids]) -> Tensor:
    """As `likelihoods`, of names given as ids.

    What goes on to a longer name does not count: "region1" is not meant where "region12" is written. As names share their
    beginnings, few of these have to be read.
    """
    shared = next((i for i, ids in enumerate(zip(*names)) if len(set(ids)) > 1), min(map(len, names)))
    wanted: dict[Ids, set[int]] = {}
    for name in names:
        for i in range(shared, len(name)):
            wanted.setdefault(name[:i], set()).add(name[i])
    after = speaker.log_probabilities(prompt, wanted)
    found = []
    for name in names:
        total = sum(after[name[:i]][name[i]] for i in range(shared, len(name)))
        if longer := list(after.get(name, {}).values()):
            total += float(torch.log1p(-torch.tensor(longer, dtype=torch.float64).exp().sum().clamp(max=1 - 1e-12)))
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)
