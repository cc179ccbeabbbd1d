"""Conversations of the page's users are kept apart and bounded; one that was left is kept until its page may have come back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.page.input import PageLimits
from llm_bridge.page.sessions import PageConversations

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOX = {"box": [5, 5, 40, 30]}


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


def test_a_page_that_comes_back_in_time_finds_its_conversation(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    chat, pixels = RegionChat(*make_bridge()), np.asarray(picture)
    users = PageConversations(chat, PageLimits(new_tokens=2, return_seconds=1000))
    mine = users.show("mine", pixels)
    steps = mine.ask("what is <region> ?", [BOX])
    next(steps)
    users.leave("mine")
    users.leave("never there")
    assert list(steps)[-1][0][-1][1].endswith("(stopped)")
    assert users.of("mine") is mine
    users._left["mine"] = -1e9  # so long ago
    assert users.of("mine") is mine  # it is back, and is not forgotten any more
    assert len(users) == 1
    users.leave("mine")
    users._left["mine"] = -1e9
    assert len(users) == 0
    assert users.of("mine").scene is None
