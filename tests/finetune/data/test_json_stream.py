"""Large files, item by item."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ijson")

from small_files import write_json

from finetune.data.json_stream import AnnotationIndex, iter_items


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
