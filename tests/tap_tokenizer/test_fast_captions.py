"""Captions written with less work are those of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tap_tokenizer import TapModel


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("max_length", [2, 3, 11])
def test_captions_equal_those_of_the_plain_path(
    make_tap: Callable[..., TapModel], monkeypatch: pytest.MonkeyPatch, max_length: int, packs: bool
) -> None:
    """The same ids as transformers' `generate`, some captions ending long before others, with and without packed weights."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packs)
    model = make_tap(seed=7)
    tokens = 4 * torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fast = model.greedy_captions(tokens, max_length)
        assert torch.equal(fast, model.text_decoder.caption(tokens, max_length, do_sample=False))
    ended = {row.index(2) for row in fast.tolist() if 2 in row}
    assert max_length < 11 or len(ended) >= 5  # the test would say nothing if all ended at once
