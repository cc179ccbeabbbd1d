"""What a table and a plot say of numbers, also of those that are 0 or not there."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("matplotlib")

from finetune.data.entries import first_names
from finetune.tasks import TASKS
from finetune.tasks.report import as_markdown, figure_of
from finetune.tasks.task import Task


def metrics(task: str, rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "x", "title": "A benchmark", "task": task, "rows": rows, "subset": False, "own_records": True,
        "protocol": {"name": "x", "version": 1, "rules": "rules"}, "n": {"items": 1, "pictures": 2, "whole": None},
        "not_run": {}, "notes": [], "problems": {}, **more,
    }  # fmt: skip


def of_kind(kind: str) -> Task:
    return next(task for task in TASKS.values() if task.kind == kind)


def words_of(about: dict[str, Any]) -> list[str]:
    """All that is written inside a plot's axes and beside them."""
    (axes,) = figure_of(about, of_kind(about["task"])).axes
    return [text.get_text() for text in (*axes.texts, *axes.get_xticklabels(), axes.yaxis.label)]


def test_many_names_are_cut_short() -> None:
    assert first_names(["a", "b", "c"]) == "a, b, c"
    assert first_names(["a", "b", "c", "d"]) == "a, b, c, …"


def test_a_table_lists_the_problems() -> None:
    about = metrics("yes_no", {"a": {"accuracy": 0.5, "neither": 2.0}}, problems={"bad": {"count": 1, "names": ["q"]}})
    table = as_markdown(about, of_kind("yes_no"))
    assert "1 item in 2 pictures." in table
    assert "| | accuracy | neither |" in table
    assert "| a † | 0.500 | 2 |" in table
    assert "- bad: 1 (q)" in table


def test_only_the_rows_concerned_are_marked() -> None:
    rows = {name: {"accuracy": 0.5} for name in ("model", "model, question only", "head")}

    def marked(**more: Any) -> list[str]:
        lines = as_markdown(metrics("questions", rows, **more), of_kind("questions")).splitlines()
        return [line.split(" †")[0].removeprefix("| ") for line in lines if line.startswith("| ") and " †" in line]

    one = {"count": 1, "names": ["q"]}
    assert marked() == []
    assert marked(problems={"model, question only: empty answer": one}) == ["model, question only"]
    assert marked(problems={"head: empty answer": one, "model: no prediction": one}) == ["model", "head"]
    assert marked(problems={"question without an answer": one}) == list(rows)
    assert marked(subset=True) == list(rows)
    table = as_markdown(metrics("questions", rows, problems={"head: empty answer": one}), of_kind("questions"))
    assert "† marked: see the list below." in table


def test_bars_for_zero_and_for_missing_scores_are_visible() -> None:
    about = metrics("detections", {"a": {"AP": 0.0, "AP50": 0.25, "APr": -1.0, "detections": 900}})
    assert words_of(about) == ["0.00", "25.00", "–", "AP", "AP50", "APr", "score × 100"]


def test_counts_are_not_drawn_as_bars() -> None:
    assert words_of(metrics("yes_no", {"a": {"F1": 0.5, "neither": 70.0}})) == ["0.500", "F1", "score"]


def test_a_plot_without_scores_says_so() -> None:
    assert "No scores yet: see the table." in words_of(metrics("descriptions", {"a": {"descriptions": 3.0}}))


def test_one_type_stands_beside_its_majority() -> None:
    group = {"questions": 3, "accuracy": 0.5, "majority": 0.4}
    figure = figure_of(metrics("questions", {"a": {**group, "by_type": {"mine": group}}}), of_kind("questions"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["majority", "a"]
