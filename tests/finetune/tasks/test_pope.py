"""Yes and no as POPE's script reads them, and as they are meant."""

from __future__ import annotations

import pytest

pytest.importorskip("datasets")

from finetune.tasks.pope import pope_reading, yes_no_scores, yes_or_no


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
def test_accuracy_as_meant_stands_beside_the_official_one(answer: str, script: str, meant: str | None) -> None:
    assert pope_reading(answer) == script
    assert yes_or_no(answer) == meant
    for label in ("yes", "no"):
        scores = yes_no_scores([answer], [label])
        assert scores["accuracy"] == (script == label)
        assert scores["accuracy (as meant)"] == (meant == label)
        assert scores["neither"] == (meant is None)


def test_scores_equal_those_counted_by_hand() -> None:
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
    ("answer", "read"),
    [("Yes, there is.", "yes"), ("No, there is not", "no"), ("no", "no"), ("There is not a dog. Yes", "no"),
     ("A dog. No cat", "yes"), ("Nothing", "yes"), ("", None), (" . ", None)],
)  # fmt: skip
def test_an_answer_is_read_as_yes_or_no(answer: str, read: str | None) -> None:
    assert yes_or_no(answer) == read
