"""Places in the page's queue, and turns with the model: nobody fills the one or keeps the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread

import pytest

import llm_bridge.page.turns as page_turns
from llm_bridge.page.turns import Places, Turns


def never() -> bool:
    return False


def test_places_are_limited_per_session_and_in_all() -> None:
    places = Places(each=2, all=3)
    assert [places.join("a"), places.join("a"), places.join("a")] == [True, True, False]
    assert [places.join("b"), places.join("c")] == [True, False]
    assert places.waits("a")
    assert not places.waits("c")
    first = places.oldest("a")
    assert first is not None
    places.begin("a")
    assert places.oldest("a") > first  # type: ignore[operator]
    assert places.join("c")
    places.drop("a")
    assert not places.waits("a")
    assert places.oldest("a") is None
    places.begin("never there")


def test_stale_places_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(each=1, all=1)
    assert places.join("a")
    assert not places.join("a")
    monkeypatch.setattr(page_turns, "STALE_SECONDS", -1.0)
    assert not places.waits("a")
    assert places.join("b")


def in_order(turns: Turns, sessions: list[str], work: Callable[[str], None] = lambda _: None) -> list[str]:
    """The order in which sessions that come one after the other get their turns, while another holds the model at first."""
    order: list[str] = []

    def wait(session: str) -> None:
        with turns.turn(session, never) as has_turn:
            assert has_turn
            order.append(session)
            work(session)

    with turns.turn("holder", never):
        threads = []
        for number, session in enumerate(sessions, start=1):
            threads.append(Thread(target=wait, args=(session,)))
            threads[-1].start()
            while len(turns._waiting) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=10)
    return order


def test_whoever_comes_first_is_first_among_equals() -> None:
    assert in_order(Turns(), ["a", "b", "c"]) == ["a", "b", "c"]


def test_the_session_that_used_least_comes_next() -> None:
    turns = Turns()
    turns.charge("greedy", 20.0)
    turns.charge("modest", 1.0)
    assert in_order(turns, ["greedy", "greedy", "modest", "new"]) == ["new", "modest", "greedy", "greedy"]


def test_time_used_long_ago_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    turns.charge("greedy", 20.0)
    monkeypatch.setattr(page_turns, "REMEMBERED_SECONDS", -1.0)
    assert in_order(turns, ["greedy", "new"]) == ["greedy", "new"]
    assert not turns._taken  # and takes no room


def test_a_long_turn_gives_way_to_those_who_have_had_less() -> None:
    turns, done = Turns(), []
    turns.charge("greedy", 20.0)

    def others() -> None:
        with turns.turn("new", never):
            done.append("new")

    with turns.turn("greedy", never):
        turns.give_way("greedy")  # nobody waits
        thread = Thread(target=others)
        thread.start()
        while not turns._waiting:
            time.sleep(0.001)
        assert not done
        turns.give_way("greedy")
        assert done == ["new"]
        assert turns._is_taken
    thread.join()
    assert not turns._is_taken


def test_a_turn_is_kept_before_those_who_have_had_more() -> None:
    turns, done = Turns(), Event()
    turns.charge("greedy", 20.0)

    def others() -> None:
        with turns.turn("greedy", never):
            done.set()

    with turns.turn("new", never):
        thread = Thread(target=others)
        thread.start()
        while not turns._waiting:
            time.sleep(0.001)
        turns.give_way("new")
        assert not done.is_set()
    thread.join(timeout=10)
    assert done.is_set()


def test_a_waiter_that_gives_up_gets_no_turn_and_leaves_no_trace() -> None:
    turns, stopped, got = Turns(), Event(), []

    def wait() -> None:
        with turns.turn("a", stopped.is_set) as has_turn:
            got.append(has_turn)

    with turns.turn("holder", never):
        thread = Thread(target=wait)
        thread.start()
        stopped.set()
        thread.join(timeout=10)
    assert got == [False]
    assert not turns._waiting
    assert not turns._is_taken


def test_an_error_in_a_turn_ends_it() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.turn("a", never):
        1 / 0  # noqa: B018
    assert not turns._is_taken
