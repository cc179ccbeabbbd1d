"""LVIS v1, which has no file names, and v0.5, whose names are of another year than its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.coco import LvisSource

SHARED = Path(__file__).parents[4] / "shared" / "data"


def test_pictures_are_found_by_address(tmp_path: Path) -> None:
    write_picture(tmp_path / "coco" / "val2017" / "000000000139.jpg")
    path = write_json(tmp_path / "lvis_v1_val.json", {
        "images": [{"id": 139, "width": 60, "height": 40, "neg_category_ids": [], "not_exhaustive_category_ids": [],
                    "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"}],
        "annotations": [{"id": 1, "image_id": 139, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": SQUARE}],
        "categories": [{"id": 3, "name": "alarm_clock", "synonyms": ["alarm_clock"], "frequency": "f"}]})  # fmt: skip
    source = LvisSource(annotations=path, images=str(tmp_path / "coco"), output=str(tmp_path / "o.jsonl"))
    (sample,) = read_whole(source, tmp_path)
    assert sample["image"] == "coco/val2017/000000000139.jpg"
    assert talk_of(sample) == ["What is <region1>?", "alarm clock"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files of ../shared/data")
def test_real_file(tmp_path: Path) -> None:
    folder = SHARED / "lvis_sample"
    source = LvisSource(
        annotations=str(folder / "lvis_val_100.json"), images=str(folder), output=str(tmp_path / "o.jsonl")
    )
    samples = list(source.limited())
    assert sum(len(sample["regions"]) for sample in samples) == 977
    assert all("/val2017/" in sample["image"] or "/train2017/" in sample["image"] for sample in samples)
