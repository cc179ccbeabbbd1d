"""Average precision on records of one's own goes by picture, however many records a picture has."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from datasets import Dataset
from datasets import Image as Picture
from PIL import Image

from finetune import evaluate
from finetune.data.coco import CocoSource
from finetune.data.source import convert
from finetune.records import FEATURES
from finetune.tasks import TASKS
from finetune.tasks.items import EvaluationSet
from finetune.tasks.task import TaskOptions
from tap_tokenizer import load_rgb

REGIONS = 20


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """Records that `convert coco` makes of three pictures; the first has more regions than a record holds."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, count in enumerate((REGIONS, 3, 2)):
        name = f"{number:012d}.png"
        Image.new("RGB", (220, 100), (9 * number, 0, 0)).save(tmp_path / "images" / name)
        images.append({"id": 50 + number, "file_name": name, "width": 220, "height": 100})
        for i in range(count):
            x, y = 11 * i, 10 + 30 * (i % 2)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 50 + number, "category_id": i % 2 + 1, "bbox": [x, y, 9, 20],
                 "area": 180, "iscrowd": 0, "segmentation": [[x, y, x + 9, y, x + 9, y + 20, x, y + 20]]}
            )  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    path = tmp_path / "own.jsonl"
    convert(CocoSource(output=str(path), annotations=str(tmp_path / "coco.json"), images=str(tmp_path / "images")))
    assert len(path.read_text().splitlines()) == 4
    return path


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_own(benchmark: str, path: Path) -> EvaluationSet:
    task = replace(TASKS[benchmark])
    task.configure(TaskOptions("out", data=str(path)))
    return task.read()


def run(tmp_path: Path, *flags: str) -> dict[str, Any]:
    output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    evaluate.main(["--output", str(output), *flags])
    return dict(json.loads((output / "metrics.json").read_text()))


def perfect(path: Path, name: Any) -> list[dict[str, Any]]:
    """Masks as true as the records', of pictures that are called by name(number of the record, record)."""
    return [
        {"image_id": name(number, sample), "category_id": {"cup": 1, "dog": 2}[region["label"]], "score": 0.5,
         "segmentation": region["mask"]}
        for number, sample in enumerate(records_of(path))
        for region in sample["regions"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        lambda number, sample: number,  # the record's own number
        lambda number, sample: (0, 0, 2, 3)[number],  # the number of its picture's first record
        lambda number, sample: sample["image"],
        lambda number, sample: Path(sample["image"]).name,
    ],
    ids=["record", "first record", "path", "file"],
)
def test_a_perfect_result_scores_100(converted: Path, tmp_path: Path, name: Any) -> None:
    (tmp_path / "masks.json").write_text(json.dumps(perfect(converted, name)))
    flags = ["--benchmark", "coco_masks", "--data", str(converted), "--predictions", str(tmp_path / "masks.json")]
    metrics = run(tmp_path, *flags)
    assert metrics["rows"]["given predictions"]["AP"] == pytest.approx(1)
    assert metrics["n"]["pictures"] == 3
    assert not metrics["problems"]


def test_notes_on_masks_from_elsewhere_mention_no_boxes_of_ours(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "masks.json").write_text(json.dumps(perfect(converted, lambda number, sample: number)))
    metrics = run(tmp_path, "--benchmark", "coco_masks", "--data", str(converted), "--predictions",
                  str(tmp_path / "masks.json"))  # fmt: skip
    notes = " ".join(metrics["notes"])
    assert "boxes are" not in notes
    assert "predicted IoU" not in notes
    assert "predictions were given" in notes
    assert metrics["model"] is None
    assert metrics["decoding"] is None
    assert "boxes" not in metrics["protocol"]["rules"]


@pytest.mark.parametrize("left_out", [None, "box", "mask"])
def test_labels_of_a_picture_are_scored_together(converted: Path, tmp_path: Path, left_out: str | None) -> None:
    """A region without a box has the one around its mask."""
    samples = records_of(converted)
    for sample in samples:
        sample["regions"] = [{k: v for k, v in region.items() if k != left_out} for region in sample["regions"]]
    converted.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    lines = [{"id": f"{n}/{i}", "answer": region["label"], "iou": 1.0} for n, sample in enumerate(records_of(converted))
             for i, region in enumerate(sample["regions"])]  # fmt: skip
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, lines)))
    metrics = run(tmp_path, "--benchmark", "coco_classification", "--data", str(converted), "--predictions",
                  str(tmp_path / "words.jsonl"))  # fmt: skip
    assert metrics["rows"]["given predictions"]["AP"] == pytest.approx(1)
    assert metrics["n"] == {"items": 25, "pictures": 3, "whole": None, "whole_pictures": None}


def test_a_picture_is_one_record_of_masks_and_one_of_the_reference(converted: Path) -> None:
    masks = read_own("coco_masks", converted)
    assert [len(record.regions) for record in masks.records] == [REGIONS, 3, 2]
    assert [record.image_id for record in masks.records] == [0, 2, 3]
    labels = read_own("coco_classification", converted)
    assert [record.image_id for record in labels.records] == [0, 0, 2, 3]
    for found in (masks, labels):
        assert found.reference is not None
        assert [image["id"] for image in found.reference["images"]] == [0, 2, 3]
        assert len(found.reference["annotations"]) == 25
    others = read_own("answers", converted)  # elsewhere a record stays a record
    assert [record.image_id for record in others.records] == [0, 1, 2, 3]


def test_a_detectors_boxes_are_those_of_the_picture(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(
        json.dumps([{"image_id": n, "category_id": 1, "bbox": [5, 5, 50, 50], "score": 0.5} for n in (1, 3)])
    )
    flags = ["--benchmark", "coco_masks", "--data", str(converted), "--boxes", str(tmp_path / "boxes.json")]
    metrics = run(tmp_path, *flags)
    assert metrics["rows"]["mask decoder"]["detections"] == 2
    assert "given twice" not in " ".join(metrics["problems"])
    assert "boxes are a detector's, with its scores" in " ".join(metrics["notes"])


def test_pictures_inside_a_parquet_file_are_told_apart_by_their_bytes(converted: Path, tmp_path: Path) -> None:
    samples = records_of(converted)
    for sample in samples:
        sample["image"] = {"bytes": (converted.parent / sample["image"]).read_bytes(), "path": "same.png"}
    features = FEATURES.copy()
    features["image"] = Picture(decode=False)
    Dataset.from_list(samples, features=features).to_parquet(tmp_path / "own.parquet")
    found = read_own("coco_masks", tmp_path / "own.parquet")
    assert [len(record.regions) for record in found.records] == [REGIONS, 3, 2]
    with Image.open(io.BytesIO(samples[0]["image"]["bytes"])) as picture:
        assert load_rgb(picture).shape == (100, 220, 3)


def test_a_repeated_region_counts_once_and_is_named(converted: Path, tmp_path: Path) -> None:
    lines = converted.read_text().splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join([*lines, lines[3]]) + "\n")
    for name in ("coco_masks", "coco_classification"):
        found = read_own(name, tmp_path / "twice.jsonl")
        assert found.reference is not None
        assert len(found.reference["annotations"]) == 25
        assert {kind: about["names"] for kind, about in found.problems.as_dict().items()} == {
            "region given twice in a picture, the first counts": ["4/0", "4/1"],
        }


def test_records_of_one_picture_that_differ_in_its_size_are_refused(converted: Path) -> None:
    samples = records_of(converted)
    samples[1]["height"] = 99
    for region in samples[1]["regions"]:
        del region["mask"]
    converted.write_text("\n".join(map(json.dumps, samples)))
    with pytest.raises(
        ValueError, match=r"Record 2 says that its picture is 220 × 99, but record 1, of the same picture"
    ):
        read_own("coco_classification", converted)


def test_a_cache_gives_the_same_scores_if_regions_are_left_out(converted: Path, tmp_path: Path) -> None:
    """A region without a label is of no use to the task, and those after it keep their own tokens."""
    from finetune import cache_regions

    samples = records_of(converted)[2:]
    samples[0]["regions"][0]["label"] = None
    samples[0]["conversations"] = samples[0]["conversations"][2:]
    path = converted.parent / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, samples)))
    cache_regions.main(
        ["--data", str(path), "--output", str(tmp_path / "cache"), "--workers", "0", "--dtype", "float32"]
    )
    flags = ["--benchmark", "coco_classification", "--data", str(path), "--rows", "caption decoder"]
    flags += ["--model", "region-chat-tiny"]  # which reads no picture context, as the cache has none
    for name, more in (("fresh", []), ("cached", ["--cache", str(tmp_path / "cache")])):
        evaluate.main(["--output", str(tmp_path / name), *flags, *more])
    fresh, cached = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("fresh", "cached")
    )
    assert [line["id"] for line in fresh] == ["0/1", "0/2", "1/0", "1/1"]
    assert [line["iou"] for line in cached] == pytest.approx([line["iou"] for line in fresh], abs=1e-6)
    assert len({round(line["iou"], 6) for line in fresh}) == 4  # so that a row in another's place is seen
