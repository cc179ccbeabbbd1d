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
        best = tiny_tokenizer.classify(regions, 2)
        made += found.annotations_of(picture, regions, captions=words, concepts=best, replace_masks=True)
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
    assert all(one["area"] == sum(one["segmentation"]["counts"][1::2]) for one in written["annotations"][:3])


def test_every_field_of_an_entry_comes_back_and_so_do_entries_that_cannot_be_used(
    files: Path, tiny_tokenizer: TapRegionTokenizer
) -> None:
    content = json.loads((files / "instances.json").read_text())
    content["annotations"][1] |= {"keypoints": [5, 6, 2], "attributes": {"occluded": True}, "note": None, "area": 321.5}
    (files / "instances.json").write_text(json.dumps(content))
    found = CocoDetections.read(files / "instances.json", files / "pictures")
    made: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for replaced, own in made.items():
        for picture in found.pictures:
            regions = tiny_tokenizer.encode(picture.path, prompts=picture.prompts, with_masks=True)
            own += found.annotations_of(picture, regions, replace_masks=replaced)
    box, mask, polygon = made[False]
    assert {name: mask[name] for name in content["annotations"][1]} == content["annotations"][1]
    assert polygon["segmentation"] == content["annotations"][2]["segmentation"]
    assert box["area"] == sum(box["segmentation"]["counts"][1::2])  # it had no mask
    assert polygon["area"] == 28 * 58  # its own, not that of TAP's mask
    assert (made[True][1]["keypoints"], made[True][1]["bbox"]) == ([5, 6, 2], [0, 0, 9, 9])
    assert made[True][1]["area"] == sum(made[True][1]["segmentation"]["counts"][1::2]) != 321.5
    found.write(files / "out.json", made[False])
    written = json.loads((files / "out.json").read_text())["annotations"]
    assert written[3:] == [one for one in content["annotations"][3:] if isinstance(one, dict)]


def test_boxes_that_reach_beyond_the_picture_are_clipped_and_those_outside_named(
    files: Path, tiny_tokenizer: TapRegionTokenizer
) -> None:
    beyond = {"image_id": 1, "category_id": 7, "bbox": [-3, 10, 53, 70], "score": 0.5}
    (files / "results.json").write_text(json.dumps([{**beyond, "bbox": [-30, 10, 20, 9]}, beyond]))
    found = CocoDetections.read(files / "instances.json", files / "pictures", files / "results.json")
    assert found.pictures[0].regions == [{"box": [0, 10, 50, 60], "category": "mug", "coco": beyond}]
    assert "lies outside the picture of 90 × 60 pixels" in found.left_out["result number 1"]
    regions = tiny_tokenizer.encode(found.pictures[0].path, prompts=found.pictures[0].prompts, with_masks=True)
    (one,) = found.annotations_of(found.pictures[0], regions)
    assert one["bbox"] == [-3, 10, 53, 70]


def test_a_picture_that_is_listed_twice_is_one_and_two_with_one_id_are_refused(files: Path) -> None:
    content = json.loads((files / "instances.json").read_text())
    content["images"][4] |= {"width": 90}  # a.png once more
    content["annotations"].append({"id": 18, "image_id": 5, "category_id": 7, "bbox": [1, 1, 9, 9]})
    (files / "twice.json").write_text(json.dumps(content))
    found = CocoDetections.read(files / "twice.json", files / "pictures")
    assert [(p.image, [r["coco"]["image_id"] for r in p.regions]) for p in found.pictures] == [
        ("a.png", [1, 1, 5]),
        ("b.png", [2]),
    ]
    content["images"][1]["id"] = 1
    (files / "twice.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"has two pictures with the id 1, a\.png and b\.png: give each an id of its own"
    ):
        CocoDetections.read(files / "twice.json", files / "pictures")


def test_what_is_no_id_and_no_list_is_told_in_words(files: Path) -> None:
    content = json.loads((files / "instances.json").read_text())
    content["images"][1]["id"] = [2]
    content["annotations"][0]["category_id"] = [7]
    content["annotations"] += [{"id": 15, "image_id": {}}]
    (files / "odd.json").write_text(json.dumps({**content, "categories": None}))
    found = CocoDetections.read(files / "odd.json", files / "pictures")
    assert found.left_out["picture [2]"] == "its id is [2], expected a number or a text"
    assert {"annotation 15", "annotation 15, number 9"} <= set(found.left_out)
    assert "category" not in found.pictures[0].regions[0]
    (files / "odd.json").write_text(json.dumps({**content, "categories": {"id": 7}}))
    with pytest.raises(ValueError, match="has categories of type dict, expected a list"):
        CocoDetections.read(files / "odd.json", files / "pictures")


def test_results_come_back_as_results(files: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    tools = pytest.importorskip("pycocotools.coco", reason="needs the extra train")
    found = CocoDetections.read(files / "instances.json", files / "pictures", files / "results.json")
    (picture,) = [one for one in found.pictures if one.regions]
    regions = tiny_tokenizer.encode(picture.path, prompts=picture.prompts, with_masks=True)
    (one,) = found.as_results(found.annotations_of(picture, regions, captions=["words"]))
    assert one.keys() == {"image_id", "category_id", "bbox", "score", "segmentation", "predicted_iou"}
    (files / "out.json").write_text(json.dumps([one]))
    truth = json.loads((files / "instances.json").read_text())
    (files / "truth.json").write_text(json.dumps({**truth, "annotations": []}))
    loaded = tools.COCO(str(files / "truth.json")).loadRes(str(files / "out.json"))
    assert np.array_equal(loaded.annToMask(loaded.anns[1]).astype(bool), regions.masks[0].numpy())


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
    assert [one["id"] for one in written] == [11, 12, 13, 14, 15, 16, 17]
    assert all(one["caption"] and len(one["concepts"]) == 3 for one in written[:3])
    assert sorted(path.name for path in files.iterdir() if "out" in path.name) == ["out.json"]
    assert shell(capsys, *flags)[0] == 2  # it exists


def test_detectors_results_from_the_shell(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--coco", files / "instances.json", "--results", files / "results.json", "--output", files / "out.json"]
    code, _, err = shell(capsys, "describe", files / "pictures", *flags)
    assert (code, "result number 2: its picture 9 is not listed" in err) == (0, True)
    (one,) = json.loads((files / "out.json").read_text())["annotations"]
    assert (one["id"], one["score"], one["category_id"]) == (1, 0.75, 8)
    flags[-1] = files / "list.json"
    assert shell(capsys, "describe", files / "pictures", *flags, "--as_results")[0] == 0
    (again,) = json.loads((files / "list.json").read_text())
    assert again == {name: one[name] for name in one if name not in ("id", "area", "iscrowd", "caption")}


def test_lines_that_a_kill_left_are_not_taken_for_those_of_other_options(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["describe", files / "pictures", "--coco", files / "instances.json", "--output", files / "out.json"]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CocoDetections, "write", killed)
        assert shell(capsys, *flags)[0] == 130
    assert (files / "out.json.lines").exists()
    for changed in (["--replace_masks"], ["--top_k", 1], ["--vocabulary", "umbrella,cloud"]):
        code, _, err = shell(capsys, *flags, *changed)
        assert (code, "out.json.lines was made with other regions, models or options" in err) == (2, True)
    code, out, _ = shell(capsys, *flags)
    assert (code, "Wrote 3 annotations" in out) == (0, True)
    assert not (files / "out.json.lines").exists()


def test_the_annotations_of_pictures_that_cannot_be_read_stay_as_they_are(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (files / "pictures" / "b.png").read_bytes()
    (files / "pictures" / "b.png").write_bytes(whole[: len(whole) // 2])  # its size can be read, but not its pixels
    flags = ["describe", files / "pictures", "--coco", files / "instances.json", "--output", files / "out.json"]
    code, out, _ = shell(capsys, *flags, "--skip_unreadable")
    assert (code, "Wrote 2 annotations" in out) == (0, True)
    written = {one["id"]: one for one in json.loads((files / "out.json").read_text())["annotations"]}
    given = json.loads((files / "instances.json").read_text())["annotations"]
    assert written[13] == given[2]


def test_flags_for_cocos_layout_are_refused_without_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,1,1,9,9\n")
    flags = ["describe", files / "pictures", "--boxes", files / "boxes.csv", "--output", files / "out.jsonl"]
    for flag in ("--replace_masks", "--as_results"):
        code, _, err = shell(capsys, *flags, flag)
        assert (code, "or in a file of COCO's layout, --coco" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", 'no list "images"'), ('{"images": []}', 'no list "annotations"')],
)
def test_files_of_another_layout_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        CocoDetections.read(tmp_path / "other.json", tmp_path)
