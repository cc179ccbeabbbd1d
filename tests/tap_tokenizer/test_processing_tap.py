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
def test_a_mask_given_as_a_picture_equals_its_array(processor: TapProcessor, mode: str, value: int) -> None:
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
    ({"point_labels": [[1]]}, "point_labels without points"),
    ({"boxes": [[0, 0, 4, 4]], "points": [None], "point_labels": [[1]]}, "point_labels but no points: give both"),
    ({"points": [[[1, 1]]], "point_labels": [[7]]}, r"point labels \[7.0\], expected 1 \(on the region\) or 0"),
    ({"points": [[[1, 1]]], "point_labels": [[1, 1]]}, "1 point and 2 labels: give one label per point"),
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


def test_coordinates_up_to_a_pixel_outside_are_clipped(processor: TapProcessor) -> None:
    out = processor(PICTURE, boxes=[[-0.5, -0.4, 32.6, 16.9], [-1, 3, 33, 17]])
    assert out["prompt_boxes"].tolist() == [[0, 0, 32, 16], [0, 3, 32, 16]]
    assert out["input_points"].tolist() == [[[0, 0], [64, 32]], [[0, 6], [64, 32]]]
    out = processor(PICTURE, points=[[[-1, 16.5], [33, 3]]])
    assert out["input_points"][0, :2].tolist() == [[0, 32], [64, 6]]
    for box in ([-1.1, 0, 4, 4], [0, 0, 33.2, 4]):
        with pytest.raises(ValueError, match="leaves the picture"):
            processor(PICTURE, boxes=[box])


def test_points_without_labels_all_lie_on_their_region(processor: TapProcessor) -> None:
    points = [[[3, 4], [5, 6]], [[7, 8]]]
    want = processor(PICTURE, points=points, point_labels=[[1, 1], [1]])
    for labels in (None, [None, [1]], [None, None]):
        out = processor(PICTURE, points=points, point_labels=labels)
        assert torch.equal(out["input_labels"], want["input_labels"])
    batch = processor([PICTURE, PICTURE], points=[points[:1], points[1:]])
    assert torch.equal(batch["input_labels"], want["input_labels"])
    arrays = processor(PICTURE, points=np.array([[[3, 4]], [[7, 8]]]))
    assert arrays["input_labels"].tolist() == [[1, 4], [1, 4]]


LARGE = np.zeros((480, 640, 3), np.uint8)

SCALES: list[tuple[dict[str, Any], str]] = [
    ({"boxes": [[0.1, 0.2, 0.5, 0.6]]}, "thinner than a pixel.* 0 … 1: .*multiply x by 640 and y by 480"),
    ({"boxes": [[0.0, 0.0, 1.0, 1.0]]}, "one pixel in the corner.* 0 … 1: .*multiply x by 640 and y by 480"),
    ({"boxes": [[0, 0, 1, 1], [0.2, 0.3, 0.9, 0.8]]}, "Region 0: box .* 0 … 1"),
    ({"boxes": [[0.5, 0.5, 0.2, 0.3]]}, "empty or inverted.* 0 … 1"),
    ({"boxes": [[-0.001, 0.2, 0.5, 1.002]]}, "thinner than a pixel.* 0 … 1"),
    ({"boxes": [[100, 200, 900, 950]]}, "leaves the picture.* 0 … 1000: .*multiply x by 0.64 and y by 0.48"),
    ({"boxes": [[10, 10, 20, 20], [100, 200, 900, 950]]}, "Region 1: box .* 0 … 1000"),
    ({"points": [[[400, 900]]]}, "lies outside.* 0 … 1000: .*multiply x by 0.64 and y by 0.48"),
    ({"points": [[[0.4, 0.7]]]}, "point .* one pixel in the corner.* 0 … 1: .*multiply x by 640"),
    ({"points": [[[0, 1]], [[0.4, 0.7], [1.0, 0.2]]], "point_labels": [[1], [1, 0]]}, "Region 0: point .* 0 … 1"),
]


@pytest.mark.parametrize(("prompts", "message"), SCALES, ids=str)
def test_coordinates_that_are_not_pixels_are_refused_with_a_guess(
    processor: TapProcessor, prompts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(LARGE, **prompts)
    with pytest.raises(ValueError, match=message):
        processor([LARGE], **{name: [value] for name, value in prompts.items()})


@pytest.mark.parametrize(
    "box",
    [
        [10, 10, 10.5, 90],
        [10, 10, 90, 10.2],
        [639.5, 3, 640.9, 50],
        [640, 1, 641, 5],
        [-1, 5, 0.4, 50],
        [5, 479.2, 9, 481],
    ],
    ids=str,
)
def test_a_box_thinner_than_a_pixel_is_refused_for_that_reason(processor: TapProcessor, box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"is thinner than a pixel of the picture of 640 × 480 pixels\.$"):
        processor(LARGE, boxes=[[20, 20, 90, 90], box])


def test_small_regions_and_corners_are_accepted_where_plausible(processor: TapProcessor) -> None:
    assert processor(LARGE, boxes=[[33.29, 5, 34.29, 6]])["prompt_boxes"].shape == (1, 4)
    assert processor(LARGE, boxes=np.array([[33.29, 5, 34.29, 6]], np.float32))["prompt_boxes"].shape == (1, 4)
    assert (
        len(processor(LARGE, boxes=[[226.41, 103.74, 227.15, 104.5]])["prompt_boxes"]) == 1
    )  # reaches into two pixels
    assert len(processor(LARGE, boxes=[[0, 0, 1, 1], [5, 5, 60, 70]])["prompt_boxes"]) == 2
    assert len(processor(LARGE, points=[[[0.4, 0.7], [30, 40]]])["prompt_boxes"]) == 1
    assert len(processor(LARGE, points=[[[0, 0]], [[1, 1]]])["prompt_boxes"]) == 2
    assert len(processor(PICTURE[:1, :1], boxes=[[0, 0, 1, 1]])["prompt_boxes"]) == 1
    assert len(processor(PICTURE[:2, :3], points=[[[0.5, 0.5]]])["prompt_boxes"]) == 1


def hostile() -> list[Any]:
    """What is no box, no points and no labels."""
    itself: list[Any] = []
    itself.append(itself)
    twice: list[Any] = []
    twice += [twice, twice]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    objects = np.empty(4, dtype=object)
    objects[:] = [10**400, 0, 1, 1]
    return [
        [10**400, 0, 1, 1], [-(10**5000), 0, 1, 1], objects, torch.zeros(4, device="meta"), itself, twice, [itself] * 4, deep,
        torch.zeros(4).to_sparse(), torch.ones(4, dtype=torch.complex64), np.ones(4, dtype=complex), [1j] * 4, {"x1": 1},
        {1, 2}, "abcd", b"abcd", 1, True, float("nan"), object(), [None] * 4, ["a"] * 4, [[1], [2, 3], [4], [5]],
        [1e308, 0, 1e309, 1], [-1e308, -1e308, 1e308, 1e308], iter([1, 2, 3, 4]), np.float32(3), torch.tensor(3.0),
    ]  # fmt: skip


HOSTILE = hostile()


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_values_give_a_one_sentence_error(processor: TapProcessor, number: int) -> None:
    points = [[[5, 6]]]
    for wrap in (lambda v: [v], lambda v: v, lambda v: [[v]]):
        for prompts in (
            {"boxes": wrap(HOSTILE[number])},
            {"points": wrap(HOSTILE[number])},
            {"boxes": [[1, 2, 30, 40]], "points": points, "point_labels": [HOSTILE[number]]},
        ):
            try:
                processor(LARGE, **prompts)
            except ValueError as error:
                assert len(str(error)) < 400  # noqa: PT017 - some of these are labels as well
                assert "\n" not in str(error)  # noqa: PT017
            with pytest.raises(ValueError, match=r"^(Got|Image 0)"):
                processor([LARGE, LARGE], **prompts)
    with pytest.raises(ValueError, match=r"^(Got boxes|Region 0)"):
        processor(LARGE, boxes=[HOSTILE[number]])


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
