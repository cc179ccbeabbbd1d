"""COCO's two layouts, with what real files hold: crowds, boxes that leave the picture, stray keys, numbers as colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("ijson")

from PIL import Image
from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.coco import CocoPanopticSource, CocoSource
from finetune.data.sample import decode_mask

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
    {"id": 9, "file_name": "b.jpg", "width": 60, "height": 40},
]
CATEGORIES = [{"id": 1, "name": "dog", "isthing": 1}, {"id": 90, "name": "sky-other-merged", "isthing": 0}]
SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def test_instances(tmp_path: Path, pictures: Path) -> None:
    crowd = {"size": [40, 60], "counts": [100, 50, 2250]}
    annotations = [
        {"id": 1, "image_id": 9, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": SQUARE, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [-5, 30, 20, 20], "segmentation": SQUARE},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [0, 0, 60, 40], "segmentation": crowd, "iscrowd": 1},
        {"id": 4, "image_id": 9, "category_id": 1, "bbox": [70, 0, 5, 5], "segmentation": SQUARE},
        {"id": 5, "image_id": 9, "category_id": 1, "bbox": [12, 12, 5, 5], "segmentation": []},
    ]
    path = write_json(tmp_path / "instances.json", {
        "info": {}, "annotations": annotations, "images": IMAGES, "categories": CATEGORIES})  # fmt: skip
    common = {"annotations": path, "images": str(pictures), "output": str(tmp_path / "o.jsonl")}
    first, second = read_whole(CocoSource(**common), tmp_path)
    assert first["image"] == "pictures/a.jpg"
    assert [r["box"] for r in first["regions"]] == [[0, 30, 15, 40]]  # clipped
    assert [r["box"] for r in second["regions"]] == [[10, 10, 30, 30], [12, 12, 17, 17]]
    assert talk_of(second) == ["What is <region1>?", "dog", "What is <region2>?", "dog"]
    assert len(read_whole(CocoSource(**common, keep_crowds=True), tmp_path)[1]["regions"]) == 3
    assert len(read_whole(CocoSource(**common, regions_per_record=1), tmp_path)) == 3
    with pytest.raises(ValueError, match="nowhere"):
        list(CocoSource(**{**common, "images": str(tmp_path / "nowhere")}).records())


def test_panoptic(tmp_path: Path, pictures: Path) -> None:
    numbers = np.zeros((40, 60), dtype=np.int64)
    numbers[:10], numbers[20:30, 5:25] = 70_000, 300
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    (tmp_path / "segments").mkdir()
    Image.fromarray(colours).save(tmp_path / "segments" / "a.png")
    segments = [
        {"id": 300, "category_id": 1, "bbox": [5, 20, 20, 10], "area": 200, "iscrowd": 0},
        {"id": 70_000, "category_id": 90, "bbox": [0, 0, 60, 10], "area": 600, "iscrowd": 0},
    ]
    path = write_json(tmp_path / "panoptic.json", {
        "images": IMAGES, "categories": CATEGORIES,
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}]})  # fmt: skip
    common = {"annotations": path, "segments": str(tmp_path / "segments"), "images": str(pictures),
              "output": str(tmp_path / "o.jsonl")}  # fmt: skip
    (sample,) = read_whole(CocoPanopticSource(**common), tmp_path)
    assert talk_of(sample)[1::2] == ["dog", "sky"]
    for region, number in zip(sample["regions"], (300, 70_000)):
        assert np.array_equal(decode_mask(region["mask"], (40, 60)), numbers == number)
    (things,) = read_whole(CocoPanopticSource(**common, things_only=True), tmp_path)
    assert talk_of(things)[1::2] == ["dog"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files of ../shared/data")
@pytest.mark.parametrize(("file", "images", "regions"), [
    ("coco_80/annotations/instances_train2017.json", "coco_80/train2017", 699),
    ("coco_80/annotations/instances_val2017.json", "coco_80/val2017", 804),
])  # fmt: skip
def test_real_files(tmp_path: Path, file: str, images: str, regions: int) -> None:
    source = CocoSource(annotations=str(SHARED / file), images=str(SHARED / images), output=str(tmp_path / "o.jsonl"))
    assert sum(len(sample["regions"]) for sample in read_whole(source, tmp_path)) == regions
