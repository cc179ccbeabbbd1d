"""Mixtures: shuffled, weighted, complete, and a function of the position alone."""

from __future__ import annotations

from collections import Counter

import pytest

from finetune.data.mixture import Mixture


def test_each_visit_goes_through_all_records() -> None:
    mixture = Mixture([7], seed=1)
    for visit in range(3):
        drawn = [mixture[i] for i in range(7 * visit, 7 * visit + 7)]
        assert sorted(row for _, row, _ in drawn) == list(range(7))
        assert {v for _, _, v in drawn} == {visit}
    assert [mixture[i][1] for i in range(7)] != [mixture[i][1] for i in range(7, 14)]


def test_positions_do_not_depend_on_how_they_are_reached() -> None:
    forward = [Mixture([50, 30], [1, 3], seed=2)[i] for i in range(5000)]
    mixture = Mixture([50, 30], [1, 3], seed=2)
    assert [mixture[i] for i in reversed(range(5000))][::-1] == forward


def test_weights_hold_evenly() -> None:
    mixture = Mixture([1000, 10, 500], [1, 1, 2], seed=0)
    for block in range(3):
        counts = Counter(mixture[block * 4096 + i][0] for i in range(4096))
        assert counts == {0: 1024, 1: 1024, 2: 2048}
    assert Counter(Mixture([300, 100])[i][0] for i in range(4096)) == {0: 3072, 1: 1024}


def test_every_record_comes_as_often_as_the_others() -> None:
    mixture = Mixture([40, 25], [1, 1], seed=3)
    drawn = Counter(mixture[i][:2] for i in range(20_000))
    for source, size in ((0, 40), (1, 25)):
        counts = [drawn[source, row] for row in range(size)]
        assert max(counts) - min(counts) <= 1


def test_seeds_differ() -> None:
    assert [Mixture([50], seed=0)[i] for i in range(20)] != [Mixture([50], seed=1)[i] for i in range(20)]


@pytest.mark.parametrize(("sizes", "weights"), [([], None), ([0], None), ([3], [1, 2]), ([3, 4], [1, 0])])
def test_impossible_mixtures_are_refused(sizes: list[int], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="Got"):
        Mixture(sizes, weights)
