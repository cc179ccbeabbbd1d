"""Boxes and turns that every reader makes."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

from finetune.data.source import ask_each, corners, groups, number_regions, with_all_shown


def test_corners() -> None:
    assert corners((10, 5, 20, 15), 60, 40) == [10, 5, 30, 20]
    assert corners((-10, 30, 20, 15), 60, 40) == [0, 30, 10, 40]
    assert corners((60, 0, 5, 5), 60, 40) is None
    assert corners((1, 1, 0, 5), 60, 40) is None
    assert corners((float("nan"), 1, 2, 5), 60, 40) is None


def test_turns() -> None:
    turns = ask_each("What is <region>?", ["dog", "cat"])
    assert [turn["content"] for turn in turns] == ["What is <region1>?", "dog", "What is <region2>?", "cat"]
    assert number_regions("<region> or <region>", 2) == ("<region3> or <region4>", 4)
    assert with_all_shown(turns, 2) == turns
    assert (
        with_all_shown(turns, 3)[0]["content"] == "The picture has <region1>, <region2>, <region3>.\nWhat is <region1>?"
    )
    assert [list(some) for some in groups([1, 2, 3], 2)] == [[1, 2], [3]]
