"""Regions in words."""

from __future__ import annotations

import pytest

from llm_bridge import RegionDescription, describe_regions
from llm_bridge.description import box_iou, place_of_box


def test_a_description_says_all_that_is_known() -> None:
    cat = RegionDescription("region1", "a black cat", [("cat", 0.914), ("dog", 0.05)], (0, 0, 100, 100))
    hat = RegionDescription("region2", None, [], (50, 0, 150, 100))
    assert describe_regions([cat, hat], (300, 300)) == (
        "The picture is 300 pixels wide and 300 high.\n"
        "region1: a black cat; looks like cat (91%), dog (5%); at the top left; box 0 0 100 100; 11% of the picture.\n"
        "region2: at the top; box 50 0 150 100; 11% of the picture.\n"
        "region1 and region2 overlap (IoU 0.33)."
    )


def test_later_descriptions_mention_only_what_is_new() -> None:
    a = RegionDescription("region1", "a cat", [], (0, 0, 100, 100))
    b = RegionDescription("region2", "a hat", [], (50, 0, 150, 100))
    text = describe_regions([b], (300, 300), earlier=[a])
    assert text.splitlines()[0].startswith("region2: a hat")
    assert text.splitlines()[1] == "region1 and region2 overlap (IoU 0.33)."


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((0, 0, 10, 10), "top left"),
        ((140, 90, 160, 110), "center"),
        ((290, 190, 300, 200), "bottom right"),
        ((0, 90, 20, 110), "left"),
    ],
)
def test_places_are_named_by_thirds_of_the_picture(box: tuple[float, ...], place: str) -> None:
    assert place_of_box(box, (200, 300)) == place


def test_box_iou() -> None:
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 2, 2), (5, 5, 6, 6)) == 0
