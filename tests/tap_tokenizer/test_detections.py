"""Detections of supervision in and out, as the package has them and as anything with the same attributes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import TapRegionTokenizer

BOXES = [[5.0, 6.0, 40.0, 50.0], [30.0, 10.0, 80.0, 55.0]]


@dataclass
class Detections:
    """The attributes of supervision's class that the project reads and writes."""

    xyxy: Any
    mask: Any = None
    confidence: Any = None
    class_id: Any = None
    tracker_id: Any = None
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, rows: Any) -> Detections:
        return Detections(self.xyxy[rows])


@pytest.fixture
def supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name, whether it is installed or not."""
    module = ModuleType("supervision")
    module.Detections = Detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)


@pytest.fixture
def given() -> Detections:
    return Detections(
        np.array(BOXES),
        confidence=np.array([0.9, 0.4]),
        class_id=np.array([3, 1]),
        tracker_id=np.array([7, 8]),
        data={"class_name": np.array(["mug", "table"]), "camera": ["left", "left"]},
        metadata={"frame": 7},
    )


def test_boxes_of_detections_are_the_prompts(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, given: Detections
) -> None:
    ours, plain = tiny_tokenizer.encode(picture, given), tiny_tokenizer.encode(picture, boxes=BOXES)
    assert torch.equal(ours.semantic_tokens, plain.semantic_tokens)
    assert ours.boxes.tolist() == BOXES


def test_masks_of_detections_come_before_boxes_unless_they_are_empty(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    masks = np.zeros((2, 60, 90), bool)
    masks[0, 20:50, 10:35] = True
    ours = tiny_tokenizer.encode(picture, Detections(np.array(BOXES), mask=masks))
    plain = tiny_tokenizer.encode(picture, boxes=[None, BOXES[1]], masks=[masks[0], None])
    assert torch.equal(ours.semantic_tokens, plain.semantic_tokens)


def test_a_picture_without_detections_has_no_regions(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    assert len(tiny_tokenizer.encode(picture, Detections(np.zeros((0, 4))))) == 0


def test_several_pictures_take_a_list(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image, given: Detections
) -> None:
    both = tiny_tokenizer.encode([picture, other_picture], [given, Detections(np.array([[1.0, 1, 30, 60]]))])
    assert both.image_index.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([[1, 2, 3, 4]], "Got detections of type list, expected supervision's Detections"),
        (Detections(np.zeros(4)), r"detections.xyxy has shape \(4,\), expected"),
        (Detections(np.array(BOXES), mask=np.ones((1, 60, 90), bool)), "Got 1 mask for 2 boxes"),
        (Detections(np.array([[5.0, 5, 5, 5]])), "Region 0"),
    ],
)
def test_what_is_no_detections_is_refused(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, detections: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_tokenizer.encode(picture, detections)


def test_boxes_that_reach_beyond_the_picture_are_clipped(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, other_picture: Image.Image
) -> None:
    beyond = Detections(np.array([[-3, 10, 50, 60], [5, 6, 40, 50], [70, -20, 130, 80]], np.float32))
    inside = [[0.0, 10, 50, 60], [5, 6, 40, 50], [70, 0, 90, 60]]
    ours = tiny_tokenizer.encode(picture, beyond)
    assert ours.boxes.tolist() == inside
    assert torch.equal(ours.semantic_tokens, tiny_tokenizer.encode(picture, boxes=inside).semantic_tokens)
    features = tiny_tokenizer.embed_image([picture, other_picture])
    both = tiny_tokenizer.encode(None, [Detections(np.zeros((0, 4))), beyond[:1]], features=features)
    assert (both.boxes.tolist(), both.image_index.tolist()) == ([[0, 10, 40, 60]], [1])
    with pytest.raises(ValueError, match=r"Region 0: box .* leaves the picture of 90 × 60 pixels: clip it"):
        tiny_tokenizer.encode(picture, boxes=beyond.xyxy.tolist())


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([-30.0, 10, -5, 50], "lies outside the picture of 90 × 60 pixels"),
        ([90.0, 10, 99, 50], "lies outside the picture of 90 × 60 pixels"),
        ([10.0, -9, 20, 0.25], "is thinner than a pixel"),
        ([10.0, 50, 20, 50], "is empty or inverted"),
    ],
)
def test_boxes_with_nothing_in_the_picture_are_refused_by_their_rows(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, box: list[float], words: str
) -> None:
    found = Detections(np.array([BOXES[0], box, BOXES[1], box]))
    told = rf"Region 1: box .* {words}.* Rows of detections whose boxes cannot be used: 1, 3 \(2 of 4\)\. Correct these"
    with pytest.raises(ValueError, match=told):
        tiny_tokenizer.encode(picture, found)
    corners = np.clip(found.xyxy, 0, [90, 60, 90, 60])  # as the documentation drops them
    kept = found[(corners[:, 2:] - corners[:, :2] >= 1).all(axis=1)]
    assert tiny_tokenizer.encode(picture, kept).boxes.tolist() == BOXES


def test_a_box_that_leaves_one_pixel_in_the_corner_is_refused_as_it_was_given(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    with pytest.raises(ValueError, match=r"Region 0: box \[-50, -50, 1, 1\] covers only the one pixel in the corner"):
        tiny_tokenizer.encode(picture, Detections(np.array([[-50.0, -50, 1, 1]])))


def test_shares_of_a_picture_are_no_boxes_of_a_detector(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    with pytest.raises(ValueError, match="multiply x by 90 and y by 60"):
        tiny_tokenizer.encode(picture, Detections(np.array([[0.1, 0.2, 0.5, 1.0]])))


def test_detections_stand_alone(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, given: Detections) -> None:
    with pytest.raises(ValueError, match="Got detections and boxes: give detections alone"):
        tiny_tokenizer.encode(picture, given, boxes=BOXES)
    with pytest.raises(ValueError, match="Got detections as Detections for 1 image, expected a list"):
        tiny_tokenizer.encode([picture], given)


@pytest.mark.usefixtures("supervision")
def test_what_the_detector_said_is_kept_beside_what_tap_says(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, given: Detections
) -> None:
    regions = tiny_tokenizer.encode(picture, given, with_masks=True)
    assert tiny_tokenizer.concepts is not None
    names, best = tiny_tokenizer.concepts.names, tiny_tokenizer.classify(regions, 3)
    made = regions.to_detections(given, concepts=best, vocabulary=names, captions=["a", "b"])
    assert made.xyxy.tolist() == BOXES
    assert np.array_equal(made.mask, regions.masks.numpy())
    assert made.confidence.tolist() == [0.9, 0.4]
    assert made.tracker_id.tolist() == [7, 8]
    assert made.data["class_name"].tolist() == [own[0][0] for own in best]
    assert made.class_id.tolist() == [names.index(own[0][0]) for own in best]
    assert made.data["detector_class_name"].tolist() == ["mug", "table"]
    assert made.data["camera"] == ["left", "left"]
    assert made.metadata == {"frame": 7}
    assert made.metadata is not given.metadata
    assert made.data["caption"].tolist() == ["a", "b"]
    assert np.allclose(made.data["region_embedding"], regions.embeds)
    assert np.allclose(made.data["mask_quality"], regions.quality)
    assert given.data.keys() == {"class_name", "camera"}


@pytest.mark.usefixtures("supervision")
def test_without_a_detector_the_confidence_is_the_predicted_iou(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    made = regions.to_detections(concepts=[[("b", 0.9)], [("a", 0.8)]], with_masks=False)
    assert np.allclose(made.confidence, regions.quality)
    assert made.mask is None


@pytest.mark.usefixtures("supervision")
def test_class_ids_mean_the_same_in_every_picture(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, given: Detections
) -> None:
    both = tiny_tokenizer.encode(picture, given)
    first, later = [[("dog", 0.9)], [("cat", 0.8)]], [[("dog", 0.7)]]
    options: dict[str, Any] = {"vocabulary": ["bird", "dog", "cat"], "with_masks": False}
    assert both.to_detections(given, concepts=first, **options).class_id.tolist() == [1, 2]
    assert both[0].to_detections(concepts=later, **options).class_id.tolist() == [1]
    assert both[:0].to_detections(concepts=[], **options).class_id.tolist() == []
    bare = both.to_detections(given, concepts=first, with_masks=False)
    assert bare.class_id is None  # the detector's ids are those of other names
    assert bare.data["class_name"].tolist() == ["dog", "cat"]
    assert both.to_detections(given, with_masks=False).class_id.tolist() == [3, 1]


@pytest.mark.usefixtures("supervision")
def test_lists_that_do_not_fit_are_refused(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    with pytest.raises(ValueError, match="Got 1 captions for 2 regions"):
        regions.to_detections(captions=["one"])
    with pytest.raises(ValueError, match="vocabulary lacks a"):
        regions.to_detections(concepts=[[("a", 1.0)], [("b", 1.0)]], vocabulary=["b"])
    both = tiny_tokenizer.encode([picture, picture], boxes=[BOXES, BOXES])
    with pytest.raises(ValueError, match="Got regions of 2 pictures, expected one"):
        both.to_detections()


def test_without_supervision_the_error_says_how_to_get_it(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        tiny_tokenizer.encode(picture, boxes=BOXES).to_detections()


def test_the_real_package_reads_and_filters_what_is_made(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    sv = pytest.importorskip("supervision", reason="needs the extra detections")
    found = sv.Detections(xyxy=np.array(BOXES), confidence=np.array([0.9, 0.4]), class_id=np.array([3, 1]))
    found.metadata = {"frame": 7}
    regions = tiny_tokenizer.encode(picture, found, with_masks=True)
    best = tiny_tokenizer.classify(regions, 2)
    bare = regions.to_detections(found, concepts=best)
    by_index = sv.MaskAnnotator(color_lookup=sv.ColorLookup.INDEX)
    assert by_index.annotate(np.asarray(picture).copy(), bare[bare.confidence > 0.5]).shape == (60, 90, 3)
    assert tiny_tokenizer.concepts is not None
    names = tiny_tokenizer.concepts.names
    made = regions.to_detections(found, concepts=best, vocabulary=names, captions=["a", "b"])
    assert made.class_id.tolist() == [names.index(own[0][0]) for own in best]
    kept = made[made.confidence > 0.5]
    assert kept.metadata == {"frame": 7}
    assert kept.data["caption"].tolist() == ["a"]
    assert kept.mask.shape == (1, 60, 90)
    assert sv.MaskAnnotator().annotate(np.asarray(picture).copy(), made).shape == (60, 90, 3)
    made.mask = sv.CompactMask.from_dense(np.ones((2, 60, 90), bool), made.xyxy, (60, 90))
    assert len(tiny_tokenizer.encode(picture, made)) == 2
    assert len(tiny_tokenizer.encode(picture, sv.Detections.empty()).to_detections()) == 0
