"""Regions in texts are found, renumbered, and refused in a sentence where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from llm_bridge import number_regions, region_numbers, replace_regions, with_meant_regions
from llm_bridge.chat_markup import Layout, MarkerExpander


def test_regions_of_a_text_are_those_that_it_shows_and_on_request_those_that_it_names() -> None:
    text = "Is <region12> left of region3, or of <region12>?"
    assert region_numbers(text) == [12]
    assert region_numbers(text, names=True) == [12, 3]
    assert region_numbers("Which region is it? <region>", names=True) == []
    assert region_numbers(f"<region{'9' * 5000}>") == [int("9" * 18)]


def test_a_name_that_begins_a_sentence_is_one_and_keeps_its_capital() -> None:
    text = "Region2 is a cat, and region2 sleeps."
    assert region_numbers(text, names=True) == [2]
    assert (
        replace_regions(text, lambda number, is_shown: f"region{number + 1}") == "Region3 is a cat, and region3 sleeps."
    )


def test_regions_are_replaced_one_by_one() -> None:
    text = "Is <region2> left of region3, or of region?"
    assert replace_regions(text, lambda number, is_shown: None) == text
    assert replace_regions(text, lambda number, is_shown: f"<{number}>" if is_shown else "it") == (
        "Is <2> left of it, or of region?"
    )


def test_markers_without_a_number_are_numbered_as_they_come() -> None:
    assert number_regions("<region> or <region>?", 2) == ("<region3> or <region4>?", 4)
    assert number_regions("region1", 1) == ("region1", 1)


def test_a_question_that_names_no_region_shows_those_that_it_means_after_its_pictures() -> None:
    assert with_meant_regions("What colour is it?", [2]) == "<region2> What colour is it?"
    assert with_meant_regions("<image><image>\nWhy?", [3, 1]) == "<image><image>\n<region3> <region1> Why?"
    assert with_meant_regions("Why is <image> dark?", [1]) == "<region1> Why is <image> dark?"
    for question in ("Is region 2 red?", "And <region>?", "Are Regions 2 and 3 alike?", "What is <region1>?"):
        assert with_meant_regions(question, [1]) == question
    assert with_meant_regions("Why?", []) == with_meant_regions("Why?", [1, 2, 3, 4, 5]) == "Why?"


def test_it_is_what_the_question_before_spoke_of_even_if_it_showed_nothing() -> None:
    expander = MarkerExpander(Layout(0, 1), 0, 2, "The conversation")
    said = [
        "<region1> or <region2>?",
        "region2, not region1",
        "Is region2 red?",
        "no",
        "Why?",
        "Is Region9?",
        "And now?",
    ]
    expanded = [expander.expand(text, again=i not in (1, 3)) for i, text in enumerate(said)]
    row = "<|region|>"
    assert expanded == [
        f"region1 {row} or region2 {row}?",
        *said[1:4],
        f"region2 {row} Why?",
        *said[5:6],
        f"region2 {row} And now?",
    ]
    assert expander.finish().asked == [1]


@pytest.mark.parametrize(
    "marker", ["<region0>", "<region00>", "<region٠>", "<region1000000000>", f"<region{'9' * 5000}>"]
)
def test_regions_are_numbered_from_one(marker: str) -> None:
    expander = MarkerExpander(Layout(0, 1), 0, 1, "The conversation")
    with pytest.raises(ValueError, match=r"^The conversation: Found <region.{1,40}, but regions are numbered from 1"):
        expander.expand(f"What is {marker}?")


@pytest.mark.parametrize("text", ["<region0>", "<region1> <region0>", "<region2>"])
def test_a_chat_that_speaks_of_no_region_is_refused(
    make_bridge: Callable[..., Any], picture: Image.Image, text: str
) -> None:
    _, processor = make_bridge()
    with pytest.raises(ValueError, match=r"number(ed)?( them)? from 1|Found 2 <region> placeholders but 1 region"):
        processor([text], images=[picture], boxes=[[[1, 2, 30, 30]]])
    item = {"type": "region", "box": [1, 2, 30, 30]}
    content = [{"type": "image", "image": picture}, item, {"type": "text", "text": text}]
    with pytest.raises(ValueError, match=r"number(ed)?( them)? from 1|Found 2 <region> placeholders but 1 region"):
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
