"""The nearest vectors are those of exact arithmetic, whatever they are compared with."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tap_tokenizer import nearest
from tap_tokenizer.nearest import best_rows, index_in_faiss

KINDS = ("random", "close", "equal")
"""Vectors that are told apart by their first digits, by digits that half precision does not have, and not at all."""


def vectors_of(kind: str) -> Tensor:
    torch.manual_seed(5)
    noise = torch.randn(3000, 48)
    spread = {"random": 1.0, "close": 0.01, "equal": 0.0}[kind]
    return F.normalize(noise[0] * (spread < 1) + spread * noise, dim=1).half()


def plain(vectors: Tensor, query: Tensor, allowed: Tensor, top_k: int) -> list[int]:
    """Rows by their cosines in float64; of equal ones the first."""
    scores = (vectors.double() @ query.double()).masked_fill(~allowed, -2)
    return scores.argsort(descending=True, stable=True)[: min(top_k, int(allowed.sum()))].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.02])
def test_the_nearest_are_those_of_exact_arithmetic(kind: str, share: float) -> None:
    vectors, query = vectors_of(kind), F.normalize(torch.randn(48), dim=0)
    allowed = torch.rand(len(vectors)) < share
    for top_k in (1, 10, 2000):
        rows, scores = best_rows([(vectors, query)], allowed, top_k)
        assert rows == plain(vectors, query, allowed, top_k)
        assert scores == pytest.approx((vectors[rows].double() @ query.double()).tolist(), abs=1e-6)


def test_half_precision_does_not_tell_close_vectors_apart() -> None:
    """Or the test above would not say anything of them."""
    vectors, query = vectors_of("close"), F.normalize(torch.randn(48), dim=0)
    everything = torch.ones(len(vectors), dtype=torch.bool)
    assert torch.mv(vectors, query.half()).topk(10).indices.tolist() != plain(vectors, query, everything, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_finds_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs faiss: the extra faiss")
    vectors, query = vectors_of(kind), F.normalize(torch.randn(48), dim=0)
    everything = torch.ones(len(vectors), dtype=torch.bool)
    expected = {top_k: best_rows([(vectors, query)], everything, top_k) for top_k in (1, 10, 2000, 4000)}
    index = index_in_faiss(vectors)

    def unused(*_: Any) -> Any:
        raise AssertionError("torch has compared them, too")

    monkeypatch.setattr(nearest, "_near", unused)
    for top_k, found in expected.items():
        assert best_rows([(vectors, query)], everything, top_k, index) == found


def with_some_that_are_no_numbers() -> tuple[Tensor, Tensor]:
    """Vectors of which three, as only a file of somebody else's can have them, are not finite; and which these are."""
    vectors, broken = vectors_of("random"), torch.zeros(3000, dtype=torch.bool)
    broken[[0, 7, 2999]] = True
    vectors[0], vectors[7, 3], vectors[2999] = torch.nan, torch.nan, torch.inf
    return vectors, broken


def test_vectors_that_are_no_numbers_are_not_found_and_hide_no_others() -> None:
    vectors, broken = with_some_that_are_no_numbers()
    query, everything = F.normalize(torch.randn(48), dim=0), torch.ones(len(vectors), dtype=torch.bool)
    for top_k in (1, 10, 3000):
        assert best_rows([(vectors, query)], everything, top_k)[0] == plain(vectors, query, ~broken, top_k)
    other = F.normalize(torch.randn(48), dim=0)
    _, scores = best_rows([(vectors, query), (vectors, other)], everything, 10)
    _, wanted = best_rows([(vectors[~broken], query), (vectors[~broken], other)], everything[~broken], 10)
    assert scores == pytest.approx(wanted, abs=0.02)  # means are of cosines in half precision
    assert best_rows([(vectors, query)], broken, 10) == ([], [])


def test_faiss_does_not_find_them_either() -> None:
    pytest.importorskip("faiss", reason="needs faiss: the extra faiss")
    vectors, broken = with_some_that_are_no_numbers()
    query, everything = F.normalize(torch.randn(48), dim=0), torch.ones(len(vectors), dtype=torch.bool)
    rows, _ = best_rows([(vectors, query)], everything, 10, index_in_faiss(vectors))
    assert not set(rows) & set(broken.nonzero()[:, 0].tolist())
    assert -1 not in rows


def test_without_faiss_there_is_no_index_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert index_in_faiss(vectors_of("random")) is None
