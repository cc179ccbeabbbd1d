"""What run.sh has measured, as a table: each row's numbers, means over its seeds with their range, beside what is wanted.

python -m finetune.recipes.pictures_alone.table runs/pictures_alone
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.glyphs.questions import ATTRIBUTE_FAMILIES
from finetune.glyphs.views import DESCRIBED, TOLD_KINDS

SPLIT = "test"
KNOWLEDGE, PHRASING = "what takes general knowledge", "phrasing that no recipe contains"
PERPLEXITY = "LLM: perplexity of plain text", "the same without the adapter"

Numbers = dict[str, float]


@dataclass(frozen=True)
class Row:
    """What was measured of one run: by its evaluation, and last in its log; `told` is the teacher's evaluation."""

    own: Numbers
    log: Numbers
    told: Numbers


COLUMNS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "attributes and place, of described": (
        "≥ .95",
        lambda row: contained(row.own, "contained") / contained(row.told, f"{DESCRIBED} contained"),
    ),
    "KL of new instructions, of shuffled": ("≤ .2", lambda row: row.log["val_kl_new"] / row.log["val_kl_new_shuffled"]),
    "knowledge, of the teacher": (
        "≥ .9",
        lambda row: row.own[f"full: {KNOWLEDGE}"] / row.told[f"{TOLD_KINDS}: {KNOWLEDGE}"],
    ),
    "perplexity, of the bare": ("≤ 1.02", lambda row: row.own[PERPLEXITY[0]] / row.own[PERPLEXITY[1]]),
    "attributes and place": ("", lambda row: contained(row.own, "contained")),
    "knowledge": ("", lambda row: row.own[f"full: {KNOWLEDGE}"]),
    "phrasing": ("after > alone", lambda row: row.own[f"full: {PHRASING}"]),
}
"""Columns: what is wanted of a row that learned from pictures alone, and how its number is had."""


def main(argv: Sequence[str]) -> int:
    """Print the table of a folder that run.sh has filled."""
    root = Path(argv[0]) if len(argv) == 1 else None
    if root is None or not (root / "measured" / DESCRIBED / "metrics.json").is_file():
        sys.stderr.write(f"Give a folder that run.sh has filled, with measured/{DESCRIBED}/metrics.json.\n")
        return 2
    told = numbers_of(root / "measured" / DESCRIBED)
    found: dict[str, list[Row]] = {}
    for path in sorted((root / "measured").glob("*-*/metrics.json")):
        run = path.parent.name
        found.setdefault(run.rpartition("-")[0], []).append(
            Row(numbers_of(path.parent), last_evaluation(root / run), told)
        )
    print(line("", "seeds", *COLUMNS))
    print("|---" * (2 + len(COLUMNS)) + "|")
    print(line("wanted", "", *(wanted for wanted, _ in COLUMNS.values())))
    for name, rows in found.items():
        print(line(name, str(len(rows)), *(cell(show, rows) for _, show in COLUMNS.values())))
    teacher: list[Callable[[Row], float]] = [
        lambda row: contained(row.told, f"{DESCRIBED} contained"),
        lambda row: row.told[f"{TOLD_KINDS}: {KNOWLEDGE}"],
        lambda row: row.told[f"{DESCRIBED}: {PHRASING}"],
    ]
    empty = [""] * (1 + len(COLUMNS) - len(teacher))
    print(line("the teacher, told in words", *empty, *(cell(show, [Row({}, {}, told)]) for show in teacher)))
    return 0


def numbers_of(folder: Path) -> Numbers:
    """The numbers of an evaluation."""
    numbers: Numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))[SPLIT]
    return numbers


def last_evaluation(run: Path) -> Numbers:
    """What a run's log says of its last evaluation beside the teacher; nothing, if it had none."""
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {name: value for line in lines if "val_kl_new" in line for name, value in line.items()}


def contained(numbers: Numbers, kind: str) -> float:
    """The share of answers about attributes and place that contain the truth, a mean over families."""
    return float(np.mean([numbers[f"{kind}: {family}"] for family in ATTRIBUTE_FAMILIES]))


def cell(show: Callable[[Row], float], rows: Sequence[Row]) -> str:
    """The mean over seeds, and from where to where they go; nothing where a number is of another kind of run.

    A projector alone has no adapter that could change the perplexity, and a supervised run has no teacher.
    """
    try:
        values = [show(row) for row in rows]
    except KeyError:
        return ""
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return re.sub(r"(?<!\d)0\.", ".", f"{np.mean(values):.3f}{spread}")


def line(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
