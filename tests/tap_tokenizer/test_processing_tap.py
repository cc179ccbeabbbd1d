"""Prompts: what they become in the model frame, and which are refused, with what words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_forms import BOX, sharp_forms, soft_forms
from PIL import Image
from transformers import AutoProcessor

from tap_tokenizer import TapConfig, TapImageProcessor, TapProcessor
from tap_tokenizer.processing_tap import interior_points


@pytest.fixture(scope="module")
def processor() -> TapProcessor:
    return TapProcessor(TapImageProcessor(image_size=64))


PICTURE = np.zeros((16, 32, 3), np.uint8)  # height 16, width 32: the frame is twice as large


def test_a_box_is_two_corners(processor: TapProcessor) -> None:
    out = processor(PICTURE, boxes=[[1, 2, 30, 15.5]])
    assert out["input_points"].tolist() == [[[2.0, 4.0], [60.0, 31.0]]]
    assert out["input_labels"].tolist() == [[2, 3]]
    assert out["prompt_boxes"].tolist() == [[1.0, 2.0, 30.0, 15.5]]


def test_points_end_with_one_padding_point(processor: TapProcessor) -> None:
    out = processor(PICTURE, points=[[[3, 4], [5, 6]]], point_labels=[[1, 0]])
    assert out["input_points"][0, :2].tolist() == [[6.0, 8.0], [10.0, 12.0]]
    assert out["input_labels"].tolist() == [[1, 0, 4]]
    assert out["prompt_boxes"].isnan().all()


def test_box_and_points_have_no_padding_point(processor: TapProcessor) -> None:
    out = processor(PICTURE, boxes=[[1, 2, 8, 9]], points=[[[3, 4]]], point_labels=[[1]])
    assert out["input_labels"].tolist() == [[2, 3, 1]]


def test_ragged_prompts_are_masked(processor: TapProcessor) -> None:
    out = processor(PICTURE, boxes=[[0, 0, 4, 4], None], points=[None, [[1, 1]] * 3], point_labels=[None, [1] * 3])
    assert out["input_labels"].tolist() == [[2, 3, 4, 4], [1, 1, 1, 4]]
    assert out["prompt_mask"].tolist() == [[True, True, False, False], [True] * 4]


def test_regions_of_several_pictures(processor: TapProcessor) -> None:
    pictures = [PICTURE, PICTURE[:, :8], PICTURE]
    out = processor(pictures, boxes=[[[0, 0, 4, 4]], [], [[0, 0, 2, 2], [1, 1, 9, 9]]])
    assert out["image_index"].tolist() == [0, 2, 2]
    assert out["pixel_values"].shape[0] == 3


def test_arrays_and_tensors_are_prompts_too(processor: TapProcessor) -> None:
    boxes = np.array([[1, 2, 8, 9]], dtype=np.float32)
    want = processor(PICTURE, boxes=boxes.tolist())["input_points"]
    assert torch.equal(processor(PICTURE, boxes=boxes)["input_points"], want)
    assert torch.equal(processor(PICTURE, boxes=torch.from_numpy(boxes))["input_points"], want)


def test_a_mask_becomes_its_box_and_points_inside(processor: TapProcessor) -> None:
    mask = np.zeros((16, 32), bool)
    mask[4:12, 6:30] = True
    mask[6:8, 10:12] = False
    for form in (mask, torch.from_numpy(mask), Image.fromarray(mask), mask.astype(np.uint8) * 255):
        out = processor(PICTURE, masks=[form])
        assert out["prompt_boxes"].tolist() == [[6.0, 4.0, 30.0, 12.0]]
        assert out["input_labels"][0, :2].tolist() == [2, 3]
        assert set(out["input_labels"][0, 2:].tolist()) == {1}
        for x, y in (out["input_points"][0, 2:] / 2).tolist():
            assert mask[int(y), int(x)]


def test_masks_in_every_form_have_one_box(processor: TapProcessor, tmp_path: Path) -> None:
    picture = np.zeros((512, 512, 3), np.uint8)
    forms = dict([*sharp_forms(tmp_path), *soft_forms()])
    boxes = processor(picture, masks=list(forms.values()))["prompt_boxes"].tolist()
    for name, box in zip(forms, boxes):
        assert box == pytest.approx(BOX, abs=1), name


def test_masks_of_all_regions_may_lie_in_one_array(processor: TapProcessor) -> None:
    mask = np.zeros((16, 32), np.uint8)
    mask[4:12, 6:30] = 1
    for form in (mask[None], mask[None, None], mask[None, ..., None]):
        assert processor(PICTURE, masks=form)["prompt_boxes"].tolist() == [[6.0, 4.0, 30.0, 12.0]]
        assert processor(PICTURE, masks=torch.from_numpy(form))["prompt_boxes"].tolist() == [[6.0, 4.0, 30.0, 12.0]]


@pytest.mark.parametrize("value", [1, 15, 128, 255])
@pytest.mark.parametrize("mode", ["L", "P", "I"])
def test_a_mask_as_a_picture_is_as_its_numbers(processor: TapProcessor, mode: str, value: int) -> None:
    numbers = np.zeros((16, 32), np.uint8)
    numbers[3:12, 5:25] = value
    picture = Image.fromarray(numbers)
    picture = picture.convert("I") if mode == "I" else picture
    if mode == "P":
        picture.putpalette([0, 0, 0, *[200, 10, 10] * 255])
    want = processor(PICTURE, masks=[numbers > 0])
    torch.testing.assert_close(processor(PICTURE, masks=[picture])["input_points"], want["input_points"])


def test_interior_points_lie_deep_and_apart() -> None:
    bell = np.zeros((100, 300), bool)
    bell[:, :100] = bell[:, 200:] = True
    bell[48:52, 100:200] = True
    points = interior_points(bell)
    assert len(points) == 3
    assert all(bell[int(y), int(x)] for x, y in points)
    assert {x < 150 for x, _ in points} == {True, False}
    line = np.zeros((200, 200), bool)
    np.fill_diagonal(line, True)
    assert all(line[int(y), int(x)] for x, y in interior_points(line))


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "Got no prompts: give boxes"),
    ({"boxes": [[5, 5, 2, 9]]}, "Region 0: box .* empty or inverted, expected x1 < x2"),
    ({"boxes": [[5, 5, 5, 9]]}, "empty or inverted"),
    ({"boxes": [[0, 0, 200, 9]]}, "leaves the picture of 32 × 16 pixels: clip it"),
    ({"boxes": [[-20, 0, 5, 5]]}, "leaves the picture"),
    ({"boxes": [[0, 0, float("nan"), 9]]}, "expected finite numbers"),
    ({"boxes": [[0, 0, float("inf"), 9]]}, "expected finite numbers"),
    ({"boxes": [[1, 2, 3]]}, r"has shape \(3,\), expected 4 numbers"),
    ({"boxes": [["a", 0, 1, 1]]}, "expected numbers"),
    (
        {"boxes": [1, 2, 8, 9]},
        r"flat list of numbers, expected one entry per region: write boxes=\[\[x1, y1, x2, y2\]\]\.",
    ),
    ({"boxes": np.zeros((2, 3, 4))}, "regions come first"),
    ({"boxes": "everything"}, "type str"),
    ({"points": [[[1, 1]]]}, "points without point_labels"),
    ({"point_labels": [[1]]}, "point_labels without points"),
    ({"points": [[[1, 1]]], "point_labels": [[7]]}, r"point labels \[7.0\], expected 1 \(on the region\) or 0"),
    ({"points": [[[1, 1]]], "point_labels": [[1, 1]]}, "1 points and 2 labels: give one label per point"),
    ({"points": [[[1, 1]]], "point_labels": [[1], [1]]}, "Got 1 points, 2 point_labels: give the same number"),
    ({"points": [[[50, 1]]], "point_labels": [[1]]}, "lies outside the picture of 32 × 16"),
    ({"points": [[]], "point_labels": [[]]}, "neither a box nor points"),
    ({"boxes": [None]}, "Region 0 has no prompt"),
    ({"boxes": [[0, 0, 4, 4], [0, 0, 4, 4]], "points": [[[1, 1]]], "point_labels": [[1]]}, "Got 2 boxes, 1 points"),
    ({"masks": [np.zeros((16, 32), bool)]}, "mask is empty"),
    (
        {"masks": [np.ones((8, 8), bool)]},
        r"mask has shape \(8, 8\), expected the picture's \(height, width\) \(16, 32\)",
    ),
    ({"masks": [np.full((16, 32), np.nan)]}, "mask holds NaN"),
    ({"masks": [np.ones((16, 32), bool)], "boxes": [[0, 0, 4, 4]]}, "a mask stands alone"),
]


@pytest.mark.parametrize(("prompts", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_prompts_are_refused(processor: TapProcessor, prompts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(PICTURE, **prompts)


def test_prompts_for_another_number_of_pictures_are_refused(processor: TapProcessor) -> None:
    with pytest.raises(ValueError, match="Got boxes for 3 images, but 2 images: give one list of boxes per image"):
        processor([PICTURE, PICTURE], boxes=[[], [], []])
    with pytest.raises(ValueError, match="Image 1: Region 0: box"):
        processor([PICTURE, PICTURE], boxes=[[[0, 0, 4, 4]], [[9, 9, 1, 1]]])


def test_rounding_over_the_edge_is_allowed(processor: TapProcessor) -> None:
    assert len(processor(PICTURE, boxes=[[-0.5, -0.4, 32.6, 16.9]])["input_points"]) == 1


def test_saving_and_auto_class(processor: TapProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    TapConfig().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, TapProcessor)
    assert loaded.image_processor.image_size == 64


def test_a_list_of_boxes_for_a_list_of_pictures_is_explained(processor: TapProcessor) -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"^Image 0: .*write boxes=\[\[\[x1, y1, x2, y2\]\], …\], a list of regions for every"
    ):
        processor([picture, picture], boxes=[[1, 2, 30, 40], [1, 2, 30, 40]])
