"""Conversations of the page's users are kept apart, bounded, stopped and recorded."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.page.conversation import (
    Look,
    PageConversation,
    PageConversations,
    Scene,
    as_html,
    table_of,
)
from llm_bridge.page.input import PageLimits

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOX = {"box": [5, 5, 40, 30]}


@pytest.fixture
def talk(make_bridge: Callable[..., Pair], picture: Image.Image) -> PageConversation:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=4, regions=3))
    talk.show(np.asarray(picture))
    return talk


def scene(talk: PageConversation) -> Scene:
    assert talk.scene is not None
    return talk.scene


def decoded(address: str) -> bytes:
    return base64.b64decode(address.split(",", 1)[1])


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_conversation_with_follow_ups(talk: PageConversation) -> None:
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


def test_the_page_answers_like_region_chat(talk: PageConversation, picture: Image.Image) -> None:
    messages, _ = list(talk.ask("what is <region> ?", [BOX]))[-1]
    alone = RegionChat(talk.model, talk.processor)
    assert messages[-1][1] == alone.ask("what is <region> ?", image=picture, boxes=[BOX["box"]], max_new_tokens=4)


def test_a_picture_is_encoded_once(talk: PageConversation, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = talk.processor.region_tokenizer
    encoded = []
    embed = type(tokenizer).embed_image
    monkeypatch.setattr(
        type(tokenizer), "embed_image", lambda self, images: encoded.append(len(images)) or embed(self, images)
    )
    list(talk.ask("what is <region> ?", [BOX]))
    list(talk.ask("is region1 on <region>", [BOX]))
    assert encoded == [1]


def test_refused_questions_change_nothing(talk: PageConversation) -> None:
    list(talk.ask("what is <region> ?", [BOX]))
    before = scene(talk).record()
    for question, drawn, message in (
        ("", [], "no question yet"),
        ("x" * 2001, [], "2001 characters"),
        ("is <region> on <region>", [BOX], "2 <region>, but 1 new region is marked"),
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


def test_another_picture_starts_a_new_conversation(talk: PageConversation, other_picture: Image.Image) -> None:
    steps = talk.ask("what is <region> ?", [BOX])
    next(steps)
    talk.show(np.asarray(other_picture))
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    assert scene(talk).features is None  # nothing of the other picture
    assert (talk.board()["width"], talk.board()["height"], talk.board()["known"]) == (40, 80, 0)
    list(talk.ask("what is <region> ?", [{"box": [1, 2, 30, 70]}]))
    assert len(scene(talk).chat.history) == 2
    talk.forget()
    assert scene(talk).record()["messages"] == []
    assert scene(talk).picture.shape == (80, 40, 3)


def test_a_conversation_is_downloaded_as_a_record_and_a_picture(talk: PageConversation, picture: Image.Image) -> None:
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


def test_users_are_separate_and_limited_in_number(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    chat, pixels = RegionChat(*make_bridge()), np.asarray(picture)
    users = PageConversations(chat, PageLimits(new_tokens=2, users=2, idle_seconds=0))
    first = users.show("a", pixels)
    assert users.of("b").scene is None
    assert len(users) == 1  # a session without a picture takes no room
    steps = first.ask("what is <region> ?", [BOX])
    next(steps)
    assert users.show("b", pixels) is not first
    users.show("c", pixels)  # the one idle longest goes, and its answer ends
    assert len(users) == 2
    assert first.stopped.is_set()
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    with pytest.raises(ValueError, match="was idle and had to make room for others"):
        list(users.of("a").ask("what is <region> ?", [BOX]))
    assert users.show("a", pixels) is not first
    users.drop("a")
    users.drop("never there")
    assert len(users) == 1
    assert chat.history == []


def test_invented_sessions_do_not_displace_conversations(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    chat, pixels = RegionChat(*make_bridge()), np.asarray(picture)
    users = PageConversations(chat, PageLimits(new_tokens=2, users=4))
    list(users.show("mine", pixels).ask("what is <region> ?", [BOX]))
    users.show("waiting", pixels)
    users.places.join("waiting")
    for i in range(70):
        users.of(f"idle{i}")  # without a picture, these are nothing
        users.show(f"invented{i}", pixels)
    assert len(users) == 4
    assert users.of("waiting").scene is not None
    assert users.of("mine").turns == 2
    for i in range(70):  # and now they ask as well
        try:
            list(users.show(f"invented{i}", pixels).ask("what is <region> ?", [BOX]))
        except ValueError as error:
            assert "The page is full" in str(error)  # noqa: PT017
            assert i >= 2
    assert users.of("mine").turns == 2


def test_pictures_of_all_users_fit_into_the_memory(make_bridge: Callable[..., Pair]) -> None:
    chat = RegionChat(*make_bridge())
    picture = np.zeros((400, 500, 3), np.uint8)
    users = PageConversations(chat, PageLimits(memory=4 * picture.nbytes, idle_seconds=0))
    for i in range(9):
        users.show(f"user{i}", picture.copy())
        assert sum(own.scene.memory for own in users._by_session.values() if own.scene) <= 4 * picture.nbytes
    assert len(users) == 4
    with pytest.raises(ValueError, match="idle"):
        list(users.of("user0").ask("what is <region>", [BOX]))


def test_masks_take_an_eighth_of_a_byte_a_pixel(make_bridge: Callable[..., Pair]) -> None:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=1))
    picture = np.full((800, 1000, 3), 90, np.uint8)
    talk.show(picture)
    list(talk.ask("what are these ?", [{"box": [10, 10, 300, 200]}] * 8))
    assert len(scene(talk).masks) == 8
    assert scene(talk).memory < picture.nbytes + 8 * 800 * 1000 / 8 + 2e6
    talk.picture_address()
    talk.record_address()


def test_stop_cancels_waiting_questions_and_regions_not_yet_described(talk: PageConversation) -> None:
    sent = time.monotonic()
    talk.stop()
    messages, looks = list(talk.ask("what is <region> ?", [BOX], joined=sent))[-1]
    assert messages[-1] == ("assistant", "… (stopped)")
    assert looks == []
    seen = []
    own = scene(talk)
    own.see, see = lambda columns: seen.append(1) or talk.stop() or see(columns), own.see  # type: ignore[method-assign]
    talk.limits = PageLimits(new_tokens=4, regions=24)
    list(talk.ask("what are these ?", [BOX] * 20))
    assert len(seen) == 1
    assert own.chat.history == []


@pytest.mark.parametrize(
    ("question", "drawn", "words"),
    [
        ("what is <region>", [], "No region is marked yet"),
        ("what is <region> and <region>", [BOX], "2 <region>, but 1 new region is marked"),
        ("is <region> big", [BOX, BOX], "2 regions are marked, but the question mentions only 1"),
        ("what is region7", [BOX], "mentions region7, but there is only region1"),
        ("what is <region0>", [BOX], "mentions region0"),
        ("what is it", [], "No region is marked yet"),
        ("<image> what is <region>", [BOX], "leave it out"),
    ],
)
def test_errors_use_the_words_of_the_page(talk: PageConversation, question: str, drawn: list[dict], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        list(talk.ask(question, drawn))
    for foreign in ("boxes=", "image=", "placeholders", "Got ", "max_new_tokens"):
        assert foreign not in str(refusal.value)


def test_a_conversation_that_is_too_long_says_what_to_do(talk: PageConversation) -> None:
    talk.limits = PageLimits(new_tokens=100_000)
    with pytest.raises(ValueError, match="too long for the language model: start a new chat"):
        list(talk.ask("what is <region> ?", [BOX]))


def test_words_are_escaped() -> None:
    assert as_html("<b>is</b> <region> & 'it'?") == "&lt;b&gt;is&lt;/b&gt; &lt;region&gt; &amp; 'it'?"
    table = table_of([Look("region1", "<script>alert(1)</script>", [("<b>", 0.5)], "data:image/jpeg;base64,")])
    assert "<script>" not in table
    assert "&lt;b&gt; 50%" in table
    assert "appear here" in table_of([])
