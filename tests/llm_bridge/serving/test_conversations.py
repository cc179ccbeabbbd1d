"""What is counted before pictures and masks are read, and when reading ends."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest
from server_requests import data_url, picture_file

pytest.importorskip("pydantic", reason="needs the extra serve")

from llm_bridge.serving.chat_requests import Message
from llm_bridge.serving.conversations import read_conversation
from llm_bridge.serving.errors import RequestError
from llm_bridge.serving.limits import ServerLimits

SMALL = data_url(picture_file(60, 40))
WORDS = {"type": "text", "text": "What is it?"}
MASK = data_url(picture_file(60, 40, mode="L", colour=255))


def message(*content: Any) -> Message:
    return Message.model_validate({"role": "user", "content": list(content)})


def image(url: str = SMALL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def masked(mask: Any = MASK) -> dict[str, Any]:
    return {"type": "region", "mask": mask}


def test_the_pixels_of_a_request_are_counted_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL.PngImagePlugin import PngImageFile

    limits = ServerLimits(images=2, pixels=2400)  # two pictures of the largest size, or one and a mask
    read: list[Any] = []
    load = PngImageFile.load

    def counted(self: Any) -> Any:
        if not any(self is one for one in read):
            read.append(self)
        return load(self)

    rle = {"size": [40, 60], "counts": [0, 2400]}
    for good in ([image(), image()], [image(), masked()], [image(), masked(rle)]):
        assert len(read_conversation([message(*good, WORDS)], limits, Event())) == 1
    monkeypatch.setattr(PngImageFile, "load", counted)
    for content, count in (([image(), image(), masked()], 2), ([image(), masked(rle), masked()], 1)):
        read.clear()
        with pytest.raises(RequestError) as refused:
            read_conversation([message(*content)], limits, Event())
        assert refused.value.code == "too_many_pixels"
        assert "may have 0.0048 million pixels in all" in refused.value.message
        assert len(read) == count


@pytest.mark.parametrize("mask", [data_url(picture_file(61, 40, mode="L")), {"size": [40, 61], "counts": [0, 2440]}])
def test_a_mask_of_another_size_is_refused_before_it_is_read(mask: Any) -> None:
    with pytest.raises(RequestError, match=r"mask has 61 × 40 pixels, expected 60 × 40, as its picture has") as refused:
        read_conversation([message(image(), masked(mask))], ServerLimits(), Event())
    assert refused.value.code == "invalid_value"


NEW, NEXT = ({"type": "region", "box": [left, 1, left + 9, 20]} for left in (1, 30))
AGAIN = {"type": "region", "name": "region1"}
BEFORE = [image(), NEW, {"type": "text", "text": "?"}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ([text("Is <region> left of"), NEXT, AGAIN, text("?")], "Is region2 left of region1 ?"),
        ([text("Is"), AGAIN, text("left of <region>?"), NEXT], "Is region1 left of region2 ?"),
        ([text("Is <region> left of <region>?"), AGAIN, NEXT], "Is region1 left of region2 ?"),
        ([text("Is <region> left of <region>?"), NEXT, AGAIN], "Is region2 left of region1 ?"),
        ([text("What is <region>?"), AGAIN], "What is region1 ?"),
        ([text("Is region2 left of"), NEXT, AGAIN, text("?")], "Is region2 left of region1 ?"),
        ([text("Is"), NEXT, text("left of"), AGAIN, text("?")], "Is region2 left of region1 ?"),
    ],
)
def test_a_region_that_is_mentioned_again_is_never_left_out(content: list[dict[str, Any]], asked: str) -> None:
    answered = Message.model_validate({"role": "assistant", "content": "a cloud"})
    read = read_conversation([message(*BEFORE), answered, message(*content)], ServerLimits(), Event())
    items = read[-1]["content"]
    assert " ".join(item.get("text") or item["name"] for item in items) == asked
    assert [item["name"] for item in items if "box" in item] == (["region2"] if NEXT in content else [])


@pytest.mark.parametrize(
    "content",
    [
        [text("Are <region>, <region> and <region> alike?"), NEXT, AGAIN],
        [text("Are <region> and <region> alike?"), AGAIN],
        [text("What is <region>?"), NEW, NEXT, AGAIN],
    ],
)
def test_places_that_its_regions_do_not_fit_are_refused(content: list[dict[str, Any]]) -> None:
    answered = Message.model_validate({"role": "assistant", "content": "a cloud"})
    with pytest.raises(RequestError, match="<region> placeholder") as refused:
        read_conversation([message(*BEFORE), answered, message(*content)], ServerLimits(), Event())
    assert (refused.value.status, refused.value.param) == (400, "messages.2")


def test_nothing_more_is_read_once_nobody_waits() -> None:
    gone = Event()
    gone.set()
    with pytest.raises(RequestError) as ended:
        read_conversation([message(image())], ServerLimits(), gone)
    assert (ended.value.status, ended.value.code) == (499, "client_left")
