"""What a teacher's answers are worth, and what it is told."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from small_files import write_picture

from finetune.examples import after_judgements, as_text
from finetune.instructions import Instruction
from finetune.lesson_arguments import LessonArguments
from finetune.records import Record, Region
from finetune.teacher import (
    KNOWN,
    NEW,
    OWN,
    YES,
    Lesson,
    SeenPicture,
    Teacher,
    _apart,
    _lesson,
    _opened,
    _problem_of,
    _record_of,
)
from llm_bridge import RegionBridgeProcessor, RegionDescription, describe_regions

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


def teacher_that_says_yes_to(*words: str) -> tuple[Teacher, list[str]]:
    """A teacher for which yes is likelier of texts that end with one of the words, and what it has read."""
    read: list[str] = []

    def log_probabilities(pairs: list[tuple[str, str]]) -> list[float]:
        read.extend(text for text, _ in pairs)
        return [0.0 if said == f" {YES}" and any(f"{one}?" in text for one in words) else -1.0 for text, said in pairs]

    teacher = teacher_that_holds("a cat")
    teacher.likelihoods = SimpleNamespace(log_probabilities=log_probabilities)  # type: ignore[assignment]
    return teacher, read


def test_whether_a_region_is_something_is_asked_of_what_it_is_and_of_what_another_one_is() -> None:
    asked = Instruction("whether", "Does <region1> show {thing}?")
    teacher, read = teacher_that_says_yes_to("a hat", "a red hat")
    lessons = [
        lesson
        for seed in range(40)
        for lesson in teacher._statement(picture_of(CAT, HAT), asked, 2, KNOWN, [CAT, HAT], np.random.RandomState(seed))
    ]
    said = {(lesson.asked, lesson.answer) for lesson in lessons}
    assert said == {
        ("Does <region2> show a hat?", "Yes."),
        ("Does <region2> show a red hat?", "Yes."),
        ("Does <region2> show a cat?", "No."),
        ("Does <region2> show a black cat?", "No."),
    }
    assert 10 < sum(lesson.answer == "Yes." for lesson in lessons) < 30
    assert {lesson.told for lesson in lessons if lesson.asked == "Does <region2> show a cat?"} == {
        "The thing is a red hat. It is at the bottom right of the picture and takes up some of it.\n"
        "Question: Does it show a cat?\nAnswer:"
    }
    assert set(read) == {after_judgements(text) for text in {lesson.told for lesson in lessons}}
    assert all(_problem_of(lesson) is None and not teacher._unsure([lesson]) for lesson in lessons)


def test_whether_a_region_is_somewhere_is_asked_of_a_place_on_neither_of_its_sides() -> None:
    asked = Instruction("whether", "Do I find <region1> {place}?")
    teacher, _ = teacher_that_says_yes_to("at the bottom right of the picture")
    lessons = [
        lesson
        for seed in range(60)
        for lesson in teacher._statement(picture_of(HAT), asked, 1, KNOWN, [HAT], np.random.RandomState(seed))
    ]
    assert {lesson.asked for lesson in lessons if lesson.answer == "Yes."} == {
        "Do I find <region1> at the bottom right of the picture?"
    }
    assert {lesson.asked for lesson in lessons if lesson.answer == "No."} == {
        f"Do I find <region1> {place} of the picture?"
        for place in ("at the top left", "at the top", "at the left", "in the center")
    }


def test_a_statement_that_the_teacher_holds_for_no_truer_than_another_one_is_left_out() -> None:
    asked, random = Instruction("whether", "Is <region1> {thing}?"), np.random.RandomState(0)
    teacher, _ = teacher_that_says_yes_to("a cat", "a black cat")
    seen = picture_of(HAT)
    assert not list(teacher._statement(seen, asked, 1, KNOWN, [CAT, HAT], random))
    assert not list(teacher._statement(seen, asked, 1, KNOWN, [HAT], random))
    unknown = picture_of(RegionDescription("region1", None))
    assert not list(teacher._statement(unknown, asked, 1, KNOWN, [CAT, HAT], random))
    assert seen.left_out == {"not sure whether": 1, "nothing to ask about that it is not": 1}
    assert unknown.left_out == {"nothing to ask about that it is not": 1}


def test_a_hint_names_the_region_as_the_question_does() -> None:
    asked = Instruction("place", "Where is <region1>?", "Finish the sentence: <region1> is at the …")
    told = _lesson(picture_of(CAT, HAT), asked, [2], KNOWN).told
    assert told.endswith("\nWhere is region2? Finish the sentence: region2 is at the …")


def test_an_answer_that_misplaces_its_region_is_not_worth_learning() -> None:
    lesson = _lesson(picture_of(CAT), Instruction("place", "Where is <region1>?"), [1], KNOWN)
    lesson.answer = "region1 is at the bottom left of the picture."
    assert _problem_of(lesson) == "is wrong about the place"
    lesson.answer = "region1 is at the left of the picture."
    assert _problem_of(lesson) is None


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


def lesson_of(told: str, answer: str, kind: str = "use") -> Lesson:
    return Lesson(picture_of(CAT), kind, KNOWN, "Who needs <region1>?", told, [1], answer)


def test_what_is_unsure_is_found_for_all_lessons_together() -> None:
    asked: list[Any] = []

    def log_probabilities(pairs: list[tuple[str, str]]) -> list[float]:
        asked.append(pairs)
        return [-9.0 if said == " Nobody." else -1.0 for _, said in pairs]

    teacher = teacher_that_holds("a cat")
    teacher.likelihoods = SimpleNamespace(log_probabilities=log_probabilities)  # type: ignore[assignment]
    text = as_text("Who needs a cat?")
    lessons = [lesson_of(text, "Mice."), lesson_of(text, "Nobody."), lesson_of("region1 is a cat.", "Nobody.")]
    assert teacher._unsure(lessons) == [lessons[1]]
    assert [len(pairs) for pairs in asked] == [2]


def test_a_thing_of_the_examples_is_known_where_the_region_is_one() -> None:
    sofa = RegionDescription("region1", None, [("sofa", 0.9)], (0, 0, 100, 100))
    lesson = _lesson(picture_of(sofa), Instruction("use", "Who needs <region1>?", is_of_kinds=True), [1], KNOWN)
    lesson.answer = "Tired people sit on a sofa."
    assert _problem_of(lesson) is None
    lesson.answer = "Those who own a kettle."
    assert _problem_of(lesson) == "names a thing of the examples"


def test_a_picture_that_cannot_be_used_is_counted_by_its_reason(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 60, 40)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    inside, outside = Region(box=[1, 2, 30, 20]), Region(box=[1, 2, 300, 20])
    for record, problem in (
        (Record("a.png", 60, 40, [inside]), None),
        (Record("a.png", 600, 400, [inside]), "picture of another size than its record says"),
        (Record("torn.png", 60, 40, [inside]), "picture does not open"),
        (Record("a.png", 0, 0, [inside, outside]), "picture that a region does not fit"),
    ):
        seen = SeenPicture(0, record, [], Counter())
        picture = _opened(seen, tmp_path, tmp_path)
        assert (picture is None) == (problem is not None)
        assert seen.left_out == ({problem: 1} if problem else {})
        assert len(seen.record.regions) == (0 if problem else 1)


def test_questions_for_which_there_are_too_few_regions_are_counted() -> None:
    teacher = teacher_that_holds("a cat")
    teacher.seed, teacher.arguments = 0, LessonArguments(questions=4, own_questions=0)
    teacher.pool = [Instruction("compare", "Compare <region1> and <region2>.")]
    for is_held_out, left_out in ((False, {f"no {KNOWN} about so few regions": 4}),
                                  (True, {f"no {kind} about so few regions": 2 for kind in (KNOWN, NEW)})):  # fmt: skip
        teacher.pictures = SimpleNamespace(is_held_out=lambda row, said=is_held_out: said)  # type: ignore[assignment]
        seen = picture_of(CAT)
        assert not list(teacher._draw(seen, [CAT]))
        assert seen.left_out == left_out


@pytest.mark.parametrize("says_something", [True, False])
def test_a_teacher_that_would_know_nothing_is_refused(says_something: bool) -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    tokenizer = processor.region_tokenizer
    assert tokenizer is not None
    pictures: Any = SimpleNamespace(say_something=lambda: says_something)
    bridge: Any = torch.nn.Module()

    def teacher() -> Teacher:
        return Teacher(bridge, processor, pictures, [], LessonArguments(), seed=0)

    teacher()
    tokenizer.concepts = None
    teacher()  # which has captions still
    tokenizer.text_tokenizer = None
    if says_something:
        teacher()
        return
    with pytest.raises(
        ValueError, match=r"neither caption vocabulary nor concept bank, .* give text_tokenizer or concepts"
    ):
        teacher()
