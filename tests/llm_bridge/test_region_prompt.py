"""Markers that stand for no region are refused in a sentence, wherever a chat is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from llm_bridge.region_prompt import Layout, MarkerExpander


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
    with pytest.raises(ValueError, match=r"number(ed)?( them)? from 1|Found 2 <region> placeholders but 1 regions"):
        processor([text], images=[picture], boxes=[[[1, 2, 30, 30]]])
    item = {"type": "region", "box": [1, 2, 30, 30]}
    content = [{"type": "image", "image": picture}, item, {"type": "text", "text": text}]
    with pytest.raises(ValueError, match=r"number(ed)?( them)? from 1|Found 2 <region> placeholders but 1 regions"):
        processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
