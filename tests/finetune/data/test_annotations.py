"""Large files, item by item."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import write_json

from finetune.data.annotations import AnnotationIndex
from finetune.data.entries import LeftOut
from finetune.data.json_files import iter_items


def test_items_and_index(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {
        "annotations": [{"id": 900100184613, "image_id": 2}, {"id": 2, "image_id": 1}, {"id": 3, "image_id": 2}],
        "images": [{"id": 2}, {"id": 1}], "categories": [{"id": 5, "name": "dog"}]})  # fmt: skip
    assert [item["id"] for item in iter_items(path, "images.item")] == [2, 1]
    with AnnotationIndex(path) as index:
        assert [image["id"] for image in index.images()] == [2, 1]
        assert [a["id"] for a in index.annotations(2)] == [900100184613, 3]
        assert index.annotations(9) == []
        found = index.annotation(900100184613)
        assert found is not None
        assert found["image_id"] == 2
        assert index.image(7) is None
        assert index.categories() == {5: {"id": 5, "name": "dog"}}


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"images": [{"id": 1}')
    with pytest.raises(ValueError, match=r"torn\.json"):
        AnnotationIndex(tmp_path / "torn.json")
    with pytest.raises(ValueError, match="layout of COCO"):
        AnnotationIndex(write_json(tmp_path / "list.json", [{"id": 1}]))


@pytest.mark.parametrize(("content", "words"), [
    ({"images": {}, "annotations": []}, 'holds an object for "images", expected a list'),
    ({"images": [{"id": 1}], "annotations": {"1": {}}}, 'an object for "annotations", expected a list'),
    ({"images": [{"id": 1}], "annotations": None}, 'null for "annotations"'),
    ({"images": [{"id": 1}]}, 'no "annotations"'),
    ({"images": []}, 'no "images"'),
    ({}, 'no "images"'),
    ("images", "a text, expected an object"),
    (3, "a number, expected an object"),
])  # fmt: skip
def test_files_of_another_structure_are_refused_with_a_reason(tmp_path: Path, content: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AnnotationIndex(write_json(tmp_path / "a.json", content))


def test_nested_lists_are_not_taken_for_the_top_level_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an object, expected a list of entries"):
        list(iter_items(write_json(tmp_path / "a.json", {"item": [1]})))
    path = write_json(tmp_path / "b.json", {"info": {"images": [3]}, "images": [1, 2], "more": [[{"images": [4]}]]})
    assert list(iter_items(path, "images.item")) == [1, 2]
    (tmp_path / "c.json").write_text("[1, 2]\n[3]")
    with pytest.raises(ValueError, match=r"c\.json.*there is more text after its end, at character 7"):
        list(iter_items(tmp_path / "c.json"))


def test_ids_are_compared_as_text_and_duplicates_are_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {
        "images": [{"id": 0}, {"id": "0"}, {"id": "1"}, {}, 5],
        "annotations": [{"image_id": "0", "n": 1}, {"image_id": 0.0, "n": 2}, {"image_id": "0", "n": 1},
                        {"image_id": 9, "id": 4}, {"id": 5}, None],
        "categories": [{"id": 3}, {"id": "3"}, {"id": 4}]})  # fmt: skip
    left_out = LeftOut()
    with AnnotationIndex(path, left_out) as index:
        assert [image["id"] for image in index.images()] == [0, "1"]
        assert [a["n"] for a in index.annotations(0)] == [a["n"] for a in index.annotations("0")] == [1, 2]
        index.name_strays()
        assert list(index.categories()) == [3, 4]
        assert index.annotation("4") == {"image_id": 9, "id": 4}
    assert left_out.faults == {
        "picture listed twice": 1, "no id": 1, "no object": 2, "no image_id": 1, "annotation given twice": 2,
        "picture not listed": 1, "category listed twice": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="picture number 2: its id, 0, was given before"):
        AnnotationIndex(path)
