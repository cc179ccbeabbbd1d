"""COCO's two layouts, with what real files hold: crowds, boxes that leave the picture, stray keys, numbers as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

from PIL import Image
from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.__main__ import main
from finetune.data.coco import CocoPanopticSource, CocoSource, LvisSource
from finetune.data.entries import CUT
from finetune.records import decode_mask

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


def test_instances_become_questions_about_regions(tmp_path: Path, pictures: Path) -> None:
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
    assert first.image == "pictures/a.jpg"
    assert [r.box for r in first.regions] == [[0, 30, 15, 40]]  # clipped
    assert [r.box for r in second.regions] == [[10, 10, 30, 30], [12, 12, 17, 17]]
    assert talk_of(second) == ["What is <region1>?", "dog", "What is <region2>?", "dog"]
    assert len(read_whole(CocoSource(**common, keep_crowds=True), tmp_path)[1].regions) == 3
    assert len(read_whole(CocoSource(**common, regions_per_record=1), tmp_path)) == 3
    with pytest.raises(ValueError, match="nowhere"):
        list(CocoSource(**{**common, "images": str(tmp_path / "nowhere")}).records())


def test_boxes_clipped_by_more_than_rounding_are_counted(tmp_path: Path, pictures: Path) -> None:
    boxes = [[10, 10, 20, 20], [45.5, 30.5, 15, 10], [30, 20, 55, 38]]  # within, rounded, x1 y1 x2 y2 by mistake
    annotations = [{"id": i, "image_id": 9, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    path = write_json(tmp_path / "instances.json", {
        "annotations": annotations, "images": IMAGES, "categories": CATEGORIES})  # fmt: skip
    source = CocoSource(annotations=path, images=str(pictures), output=str(tmp_path / "o.jsonl"))
    (record,) = read_whole(source, tmp_path)
    assert record.regions[2].box == [30, 20, 60, 40]
    assert source.left_out.summary()[-2:] == ["1 entry taken, though in doubt:", f"       1 × {CUT}"]


def test_panoptic_segments_become_questions_about_regions(tmp_path: Path, pictures: Path) -> None:
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
    for region, number in zip(sample.regions, (300, 70_000)):
        assert np.array_equal(decode_mask(region.mask, (40, 60)), numbers == number)
    (things,) = read_whole(CocoPanopticSource(**common, things_only=True), tmp_path)
    assert talk_of(things)[1::2] == ["dog"]


RLE = {"size": [40, 60], "counts": [100, 50, 2250]}


def thing(number: int, **changes: Any) -> dict[str, Any]:
    whole = {
        "id": number,
        "image_id": 7,
        "category_id": 1,
        "bbox": [10, 10, 20, 20],
        "segmentation": SQUARE,
        "iscrowd": 0,
    }
    return {**whole, **changes}


def source(
    folder: Path, annotations: list[Any], images: Any = None, categories: Any = None, **knobs: Any
) -> CocoSource:
    content = {"images": images or IMAGES, "annotations": annotations, "categories": categories or CATEGORIES}
    path = write_json(folder / "instances.json", content)
    return CocoSource(annotations=path, images=str(folder / "pictures"), output=str(folder / "o.jsonl"), **knobs)


def regions_of(made: CocoSource, folder: Path) -> list[int]:
    return [len(sample.regions) for sample in read_whole(made, folder)]


def test_ids_given_as_text_lose_no_annotation(tmp_path: Path, pictures: Path) -> None:
    annotations = [thing(1, category_id="0"), thing(2, category_id=0), thing(3, image_id="7"), thing(4, image_id=9.0)]
    made = source(tmp_path, annotations, categories=[{"id": 0, "name": "dog"}, {"id": "1", "name": "cat"}])
    assert [talk_of(s)[1::2] for s in read_whole(made, tmp_path)] == [["dog", "dog", "cat"], ["cat"]]
    assert made.left_out.summary() == []


@pytest.mark.parametrize("drawn", [
    [thing(1, iscrowd=1, segmentation=RLE), thing(2, iscrowd="1", segmentation=RLE)],
    [thing(1, iscrowd=1, segmentation=RLE), thing(2), thing(3, iscrowd=True, segmentation=RLE), thing(4)],
    [thing(1, iscrowd=1, segmentation=RLE, attributes={"occluded": False}), *map(thing, range(2, 9))],
])  # fmt: skip
def test_masks_that_a_tool_marks_as_crowds_are_kept_and_counted(
    tmp_path: Path, pictures: Path, drawn: list[Any]
) -> None:
    marked = sum(a["iscrowd"] != 0 for a in drawn)
    made = source(tmp_path, drawn)
    assert regions_of(made, tmp_path) == [len(drawn)]
    assert list(made.left_out.doubtful.values()) == [marked]
    assert "--keep_crowds false" in made.left_out.summary()[-1]
    made = source(tmp_path, [*drawn, thing(99, image_id=9)], keep_crowds=False)
    assert sum(regions_of(made, tmp_path)) == len(drawn) + 1 - marked
    assert [count for count in made.left_out.unwanted.values() if count] == [marked]


def test_crowds_of_many_objects_are_skipped_and_counted(tmp_path: Path, pictures: Path) -> None:
    made = source(tmp_path, [*map(thing, range(5)), thing(9, iscrowd=1, segmentation=RLE), thing(10, image_id=9)])
    assert regions_of(made, tmp_path) == [5, 1]
    assert made.left_out.summary()[0] == "1 entry passed over:"
    assert "--keep_crowds true keeps them" in made.left_out.summary()[1]


def test_every_annotation_left_out_is_named(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faulty = [
        thing(1, category_id=5), thing(2, category_id=None), thing(3, bbox=None), thing(4, bbox={"x": 1}), thing(5, bbox=[]),
        thing(6, bbox=["x", 1, 2, 3]), thing(7, bbox=[70, 1, 2, 3]), thing(8, bbox=[1, 1, 0, 5]),
        thing(9, bbox=[1, 1, 0.4, 0.4]),
        thing(10, segmentation={"size": [40, 60], "counts": [2400]}), thing(11, segmentation=[[1, 2, 3, 4]]),
        thing(12, segmentation="x"), thing(13, image_id=8), thing(14, image_id=None), thing(15, bbox=[float("nan"), 1, 2, 3]),
        thing(16, bbox=[1, 1, 10**400, 5]), thing(17, segmentation={"size": [60, 40], "counts": [100, 50, 2250]}),
    ]  # fmt: skip
    made = source(tmp_path, [*faulty, thing(18, image_id=9)])
    flags = ["--annotations", made.annotations, "--images", made.images, "--output", made.output, "--show_all", "true"]
    assert main(["convert", "coco", *flags]) == 0
    said = capsys.readouterr().out
    assert all(f"left out: {made.annotations}, annotation {a['id']}: " in said for a in faulty)
    assert "17 entries left out as faulty:" in said
    assert f"wrote {made.output}: 1 record" in said
    Path(made.output).unlink()
    assert main(["convert", "coco", *flags, "--strict", "true"]) == 2
    assert "annotation 14: image_id is null" in capsys.readouterr().err


def test_unusable_pictures_are_named_with_their_annotations(tmp_path: Path, pictures: Path) -> None:
    images = [*IMAGES, {"id": 1, "file_name": "a.jpg", "width": None, "height": 40}, {"id": 2, "width": 60, "height": 40},
              {"id": "7", "file_name": "a.jpg", "width": 60, "height": 40}, {**IMAGES[0], "id": 3, "file_name": "../o.jsonl"},
              {**IMAGES[0], "id": 4, "width": 10**9, "height": 10**9}]  # fmt: skip
    made = source(tmp_path, [thing(i, image_id=image["id"]) for i, image in enumerate(images)], images=images)
    assert regions_of(made, tmp_path) == [2, 1]  # the two of picture 7 are not doubled
    assert made.left_out.faults == {"picture listed twice": 1, "no width": 1, "no file_name": 1, "wrong size": 1,
                                    "picture outside its folder": 1, "picture left out": 4}  # fmt: skip


def test_duplicate_annotations_are_named(tmp_path: Path, pictures: Path) -> None:
    made = source(tmp_path, [thing(1), thing(1), thing(1, bbox=[11, 10, 20, 20])])
    assert regions_of(made, tmp_path) == [2]  # some tools begin to count anew: an id alone is no double
    assert made.left_out.faults == {"annotation given twice": 1}


def test_other_tools_files_are_read(tmp_path: Path, pictures: Path) -> None:
    Image.new("RGB", (60, 40)).save(pictures / "ünï code", format="PNG")
    images = [{"id": "x-1", "file_name": "ünï code", "width": "60", "height": 40.0}]
    whole = {"image_id": "x-1", "category_id": 1, "bbox": [10, 10, 20, 20]}
    annotations = [
        {**whole, "bbox": ["10", 10, 20.0, 20], "segmentation": SQUARE[0], "area": 0},
        {**whole, "segmentation": [[10, 10], [30, 10], [30, 30]]},
        {**whole, "segmentation": None},
        whole,
    ]
    (sample,) = read_whole(source(tmp_path, annotations, images=images), tmp_path)
    assert [len(region.mask or []) for region in sample.regions] == [1, 1, 0, 0]


def test_a_byte_order_mark_is_accepted(tmp_path: Path, pictures: Path) -> None:
    made = source(tmp_path, [thing(1)])
    path = Path(made.annotations)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert regions_of(made, tmp_path) == [1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files of ../shared/data")
@pytest.mark.parametrize(("file", "images", "regions"), [
    ("coco_80/annotations/instances_train2017.json", "coco_80/train2017", 699),
    ("coco_80/annotations/instances_val2017.json", "coco_80/val2017", 804),
])  # fmt: skip
def test_published_files_of_coco_are_converted(tmp_path: Path, file: str, images: str, regions: int) -> None:
    source = CocoSource(annotations=str(SHARED / file), images=str(SHARED / images), output=str(tmp_path / "o.jsonl"))
    assert sum(len(sample.regions) for sample in read_whole(source, tmp_path)) == regions


def test_pictures_of_lvis_are_found_by_address(tmp_path: Path) -> None:
    write_picture(tmp_path / "coco" / "val2017" / "000000000139.jpg")
    path = write_json(tmp_path / "lvis_v1_val.json", {
        "images": [{"id": 139, "width": 60, "height": 40, "neg_category_ids": [], "not_exhaustive_category_ids": [],
                    "coco_url": "http://images.cocodataset.org/val2017/000000000139.jpg"}],
        "annotations": [{"id": 1, "image_id": 139, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": SQUARE}],
        "categories": [{"id": 3, "name": "alarm_clock", "synonyms": ["alarm_clock"], "frequency": "f"}]})  # fmt: skip
    source = LvisSource(annotations=path, images=str(tmp_path / "coco"), output=str(tmp_path / "o.jsonl"))
    (sample,) = read_whole(source, tmp_path)
    assert sample.image == "coco/val2017/000000000139.jpg"
    assert talk_of(sample) == ["What is <region1>?", "alarm clock"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files of ../shared/data")
def test_a_published_file_of_lvis_is_converted(tmp_path: Path) -> None:
    folder = SHARED / "lvis_sample"
    source = LvisSource(
        annotations=str(folder / "lvis_val_100.json"), images=str(folder), output=str(tmp_path / "o.jsonl")
    )
    samples = list(source.limited())
    assert sum(len(sample.regions) for sample in samples) == 977
    assert all("/val2017/" in sample.image or "/train2017/" in sample.image for sample in samples)
