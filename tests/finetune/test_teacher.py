"""What a teacher's answers are worth, and what it is told."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from collections import Counter
from types import SimpleNamespace

import torch

from finetune.instructions import Instruction
from finetune.records import Record, Region
from finetune.teacher import (
    KNOWN,
    OWN,
    SeenPicture,
    Teacher,
    _apart,
    _lesson,
    _problem_of,
    _record_of,
)
from llm_bridge import RegionDescription, describe_regions

CAT = RegionDescription("region1", "a black cat", [("cat", 0.9)], (0, 0, 100, 100))
HAT = RegionDescription("region2", "a red hat", [("hat", 0.9)], (200, 200, 300, 300))


def picture_of(*described: RegionDescription) -> SeenPicture:
    regions = [Region(box=list(one.box)) for one in described]
    return SeenPicture(0, Record("a.png", 300, 300, regions), list(described), Counter())


def teacher_that_holds(thing: str, clear: bool = True) -> Teacher:
    """A teacher of which nothing works but the choice between things."""
    teacher = object.__new__(Teacher)
    teacher.bridge = SimpleNamespace(language_model=torch.nn.Module())  # type: ignore[assignment]
    surest = lambda questions, things: (questions[-1], things.index(thing)) if clear else None  # noqa: E731
    teacher.likelihoods = SimpleNamespace(surest=surest)  # type: ignore[assignment]
    return teacher


def test_what_depends_on_the_kind_alone_is_told_of_the_kind_alone() -> None:
    seen = picture_of(CAT, HAT)
    lesson = _lesson(seen, Instruction("use", "Who needs <region1>?", "Be brief.", is_of_kinds=True), [2], KNOWN)
    assert (lesson.asked, lesson.told) == ("Who needs <region2>?", "Question: Who needs a hat?\nAnswer:")
    unknown = picture_of(RegionDescription("region1", None, [("cat", 0.2)]))
    told = _lesson(unknown, Instruction("use", "Who needs <region1>?", is_of_kinds=True), [1], KNOWN).told
    assert told.startswith("region1 may be a cat.")


def test_of_several_regions_the_likeliest_is_the_answer() -> None:
    seen = picture_of(CAT, HAT)
    (lesson,) = teacher_that_holds("a hat")._choice(
        seen, ["Which of these can fly?", "Which of these is worn?"], [2, 1], KNOWN
    )
    assert lesson.asked == "Which of these is worn: <region2> or <region1>?"
    assert lesson.answer == "The hat, region2."
    assert lesson.told == "region2 is a hat. region1 is a cat.\nQuestion: Which of these is worn?\nAnswer:"
    assert _problem_of(lesson) is None
    question, answer = _record_of(seen.record, [lesson]).conversations
    assert (question.content, answer.content) == (
        "Which of these is worn: <region1> or <region2>?",
        "The hat, region1.",
    )


def test_a_choice_that_is_not_clear_or_not_the_wanted_one_is_left_out() -> None:
    seen = picture_of(CAT, HAT)
    assert not list(teacher_that_holds("a hat", clear=False)._choice(seen, ["Which of these?"], [1, 2], KNOWN))
    assert not list(teacher_that_holds("a hat")._choice(seen, ["Which of these?"], [1, 2], OWN, wanted=1))
    assert not list(teacher_that_holds("a hat")._choice(seen, ["Which of these?"], [2], KNOWN))
    assert seen.left_out == {"not sure which": 3}


def test_things_of_the_same_kind_are_not_to_be_told_apart() -> None:
    unknown = RegionDescription("region4", None)
    assert _apart(picture_of(CAT, HAT, CAT, unknown), [3, 4, 2, 1]) == [3, 2]


def test_an_echo_is_not_worth_learning() -> None:
    lesson = _lesson(picture_of(CAT), Instruction("use", "Who needs <region1>?", is_of_kinds=True), [1], KNOWN)
    lesson.answer = "A cat."
    assert _problem_of(lesson) == "says nothing new"


def test_a_lesson_tells_its_teacher_of_the_regions_that_are_asked_about() -> None:
    seen = picture_of(CAT, HAT)
    lesson = _lesson(seen, Instruction("name", "What is <region1>?", "Be brief."), [2], KNOWN)
    assert lesson.asked == "What is <region2>?"
    assert lesson.told == describe_regions([HAT], (300, 300)) + "\nWhat is region2? Be brief."
    lesson.answer = "region2 is a hat."
    made = _record_of(seen.record, [lesson])
    assert [region.box for region in made.regions] == [[200, 200, 300, 300]]
    question, answer = made.conversations
    assert (question.content, answer.content) == ("What is <region1>?", "region1 is a hat.")
    assert question.told is not None
    assert "region1" in question.told
    assert "region2" not in question.told
