"""POPE (https://github.com/RUCAIBox/POPE): yes/no questions about what is in a picture. The region is the whole picture.

Answers are read twice: as POPE's script reads them, and as they are meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.entries import read_each
from ..data.json_files import read_questions
from ..records import Record, Region, Turn
from .items import EvaluationSet, Item, Place, Seen
from .predictions import Line, match_answers
from .questions import AS_MEANT, Questions, overlap_answer
from .task import Published


@dataclass(kw_only=True)
class Pope(Questions):
    """Lines, or a list, of {question_id, image, text, label}."""

    kind = "yes_no"
    columns = ("accuracy", "precision", "recall", "F1", "yes", AS_MEANT, "neither")

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        content = read_questions(path)
        found.places = [
            Place(f"{entry.get('question_id')}/q0", {"question": entry.get("text"), "image": entry.get("image")})
            for entry in content
        ]
        seen = set()

        def read(_: str, entry: dict[str, Any]) -> Record | None:
            number, label = entry["question_id"], entry["label"]
            if number is None:
                raise KeyError("question_id")
            if number in seen:
                found.problems.add("question given twice, the first counts", str(number))
                return None
            seen.add(number)
            if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
                found.problems.add("question whose label is neither yes nor no", str(number))
                return None
            if not isinstance(entry["text"], str) or not entry["text"].strip():
                found.problems.add("question without words", str(number))
                return None
            height, width = found.size_of(entry["image"])
            turns = [
                Turn("user", f"<region1> is the whole picture. {entry['text']}"),
                Turn("assistant", label.strip().lower()),
            ]
            region = Region([0, 0, width, height], id=str(number))
            return Record(entry["image"], width, height, [region], turns, self.title, image_id=number)

        ids = [entry.get("question_id") for entry in content]
        named = ((f"entry {n}" if key is None else str(key), content[n]) for n, key in enumerate(ids))
        found.records = list(islice(read_each(named, read, found.problems), limit))

    def truth_fault(self, answer: str) -> str | None:
        is_either = plain_truth(answer) in ("yes", "no")
        return None if is_either else "question whose answer is neither yes nor no"

    def answer_unasked(self, seen: Seen, words: str) -> Line:
        return {"answer": overlap_answer(seen.item.asked, words, ["yes", "no"]), "words": words}

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        by_id = match_answers(lines, items, row, found.problems)
        said = [by_id[item.id]["answer"] for item in items]
        silent = [item.id for item, words in zip(items, said) if yes_or_no(words) is None]
        found.problems.extend(f"{row}: answer that is neither yes nor no, a yes to the script", silent)
        return dict(yes_no_scores(said, [plain_truth(item.references[0]) for item in items]))


POPE = Pope(
    name="pope", title="POPE", version=3, whole=3000, other_wholes=(2910,),
    rules="the whole picture as region; by POPE's script yes unless a word before the first full stop, between blanks, is "
          "No, no or not; as meant: words between any white space, silence is neither",
    published=(
        Published("Osprey-7B, random", {"F1": 0.8897}, "CircleRadon/Osprey"),
        Published("Osprey-7B, popular", {"F1": 0.8750}, "CircleRadon/Osprey"),
        Published("Osprey-7B, adversarial", {"F1": 0.8531}, "CircleRadon/Osprey"),
    ),
)  # fmt: skip


def plain_truth(answer: str) -> str:
    """A true yes or no, made ready for comparison: "Yes." → "yes"."""
    return answer.strip().rstrip(".").lower()


def yes_or_no(answer: str) -> str | None:
    """What an answer means: "no" if its first sentence holds "no" or "not" as a word, else "yes".

    None for an answer without a letter or digit, which says neither.
    """
    if not re.search(r"[^\W_]", answer):
        return None
    return "no" if _NO & set(_first_sentence(answer).split()) else "yes"


def pope_reading(answer: str) -> str:
    """What POPE's script makes of an answer: as `yes_or_no`, but words end only at spaces, and an empty answer is a yes.

    So a "No" with a line's end behind it is a yes, for the script takes it for one word with the next line's first.
    """
    return "no" if _NO & set(_first_sentence(answer).split(" ")) else "yes"


_NO = {"No", "not", "no"}


def _first_sentence(answer: str) -> str:
    return answer.split(".")[0].replace(",", "")


def yes_no_scores(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """POPE's accuracy, precision, recall and F1 of "yes", and the share of yes, by its script (Li et al., 2023).

    "accuracy (as meant)": with answers read by `yes_or_no`, where an answer that says neither is wrong, whatever is true;
    "neither": how many such answers there are, which the script counts as yes.
    """
    if set(truths) - {"yes", "no"}:
        raise ValueError(f"Got true answers {sorted(set(truths))[:4]}, expected yes and no alone.")
    said, meant = [pope_reading(answer) for answer in answers], [yes_or_no(answer) for answer in answers]
    hits = sum(a == b == "yes" for a, b in zip(said, truths))
    claimed, positive = said.count("yes"), list(truths).count("yes")
    precision, recall = hits / claimed if claimed else 0.0, hits / positive if positive else 0.0
    return {
        "accuracy": sum(a == b for a, b in zip(said, truths)) / len(truths),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes": claimed / len(truths),
        AS_MEANT: sum(a == b for a, b in zip(meant, truths)) / len(truths),
        "neither": float(meant.count(None)),
    }
