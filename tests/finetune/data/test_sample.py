"""Cutting conversations: the questions asked for, their regions numbered anew, nothing shown twice or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from finetune.data.sample import cut_turns, open_image


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SAMPLE: dict[str, Any] = {
    "image": "a.png", "width": 9, "height": 9, "regions": [{"label": "a"}, {"label": "b"}, {"label": "c"}],
    "conversations": [
        turn("system", "Be brief."),
        turn("user", "What is <region1>?"), turn("assistant", "a"),
        turn("user", "Which is larger, <region3> or <region2>?"), turn("assistant", "region2"),
        turn("user", "Where is region3?"), turn("assistant", "left"),
    ],
}  # fmt: skip


def test_regions_are_numbered_anew() -> None:
    cut, rows = cut_turns(SAMPLE, 1, 2)
    assert rows == [2, 1]
    assert [region["label"] for region in cut["regions"]] == ["c", "b"]
    assert cut["conversations"] == [
        turn("system", "Be brief."),
        turn("user", "Which is larger, <region1> or <region2>?"), turn("assistant", "region2"),
        turn("user", "Where is region1?"), turn("assistant", "left"),
    ]  # fmt: skip
    assert cut["width"] == 9
    assert SAMPLE["conversations"][3]["content"] == "Which is larger, <region3> or <region2>?"


def test_a_region_that_was_only_named_is_shown() -> None:
    cut, rows = cut_turns(SAMPLE, 2, 1)
    assert rows == [2]
    assert cut["conversations"][1:] == [turn("user", "Where is <region1>?"), turn("assistant", "left")]


def test_a_cut_reaches_the_end_and_not_beyond() -> None:
    cut, rows = cut_turns(SAMPLE, 0, 9)
    assert rows == [0, 2, 1]
    assert len(cut["conversations"]) == len(SAMPLE["conversations"])
    with pytest.raises(ValueError, match="of 3"):
        cut_turns(SAMPLE, 3, 1)
    with pytest.raises(ValueError, match="Got questions"):
        cut_turns(SAMPLE, 0, 0)


@pytest.mark.parametrize(
    "address",
    ["test/0/0/40000", "test/0/0/0", "test/0/0/999999999", "test/0/0/-5", f"test/0/{'9' * 5000}/64", "test/0/64", ""],
)
def test_scenes_without_measure_are_not_drawn(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (1 to 4096|glyph-scene:SPLIT/SEED/INDEX/LONG_SIDE)"):
        open_image({**SAMPLE, "image": f"glyph-scene:{address}"}, tmp_path)
    assert open_image({**SAMPLE, "image": "glyph-scene:test/0/0/64"}, tmp_path).shape[2] == 3
