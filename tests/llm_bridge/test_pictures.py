"""What is kept of the latest pictures, and how much memory that takes."""

from __future__ import annotations

import copy

import numpy as np
import torch

from llm_bridge.picture_context import PictureContext
from llm_bridge.pictures import PictureCache, content_key
from tap_tokenizer import TapRegionTokenizer


def pictures(*shades: int) -> dict[str, np.ndarray]:
    made = [np.full((48, 64, 3), shade, np.uint8) for shade in shades]
    return {content_key(one): one for one in made}


def test_a_picture_keeps_no_other_in_memory(tiny_tokenizer: TapRegionTokenizer) -> None:
    """Part of a batch would keep the whole batch, while only the part is counted."""
    cache = PictureCache(tiny_tokenizer, PictureContext(), 10, 10**9)
    cache.features(pictures(1, 2, 3))
    for features in cache._features.values():
        assert features.embeddings.untyped_storage().nbytes() == features.embeddings.nbytes


def test_nothing_is_kept_of_another_precision(tiny_tokenizer: TapRegionTokenizer) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    own = pictures(1)
    (key,) = own
    cache = PictureCache(tokenizer, PictureContext(grid=2), 10)
    exact = cache.features(own)
    context = cache.context_of(key, exact)
    tokenizer.model.encoder_precision = "int8"
    rounded = cache.features(own)
    assert (exact.encoder_precision, rounded.encoder_precision) == ("float32", "int8")
    assert not torch.equal(rounded.embeddings, exact.embeddings)
    assert not torch.equal(cache.context_of(key, rounded), context)
    tokenizer.model.encoder_precision = "float32"
    again = cache.features(own)
    assert torch.equal(again.embeddings, exact.embeddings)
    assert torch.equal(cache.context_of(key, again), context)


def test_contexts_count_towards_the_limit(tiny_tokenizer: TapRegionTokenizer) -> None:
    own = pictures(1, 2)
    (first, second) = own
    one = tiny_tokenizer.embed_image(own[first]).embeddings.nbytes
    cache = PictureCache(tiny_tokenizer, PictureContext(grid=2), 10, 2 * one)
    features = {key: cache.features({key: picture}) for key, picture in own.items()}
    assert list(cache._features) == [first, second]
    context = cache.context_of(second, features[second])
    assert context.nbytes > 0
    assert list(cache._features) == [second]  # the other one made room
    torch.testing.assert_close(cache.context_of(second, features[second]), context, rtol=0, atol=0)
