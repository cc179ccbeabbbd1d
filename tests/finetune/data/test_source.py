"""Turns that every reader makes, and the pictures that it may name."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import write_picture

from finetune.data.coco import CocoSource
from finetune.data.problems import EntryError
from finetune.data.source import inside, literal, talk, with_all_shown
from finetune.records import Region


def test_answers_become_turns_that_show_every_region() -> None:
    source = CocoSource(output="o.jsonl", images=".", annotations="a.json", regions_per_record=2)
    asked = [(Region([0, 0, 9, 9], label=name), "What is <region>?", name) for name in ("dog", "cat", "cow")]
    first, second = source.records_of("a.jpg", (40, 60), asked, "x", None)
    turns = first.conversations
    assert [turn.content for turn in turns] == ["What is <region1>?", "dog", "What is <region2>?", "cat"]
    assert [turn.content for turn in second.conversations] == ["What is <region1>?", "cow"]
    assert [region.label for record in (first, second) for region in record.regions] == ["dog", "cat", "cow"]
    assert first.size == (40, 60)
    assert with_all_shown(turns, 2) == turns
    assert with_all_shown(turns, 3)[0].content == "The picture has <region1>, <region2>, <region3>.\nWhat is <region1>?"


def test_a_picture_lies_inside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    inner = write_picture(folder / "train" / "a.jpg")
    outer = write_picture(tmp_path / "mine" / "secret.jpg")
    write_picture(tmp_path / "pictures of mine" / "b.jpg")
    (folder / "link.jpg").symlink_to(outer)
    (folder / "own.jpg").symlink_to(inner)
    (folder / "mine").symlink_to(outer.parent)
    for name in ("train/a.jpg", "train//../train/./a.jpg", str(inner), "train\\a.jpg", "not yet there.jpg"):
        assert inside(folder, name).parent in (inner.parent, folder)
    assert inside(folder, "own.jpg") == folder / "own.jpg"
    for name in ("../mine/secret.jpg", "train/../../mine/secret.jpg", str(outer), "..\\mine\\secret.jpg", "..", "", ".",
                 "../pictures of mine/b.jpg", "link.jpg", "mine/secret.jpg", "mine/new.jpg", "a\0.jpg"):  # fmt: skip
        with pytest.raises(EntryError):
            inside(folder, name)
    for name in ("link.jpg", "mine/secret.jpg"):
        assert inside(folder, name, follow_links=True) == folder / name
    (tmp_path / "linked").symlink_to(folder)  # the folder itself may be a link
    assert inside(tmp_path / "linked", "train/a.jpg") == tmp_path / "linked" / "train" / "a.jpg"


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a\\b.png")
    assert inside(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"


@pytest.mark.parametrize("value", ["[[" * 5000, "__import__('os')", "[1", "{1: [2}", "a\0b", "{" * 150])
def test_python_text_that_is_not_a_list_is_a_bad_entry(value: str) -> None:
    with pytest.raises(EntryError):
        literal(value)
    assert literal("[1, {'a': 2}]") == [1, {"a": 2}]


@pytest.mark.parametrize("turn", [
    None, "hello", {}, {"from": "human"}, {"from": "robot", "value": "x"}, {"from": [], "value": "x"},
    {"from": "human", "value": 7}, {"from": "human", "value": " "},
])  # fmt: skip
def test_malformed_turns_are_bad_entries(turn: object) -> None:
    with pytest.raises(EntryError):
        talk([turn])
