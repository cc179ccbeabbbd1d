"""What comes from a browser is checked; conversations are kept apart, bounded, stopped and recorded."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.page_conversation import (
    Look,
    PageConversation,
    PageConversations,
    PageLimits,
    Scene,
    data_address,
    read_picture,
    read_regions,
    table_of,
)

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


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_pictures_of_many_kinds(picture: Image.Image, kind: str) -> None:
    got = read_picture(data_address(picture, kind), PageLimits())
    assert got.shape == (60, 90, 3)
    assert np.abs(got.astype(float) - np.asarray(picture)).mean() < 30


def test_a_turned_picture_is_upright(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    assert read_picture(address, PageLimits()).shape == (90, 60, 3)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "Got no picture"),
        ({"path": "/etc/passwd"}, "Got no picture"),
        ("/etc/passwd", "Got no picture"),
        ("http://127.0.0.1/picture.png", "Got no picture"),
        ("data:image/png;base64,@@@@", "arrived damaged"),
        ("data:image/png;base64," + base64.b64encode(b"words, not a picture").decode(), "no picture that can be read"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "no picture that can be read"),
    ],
)
def test_what_is_no_picture_is_refused(address: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_picture(address, PageLimits())


def test_a_picture_that_was_cut_short_is_refused(picture: Image.Image) -> None:
    cut = decoded(data_address(picture, "PNG"))[:-200]
    with pytest.raises(ValueError, match="damaged or incomplete"):
        read_picture("data:image/png;base64," + base64.b64encode(cut).decode(), PageLimits())


def test_large_files_and_large_pictures_are_refused(picture: Image.Image) -> None:
    address = data_address(picture, "BMP")
    size = len(decoded(address))
    assert read_picture(address, PageLimits(file_bytes=size, pixels=5400)).shape == (60, 90, 3)
    with pytest.raises(ValueError, match="MB, expected at most"):
        read_picture(address, PageLimits(file_bytes=size - 3))
    with pytest.raises(ValueError, match="90 × 60 pixels, expected at most"):
        read_picture(address, PageLimits(pixels=5399))


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side in (9000, 60000):  # Pillow itself refuses the second
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match=f"{side} × {side} pixels|damaged"):
            read_picture("data:image/png;base64," + base64.b64encode(file).decode(), PageLimits())


# --- regions ----------------------------------------------------------------------------------------------------------


def test_marks_become_prompts() -> None:
    drawn = [
        {"box": [40, 30, 5, 6]},
        {"points": [[3, 4], [50, 20]], "point_labels": [1, 0]},
        {"box": [1, 2, 30, 40], "points": [[9, 9]], "point_labels": [1]},
        {"strokes": [[[10, 10], [20, 10]], [[50, 40]]], "brush": 6},
    ]
    box, points, both, mask = read_regions(drawn, (60, 90))
    assert box == {"box": [5, 6, 40, 30]}
    assert points == {"points": [[3, 4], [50, 20]], "point_labels": [1, 0]}
    assert both == {"box": [1, 2, 30, 40], "points": [[9, 9]], "point_labels": [1]}
    painted = mask["mask"]
    assert painted.shape == (60, 90)
    assert painted[10, 8:23].all()
    assert painted[40, 50]
    assert not painted[20:35].any()
    assert 80 < painted.sum() < 180


@pytest.mark.parametrize(
    "drawn",
    [
        "all",
        [None],
        [{}],
        [{"box": [1, 2, 3]}],
        [{"box": [1, 2, 3, float("inf")]}],
        [{"box": "1234"}],
        [{"points": [["a", "b"]]}],
        [{"strokes": [[[1, 2]]], "brush": 1e9}],
        [{"strokes": [[[1, None]]], "brush": 3}],
    ],
)
def test_broken_marks_are_refused(drawn: Any) -> None:
    with pytest.raises(ValueError, match=r"region"):
        read_regions(drawn, (60, 90))


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
    table = table_of([Look("region1", "<script>alert(1)</script>", [("<b>", 0.5)], "data:image/jpeg;base64,")])
    assert "<script>" not in table
    assert "&lt;b&gt; 50%" in table
    assert "appear here" in table_of([])


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="queue is 0, expected 1 or more"):
        PageLimits(queue=0)
