"""The two implementations of attention agree, with and without masks."""

from __future__ import annotations

import pytest
import torch

from tap_tokenizer.attention import attend


@pytest.mark.parametrize("mask", [None, "boolean", "bias"])
def test_eager_equals_sdpa(mask: str | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    masks = {None: None, "boolean": torch.rand(2, 1, 5, 7) > 0.3, "bias": torch.randn(3, 5, 7)}
    one, other = (attend(query, key, value, mask=masks[mask], implementation=name) for name in ("sdpa", "eager"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_masked_keys_change_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    mask = torch.tensor([[True, True, False]])
    for name in ("sdpa", "eager"):
        torch.testing.assert_close(
            attend(query, key, value, mask=mask, implementation=name),
            attend(query, key[..., :2, :], value[..., :2, :], implementation=name),
        )
