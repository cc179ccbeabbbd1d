"""Records: as files hold them and as values, their prompts, their masks, and cutting their conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")

from mask_forms import BOX, SIZE, ellipse, packed_rle

from finetune.records import (
    Record,
    Region,
    Turn,
    cut_turns,
    decode_mask,
    encode_mask,
    load_records,
    load_rows,
    mask_box,
    open_image,
)
from llm_bridge import find_question
from tap_tokenizer import mask_to_rle

RECORD = Record(
    "a.png", 9, 9, [Region(label="a"), Region(label="b"), Region(label="c")],
    [
        Turn("system", "Be brief."),
        Turn("user", "What is <region1>?"), Turn("assistant", "a"),
        Turn("user", "Which is larger, <region3> or <region2>?"), Turn("assistant", "region2"),
        Turn("user", "Where is region3?"), Turn("assistant", "left"),
    ],
)  # fmt: skip


def test_regions_are_renumbered() -> None:
    cut, rows = cut_turns(RECORD, 1, 2)
    assert rows == [2, 1]
    assert [region.label for region in cut.regions] == ["c", "b"]
    assert cut.conversations == [
        Turn("system", "Be brief."),
        Turn("user", "Which is larger, <region1> or <region2>?"), Turn("assistant", "region2"),
        Turn("user", "Where is region1?"), Turn("assistant", "left"),
    ]  # fmt: skip
    assert cut.width == 9
    assert RECORD.conversations[3].content == "Which is larger, <region3> or <region2>?"


def test_a_region_that_is_only_named_after_a_cut_is_shown() -> None:
    cut, rows = cut_turns(RECORD, 2, 1)
    assert rows == [2]
    assert cut.conversations[1:] == [Turn("user", "Where is <region1>?"), Turn("assistant", "left")]


def test_a_question_that_names_no_region_is_cut_with_those_that_it_means() -> None:
    follows = [
        Turn("user", "Why?"),
        Turn("assistant", "It is near."),
        Turn("user", "Really?"),
        Turn("assistant", "yes"),
    ]
    record = Record("a.png", 9, 9, RECORD.regions, [*RECORD.conversations, *follows])
    cut, rows = cut_turns(record, 4, 1)
    assert rows == [2]
    assert cut.conversations[1:] == [Turn("user", "<region1> Really?"), Turn("assistant", "yes")]


def test_a_cut_ends_with_the_conversation() -> None:
    cut, rows = cut_turns(RECORD, 0, 9)
    assert rows == [0, 2, 1]
    assert len(cut.conversations) == len(RECORD.conversations)
    with pytest.raises(ValueError, match="of 3"):
        cut_turns(RECORD, 3, 1)
    with pytest.raises(ValueError, match="Got questions"):
        cut_turns(RECORD, 0, 0)


def test_a_question_to_find_regions_is_not_cut_off_from_its_candidates() -> None:
    alone, leaning = find_question("the red one", 2), find_question("the blue one")
    regions, answer = [Region(label="a"), Region(label="b")], Turn("assistant", "none")
    once = Record("a.png", 9, 9, regions, [Turn("user", alone), answer, Turn("user", leaning), answer])
    assert cut_turns(once, 0, 1)[0].conversations == once.conversations[:2]
    with pytest.raises(ValueError, match=r"The record of a\.png has a question for 'the blue one' that .*turns 0"):
        cut_turns(once, 1, 1)
    each = Record("a.png", 9, 9, regions, [Turn("user", leaning), answer, Turn("user", alone), answer])
    assert cut_turns(each, 1, 1)[0].conversations == once.conversations[:2]


def test_masks_of_records_are_run_lengths_or_polygons_only() -> None:
    mask = np.asarray(ellipse()) > 0
    packed = packed_rle(mask)
    for form in (encode_mask(mask), packed, {**packed, "counts": packed["counts"].decode()}, mask_to_rle(mask)):
        assert np.array_equal(decode_mask(form, SIZE), mask)
        assert mask_box(form, SIZE) == BOX
        assert np.array_equal(Region(mask=form).prompt(SIZE).mask, mask)
    assert mask_box([[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]], SIZE) == [10, 10, 30, 30]
    assert mask_box({"size": [4, 6], "counts": [24]}, (4, 6)) is None
    for form in ("mask.png", 7, None, mask):
        with pytest.raises(ValueError, match="expected polygons or COCO's RLE"):
            decode_mask(form, SIZE)


def test_hostile_masks_of_records_are_refused_before_memory_is_allocated() -> None:
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
def test_impossible_scene_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (1 to 4096|glyph-scene:SPLIT/SEED/INDEX/LONG_SIDE)"):
        open_image(replace(RECORD, image=f"glyph-scene:{address}"), tmp_path)
    sound = replace(RECORD, image="glyph-scene:test/0/0/64", width=48, height=64)
    assert open_image(sound, tmp_path).shape == (64, 48, 3)


def test_a_record_is_written_as_it_was_read() -> None:
    row = {
        "image": "a.png", "width": 9, "height": 8,
        "regions": [{"box": [1, 2, 3, 4], "label": "cup", "captions": ["a cup"]}, {"points": [[5, 6]], "point_labels": [1]}],
        "conversations": [
            {"role": "user", "content": "What is <region1>?", "type": "kind", "options": ["cup", "dog"]},
            {"role": "assistant", "content": "cup"},
        ],
        "source": "mine", "license": None,
    }  # fmt: skip
    record = Record.from_dict({**row, "stray": 1})
    assert json.dumps(record.to_dict()) == json.dumps(row)
    assert (record.size, record.name) == ((8, 9), "The record of a.png")
    for wrong in ({"regions": [7]}, {"regions": 7}, {"conversations": ["hello"]}):
        with pytest.raises(
            ValueError, match=r"record of a\.png has regions or conversations that are not lists of objects"
        ):
            Record.from_dict({**row, **wrong})


def test_a_box_and_points_are_the_prompt_and_a_mask_only_without_them() -> None:
    mask = encode_mask(np.ones((8, 9), bool))
    both = Region([1, 2, 3, 4], points=[[5, 6], [7, 8]], mask=mask).prompt((8, 9))
    assert (both.box, both.points, both.point_labels, both.mask) == ((1, 2, 3, 4), ((5, 6), (7, 8)), (1, 1), None)
    assert Region(mask=mask).prompt((8, 9)).mask.all()
    for region in (Region(), Region(mask="mask.png"), Region([1, 2, 3]), Region(points=[])):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"mask is of type|expected|neither"):
            region.prompt((8, 9))


def test_pictures_inside_a_parquet_file_are_left_out_where_nobody_looks_at_them(tmp_path: Path) -> None:
    rows = load_rows(_written(tmp_path / "a.jsonl"))
    rows.to_parquet(tmp_path / "a.parquet")
    records = load_records(tmp_path / "a.parquet")
    assert [record.image for record in records] == ["a.png"]
    assert [record.image for record in records.without_pictures()] == [None]
    assert records[0].conversations == RECORD.conversations


def _written(path: Path) -> Path:
    path.write_text(json.dumps(RECORD.to_dict()) + "\n")
    return path
