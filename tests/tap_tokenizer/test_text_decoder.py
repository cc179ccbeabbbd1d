"""The caption decoder: a causal LM whose caches, static or growing, change no word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import StaticCache

from tap_tokenizer import TapModel
from tap_tokenizer.text_decoder import rotary_embedding, rotate


def captions(model: TapModel, tokens: torch.Tensor, **options: object) -> torch.Tensor:
    decoder = model.text_decoder
    prompt = decoder.embed(tokens, torch.full((len(tokens), 1), 1))
    mask = torch.ones(prompt.shape[:2], dtype=torch.long)
    return decoder.generate(inputs_embeds=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, **options)


def test_greedy_with_a_cache_equals_greedy_without(make_tap: Callable[..., TapModel]) -> None:
    model, tokens = make_tap(), torch.randn(5, 32)
    assert torch.equal(captions(model, tokens), captions(model, tokens, use_cache=False))


def test_static_cache_gives_the_same_words(make_tap: Callable[..., TapModel]) -> None:
    model, tokens = make_tap(), torch.randn(5, 32)
    assert torch.equal(captions(model, tokens), captions(model, tokens, cache_implementation="static"))


def test_static_cache_hides_its_empty_slots(make_tap: Callable[..., TapModel]) -> None:
    decoder, tokens = make_tap().text_decoder, torch.randn(2, 32)
    prompt = decoder.embed(tokens, torch.tensor([[1, 5], [1, 7]]))
    cache = StaticCache(config=decoder.config, max_cache_len=12)
    with torch.no_grad():
        torch.testing.assert_close(
            decoder(inputs_embeds=prompt, past_key_values=cache, use_cache=True).logits,
            decoder(inputs_embeds=prompt, use_cache=False).logits,
        )


def test_captions_do_not_depend_on_their_batch(make_tap: Callable[..., TapModel]) -> None:
    model, tokens = make_tap(), torch.randn(6, 32)
    together = captions(model, tokens)
    for row, alone in zip(together, (captions(model, token[None])[0] for token in tokens)):
        assert torch.equal(row[: len(alone)], alone)
        assert set(row[len(alone) :].tolist()) <= {19}  # padding


def test_beams_are_transformers_beams(make_tap: Callable[..., TapModel]) -> None:
    model, tokens = make_tap(), torch.randn(2, 32)
    assert captions(model, tokens, num_beams=3, num_return_sequences=2).shape[0] == 4


def test_the_future_is_not_seen(make_tap: Callable[..., TapModel]) -> None:
    decoder, tokens = make_tap().text_decoder, torch.randn(1, 32)
    one, other = (
        decoder(inputs_embeds=decoder.embed(tokens, torch.tensor([ids]))).logits for ids in ([1, 4, 5], [1, 4, 9])
    )
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3], other[:, 3])


def test_the_loss_is_of_the_next_word(make_tap: Callable[..., TapModel]) -> None:
    decoder, tokens = make_tap().text_decoder, torch.randn(1, 32)
    ids = torch.tensor([[1, 4, 2]])
    labels = torch.tensor([[-100, -100, 4, 2]])  # region, bos, then what is learned
    out = decoder(inputs_embeds=decoder.embed(tokens, ids), labels=labels)
    log_probabilities = out.logits.log_softmax(dim=-1)
    want = -(log_probabilities[0, 1, 4] + log_probabilities[0, 2, 2]) / 2
    torch.testing.assert_close(out.loss, want)


def test_inputs_are_ids_or_embeddings(make_tap: Callable[..., TapModel]) -> None:
    decoder = make_tap().text_decoder
    with pytest.raises(ValueError, match="both or neither of input_ids and inputs_embeds"):
        decoder()


def test_rotation_turns_neighbouring_pairs() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned = rotate(x, rotary_embedding(torch.tensor([2]), 4, 100.0))[0, 0, 0]
    angles = torch.tensor([2.0, 0.2])  # position × θ^(−2i/4)
    want = torch.stack([angles[0].cos(), angles[0].sin(), -angles[1].sin(), angles[1].cos()])
    torch.testing.assert_close(turned, want)
