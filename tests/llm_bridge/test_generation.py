"""What a language model says is what it generates after the prompt; in pieces it is the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_bridge import generate_text
from llm_bridge.generation import stream_text, trimmed


def test_the_text_is_what_follows_the_prompt(
    language_model: Callable[..., PreTrainedModel], text_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    model, words = language_model(), text_tokenizer()
    inputs = words(["where is the red cat", "what is it"], return_tensors="pt", padding=True, padding_side="left")
    said = generate_text(model, words, inputs, max_new_tokens=6)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert said == [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)]
    alone = words(["where is the red cat"], return_tensors="pt")
    assert generate_text(model, words, alone, max_new_tokens=6) == said[:1]
    assert "".join(stream_text(model, words, alone, max_new_tokens=6)).strip() == said[0]


def test_pieces_are_trimmed_as_a_whole() -> None:
    assert list(trimmed(iter(["", "  ", " a", " ", "b ", " "]))) == ["a", " b"]


def test_words_after_the_end_of_an_answer_are_dropped(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    """Also where shorter answers of a batch are filled up with an ordinary word."""
    model, words = language_model(), text_tokenizer()
    red, cat = words.convert_tokens_to_ids(["red", "cat"])
    model.generate = lambda **_: torch.tensor([[red, red, cat, 2, cat], [cat, red, red, red, red]])
    inputs = {"input_ids": torch.tensor([[red], [cat]])}
    assert generate_text(model, words, inputs) == ["red cat", "red red red red"]
    assert generate_text(model, words, inputs, eos_token_id=[cat]) == ["red", "red red red red"]
