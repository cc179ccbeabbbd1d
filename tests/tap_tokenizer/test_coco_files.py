"""COCO's annotations and results, in and out, from Python and the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tap_tokenizer import CocoDetections, TapRegionTokenizer, mask_to_rle
from tap_tokenizer.cli import main

MASK = np.zeros((60, 90), bool)
MASK[10:40, 20:60] = True


@pytest.fixture
def files(tmp_path: Path, picture: Image.Image, other_picture: Image.Image) -> Path:
    """Two pictures, annotations with every form of region, and some that cannot be used."""
    (tmp_path / "pictures").mkdir()
    picture.save(tmp_path / "pictures" / "a.png")
    other_picture.save(tmp_path / "pictures" / "b.png")
    images = [
        {"id": 1, "file_name": "a.png", "width": 90, "height": 60},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 80},
        {"id": 3, "file_name": "gone.png", "width": 40, "height": 80},
        {"id": 4, "file_name": "../a.png", "width": 90, "height": 60},
        {"id": 5, "file_name": "a.png", "width": 91, "height": 60},
    ]
    annotations = [
        {"id": 11, "image_id": 1, "category_id": 7, "bbox": [5, 6, 35, 44], "iscrowd": 0},
        {"id": 12, "image_id": 1, "category_id": 8, "bbox": [0, 0, 9, 9], "segmentation": mask_to_rle(MASK)},
        {"id": 13, "image_id": 2, "category_id": 7, "segmentation": [[2, 2, 30, 2, 30, 60, 2, 60]], "score": 0.25},
        {"id": 14, "image_id": 3, "category_id": 7, "bbox": [1, 1, 5, 5]},
        {"id": 15, "image_id": 1, "category_id": 7, "bbox": [5, 5, 0, 9]},
        {"id": 16, "image_id": 1, "category_id": 7, "segmentation": mask_to_rle(MASK.T)},
        {"id": 17, "image_id": 1, "category_id": 7},
        "nonsense",
    ]
    content = {
        "info": {"year": 2026},
        "images": images,
        "categories": [{"id": 7, "name": "mug"}, {"id": 8, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps({**content, "annotations": annotations}))
    results = [
        {"image_id": 2, "category_id": 8, "bbox": [3, 3, 20, 30], "score": 0.75},
        {"image_id": 9, "bbox": [1, 1, 2, 2]},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_what_cannot_be_used_is_named_with_its_reason(files: Path) -> None:
    found = CocoDetections.read(files / "instances.json", files / "pictures")
    assert [(p.image, [r["coco"]["id"] for r in p.regions]) for p in found.pictures] == [
        ("a.png", [11, 12]),
        ("b.png", [13]),
    ]
    assert [sorted(r) for p in found.pictures for r in p.regions] == [
        ["box", "category", "coco"], ["category", "coco", "mask"], ["category", "coco", "mask"],
    ]  # fmt: skip
    told = {
        "picture 3": "gone.png", "picture 4": "expected a path in the folder", "picture 5": "the file says 91 × 60",
        "annotation 14": "picture 3 is not listed, or is left out", "annotation 15": "a size above 0",
        "annotation 16": "RLE of size",
        "annotation 17": "bbox is None", "annotation number 8": "expected an object",
    }  # fmt: skip
    assert found.left_out.keys() == told.keys()
    for what, words in told.items():
        assert words in found.left_out[what]


def test_annotations_keep_ids_and_scores_and_get_masks_and_words(
    files: Path, tiny_tokenizer: TapRegionTokenizer
) -> None:
    found = CocoDetections.read(files / "instances.json", files / "pictures")
    made = []
    for picture in found.pictures:
        regions = tiny_tokenizer.encode(picture.path, prompts=picture.prompts, with_masks=True)
        words = [f"words of {i}" for i in range(len(regions))]
        made += found.annotations_of(picture, regions, captions=words, concepts=tiny_tokenizer.classify(regions, 2))
        assert [one["segmentation"] for one in made[-len(regions) :]] == regions.coco_rle()
    assert [one["id"] for one in made] == [11, 12, 13]
    assert made[2]["score"] == 0.25
    assert made[0]["score"] == made[0]["predicted_iou"]
    assert made[0]["bbox"] == [5, 6, 35, 44]
    assert made[1]["caption"] == "words of 1"
    assert [len(one["concepts"]) for one in made] == [2, 2, 2]
    found.write(files / "out.json", made)
    written = json.loads((files / "out.json").read_text())
    assert written["info"] == {"year": 2026}
    assert [image["id"] for image in written["images"]] == [1, 2, 3, 4, 5]
    assert all(one["area"] == sum(one["segmentation"]["counts"][1::2]) for one in written["annotations"])


def test_a_written_file_is_read_by_pycocotools_and_by_us(files: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    tools = pytest.importorskip("pycocotools.coco", reason="needs the extra train")
    found = CocoDetections.read(files / "instances.json", files / "pictures", files / "results.json")
    (picture,) = [one for one in found.pictures if one.regions]
    regions = tiny_tokenizer.encode(picture.path, prompts=picture.prompts, with_masks=True)
    found.write(files / "out.json", found.annotations_of(picture, regions))
    coco = tools.COCO(str(files / "out.json"))
    assert np.array_equal(coco.annToMask(coco.anns[1]).astype(bool), regions.masks[0].numpy())
    again = CocoDetections.read(files / "out.json", files / "pictures")
    assert again.pictures[1].regions[0]["coco"]["score"] == 0.75


def shell(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    got = capsys.readouterr()
    return code, got.out, got.err


def test_the_shell_writes_what_python_does(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = files / "out.json"
    flags = ["describe", files / "pictures", "--coco", files / "instances.json", "--output", output]
    code, out, err = shell(capsys, *flags)
    assert (code, "Wrote 3 annotations" in out, "annotation 15: " in err) == (0, True, True)
    assert "8 entries are left out" in err
    written = json.loads(output.read_text())["annotations"]
    assert [one["id"] for one in written] == [11, 12, 13]
    assert all(one["caption"] and len(one["concepts"]) == 3 for one in written)
    assert sorted(path.name for path in files.iterdir() if "out" in path.name) == ["out.json"]
    assert shell(capsys, *flags)[0] == 2  # it exists


def test_detectors_results_from_the_shell(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--coco", files / "instances.json", "--results", files / "results.json", "--output", files / "out.json"]
    code, _, err = shell(capsys, "describe", files / "pictures", *flags)
    assert (code, "result number 2: its picture 9 is not listed" in err) == (0, True)
    (one,) = json.loads((files / "out.json").read_text())["annotations"]
    assert (one["id"], one["score"], one["category_id"]) == (1, 0.75, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", 'no list "images"'), ('{"images": []}', 'no list "annotations"')],
)
def test_files_of_another_layout_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        CocoDetections.read(tmp_path / "other.json", tmp_path)
