"""A language model's answer to a whole conversation, piece by piece, with what it cost and why it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal

import torch

from tap_tokenizer import before_step

from ..chat import RegionChat
from ..chat_markup import read_chat
from ..generation import Tally, trimmed
from ..grounding import named_numbers
from ..prompt_checks import check_context
from ..region_records import region_records
from ..samples import Sample


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is made.

    max_tokens: its greatest length; None for as long as there is room, up to `limit`. temperature, top_p: greedy if
    both are None. stop: texts before which the answer ends. thinking: whether a model that can think aloud does so
    first.
    """

    limit: int
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    thinking: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of `generate`: greedy at temperature 0, and unless temperature or top_p asks for more."""
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.top_p in (None, 1.0) else 1.0
        if temperature == 0:
            return {"do_sample": False}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {"do_sample": True, "temperature": temperature, "top_p": self.top_p or 1.0, "top_k": 0, **seed}


@dataclass(frozen=True)
class Begun:
    """The prompt has been read."""

    prompt_tokens: int


@dataclass(frozen=True)
class Ended:
    """The answer is complete, or as long as it may be.

    mentioned: the regions that it names, if they were asked for; see `mentioned_regions`.
    """

    reason: Literal["stop", "length"]
    completion_tokens: int
    mentioned: list[dict[str, Any]] = field(default_factory=list)


def answer(
    chat: RegionChat, messages: Sequence[dict[str, Any]], options: AnswerOptions, gone: Event, mentions: bool = False
) -> Iterator[Begun | str | Ended]:
    """Answer a conversation of content items: `Begun`, pieces of text, `Ended`. The chat's own conversation is left alone.

    mentions: whether `Ended` tells of the regions that the answer names.
    gone: ends the answer once it is set. `ValueError` for what the processor or the language model's context refuses.
    """
    if not chat.sees_pictures and _only_pictures(messages):
        raise ValueError("There is a picture but no region, and this model sees pictures only through their regions.")
    before_step()
    speaker = chat.another().speaker
    prompt = speaker.read(messages, thinking=options.thinking)
    before_step()
    length = prompt["input_ids"].shape[1]
    new = _room(chat, length, options)
    check_context(chat.model.config, length, new)
    yield Begun(length)
    sampling = options.sampling
    if "seed" not in sampling:
        torch.seed()  # else answers would be the same after every start of the server
    tally = Tally(gone)
    cut = _Cut(options.stop)
    words = ""
    for piece in trimmed(cut.pieces(speaker.stream(prompt, tally=tally, max_new_tokens=new, **sampling))):
        words += piece
        yield piece
    mentioned = mentioned_regions(chat, messages, words) if mentions and not gone.is_set() else []
    yield Ended("length" if tally.is_cut and not cut.found else "stop", tally.tokens, mentioned)


def answer_text(chat: RegionChat, messages: Sequence[dict[str, Any]], options: AnswerOptions, gone: Event) -> str:
    """The whole answer."""
    return "".join(piece for piece in answer(chat, messages, options, gone) if isinstance(piece, str))


def mentioned_regions(chat: RegionChat, messages: Sequence[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """The regions of a conversation that an answer names, as `region_records`, each with the number of its picture, from 0.

    They are encoded in one go.
    """
    numbers = dict.fromkeys(named_numbers(words))
    if not numbers:
        return []
    read = read_chat(messages, "The conversation")
    known = [number for number in numbers if number in read.numbered]
    if not known:
        return []
    regions = [read.numbered[number] for number in known]
    pictures = list(dict.fromkeys(image for image, _ in regions))
    sample = Sample(
        [read.images[image] for image in pictures], [(pictures.index(image), prompt) for image, prompt in regions]
    )
    encoder = chat.processor.encoder
    with encoder.lock:  # masks are made where they are read
        records = region_records([f"region{number}" for number in known], encoder.regions_of(sample)[0])
    return [{**record, "image": image} for record, (image, _) in zip(records, regions)]


def _only_pictures(messages: Sequence[dict[str, Any]]) -> bool:
    items = [
        item["type"] for message in messages if isinstance(message["content"], list) for item in message["content"]
    ]
    return "image" in items and "region" not in items


def _room(chat: RegionChat, length: int, options: AnswerOptions) -> int:
    """How long the answer may be: what was asked for, or else what fits beside the prompt."""
    if options.max_tokens is not None:
        return options.max_tokens
    longest = getattr(chat.model.config.get_text_config(), "max_position_embeddings", None) or length + options.limit
    return max(1, min(options.limit, longest - length))


class _Cut:
    """Cuts a text off before the first of some texts, which may begin in one piece and end in another."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = False

    def pieces(self, pieces: Iterator[str]) -> Iterator[str]:
        held = ""
        try:
            for piece in pieces:
                held += piece
                places = [place for stop in self.stops if (place := held.find(stop)) >= 0]
                if places:
                    self.found = True
                    yield held[: min(places)]
                    return
                kept = max((_overlap(held, stop) for stop in self.stops), default=0)
                yield held[: len(held) - kept]
                held = held[len(held) - kept :]
            yield held
        finally:
            pieces.close()  # type: ignore[attr-defined]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
