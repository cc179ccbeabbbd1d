"""The pool of instructions: what ships, what is held out, what is drawn, and files that are none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

from finetune.instructions import (
    JSON,
    PLACE,
    SHIPPED,
    THING,
    UNSEEN,
    draw_instruction,
    load_instructions,
    never_held_out,
)


def test_the_shipped_pool_asks_about_one_and_about_several_regions_in_many_ways() -> None:
    pool = load_instructions([SHIPPED])
    assert len(pool) > 150
    assert len({one.text for one in pool}) == len(pool)
    assert {one.regions for one in pool} == {1, 2, 3}
    assert {UNSEEN, JSON} <= {one.kind for one in pool}
    held_out = Counter(one.kind for one in pool if one.is_held_out)
    assert set(held_out) == {one.kind for one in pool}
    assert all(one.hint or one.is_choice or one.is_statement for one in pool)


def test_the_pool_asks_much_that_one_must_know() -> None:
    pool = load_instructions([SHIPPED])
    assert sum(one.is_of_kinds for one in pool) > 60
    choices = [one for one in pool if one.is_choice]
    assert len(choices) > 100
    assert all(one.regions == 2 and one.text.endswith("?") for one in choices)


def test_what_is_drawn_needs_no_more_regions_than_there_are() -> None:
    pool, random = load_instructions([SHIPPED]), np.random.RandomState(0)
    for held_out in (False, True):
        drawn = [draw_instruction(pool, 1, random, held_out=held_out) for _ in range(200)]
        assert all(one is not None and one.regions == 1 and one.is_held_out == held_out for one in drawn)
    assert draw_instruction(pool, 0, random) is None


def test_a_users_own_file_stands_beside_the_pool(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("hints: {mine: Be brief.}\nof_kinds: [mine]\nmine: ['Is <region1> ripe?']\n")
    (one,) = load_instructions([str(own)])
    assert (one.kind, one.hint, one.is_held_out, one.is_of_kinds) == ("mine", "Be brief.", False, True)
    assert len(load_instructions([SHIPPED, str(own)])) == len(load_instructions([SHIPPED])) + 1


def test_kinds_with_too_few_instructions_to_hold_one_out_are_named(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    lines = "".join(f"- Is <region1> number {n}?\n" for n in range(8))
    own.write_text(f"few: ['Is <region1> ripe?']\nenough:\n{lines}")
    assert never_held_out(load_instructions([str(own)])) == ["few"]
    assert never_held_out(load_instructions([SHIPPED])) == []


def test_only_the_kinds_that_are_wanted_are_asked() -> None:
    assert {one.kind for one in load_instructions([SHIPPED], ["use", "place"])} == {"use", "place"}
    with pytest.raises(ValueError, match="kinds has colour, expected some of describe, name"):
        load_instructions([SHIPPED], ["use", "colour"])


def test_a_kind_that_is_named_twice_is_drawn_twice_as_often() -> None:
    random = np.random.RandomState(0)
    pool = load_instructions([SHIPPED], ["use", "place", "place"])
    drawn = Counter(one.kind for _ in range(600) if (one := draw_instruction(pool, 1, random)) is not None)
    assert 360 < drawn["place"] < 440


def test_the_pool_asks_whether_something_is_so() -> None:
    statements = [one for one in load_instructions([SHIPPED]) if one.is_statement]
    assert {one.kind for one in statements} == {"whether"}
    assert sum(PLACE in one.text for one in statements) > 5
    assert sum(THING in one.text for one in statements) > 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "no lists of instructions by kind"),
        ("mine: what?\n", "no lists of instructions by kind"),
        ("mine: ['What is it?']\n", "expected <region1>"),
        ("mine: ['Is <region2> ripe?']\n", "expected <region1>"),
        ("mine: ['Which of these is <region1>?']\n", "expected <region1>"),
        ("of_kinds: mine\nmine: ['Is <region1> ripe?']\n", "no lists of instructions by kind"),
        ("mine: [", "not valid YAML"),
        ("mine: ['Is <region1> {thing}, {place}?']", "once, and beside it <region1> alone"),
        ("mine: ['Is <region1> {thing} or {thing}?']", "once, and beside it <region1> alone"),
        ("mine: ['Is <region1> or <region2> {thing}?']", "once, and beside it <region1> alone"),
        ("mine: ['Is it {thing}?']", "expected <region1>"),
        ("hints: {mine: Name <region2>.}\nmine: ['Is <region1> ripe?']", "none of <region2> in it"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_instructions([str(tmp_path / "own.yaml")])
