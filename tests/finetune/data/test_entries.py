"""Whatever is wrong with one entry of a file, every reader names it, counts it, and reads the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from reader_files import READERS, changed
from small_files import SQUARE

from finetune.data.entries import (
    EntryError,
    LeftOut,
    answer,
    box_of,
    identity,
    is_crowd,
    mask_of,
    number,
    shown,
    size_of,
    sound_region,
    text,
)
from finetune.data.validation import problems_of
from finetune.records import Region

NASTY = [None, True, "", -1, float("nan"), 10**400, [], {}, "\ud800", "../../x", "<region7>"]


@pytest.mark.parametrize("name", READERS)
def test_one_bad_entry_does_not_lose_the_others(name: str, tmp_path: Path) -> None:
    files = READERS[name]
    for count, (what, entry) in enumerate(changed(files.second(), NASTY)):
        folder = tmp_path / str(count)
        folder.mkdir()
        source = files.write(folder, [files.entry, entry])
        records = list(source.limited())
        assert "a.jpg" in records[0].image, what
        assert len(records) == 2 or source.left_out.summary(), f"{what} went unsaid"
        for record in records:
            kinds = [kind for kind, _ in problems_of(json.loads(json.dumps(record.to_dict())), folder)]
            assert set(kinds) <= ({"missing picture", "wrong mask"} if "counts" in what else {"missing picture"}), what
    assert count > 20


@pytest.mark.parametrize("name", READERS)
def test_strict_stops_at_the_first_bad_entry_with_its_name(name: str, tmp_path: Path) -> None:
    files = READERS[name]
    source = files.write(tmp_path, [files.entry, 7])
    source.left_out.strict = True
    with pytest.raises(ValueError, match=r"file\.json, .*2.*: it is 7, expected an object") as stop:
        list(source.limited())
    assert "--strict false" in str(stop.value)
    source = files.write(tmp_path, [files.entry, files.second()])
    source.left_out.strict = True
    assert len(list(source.limited())) == 2
    assert source.left_out.summary() == []


def test_faults_are_counted_by_reason_and_the_first_of_each_named() -> None:
    for show_all, named in ((False, 6), (True, 8)):
        left_out = LeftOut(show_all=show_all)
        for place in range(7):
            with left_out.entry("a.json", f"picture {place}"):
                raise EntryError("no width", "it lacks width")
        with left_out.entry("a.json", "picture 9"):
            raise EntryError("no height", "height is null")
        left_out.unwanted["crowd"] += 2
        assert len(left_out.named) == named
        assert left_out.named[0] == "a.json, picture 0: it lacks width"
        said = left_out.summary()
        assert said[0] == "8 entries left out as faulty:"
        assert [line.split() for line in said[1:3]] == [["7", "×", "no", "width"], ["1", "×", "no", "height"]]
        assert said[3] == "2 entries passed over:"


def test_other_errors_are_not_counted_as_bad_entries() -> None:
    with pytest.raises(KeyError), LeftOut().entry("a.json", "picture 1"):
        raise KeyError("a fault of ours")


def test_ids_are_compared_as_text() -> None:
    assert {identity({"id": value}, "id") for value in (7, "7", 7.0)} == {"7"}
    assert identity({"id": 10**30}, "id") == str(10**30)
    for value in (None, True, [], {}, float("nan"), 7.5, "\ud800"):
        with pytest.raises(EntryError, match="id"):
            identity({"id": value}, "id")
    with pytest.raises(EntryError, match="it lacks id"):
        identity({}, "id")


def test_numbers_may_be_given_as_text() -> None:
    assert (number("1.5"), number(2), number(" 3 ")) == (1.5, 2.0, 3.0)
    assert all(number(value) is None for value in ("x", "nan", "inf", True, None, [], 10**400, float("inf")))
    assert size_of({"height": "40", "width": 60.0}) == (40, 60)
    for height, width in ((None, 60), (0, 60), (40, -1), (1.5, 60), ("x", 60), (10**9, 10**9), (True, 60)):
        with pytest.raises(EntryError):
            size_of({"height": height, "width": width})


def test_impossible_boxes_are_refused_with_a_reason() -> None:
    assert box_of([-5, 30, 20, 20], (40, 60)) == [0, 30, 15, 40]
    assert box_of(["1", 2.0, "3", 4], (40, 60)) == [1, 2, 4, 6]
    for box, reason in (
        (None, "wrong bbox"), ({}, "wrong bbox"), ([], "wrong bbox"), ([1, 2, 3], "wrong bbox"), ("1 2 3 4", "wrong bbox"),
        ([1, 2, 3, 10**400], "wrong bbox"), ([1, 2, float("nan"), 4], "wrong bbox"), ([1, 2, True, 4], "wrong bbox"),
        ([1, 2, 0, 4], "empty box"), ([1, 2, -3, 4], "empty box"), ([60, 0, 5, 5], "box outside"),
        ([-9, 0, 5, 5], "box outside"),
    ):  # fmt: skip
        with pytest.raises(EntryError) as fault:
            box_of(box, (40, 60))
        assert fault.value.reason == reason


def test_polygons_of_common_tools_are_read() -> None:
    points = [[10.0, 10.0], [30.0, 10.0], [30.0, 30.0], [10.0, 30.0]]
    assert mask_of(SQUARE) == mask_of(SQUARE[0]) == mask_of(points) == SQUARE
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    assert mask_of(rle) == rle
    for mask in (None, True, 7, "RLE", []):
        with pytest.raises(EntryError, match="expected polygons or COCO's RLE"):
            mask_of(mask)


def test_iscrowd_may_be_text() -> None:
    assert [is_crowd({"iscrowd": value}) for value in (0, "0", False, None, "", 1, "1", True, 1.0)] == [False] * 5 + [
        True
    ] * 4
    assert not is_crowd({})


def test_empty_texts_and_region_markers_are_refused() -> None:
    assert answer({"name": " a  red\ndog "}, "name") == "a red dog"
    for value in (None, " ", 7, [], "a \ud800", "<region>", "like <region2>"):
        with pytest.raises(EntryError):
            answer({"name": value}, "name")
    assert text({"name": "like <region2>"}, "name") == "like <region2>"


def test_values_are_shown_short() -> None:
    for value in ("x" * 500, [1] * 500, {"a": 1}, 10**400, None, [None, "a", 1.5], ["x" * 100] * 8):
        assert 0 < len(shown(value)) <= 60


def test_regions_follow_the_rules_of_validate() -> None:
    assert sound_region(Region([1, 2, 30, 20]), (40, 60)) == Region([1, 2, 30, 20])
    for region, reason in (
        (Region([0.1, 0.2, 0.7, 0.9]), "thin box"), (Region([1, 2, 1.5, 20]), "thin box"),
        (Region([1, 2, 30, 20], mask={"size": [40, 60], "counts": [2400]}), "empty mask"),
    ):  # fmt: skip
        with pytest.raises(EntryError) as fault:
            sound_region(region, (40, 60))
        assert fault.value.reason == reason
