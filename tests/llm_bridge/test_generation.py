"""What a language model says is what it generates after the prompt; in pieces it is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_bridge import generate_text
from llm_bridge.generation import LocalSpeaker, stream_text, trimmed


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


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 3.0, "top_k": 0}, {"temperature": 2.0, "top_k": 9, "top_p": 0.9}, {"top_k": 0, "min_p": 0.01}],
)
def test_an_answer_with_a_seed_is_the_same_whoever_else_draws(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., PreTrainedTokenizerFast],
    options: dict[str, Any],
) -> None:
    """It is that of transformers, whose one generator for all threads gets that seed and is used by nobody else."""
    model, words = language_model(), text_tokenizer()
    prompt = words(["where is the red cat"], return_tensors="pt")
    options = {"do_sample": True, "max_new_tokens": 12, **options}
    torch.manual_seed(3)
    expected = generate_text(model, words, prompt, **options)
    forward = model.forward

    def disturbed(*inputs: Any, **named: Any) -> Any:
        torch.manual_seed(0)  # as other threads may, between two tokens
        return forward(*inputs, **named)

    model.forward = disturbed  # type: ignore[method-assign]
    speaker = LocalSpeaker(model, words)
    for _ in range(2):
        assert [speaker.say(prompt, seed=3, **options)] == expected
        assert "".join(speaker.stream(prompt, seed=3, **options)).strip() == expected[0]
    assert speaker.say_each([prompt], seed=3, **options) == expected
    assert len({speaker.say(prompt, seed=seed, **options) for seed in range(8)}) > 4
    with pytest.raises(ValueError, match="Got seed with num_beams: leave seed out"):
        speaker.say(prompt, seed=3, num_beams=2, **options)
