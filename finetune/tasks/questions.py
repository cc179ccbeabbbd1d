"""Answers to questions. One is right if it equals the true answer or is the letter of the right choice.

`Questions` is the task for a user's own records, and the base of benchmarks that ask questions. Scores stand beside guessing's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llm_bridge import number_regions, replace_regions

from ..metrics import accuracy, chance, majority
from .items import EvaluationSet, Item, Seen
from .predictions import Line, match_answers
from .task import Task

AS_MEANT = "accuracy (as meant)"
"""The score that ignores how an answer is written, beside the one that the benchmark's own script gives."""


@dataclass(kw_only=True)
class Questions(Task):
    """The questions of records' conversations."""

    kind = "questions"
    columns: ClassVar[Sequence[str]] = ("accuracy", AS_MEANT, "majority", "chance")
    asks_questions = True
    letters_alone = False
    """Whether an answer is right only if it equals the true one, except for capitals."""

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        raise ValueError(f"{self.name} has no file of its own: give data=… with records.")

    def answer_unasked(self, seen: Seen, words: str) -> Line:
        """The answer that shares most words with the caption or concept."""
        return {"answer": overlap_answer(seen.item.asked, words, seen.item.options), "words": words}

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        by_id = match_answers(lines, items, row, found.problems)
        answered = [
            {"asked": item.asked, "answer": by_id[item.id]["answer"], "truth": item.references[0], "type": item.type,
             "options": len(item.options)}
            for item in items
        ]  # fmt: skip
        return answer_scores(answered, self.letters_alone)


ANSWERS = Questions(
    name="answers", title="Answers to the records' questions", rules="exact answers 1, or the letter", version=2,
    max_new_tokens=64, history="true",
)  # fmt: skip

_CHOICE = re.compile(r"^\(?([A-Z])[.):]\s*(.+)$", re.MULTILINE)


def choices_of(question: str) -> dict[str, str]:
    """The choices that a question lists, a line each: "A. red" or "(A) red" → {"A": "red"}; {} if it lists fewer than two."""
    found = {letter: words.strip() for letter, words in _CHOICE.findall(question)}
    return found if len(found) > 1 else {}


def choice_letter(answer: str, choices: dict[str, str]) -> str | None:
    """The choice that an answer means: by its letter at the beginning, or else by its words; None if there is none."""
    text = answer.strip()
    first = re.match(r"\(?([A-Za-z])(?:[.):\s]|$)", text)
    if first and first[1].upper() in choices and (len(text) <= 3 or text[1:2] in ".):" or text[0] == "("):
        return first[1].upper()
    same = [letter for letter, words in choices.items() if words.lower() == text.rstrip(".").lower()]
    return same[0] if len(same) == 1 else None


def right_answers(lines: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each line's "answer" is its "truth": by letter if its "asked" lists choices, and otherwise exactly."""
    right = []
    for line in lines:
        choices = choices_of(line["asked"])
        if choices and line["truth"].strip() in choices:
            right.append(choice_letter(line["answer"], choices) == line["truth"].strip())
        else:
            right.append(accuracy([line["answer"]], [line["truth"]]) == 1)
    return right


def answer_scores(lines: Sequence[dict[str, Any]], letters_alone: bool = False) -> dict[str, Any]:
    """Accuracy of all lines and by their "type", with the commonest answer's share, and chance where choices are listed.

    letters_alone: only an answer that is the true one, but for capitals, is right, as in GAR-Bench's script; "accuracy (as
    meant)" then forgives "A." and "A. red".
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["type"]].append(line)
    by_type = {name: _group(some, letters_alone) for name, some in sorted(groups.items())}
    return {**_group(lines, letters_alone), "by_type": by_type}


def _group(lines: Sequence[dict[str, Any]], letters_alone: bool) -> dict[str, float]:
    meant = sum(right_answers(lines)) / len(lines)
    counts = [len(choices_of(line["asked"])) or line.get("options", 0) for line in lines]
    scores = {"questions": float(len(lines)), "accuracy": meant}
    if letters_alone:
        same = sum(line["answer"].lower() == line["truth"].lower() for line in lines)
        scores |= {"accuracy": same / len(lines), AS_MEANT: meant}
    scores["majority"] = majority([line["truth"] for line in lines])
    return {**scores, "chance": chance(counts)} if all(counts) else scores


def overlap_answer(question: str, words: str, options: Sequence[str] = ()) -> str:
    """What a caption or a concept answers to a question: of the choices it lists, or of its `options`, the one that shares
    most words, relative to its length; the first of equals.

    To a yes/no question (`is_yes_no`, or of which yes and no are the options): whether any of its words of four letters or
    more is among them. To any other question: the words themselves.
    """
    said = set(re.findall(r"\w+", words.lower()))
    possible = choices_of(question) or {option: option for option in options}
    if len(possible) > 1 and set(possible) != {"yes", "no"}:

        def shared(key: str) -> float:
            own = set(re.findall(r"\w+", possible[key].lower()))
            return len(said & own) / max(len(own), 1)

        return max(possible, key=shared)
    if set(possible) == {"yes", "no"} or is_yes_no(question):
        asked = {word for word in re.findall(r"\w+", _sentence_asked(question)) if len(word) > 3} - _EMPTY
        return "yes" if asked & said else "no"
    return words


def is_yes_no(question: str) -> bool:
    """Whether yes or no answers a question: it begins with an auxiliary, is no request, and offers no "or".

    Of several sentences the last with a question mark counts. Names of regions, and a few words that lead to the question
    ("In the picture, …"), may stand anywhere.
    """
    asked = re.sub(r"\W*\b(answer )?(with )?yes or no\b\W*", "?", _sentence_asked(question))
    return _YES_NO.match(asked) is not None and not re.search(r"\bor\b", asked)


def _sentence_asked(question: str) -> str:
    """The last sentence with a question mark (or the last one at all), in lower case and without names of regions."""
    plain = replace_regions(number_regions(question.lower())[0], lambda *_: " ")
    sentences = [some for some in re.split(r"(?<=[.?!])\s+", plain) if re.search(r"\w", some)]
    return next((some for some in reversed(sentences) if "?" in some), sentences[-1] if sentences else "")


_YES_NO = re.compile(
    r"\W*(?:(?:and|but|so|now|then|also)\b\W*)?(?:(?:in|on|of|for|at|about|looking)\b[^,?]*,\W*)?"
    r"(?!(?:can|could|will|would) you (?!see\b))"
    r"(?:is|are|was|were|do|does|did|has|have|can|could|will|would|should)(?:n['’]t)?\b"
)
"""How a yes/no question begins; "Can you describe …" is a request."""

_EMPTY = {
    "there", "whole", "image", "picture", "does", "have", "this", "that", "with", "region", "object", "were", "will", "would",
    "could", "should",
}  # fmt: skip
