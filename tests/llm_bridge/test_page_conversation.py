"""Conversations of the page's users are kept apart, bounded, stopped and recorded."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.page_conversation import (
    Look,
    PageConversation,
    PageConversations,
    Scene,
    as_html,
    data_address,
    table_of,
)
from llm_bridge.page_input import PageLimits

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOX = {"box": [5, 5, 40, 30]}


@pytest.fixture
def talk(make_bridge: Callable[..., Pair], picture: Image.Image) -> PageConversation:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=4, regions=3))
    talk.load(data_address(picture, "PNG"))
    return talk


def scene(talk: PageConversation) -> Scene:
    assert talk.scene is not None
    return talk.scene


def decoded(address: str) -> bytes:
    return base64.b64decode(address.split(",", 1)[1])


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_conversation(talk: PageConversation) -> None:
    steps = list(talk.ask("what is <region> ?", [BOX]))
    messages, looks = steps[-1]
    assert messages[0] == ("user", "what is region1?")
    assert messages == scene(talk).chat.history
    assert [look.name for look in looks] == ["region1"]
    assert looks[0].cutout.startswith("data:image/jpeg;base64,")
    assert talk.board()["known"] == 1
    messages, looks = list(talk.ask("is region1 on <region>", [{"points": [[30, 20]], "point_labels": [1]}]))[-1]
    assert messages[2] == ("user", "is region1 on region2")
    assert [look.name for look in looks] == ["region1", "region2"]
    list(talk.ask("where is region2", []))
    assert len(scene(talk).chat.history) == 6


def test_it_is_what_the_chat_says(talk: PageConversation, picture: Image.Image) -> None:
    messages, _ = list(talk.ask("what is <region> ?", [BOX]))[-1]
    alone = RegionChat(talk.model, talk.processor)
    assert messages[-1][1] == alone.ask("what is <region> ?", image=picture, boxes=[BOX["box"]], max_new_tokens=4)


def test_refused_questions_change_nothing(talk: PageConversation) -> None:
    list(talk.ask("what is <region> ?", [BOX]))
    before = scene(talk).record()
    for question, drawn, message in (
        ("", [], "no question yet"),
        ("x" * 2001, [], "2001 characters"),
        ("is <region> on <region>", [BOX], "Found 2 <region> placeholders but 1 regions"),
        ("what", [BOX] * 3, "at most 3 regions"),
        ("what is <region>", [{"box": [0, 0, 900, 900]}], "leaves the picture"),
    ):
        with pytest.raises(ValueError, match=message):
            list(talk.ask(question, drawn))
    assert scene(talk).record() == before
    empty = PageConversation(scene(talk).chat, PageLimits())
    with pytest.raises(ValueError, match="no picture yet"):
        list(empty.ask("what", []))


def test_a_stopped_answer_is_not_remembered(talk: PageConversation) -> None:
    steps = talk.ask("what is <region> ?", [BOX])
    next(steps)
    talk.stop()
    messages, _ = list(steps)[-1]
    assert messages[-1][1].endswith("(stopped)")
    assert scene(talk).chat.history == []
    assert talk.board()["known"] == 0


def test_another_picture_begins_anew(talk: PageConversation, other_picture: Image.Image) -> None:
    steps = talk.ask("what is <region> ?", [BOX])
    next(steps)
    talk.load(data_address(other_picture, "PNG"))
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    assert scene(talk).features is None  # nothing of the other picture
    assert (talk.board()["width"], talk.board()["height"], talk.board()["known"]) == (40, 80, 0)
    list(talk.ask("what is <region> ?", [{"box": [1, 2, 30, 70]}]))
    assert len(scene(talk).chat.history) == 2
    talk.forget()
    assert scene(talk).record()["messages"] == []
    assert scene(talk).picture.shape == (80, 40, 3)


def test_the_record_and_its_picture(talk: PageConversation, picture: Image.Image) -> None:
    marks = [BOX, {"strokes": [[[50, 20], [70, 30]]], "brush": 8}]
    list(talk.ask("is <region> on <region> ?", marks))
    record = json.loads(decoded(talk.record_address()))
    assert record["picture"] == {"width": 90, "height": 60}
    assert [region["prompt"] for region in record["regions"]] == [{"box": [5, 5, 40, 30]}, {"mask": "painted"}]
    assert record["regions"][0]["box"] == [5, 5, 40, 30]
    assert sum(record["regions"][0]["mask"]["counts"]) == 60 * 90
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    drawn = Image.open(io.BytesIO(decoded(talk.picture_address())))
    assert drawn.size == picture.size
    assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(picture, dtype=float)).mean() > 1


def test_large_pictures_are_drawn_on_small_ones(make_bridge: Callable[..., Pair]) -> None:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=2))
    talk.show(np.full((1500, 3000, 3), 90, dtype=np.uint8))
    list(talk.ask("what is <region> ?", [{"box": [100, 100, 900, 700]}]))
    board = talk.board()
    assert (board["width"], board["height"]) == (3000, 1500)
    assert Image.open(io.BytesIO(decoded(board["picture"]))).size == (1280, 640)


def test_users_are_apart_and_bounded(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    chat = RegionChat(*make_bridge())
    users = PageConversations(chat, PageLimits(new_tokens=2, users=2))
    users.of("a").load(data_address(picture, "PNG"))
    assert users.of("b").scene is None
    steps = users.of("a").ask("what is <region> ?", [BOX])
    next(steps)
    first = users.of("a")
    assert users.of("b") is not first
    users.of("c")  # the one idle longest goes, and its answer ends
    assert len(users) == 2
    assert first.stopped.is_set()
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    assert users.of("a") is not first
    users.drop("a")
    users.drop("never there")
    assert len(users) == 1
    assert chat.history == []


def test_words_are_escaped() -> None:
    assert as_html("<b>is</b> <region> & 'it'?") == "&lt;b&gt;is&lt;/b&gt; &lt;region&gt; &amp; 'it'?"
    table = table_of([Look("region1", "<script>alert(1)</script>", [("<b>", 0.5)], "data:image/jpeg;base64,")])
    assert "<script>" not in table
    assert "&lt;b&gt; 50%" in table
    assert "appear here" in table_of([])
