"""bfloat16 on processors that only imitate it: never by default, and not in silence."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from tap_tokenizer import TapRegionTokenizer
from tap_tokenizer.cpu_abilities import in_fast_dtype, multiplies_bfloat16

OLD = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("found", "multiplies"),
    [
        (OLD, False),
        ({**OLD, "avx512_bf16": True}, True),
        ({**OLD, "amx_bf16": True}, True),
        ({"architecture": "arm"}, True),
    ],
)
def test_x86_processors_are_judged_by_their_instructions(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, object], multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert multiplies_bfloat16() is multiplies


def test_a_model_saved_in_bfloat16_runs_in_float32_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD, raising=False)
    for asked in (None, "auto"):
        assert in_fast_dtype(nn.Linear(2, 2).bfloat16(), asked).weight.dtype == torch.float32
    assert in_fast_dtype(nn.Linear(2, 2).half()).weight.dtype == torch.float16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**OLD, "amx_bf16": True}, raising=False)
    assert in_fast_dtype(nn.Linear(2, 2).bfloat16()).weight.dtype == torch.bfloat16


def test_a_model_that_others_have_loaded_stays_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD, raising=False)
    assert in_fast_dtype(nn.Linear(2, 2).bfloat16(), "unknown").weight.dtype == torch.bfloat16
    assert "Use dtype=float32, or --dtype float32 in the shell" in caplog.text


def test_whoever_asks_for_slow_bfloat16_gets_it_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: OLD, raising=False)
    with caplog.at_level(logging.WARNING):
        tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", dtype="bfloat16")
    assert tokenizer.dtype == torch.bfloat16
    assert "no instructions for bfloat16" in caplog.text
