"""Reads answers that were made elsewhere, and matches lines of predictions with their items.

A file has answers by id, or is one that another system's script writes; `RAW_FORMS` recognises these by their keys. A missing
line counts as an empty answer and marks the score. A line with an unknown id is named. If a line is doubled, the first counts.
If no id is known at all, the file is refused, because it belongs to another split.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tap_tokenizer import counted

from ..data.entries import Problems
from ..data.json_files import read_entries, read_json, read_json_lines
from .items import Item, Place

GIVEN = "given predictions"
Line: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class RawForm:
    """The form of lines that another system's script writes: the key of the item's id (None: its place), and of the answer.

    besides: other keys that such a line has. without: keys that it never has, because they belong to a file of questions.
    """

    id: str | None
    answer: str
    besides: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def fits(self, line: Line) -> bool:
        """Whether a line is of this form."""
        needed = {self.answer, *self.besides, *([self.id] if self.id else [])}
        return needed <= set(line) and not self.without & set(line)


QUESTION_KEYS = frozenset({"label", "choices", "mask_rles", "mask_rle", "gt_answers"})
RAW_FORMS = {
    "GAR": RawForm(None, "model_output"),
    "GAR on MDVP-Bench": RawForm(None, "caption", frozenset({"gt"})),
    "Draw-and-Understand": RawForm(None, "prediction", frozenset({"answer"})),
    "PixelRefer": RawForm(None, "pred", frozenset({"Answer"})),
    "LLaVA": RawForm("question_id", "text", without=QUESTION_KEYS),
    "VQA": RawForm("question_id", "answer", without=QUESTION_KEYS),
    "POPE": RawForm(None, "answer", frozenset({"question"}), without=QUESTION_KEYS),
    "coco-caption": RawForm("image_id", "caption"),
}
"""Forms by the system whose script writes them. If several fit, the first counts."""


def read_predictions(path: str, fault: Callable[[Line], str | None], places: Sequence[Place] | None) -> list[Line]:
    """Read another system's predictions as lines of one row, or of the rows that they name.

    path: a file of lines, a JSON list of these, a JSON object of answers by id, or the answer file of another system's script
    (`RAW_FORMS`). fault: says what is wrong with a line, in words. places: the items in the order of the published file, for
    answers without ids; None if the lines are not answers. Raises `ValueError` for lines with a fault.
    """
    if not Path(path).is_file():
        raise ValueError(f"Found no predictions at {path}: give a file of lines, or JSON.")
    lines = _lines_of(path)
    if not lines:
        raise ValueError(f"{path} holds no predictions.")
    if places is not None:
        lines = _with_ids(path, lines, places)
    for number, line in enumerate(lines, 1):
        if wrong := _fault(line, fault):
            raise ValueError(f"{path}, prediction {number} {wrong}.")
    rows = {line.get("row", GIVEN) for line in lines}
    return [{**line, "row": line.get("row", GIVEN) if len(rows) > 1 else GIVEN} for line in lines]


def _lines_of(path: str) -> list[Any]:
    """The predictions as the file has them; for an object, a line for each key."""
    if not path.endswith(".json"):
        return list(read_entries(path))
    try:
        content = read_json(path)
    except ValueError as error:
        try:  # lines may have any name
            return list(read_json_lines(path))
        except ValueError:
            raise error from None
    if isinstance(content, dict):
        # a benchmark's script puts its judge's replies beside the text, and means at the end
        judged = any(isinstance(v, dict) and "pred" in v for v in content.values())
        told = {k: v["pred"] for k, v in content.items() if isinstance(v, dict) and "pred" in v} if judged else content
        return [{"id": k, "answer": v} for k, v in told.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a list of predictions.")
    return content


def _with_ids(path: str, lines: list[Any], places: Sequence[Place]) -> list[Any]:
    """Lines of a raw form as id and answer; other lines as they are, with the whole id of their item.

    Raises `ValueError` for answers without ids that do not fit the file's places.
    """
    known = {place.id for place in places}
    found: list[Any] = []
    for number, line in enumerate(lines):
        form = _form_of(line)
        if form is not None and form.id is not None:
            line = {"id": line[form.id], "answer": line[form.answer]}
        elif form is not None and places:  # without any, the benchmark's file has no order to go by
            line = {"id": id_at(number, line, len(lines), places, path, "prediction"), "answer": line[form.answer]}
        if isinstance(line, dict) and "id" in line:
            line = {**line, "id": whole_id(line["id"], known)}
        found.append(line)
    return found


def id_at(number: int, line: Line, count: int, places: Sequence[Place], path: str, noun: str) -> str:
    """The id of the item that line `number` (from 0) of a file of `count` lines without ids is about.

    noun: what lines are called. Raises `ValueError` if the file has not one for each place, or repeats another entry.
    """
    if count != len(places):
        lines = counted(count, "answer" if noun == "prediction" else noun)
        raise ValueError(
            f"{path} has {lines} without ids, and the benchmark's file "
            f"{counted(len(places), 'entry', 'entries')}: expected one for each."
        )
    if fault := places[number].fault(line):
        raise ValueError(f"{path}, {noun} {number + 1} {fault}: is it the file of another split?")
    return places[number].id


def whole_id(key: Any, known: Collection[str]) -> Any:
    """An item's id, from what a file gives: the number of a record or entry stands for its only question."""
    return f"{key}/q0" if str(key) not in known and f"{key}/q0" in known else key


def _form_of(line: Any) -> RawForm | None:
    """The form of a line that another system wrote; None for a line with our id, or of an unknown form."""
    if not isinstance(line, dict) or "id" in line:
        return None
    return next((form for form in RAW_FORMS.values() if form.fits(line)), None)


def _fault(line: Any, fault: Callable[[Line], str | None]) -> str | None:
    """What is wrong with a line, in words; None if nothing is, or if the line says that nothing was predicted."""
    if not isinstance(line, dict):
        return f"is a {type(line).__name__}, expected an object"
    return None if "id" in line and line.get("problem") else fault(line)


def lacking(line: Line, *keys: str) -> str | None:
    """Which of the keys a line lacks, in words."""
    missing = [key for key in keys if key not in line]
    return f"lacks {', '.join(missing)}" if missing else None


def match_lines(lines: Sequence[Line], ids: Sequence[str], row: str, problems: Problems) -> dict[str, Line]:
    """The line of each id, or a line with a "problem" if there is none. Raises `ValueError` if no id is known."""
    known = set(ids)
    found: dict[str, Line] = {}
    for line in lines:
        key = str(line["id"])
        if key not in known:
            problems.add(f"{row}: prediction for an unknown id", key)
        elif key in found:
            problems.add(f"{row}: prediction given twice, the first counts", key)
        else:
            found[key] = line
    if ids and lines and not found:
        raise ValueError(
            f"None of the {counted(len(lines), 'prediction')} of {row} is for an id of the reference, such as {ids[0]}: "
            "is it the file of another split?"
        )
    for key in ids:
        line = found.setdefault(key, {"id": key, "answer": "", "problem": "no prediction"})
        if line.get("problem"):
            problems.add(f"{row}: {line['problem']}", key)
    return found


def match_answers(lines: Sequence[Line], items: Sequence[Item], row: str, problems: Problems) -> dict[str, Line]:
    """`match_lines` for items, with a text for every answer. Empty answers are named."""
    found = {}
    for key, line in match_lines(lines, [item.id for item in items], row, problems).items():
        answer = "" if line.get("answer") is None else str(line["answer"])
        if not answer.strip() and not line.get("problem") and "labels" not in line:
            problems.add(f"{row}: empty answer", key)
        found[key] = {**line, "answer": answer}
    return found
