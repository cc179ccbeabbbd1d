"""A conversation on the page goes on, is refused in its own words, stopped, and recorded."""

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
from llm_bridge.page.conversation import PageConversation
from llm_bridge.page.input import PageLimits
from llm_bridge.page.scene import Scene
from tap_tokenizer import RegionPrompt

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
    assert [region["name"] for region in talk.state()["regions"]] == ["region1"]
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
    assert talk.state()["regions"] == []


def test_the_last_question_is_taken_back_with_its_regions(talk: PageConversation) -> None:
    list(talk.ask("what is <region> ?", [BOX]))
    before = scene(talk).record()
    point = {"points": [[30, 20]], "point_labels": [1]}
    list(talk.ask("is region1 on <region>", [point]))
    once = scene(talk).record()
    back = json.loads(json.dumps(talk.take_back()))
    assert (back["question"], back["marks"]) == ("is region1 on region2", [point])
    assert [region["name"] for region in back["regions"]] == ["region1"]
    assert len(back["messages"]) == 2
    assert scene(talk).record() == before
    list(talk.ask("is region1 on region2", back["marks"]))
    assert scene(talk).record() == once  # asked again, it is as it was
    talk.take_back()
    assert json.loads(json.dumps(talk.take_back()["marks"])) == [BOX]
    assert (talk.turns, talk.looks, talk.state()["regions"]) == (0, [], [])
    with pytest.raises(ValueError, match="no question to take back"):
        talk.take_back()
    list(talk.ask("what is <region> ?", [BOX]))
    assert scene(talk).record() == before


def test_nothing_is_taken_back_while_an_answer_is_written(talk: PageConversation) -> None:
    list(talk.ask("what is <region> ?", [BOX]))
    with talk.asking, pytest.raises(ValueError, match="stop it first"):
        talk.take_back()
    assert talk.turns == 2


def test_another_picture_starts_a_new_conversation(talk: PageConversation, other_picture: Image.Image) -> None:
    steps = talk.ask("what is <region> ?", [BOX])
    next(steps)
    talk.show(np.asarray(other_picture))
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    assert scene(talk).features is None  # nothing of the other picture
    assert (talk.state()["width"], talk.state()["height"], talk.state()["regions"]) == (40, 80, [])
    list(talk.ask("what is <region> ?", [{"box": [1, 2, 30, 70]}]))
    assert len(scene(talk).chat.history) == 2
    talk.forget()
    assert scene(talk).record()["messages"] == []
    assert scene(talk).picture.shape == (80, 40, 3)


def test_a_page_that_is_loaded_again_gets_all_that_was_said(talk: PageConversation) -> None:
    assert PageConversation(scene(talk).chat, PageLimits()).state() == {}
    assert talk.state()["encoded"] is False
    messages, looks = list(talk.ask("what is <region> ?", [BOX]))[-1]
    state = json.loads(json.dumps(talk.state()))
    assert state["encoded"] is True
    assert [(message["role"], message["content"]) for message in state["messages"]] == messages
    assert [look["name"] for look in state["looks"]] == [look.name for look in looks]
    assert [region["box"] for region in state["regions"]] == [[5, 5, 40, 30]]


def test_a_conversation_is_downloaded_as_a_record_and_a_picture(talk: PageConversation, picture: Image.Image) -> None:
    marks = [BOX, {"strokes": [[[50, 20], [70, 30]]], "brush": 8}]
    list(talk.ask("is <region> on <region> ?", marks))
    record = json.loads(json.dumps(scene(talk).record()))
    assert record["picture"] == {"width": 90, "height": 60}
    given, painted = (region["prompt"] for region in record["regions"])
    assert given == {"box": [5, 5, 40, 30]}
    assert painted.keys() == {"box", "points", "point_labels"}  # a brush's strokes, as TAP is asked about them
    assert record["regions"][0]["box"] == [5, 5, 40, 30]
    assert sum(record["regions"][0]["mask"]["counts"]) == 60 * 90
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    drawn = scene(talk).drawing()
    assert drawn.size == picture.size
    assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(picture, dtype=float)).mean() > 1


def test_what_was_marked_and_not_asked_about_is_saved_as_such(talk: PageConversation) -> None:
    list(talk.ask("what is <region> ?", [BOX]))
    prompts = [RegionPrompt(points=((60.0, 40.0),), point_labels=(1,))]
    marked = scene(talk).see(prompts)
    record = json.loads(json.dumps(scene(talk).record(prompts, marked)))
    [region], [mark] = record["regions"], record["marks"]
    assert (region["name"], mark["name"]) == ("region1", "region2")
    assert mark.keys() == region.keys()
    assert mark["prompt"] == {"points": [[60, 40]], "point_labels": [1]}
    assert mark["caption"] is None
    assert sum(mark["mask"]["counts"]) == 60 * 90
    alone, both = (np.asarray(scene(talk).drawing(one), dtype=float) for one in (None, marked))
    assert np.abs(both - alone).mean() > 1
    assert scene(talk).record()["marks"] == []


def test_large_pictures_are_drawn_on_small_ones(make_bridge: Callable[..., Pair]) -> None:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=2))
    talk.show(np.full((1500, 3000, 3), 90, dtype=np.uint8))
    list(talk.ask("what is <region> ?", [{"box": [100, 100, 900, 700]}]))
    state = talk.state()
    assert (state["width"], state["height"]) == (3000, 1500)
    assert (state["shown_width"], state["shown_height"]) == (1280, 640)
    assert Image.open(io.BytesIO(decoded(state["picture"]))).size == (1280, 640)
    for shown in (state["regions"][0], talk.has_scene().glance([RegionPrompt(box=(100, 100, 900, 700))])[0]):
        mask = shown["mask"]
        assert shown["box"] == [100, 100, 900, 700]
        assert mask["x"] + mask["width"] <= 1280
        assert mask["y"] + mask["height"] <= 640


def test_masks_take_an_eighth_of_a_byte_a_pixel(make_bridge: Callable[..., Pair]) -> None:
    talk = PageConversation(RegionChat(*make_bridge()), PageLimits(new_tokens=1))
    picture = np.full((800, 1000, 3), 90, np.uint8)
    talk.show(picture)
    list(talk.ask("what are these ?", [{"box": [10, 10, 300, 200]}] * 8))
    assert len(scene(talk).masks) == 8
    assert scene(talk).memory < picture.nbytes + 8 * 800 * 1000 / 8 + 2e6
    scene(talk).drawing()
    scene(talk).record()
    talk.state()


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
