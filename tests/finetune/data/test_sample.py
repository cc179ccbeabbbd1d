"""Cutting conversations: the questions asked for, their regions numbered anew, nothing shown twice or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

from mask_forms import BOX, SIZE, ellipse, packed_rle

from finetune.data.sample import cut_turns, decode_mask, encode_mask, mask_box, open_image, region_prompts
from tap_tokenizer import mask_to_rle


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


def test_masks_of_records_are_run_lengths_or_polygons_and_nothing_else() -> None:
    mask = np.asarray(ellipse()) > 0
    packed = packed_rle(mask)
    for form in (encode_mask(mask), packed, {**packed, "counts": packed["counts"].decode()}, mask_to_rle(mask)):
        assert np.array_equal(decode_mask(form, SIZE), mask)
        assert mask_box(form, SIZE) == BOX
        prompts = region_prompts({"width": 512, "height": 512, "regions": [{"mask": form}]})
        assert np.array_equal(prompts["masks"][0], mask)
    assert mask_box([[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]], SIZE) == [10, 10, 30, 30]
    assert mask_box({"size": [4, 6], "counts": [24]}, (4, 6)) is None
    for form in ("mask.png", 7, None, mask):
        with pytest.raises(ValueError, match="expected polygons or COCO's RLE"):
            decode_mask(form, SIZE)


def test_hostile_masks_of_records_are_refused_before_memory_is_taken() -> None:
    overflowing = [687052810, 1349997713, 974276318, 1601231992]
    for form, size in (
        ({"size": [48, 64], "counts": overflowing}, (48, 64)),
        ({"size": [10**9, 10**9], "counts": [10**18]}, (10**9, 10**9)),
        ({"size": [10**9, 10**9], "counts": "0"}, (10**9, 10**9)),
        ([[0, 0, 9, 0, 9, 9]], (10**9, 10**9)),
        ([[0, 0, 1e300, 0, 9, 9]], (48, 64)),
    ):
        with pytest.raises(ValueError, match="mask has "):
            decode_mask(form, size)


@pytest.mark.parametrize(
    "address",
    ["test/0/0/40000", "test/0/0/0", "test/0/0/999999999", "test/0/0/-5", f"test/0/{'9' * 5000}/64", "test/0/64", ""],
)
def test_scenes_without_measure_are_not_drawn(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (1 to 4096|glyph-scene:SPLIT/SEED/INDEX/LONG_SIDE)"):
        open_image({**SAMPLE, "image": f"glyph-scene:{address}"}, tmp_path)
    sound = {**SAMPLE, "image": "glyph-scene:test/0/0/64", "width": 48, "height": 64}
    assert open_image(sound, tmp_path).shape == (64, 48, 3)
