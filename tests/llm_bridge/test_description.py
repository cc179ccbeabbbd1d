"""Regions in words."""

from __future__ import annotations

import pytest

from llm_bridge import RegionDescription, describe_regions
from llm_bridge.description import box_iou, place_of_box


def test_a_description_is_a_line_for_each_region_and_each_overlap() -> None:
    cat = RegionDescription("region1", "a black cat", [("cat", 0.914), ("dog", 0.05)], (0, 0, 100, 100))
    hat = RegionDescription("region2", "a red hat on the floor.", [], (50, 0, 150, 100))
    assert describe_regions([cat, hat], (300, 300)) == (
        "region1 is a black cat. It is at the top left of the picture and takes up some of it.\n"
        "region2 is a red hat on the floor. It is at the top of the picture and takes up some of it.\n"
        "region1 and region2 overlap."
    )


@pytest.mark.parametrize(
    ("caption", "concepts", "words"),
    [
        ("something furry", [("cat", 0.9), ("dog", 0.1)], "region1 is something furry. It looks like a cat."),
        ("something furry", [("cat", 0.3), ("dog", 0.2)], "region1 is something furry."),
        (None, [("umbrella", 0.9), ("kite", 0.1)], "region1 is an umbrella."),
        (None, [("a cat", 0.9)], "region1 is a cat."),
        (None, [("cat", 0.3), ("owl", 0.2), ("dog", 0.1)], "region1 may be a cat or an owl."),
        (None, [("cat", 0.3)], "region1 may be a cat."),
        (None, [], "It is not known what region1 is."),
    ],
)
def test_only_what_is_sure_is_said_to_be_so(caption: str | None, concepts: list[tuple[str, float]], words: str) -> None:
    region = RegionDescription("region1", caption, concepts, (140, 90, 160, 110))
    assert (
        describe_regions([region], (200, 300))
        == f"{words} It is in the center of the picture and takes up a small part of it."
    )


@pytest.mark.parametrize(
    ("caption", "concepts", "thing"),
    [
        ("a red umbrella.", [("umbrella", 0.9)], "an umbrella"),
        ("a red umbrella.", [("umbrella", 0.3)], "a red umbrella"),
        (None, [("the sun", 0.9)], "a sun"),
        (None, [("umbrella", 0.3)], None),
        (None, [], None),
    ],
)
def test_a_thing_is_its_kind_or_else_its_caption(
    caption: str | None, concepts: list[tuple[str, float]], thing: str | None
) -> None:
    assert RegionDescription("region1", caption, concepts).thing == thing


def test_a_region_takes_up_as_much_of_the_picture_as_its_box() -> None:
    for side, part in ((19, "a small part"), (21, "some"), (36, "a large part")):
        region = RegionDescription("region1", "a cat", [], (0, 0, side, side))
        assert describe_regions([region], (100, 100)).endswith(f"takes up {part} of it.")


def test_later_descriptions_mention_only_what_is_new() -> None:
    a = RegionDescription("region1", "a cat", [], (0, 0, 100, 100))
    b = RegionDescription("region2", "a hat", [], (50, 0, 150, 100))
    text = describe_regions([b], (300, 300), earlier=[a], picture="picture 2")
    assert (
        text == "region2 is a hat. It is at the top of picture 2 and takes up some of it.\nregion1 and region2 overlap."
    )


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
