"""What a teacher's answers are worth, and what it is told."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from collections import Counter

from finetune.instructions import UNSEEN, Instruction
from finetune.records import Record, Region
from finetune.teacher import KNOWN, SeenPicture, _lesson, _own_question, _record_of, _whole_sentences, problem_of
from llm_bridge import RegionDescription, describe_regions

CAT = RegionDescription("region1", "a black cat", [("cat", 0.9)], (0, 0, 100, 100))
HAT = RegionDescription("region2", "a red hat", [("hat", 0.9)], (200, 200, 300, 300))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("It is a black cat.", None),
        ("...", "empty"),
        ("It is a cat that sits. It is a cat that sits.", "repeats"),
        ("a pink cloud that is a pink cloud that is a pink cloud that is", "repeats"),
        ("I'm sorry, but I can't see pictures.", "dodges"),
        ("Could you please provide the picture?", "dodges"),
        ("region1 is larger than region3.", "speaks of other regions"),
    ],
)
def test_answers_that_are_of_no_use_are_named(answer: str, problem: str | None) -> None:
    assert problem_of(answer, "describe", [1, 2]) == problem


def test_what_cannot_be_seen_may_be_answered_so() -> None:
    assert problem_of("I cannot see that.", UNSEEN, [1]) is None


def test_a_cut_answer_ends_with_its_last_whole_sentence() -> None:
    assert _whole_sentences("It is red. It is also", True) == "It is red."
    assert _whole_sentences("It is red. It is also", False) == "It is red. It is also"
    assert _whole_sentences("It is also", True) == ""
    assert _whole_sentences('{"name": "a cat. It', True) == ""


def test_a_question_of_its_own_names_the_region_and_gives_nothing_away() -> None:
    assert _own_question("Sure! How old is region1? Or is it?", 1, CAT) == "How old is <region1>?"
    assert _own_question('"How old is it?"', 2, HAT) == "<region1>: How old is it?"
    assert _own_question("How old is the cat (region1)?", 1, CAT) == "How old is <region1>?"
    assert _own_question("Is a black cat old?", 1, CAT) == "Is <region1> old?"
    assert _own_question("Do cats sleep?", 1, CAT) is None
    assert _own_question("Is region1 older than region2?", 1, CAT) is None
    assert _own_question("A cat.", 1, CAT) is None


def test_a_lesson_tells_its_teacher_of_the_regions_that_are_asked_about() -> None:
    record = Record("a.png", 300, 300, [Region(box=[0, 0, 100, 100]), Region(box=[200, 200, 300, 300])])
    seen = SeenPicture(0, record, [CAT, HAT], Counter())
    lesson = _lesson(seen, Instruction("name", "What is <region1>?", "Be brief."), [2], KNOWN)
    assert lesson.asked == "What is <region2>?"
    assert lesson.told == describe_regions([HAT], (300, 300)) + "\nWhat is region2? Be brief."
    lesson.answer = "region2 is a hat."
    made = _record_of(record, [lesson])
    assert [region.box for region in made.regions] == [[200, 200, 300, 300]]
    question, answer = made.conversations
    assert (question.content, answer.content) == ("What is <region1>?", "region1 is a hat.")
    assert question.told is not None
    assert "region1" in question.told
    assert "region2" not in question.told
