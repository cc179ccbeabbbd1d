"""Answers by letter and by word, by type; what a caption answers."""

from __future__ import annotations

import pytest

from finetune.tasks.questions import (
    answer_scores,
    choice_letter,
    choices_of,
    is_yes_no,
    overlap_answer,
)

ASKED = "What colour is <region1>?\nA. red\nB. dark green\nC. blue\nAnswer with the letter of the right choice."


def test_choices_are_read_from_lettered_lines() -> None:
    assert choices_of(ASKED) == {"A": "red", "B": "dark green", "C": "blue"}
    assert choices_of("What is <region1>?\n(A) a dog\n(B) a cat") == {"A": "a dog", "B": "a cat"}
    assert choices_of("A. only one") == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("b.", "B"), ("(B) dark green", "B"), ("B: it is green", "B"), ("dark green", "B"), ("Dark green.", "B"),
     ("Blue", "C"), ("A dog", None), ("I do not know", None), ("D", None), ("", None)],
)  # fmt: skip
def test_letter_of_an_answer(answer: str, letter: str | None) -> None:
    assert choice_letter(answer, choices_of(ASKED)) == letter


def test_scores_by_type() -> None:
    lines = [
        {"asked": ASKED, "answer": "b", "truth": "B", "type": "colour"},
        {"asked": ASKED, "answer": "C", "truth": "B", "type": "colour"},
        {"asked": "What is it?", "answer": "A dog.", "truth": "dog", "type": "kind", "options": 4},
    ]
    scores = answer_scores(lines)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["majority"] == pytest.approx(2 / 3)
    assert scores["chance"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 4) / 3)
    assert scores["by_type"]["colour"] == pytest.approx(
        {"questions": 2, "accuracy": 0.5, "majority": 1, "chance": 1 / 3}
    )
    assert scores["by_type"]["kind"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("answer", "official", "meant"),
    [("B", 1, 1), ("b", 1, 1), ("B.", 0, 1), ("B. dark green", 0, 1), (" B", 0, 1), ("dark green", 0, 1), ("A", 0, 0),
     ("", 0, 0)],
)  # fmt: skip
def test_letters_match_exactly_where_the_benchmark_says_so(answer: str, official: int, meant: int) -> None:
    line = {"asked": ASKED, "answer": answer, "truth": "B", "type": "colour"}
    scores = answer_scores([line], letters_alone=True)
    assert (scores["accuracy"], scores["accuracy (as meant)"]) == (official, meant)
    assert scores["by_type"]["colour"]["accuracy"] == official
    assert answer_scores([line])["accuracy"] == meant  # of records of one's own, as ever


def test_captions_answer_questions_by_shared_words() -> None:
    assert overlap_answer(ASKED, "a big dark green leaf") == "B"
    assert overlap_answer("Is there a dog in the picture?", "a small dogs") == "no"
    assert overlap_answer("Is there a horse in the picture?", "a brown horse") == "yes"
    assert overlap_answer("How big is <region1>?", "a small red star", ["large", "small"]) == "small"
    assert overlap_answer("Describe <region1>.", "a small red star") == "a small red star"


@pytest.mark.parametrize(
    "question",
    [
        "Is <region1> green?",
        "<region1>, is it green?",
        "region2: Are these dogs?",
        "<region1> is the whole picture. Is there a dog in the image?",
        "Does <region1> touch <region2>? Answer with yes or no.",
        "Is <region1> green, yes or no?",
        "In the picture, were there dogs beside <region1>?",
        "And has <region1> a handle?",
        "Isn't <region1> green?",
        "Can you see a dog in <region1>?",
    ],
)
def test_yes_no_questions_are_known(question: str) -> None:
    assert is_yes_no(question)
    assert overlap_answer(question, "something else") == "no"


@pytest.mark.parametrize(
    "question",
    [
        "What is <region2>, and where is it?",
        "How many other objects are the same colour as <region1>?",
        "<region1> is the whole picture. What is there in the image?",
        "Is <region1> left or right of <region2>?",
        "Can you describe <region1>?",
        "Describe <region1>; is it the largest that there is?",
        "Island of <region1>?",
        "<region1>",
    ],
)
def test_other_questions_are_answered_in_words(question: str) -> None:
    assert not is_yes_no(question)
    assert overlap_answer(question, "a green leaf") == "a green leaf"


def test_a_yes_no_question_is_answered_by_its_own_words() -> None:
    assert overlap_answer("Is <region1> green?", "a green leaf") == "yes"
    assert overlap_answer("<region1> stands by a leaf. Is <region1> yellow?", "a green leaf") == "no"
    assert overlap_answer("Should anyone call it a leaf", "a green leaf") == "yes"
    assert overlap_answer("Green, would you say?", "a green leaf", ["yes", "no"]) == "yes"
