"""The loop's optimizers: what replaces PyTorch's own step of Muon on CPUs gives the same, and only where that is slow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetune.loop import build_optimizers, orthogonalized

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_float32_equals_bfloat16_up_to_rounding(shape: tuple[int, int]) -> None:
    import torch.optim._muon as muon

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = orthogonalized(matrix, COEFFICIENTS, 5, 1e-7)
    assert got.dtype == torch.float32
    values = torch.linalg.svdvals(got)
    assert 0.6 < values.min() <= values.max() < 1.3
    plain = muon.__dict__.get("_zeropower_via_newtonschulz")
    plain = getattr(plain, "plain", plain)  # an earlier optimizer of this process may have replaced it
    if plain is not None:
        torch.testing.assert_close(got, plain(matrix, COEFFICIENTS, 5, 1e-7).float(), rtol=0, atol=0.05)


@pytest.mark.parametrize("fast", [True, False])
def test_float32_is_used_only_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    import torch.optim._muon as muon

    def untouched(gradient: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.zeros_like(gradient)

    monkeypatch.setattr(muon, "_zeropower_via_newtonschulz", untouched)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    layer = nn.Linear(4, 6)
    before = layer.weight.detach().clone()
    named = [(f"model.layers.0.{name}", parameter) for name, parameter in layer.named_parameters()]
    _, optimizer = build_optimizers([(named, 1e-3)], "muon", 0.1, 0.0)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before) == fast
