"""Rows of regions that are spoken of again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llm_bridge.chat_markup import Shown
from llm_bridge.samples import Sample
from tap_tokenizer import RegionPrompt


def test_a_region_of_a_mask_is_encoded_once_until_its_mask_changes(
    make_bridge: Callable[..., Any], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server reads masks anew with each follow-up: equal arrays, but never the same ones."""
    encoder = make_bridge()[1].encoder
    asked: list[int] = []
    encode = encoder.tokenizer.encode

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return encode(*given, **named)

    monkeypatch.setattr(encoder.tokenizer, "encode", counted)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:60] = True

    def rows(mask: np.ndarray) -> torch.Tensor:
        sample = Sample([picture], [(0, RegionPrompt(mask=mask))])
        (found,) = encoder.feature_rows([sample], [Shown([("region", 0)], [0])])
        return found

    first = rows(mask)
    assert torch.equal(rows(mask.copy()), first)
    assert len(asked) == 1
    mask[12:50, 20:80] = True  # in place
    assert not torch.equal(rows(mask), first)
    assert not torch.equal(rows(mask[:, ::-1]), first)
    assert len(asked) == 3
