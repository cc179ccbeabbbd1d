"""What a language model says after a prompt: as texts at the end, or in pieces while it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from threading import Event, Thread
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


def generate_text(model: PreTrainedModel, processor: Any, inputs: Mapping[str, Any], **options: Any) -> list[str]:
    """The words that `model` says after each prompt of a batch, without white space around them; greedy unless told.

    processor: whatever encoded the prompts, a processor or a tokenizer. inputs: on the model's device, padded on the left;
    they hold `input_ids`. options: of `generate`, with `max_new_tokens` among them.
    """
    options = {"do_sample": False, **options}
    ids = model.generate(**inputs, **options)
    ends = options.get("eos_token_id", model.generation_config.eos_token_id)
    ends = set(ends if isinstance(ends, list) else [ends])
    said = [
        list(takewhile(lambda word: word not in ends, row))  # padding follows where other rows go on
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist()
    ]
    return [text.strip() for text in processor.batch_decode(said, skip_special_tokens=True)]


def stream_text(model: PreTrainedModel, processor: Any, inputs: Mapping[str, Any], **options: Any) -> Iterator[str]:
    """The same for one prompt, in pieces, white space and all; generated in a thread whose errors are raised here.

    Whoever closes the iterator before its end stops the thread at its next token.
    """
    stop = Event()
    given = options.pop("stopping_criteria", None) or []
    criteria = StoppingCriteriaList([*given, _StopWhenSet(stop)])
    streamer = TextIteratorStreamer(processor, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            model.generate(**inputs, **{"do_sample": False, **options}, stopping_criteria=criteria, streamer=streamer)
        except BaseException as error:  # handed to the asking thread below
            failure.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]


class _StopWhenSet(StoppingCriteria):
    """Ends generation for every row once an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)
