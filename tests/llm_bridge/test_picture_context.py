"""What an <image> shows: a grid of points, or the objects that the region tokenizer finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import (
    FeatureLayout,
    PictureContext,
    RegionBridgeConfig,
    RegionBridgeProcessor,
    RegionChat,
    grid_points,
    region_features,
)
from llm_bridge.chat_markup import place_images
from llm_bridge.description import box_iou
from llm_bridge.picture_context import find_objects
from tap_tokenizer import TapRegionTokenizer

LAYOUT = FeatureLayout(token_size=32, embed_size=16, num_experts=4)
"""The tiny tokenizer's."""


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.RandomState(3).randint(0, 256, (40, 60, 3)).astype(np.uint8)


@pytest.fixture
def finding(tiny_tokenizer: TapRegionTokenizer, monkeypatch: pytest.MonkeyPatch) -> TapRegionTokenizer:
    """A tokenizer that finds three known boxes in every picture, whatever its random weights would say."""
    boxes = [[2.0, 2.0, 12.0, 12.0], [5.0, 5.0, 45.0, 35.0], [20.0, 10.0, 40.0, 30.0]]

    def find(tokenizer: TapRegionTokenizer, features: Any) -> Any:
        return tokenizer.encode(features=features, boxes=[boxes])

    monkeypatch.setattr("llm_bridge.picture_context.find_objects", find)
    return tiny_tokenizer


def test_found_regions_are_box_tokens_largest_first_and_empty_slots_follow(
    finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    context = PictureContext(regions=5)
    (rows,) = context.encode(finding, finding.embed_image([picture]))
    boxes = [[5.0, 5.0, 45.0, 35.0], [20.0, 10.0, 40.0, 30.0], [2.0, 2.0, 12.0, 12.0]]
    expected = region_features(finding.encode(picture, boxes=boxes), "routed", is_context=True).flatten(0, 1)
    torch.testing.assert_close(rows[:3], expected)
    assert rows.shape == (context.slots, expected.shape[1])
    assert not rows[3:, :-1].any()
    assert (rows[:, -1] == 1).all()  # all of them say that they are context


def test_only_the_largest_are_shown_if_there_are_more_than_slots(
    finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    features = finding.embed_image([picture])
    (two,), (five,) = (PictureContext(regions=n).encode(finding, features) for n in (2, 5))
    torch.testing.assert_close(two, five[:2])


def test_every_picture_has_the_context_that_it_would_have_alone(
    finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    pictures = [picture, picture[::-1].copy()]
    for context in (PictureContext(regions=4), PictureContext(grid=2)):
        together = context.encode(finding, finding.embed_image(pictures))
        for one, rows in zip(pictures, together):
            torch.testing.assert_close(context.encode(finding, finding.embed_image([one]))[0], rows, atol=1e-5, rtol=0)


def test_a_grid_shows_a_point_token_for_each_cell(tiny_tokenizer: TapRegionTokenizer, picture: np.ndarray) -> None:
    (rows,) = PictureContext(grid=2).encode(tiny_tokenizer, tiny_tokenizer.embed_image([picture]))
    points, labels = grid_points(2, (40, 60))
    assert points == [[[15.0, 10.0]], [[45.0, 10.0]], [[15.0, 30.0]], [[45.0, 30.0]]]
    regions = tiny_tokenizer.encode(picture, points=points, point_labels=labels)
    torch.testing.assert_close(rows, region_features(regions, "routed", is_context=True).flatten(0, 1))


def test_objects_of_a_scene_are_found_whole_and_once() -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    right = found_boxes = objects = 0
    for number in range(4):
        scene = make_scene(number, "val", 0)
        drawn = draw_scene(scene, 512)
        found = find_objects(tokenizer, tokenizer.embed_image([drawn.image])[0])
        truth = drawn.boxes[drawn.masks.any(axis=(1, 2))].tolist()
        hits = torch.tensor([[box_iou(box, other) >= 0.5 for other in found.boxes.tolist()] for box in truth])
        assert (hits.sum(dim=1) <= 1).all(), "an object was found twice"
        right, objects, found_boxes = right + int(hits.any(dim=1).sum()), objects + len(truth), found_boxes + len(found)
    assert right >= 0.9 * objects
    assert right >= 0.9 * found_boxes
    imagined = 0
    for number in range(12):
        nothing = draw_scene(replace(make_scene(number, "val", 0), objects=()), 512).image
        imagined += len(find_objects(tokenizer, tokenizer.embed_image([nothing])[0]))
    assert imagined <= 12 / 4, "objects were found in pictures of backgrounds alone"


def test_specks_of_a_texture_are_not_taken_for_objects() -> None:
    """Points on the stripes of this background are answered by a few pixels here and there."""
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    drawn = draw_scene(make_scene(27, "test", 31), 512)
    found = find_objects(tokenizer, tokenizer.embed_image([drawn.image])[0])
    assert len(found) == len(drawn.boxes)
    assert found.masks.flatten(1).sum(dim=1).min() >= 2 * (8 * 512 / 256) ** 2  # two patches


def test_every_kind_of_context_describes_itself() -> None:
    assert str(PictureContext()) == "none"
    assert str(PictureContext(grid=4)) == "4 × 4 grid of points"
    assert str(PictureContext(regions=16)) == "up to 16 regions that the tokenizer finds"


@pytest.mark.parametrize(
    "wrong", [{"image_regions": -1}, {"image_regions": 5000}, {"image_grid": 2, "image_regions": 3}]
)
def test_impossible_contexts_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="image_regions"):
        RegionBridgeConfig(**wrong)


def test_a_bridge_with_found_regions_talks_and_its_processor_comes_back(
    make_bridge: Callable[..., Any], finding: TapRegionTokenizer, picture: np.ndarray, tmp_path: Any
) -> None:
    bridge, processor = make_bridge(region_tokenizer=finding, image_regions=4)
    inputs = processor("what is <region> ?", picture, boxes=[[5, 5, 45, 35]])
    assert inputs["region_features"].shape[1] == 5  # four of the picture, one that is asked about
    chat = RegionChat(bridge, processor)
    assert isinstance(chat.ask("what is <region> ?", image=picture, boxes=[[5, 5, 45, 35]], max_new_tokens=3), str)
    processor.save_pretrained(tmp_path, whole=True)
    again = RegionBridgeProcessor.from_pretrained(tmp_path)
    assert again.context == PictureContext(regions=4)
    with pytest.raises(ValueError, match="image_regions"):
        RegionBridgeProcessor.for_bridge(
            RegionBridgeConfig(region_token_id=processor.region_token_id), processor.tokenizer, finding
        ).check_bridge(bridge.config)


def test_regions_that_are_asked_about_leave_the_context(finding: TapRegionTokenizer, picture: np.ndarray) -> None:
    context = PictureContext(regions=5)
    (rows,) = context.encode(finding, finding.embed_image([picture]))
    nearly = region_features(finding.encode(picture, boxes=[[21.0, 10.0, 40.0, 31.0], [0.0, 0.0, 5.0, 5.0]]), "routed")
    left = context.beside(rows, nearly[:, 0], LAYOUT, (40, 60))
    assert sorted(left[[0, -1]].tolist()) == sorted(rows[[0, 2]].tolist())  # the second of three went
    torch.testing.assert_close(left[1:-1], rows[[3, 3, 3]])
    assert context.beside(rows, nearly[1:, 0], LAYOUT, (40, 60))[:, :-1].any(dim=1).sum() == 3  # too far from any
    torch.testing.assert_close(context.beside(rows, nearly[:0, 0], LAYOUT, (40, 60)), rows)
    torch.testing.assert_close(
        PictureContext(grid=2).beside(rows[:4], nearly[:, 0], LAYOUT, (40, 60)), rows[:4]
    )  # places, not objects


def test_the_nearest_to_the_first_region_stands_first_and_the_farthest_last(
    finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    boxes = [[2.0, 2.0, 8.0, 8.0], [30.0, 20.0, 38.0, 28.0], [12.0, 8.0, 18.0, 14.0], [40.0, 30.0, 48.0, 40.0]]
    rows = PictureContext(regions=6).of_regions(finding.encode(picture, boxes=boxes))
    features = region_features(finding.encode(picture, boxes=boxes), "routed", is_context=True)[:, 0]
    asked = region_features(finding.encode(picture, boxes=[boxes[0], boxes[3]]), "routed")[:, 0]
    free = torch.zeros(1, features.shape[1])
    free[:, -1] = 1
    features = torch.cat([features, free])
    for regions, order in (
        (asked, [2, 4, 4, 4, 4, 1]),  # 4: a free slot
        (asked.flip(0), [1, 4, 4, 4, 4, 2]),
        (asked[:1], [2, 1, 4, 4, 4, 3]),
    ):
        torch.testing.assert_close(PictureContext(regions=6).beside(rows, regions, LAYOUT, (40, 60)), features[order])


def test_distance_is_measured_in_pixels(finding: TapRegionTokenizer) -> None:
    """Of a picture twice as wide as high, 40 pixels to the right are more than 25 down, though less as shares of its sides."""
    wide = np.zeros((100, 200, 3), np.uint8)
    encoded = finding.encode(wide, boxes=[[5.0, 5.0, 15.0, 15.0], [45.0, 5.0, 55.0, 15.0], [5.0, 30.0, 15.0, 40.0]])
    features = region_features(encoded, "routed", is_context=True)[:, 0]
    shown = PictureContext(regions=3).beside(features, features[:1], LAYOUT, (100, 200))
    torch.testing.assert_close(shown[0], features[2])
    torch.testing.assert_close(shown[2], features[1])
    as_square = PictureContext(regions=3).beside(features, features[:1], LAYOUT, (100, 100))
    torch.testing.assert_close(as_square[0], features[1])


def test_every_way_to_make_a_batch_shows_an_object_once(
    make_bridge: Callable[..., Any], finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    """Text, chat and ready-made features; of two pictures, each loses its own regions alone."""
    _, processor = make_bridge(region_tokenizer=finding, image_regions=4)
    (rows,) = processor.context.encode(finding, finding.embed_image([picture]))
    box = [20, 10, 40, 30]
    asked = region_features(finding.encode(picture, boxes=[box]), "routed")
    expected = torch.cat([rows[[0, 3, 3, 2]], asked[0]])
    inputs = processor("what is <region> ?", picture, boxes=[box])
    torch.testing.assert_close(inputs["region_features"][0], expected)
    content = "<image> what is <region1> ?"
    inputs = processor.chat_batch([[{"role": "user", "content": content}]], [asked], [rows], [picture.shape[:2]])
    torch.testing.assert_close(inputs["region_features"][0], expected)
    two = [
        {"type": "image", "image": picture},
        {"type": "image", "image": picture[::-1].copy()},
        {"type": "region", "box": box},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*two, {"type": "text", "text": "what ?"}]}], tokenize=True, return_dict=True
    )
    kept = inputs["region_features"][0, :, :-1].any(dim=1)
    assert kept.tolist() == [True, True, True, False, True, False, False, True, True]


def test_context_is_sorted_around_the_regions_of_the_last_question(
    make_bridge: Callable[..., Any], finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    """After another region was spoken of, a question is answered with the context that it would have had alone."""
    _, processor = make_bridge(region_tokenizer=finding, image_regions=4)
    (rows,) = processor.context.encode(finding, finding.embed_image([picture]))
    boxes = [[2, 2, 12, 12], [44, 30, 58, 38]]
    asked = region_features(finding.encode(picture, boxes=boxes), "routed")
    words = ["<image>\nwhat is <region1> ?", "a cup", "what is <region2> ?", "a dog", "where is it ?"]

    def context_of(turns: list[str], regions: torch.Tensor) -> torch.Tensor:
        talk = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
        features = processor.chat_batch([talk], [regions], [rows], [picture.shape[:2]])["region_features"][0]
        return features[features[:, -1] == 1]

    alone = [context_of(["<image>\nwhat is <region1> ?"], asked[n : n + 1]) for n in (0, 1)]
    assert not torch.equal(*alone)
    torch.testing.assert_close(context_of(words[:1], asked[:1]), alone[0])
    torch.testing.assert_close(context_of(words[:3], asked), alone[1])
    torch.testing.assert_close(context_of(words, asked), alone[1])  # a question that names none goes on with the last
    inputs = processor.apply_chat_template(_talk_of_two(picture, boxes), tokenize=True, return_dict=True)
    torch.testing.assert_close(inputs["region_features"][0, 1:5], alone[1])


def test_context_stands_in_the_turn_of_the_last_question(
    make_bridge: Callable[..., Any], finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    """What was said before stands in front of it; a bridge without context writes its pictures nowhere."""
    _, processor = make_bridge(region_tokenizer=finding, image_regions=4)
    boxes, slot = [[2, 2, 12, 12], [44, 30, 58, 38]], "<|region|>"
    text = processor.apply_chat_template(_talk_of_two(picture, boxes))
    before, last = text.split("cup")
    assert f"region1 {slot} what ?" in before
    assert before.count(slot) == 1
    assert f"{slot * 4}\nregion2 {slot} and that ?" in last
    system = [{"role": "system", "content": "<image>\nbe brief"}, {"role": "user", "content": "a <image> here"}]
    assert [turn["content"] for turn in place_images(system, 2)] == ["be brief", "<image>\na <image> here"]
    assert place_images(system[1:], 1) == system[1:]
    unsaid = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert [turn["content"] for turn in place_images(unsaid, 1)] == ["a", "b", "<image>\nc"]
    _, processor = make_bridge(region_tokenizer=finding)
    assert f"{slot}\n" not in processor.apply_chat_template(_talk_of_two(picture, boxes))


def _talk_of_two(picture: np.ndarray, boxes: list[list[int]]) -> list[dict[str, Any]]:
    """A question about each of two boxes, the picture in the first, as transformers' chats show it."""
    parts = [
        {"type": "image", "image": picture},
        {"type": "region", "box": boxes[0]},
        {"type": "text", "text": "what ?"},
    ]
    again = [{"type": "region", "box": boxes[1], "image": 0}, {"type": "text", "text": "and that ?"}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "cup"},
        {"role": "user", "content": again},
    ]


def test_questions_about_several_regions_at_once_are_answered_as_one_by_one(
    make_bridge: Callable[..., Any], finding: TapRegionTokenizer, picture: np.ndarray
) -> None:
    """Their prompts begin with the same words, and with other contexts."""
    chat = RegionChat(*make_bridge(region_tokenizer=finding, image_regions=4))
    boxes, options = [[2, 2, 12, 12], [44, 30, 58, 38]], {"max_new_tokens": 4}
    questions = ["what is <region1> ? <region2> ?", "what is <region2> ? <region1> ?"]
    together = chat.ask_each(questions, image=picture, boxes=boxes, **options)
    alone = []
    for question in questions:
        chat.reset()
        alone.append(chat.ask(question, image=picture, boxes=boxes, **options))
    assert together == alone
