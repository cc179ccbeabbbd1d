"""Which answers are worth learning."""

from __future__ import annotations

import pytest

pytest.importorskip("accelerate")

from finetune.answer_checks import echoes, misplaces, mixes_up, problem_of, whole_sentences
from finetune.instructions import JSON, UNSEEN
from llm_bridge import RegionDescription, describe_regions


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
        (describe_regions([RegionDescription("region1", "a cat", [], (0, 0, 9, 9))], (9, 9)), "recites"),
    ],
)
def test_answers_that_are_of_no_use_are_named(answer: str, problem: str | None) -> None:
    assert problem_of(answer, "describe", [1, 2]) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I cannot see that.", None),
        ("I'm sorry, but I can't tell how old region1 is.", None),
        ("It is not known who owns region1.", None),
        ("The text does not say it.", None),
        ("I don't have that information.", None),
        ("region1 is 5 years old.", "invents"),
        ("The person beside region1 is Alec.", "invents"),
        ("Yes, one can fly with it.", "invents"),
    ],
)
def test_what_cannot_be_seen_must_be_answered_so(answer: str, problem: str | None) -> None:
    assert problem_of(answer, UNSEEN, [1]) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"name": "cat"}', None),
        ('["cat", "hat"]', None),
        ('```json\n{"name": "cat"}\n```', None),
        ('{"name": cat}', "is no JSON"),
        ('Here it is: {"name": "cat"}', "is no JSON"),
        ('"cat"', "is no JSON"),
        ("I'm sorry, I cannot do that.", "dodges"),
    ],
)
def test_where_json_is_asked_for_the_answer_is_json(answer: str, problem: str | None) -> None:
    assert problem_of(answer, JSON, [1]) == problem


@pytest.mark.parametrize(
    ("question", "answer", "is_echo"),
    [
        ("What does a lion hunt?", "A lion.", True),
        ("When do people need a bed?", "When one needs a bed.", True),
        ("What grows inside an apple?", "Apples.", True),
        ("What does a lion hunt?", "Zebras.", False),
        ("Where does a tree grow?", "Trees grow in soil.", False),
        ("Is a fire hot or cold?", "Hot.", False),
    ],
)
def test_an_answer_that_only_says_its_question_again_is_an_echo(question: str, answer: str, is_echo: bool) -> None:
    assert echoes(answer, question) == is_echo


@pytest.mark.parametrize(
    ("answer", "is_mixed_up"),
    [
        ("region1 is a hat.", True),
        ("Region 1 is a red hat, and region2 a cat.", True),
        ("region1 is a black cat while region2 is a red cat.", True),
        ("region1 is a cat and region2 is a hat.", False),
        ("region1 is a cat above the hat.", False),
        ("region1 is above the hat.", False),
        ("region1 is a toy.", False),
    ],
)
def test_a_region_that_is_called_what_another_one_is_is_mixed_up(answer: str, is_mixed_up: bool) -> None:
    assert mixes_up(answer, {1: "cat", 2: "hat"}) == is_mixed_up


@pytest.mark.parametrize(
    ("answer", "place", "is_misplaced"),
    [
        ("region1 is at the top left of the picture.", "top left", False),
        ("region1 is on the left.", "top left", False),
        ("It is in the upper left-hand corner.", "top left", False),
        ("It is in the center.", "center", False),
        ("It is near the top of a hill.", "top", False),
        ("region1 is not on the right.", "left", False),
        ("region1 isn't at the top.", "left", False),
        ("That is right: it is a cat.", "top left", False),
        ("region1 is at the top right of the picture.", "top left", True),
        ("region1 is on the right.", "top", True),
        ("It is in the lower left corner.", "top left", True),
        ("It is in the middle of the picture.", "top", True),
        ("It is at the top, or rather at the bottom.", "top", True),
        ("It is at the left.", "center", True),
    ],
)
def test_an_answer_that_names_another_side_misplaces_its_region(answer: str, place: str, is_misplaced: bool) -> None:
    assert misplaces(answer, place) == is_misplaced


def test_a_cut_answer_ends_with_its_last_whole_sentence() -> None:
    assert whole_sentences("It is red. It is also", True) == "It is red."
    assert whole_sentences("It is red. It is also", False) == "It is red. It is also"
    assert whole_sentences("It is also", True) == ""
    assert whole_sentences("It is heavy. It weighs 3.5 kilograms and", True) == "It is heavy."
    assert whole_sentences('{"name": "a cat. It', True) == ""
