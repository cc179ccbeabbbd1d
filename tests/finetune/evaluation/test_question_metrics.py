"""Answers by letter and by word, by type; yes and no as POPE reads them; what a caption answers."""

from __future__ import annotations

import pytest

from finetune.evaluation.question_metrics import (
    answer_scores,
    choice_letter,
    choices_of,
    is_yes_no,
    overlap_answer,
    pope_reading,
    yes_no_scores,
    yes_or_no,
)

ASKED = "What colour is <region1>?\nA. red\nB. dark green\nC. blue\nAnswer with the letter of the right choice."


def test_choices() -> None:
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
    ("answer", "read"),
    [("Yes, there is.", "yes"), ("No, there is not", "no"), ("no", "no"), ("There is not a dog. Yes", "no"),
     ("A dog. No cat", "yes"), ("Nothing", "yes"), ("", None), (" . ", None)],
)  # fmt: skip
def test_yes_or_no(answer: str, read: str | None) -> None:
    assert yes_or_no(answer) == read


def by_the_script(answers: list[str], labels: list[str]) -> dict[str, float]:
    """POPE's counts by the rule of its script, worked out step by step."""
    yes = []
    for answer in answers:
        sentence = answer[: answer.find(".")] if "." in answer else answer
        words = sentence.replace(",", "").split(" ")
        yes.append(not any(word in ("No", "not", "no") for word in words))
    positive = [label == "yes" for label in labels]
    tp = sum(y and p for y, p in zip(yes, positive))
    fp = sum(y and not p for y, p in zip(yes, positive))
    fn = sum(p and not y for y, p in zip(yes, positive))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (len(yes) - fp - fn) / len(yes), "precision": precision, "recall": recall,
        "F1": 2 * precision * recall / (precision + recall), "yes": sum(yes) / len(yes),
    }  # fmt: skip


SAID = ["Yes.", "No\nThere is none.", "No, there is not", "no", "no\tdog", "", " ", "NO", "not. Yes", "none", "Nope", "yes\nno",
        "Yes, it is not", "I see no dog"]  # fmt: skip


def test_yes_and_no_are_counted_as_popes_script_counts_them() -> None:
    for shift in (0, 1, 2):
        labels = [("yes", "no", "yes")[(i + shift) % 3] for i in range(len(SAID))]
        scores = yes_no_scores(SAID, labels)
        expected = by_the_script(SAID, labels)
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "script", "meant"),
    [
        ("No\nThere is none.", "yes", "no"),
        ("no\tdog", "yes", "no"),
        ("No, there is none", "no", "no"),
        ("", "yes", None),
        ("...", "yes", None),
        ("There is. Not a dog", "yes", "yes"),
        ("NO", "yes", "yes"),
    ],
)
def test_what_an_answer_means_stands_beside_what_the_script_reads(answer: str, script: str, meant: str | None) -> None:
    assert pope_reading(answer) == script
    assert yes_or_no(answer) == meant
    for label in ("yes", "no"):
        scores = yes_no_scores([answer], [label])
        assert scores["accuracy"] == (script == label)
        assert scores["accuracy (as meant)"] == (meant == label)
        assert scores["neither"] == (meant is None)


def test_f1() -> None:
    scores = yes_no_scores(["yes", "yes", "yes", "no", "no"], ["yes", "yes", "no", "yes", "no"])
    assert scores == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3, "yes": 3 / 5, "neither": 0,
         "accuracy (as meant)": 3 / 5}
    )  # fmt: skip
    assert yes_no_scores(["no", "no"], ["yes", "no"])["F1"] == 0
    silent = yes_no_scores(["yes", "", ""], ["yes", "yes", "no"])  # silence is a yes to the script, and means neither
    assert silent == pytest.approx(
        {
            "accuracy": 2 / 3,
            "precision": 2 / 3,
            "recall": 1,
            "F1": 0.8,
            "yes": 1,
            "neither": 2,
            "accuracy (as meant)": 1 / 3,
        }
    )
    with pytest.raises(ValueError, match="yes and no alone"):
        yes_no_scores(["yes"], ["maybe"])


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


def test_what_a_caption_answers() -> None:
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
