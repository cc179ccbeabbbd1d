"""Writes the numbers of an evaluation as a Markdown table beside published figures, and as a plot, from metrics.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..data.entries import counted, first_names
from ..figure_style import GREY, INK, SMALL, new_figure, save_figure, styled
from .task import Published, Task

COUNTS = ("detections", "regions", "questions", "neither", "expressions")
"""Columns that hold counts."""


def as_markdown(metrics: dict[str, Any], task: Task) -> str:
    """Title, protocol, table, groups of questions, and what was wrong."""
    n = metrics["n"]
    published = [] if metrics["own_records"] else task.published
    wholes = [f"{n[key]} {noun}" for key, noun in (("whole", "items"), ("whole_pictures", "pictures")) if n.get(key)]
    size = f"{counted(n['items'], 'item')} in {counted(n['pictures'], 'picture')}"
    if metrics["subset"]:
        of = f", of {' in '.join(wholes)}" if wholes else ""
        size = f"**subset: {size}{of}; not comparable with the whole**"
    elif not wholes and not metrics["own_records"] and task.may_be_partial:
        size = f"**{size}; whether that is the whole, which has no size on record here, is for you to know**"
    protocol = metrics["protocol"]
    lines = [
        f"### {metrics['title']}",
        "",
        f"Protocol {protocol['name']} {protocol['version']}: {protocol['rules']}. {size}.",
    ]
    lines += ["", *_table(metrics, task, published)]
    if any("by_type" in scores for scores in metrics["rows"].values()):
        lines += ["", *_by_type(metrics)]
    reasons = dict.fromkeys(metrics["not_run"].values())
    notes = [f"not run: {', '.join(r for r, w in metrics['not_run'].items() if w == why)}; {why}" for why in reasons]
    if notes + metrics["notes"]:
        lines += ["", *(f"- {note}." for note in notes + metrics["notes"])]
    if metrics["problems"]:
        lines += ["", "**Marked**, for not all is as it should be:", ""]
        lines += [f"- {kind}: {p['count']} ({first_names(p['names'])})" for kind, p in metrics["problems"].items()]
    if published:
        sources = "; ".join(f"[{number}] {source}" for number, source in enumerate(_sources(published), 1))
        lines += ["", f"Published figures, as their sources print them, on the whole benchmark: {sources}."]
    return "\n".join(lines) + "\n"


def _table(metrics: dict[str, Any], task: Task, published: Sequence[Published]) -> list[str]:
    have = {c for scores in metrics["rows"].values() for c in scores} | {c for p in published for c in p.scores}
    columns = [c for c in task.columns if c in have]
    marked = _marked(metrics)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, scores in metrics["rows"].items():
        lines.append(
            f"| {row}{' †' if row in marked else ''} | "
            + " | ".join(_number(scores.get(c), c, task) for c in columns)
            + " |"
        )
    sources = _sources(published)
    for p in published:
        number = sources.index(p.source) + 1
        cells = " | ".join(_number(p.scores.get(c), c, task) for c in columns)
        lines.append(f"| *{p.system}* [{number}] | {cells} |")
    if marked:
        where = [
            *(["the size above"] if metrics["subset"] else []),
            *(["the list below"] if metrics["problems"] else []),
        ]
        lines += ["", f"† marked: see {' and '.join(where)}."]
    return lines


def _marked(metrics: dict[str, Any]) -> set[str]:
    """Rows whose scores need a mark: all if it is a subset or the reference has a problem, otherwise those with a problem."""
    rows = set(metrics["rows"])
    found: set[str] = rows if metrics["subset"] else set()
    for kind in metrics["problems"]:
        owners = {row for row in rows if kind.startswith(f"{row}: ")}
        found = found | (owners or rows)
    return found


def _by_type(metrics: dict[str, Any]) -> list[str]:
    rows = {row: scores["by_type"] for row, scores in metrics["rows"].items() if "by_type" in scores}
    types = list(dict.fromkeys(kind for groups in rows.values() for kind in groups))
    if len(types) < 2:
        return []
    first = next(iter(rows.values()))
    lines = ["| | questions | chance | majority | " + " | ".join(rows) + " |", "|---" * (4 + len(rows)) + "|"]
    for kind in types:
        about = first[kind]
        cells = " | ".join(f"{groups[kind]['accuracy']:.3f}" for groups in rows.values())
        chance = f"{about['chance']:.3f}" if "chance" in about else "–"
        lines.append(f"| {kind} | {int(about['questions'])} | {chance} | {about['majority']:.3f} | {cells} |")
    return lines


def _number(value: float | None, column: str, task: Task) -> str:
    if value is None or value == -1 or isinstance(value, dict):
        return "–"
    if column in COUNTS:
        return str(int(value))
    return f"{100 * value:.2f}" if task.is_percent else f"{value:.3f}"


def _sources(published: Sequence[Published]) -> list[str]:
    return list(dict.fromkeys(p.source for p in published))


def draw(metrics: dict[str, Any], task: Task, path: Path) -> None:
    """Write `figure_of` as a PNG, whole or not at all."""
    save_figure(figure_of(metrics, task), path)


def figure_of(metrics: dict[str, Any], task: Task) -> Figure:
    """Curves over points and clicks; accuracy by type beside chance; or a bar for each row and column."""
    with styled():
        figure = new_figure(4.2)
        axes = figure.subplots()
        if any("mIoU box" in scores for scores in metrics["rows"].values()):
            _draw_prompts(axes, metrics)
        elif any("by_type" in scores for scores in metrics["rows"].values()):
            _draw_types(axes, metrics)
        else:
            _draw_columns(axes, metrics, task)
        mark = f", subset of {counted(metrics['n']['items'], 'item')}" if metrics["subset"] else ""
        axes.set_title(f"{metrics['title']}{mark}")
        axes.grid(axis="y")
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_prompts(axes: Any, metrics: dict[str, Any]) -> None:
    for row, scores in metrics["rows"].items():
        for word, label in (("point", "drawn points"), ("click", "clicks")):
            found = {}
            for name, value in scores.items():
                parts = name.split()
                if word in name and name.startswith("mIoU"):
                    found[int(next(p for p in parts if p.isdigit()))] = value
            axes.plot(list(found), list(found.values()), marker="o", label=f"{row}, {label}")
        axes.axhline(scores["mIoU box"], color=GREY, linestyle="--", linewidth=1, label=f"{row}, box")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="number of points", ylabel="mean IoU", ylim=(0, 1))


def _draw_types(axes: Any, metrics: dict[str, Any]) -> None:
    rows = {row: scores["by_type"] for row, scores in metrics["rows"].items() if "by_type" in scores}
    types = list(next(iter(rows.values())))
    width = 0.8 / len(rows)
    for k, (row, groups) in enumerate(rows.items()):
        places = [i + (k - (len(rows) - 1) / 2) * width for i in range(len(types))]
        axes.bar(places, [groups[kind]["accuracy"] for kind in types], width, label=row)
    first = next(iter(rows.values()))
    for name, style in (("majority", "-"), ("chance", ":")):
        if all(name in first[kind] for kind in types):
            for i, kind in enumerate(types):
                axes.hlines(
                    first[kind][name], i - 0.45, i + 0.45, INK, style, linewidth=1, label=name if not i else None
                )
    axes.set_xticks(range(len(types)), types, rotation=30, ha="right")
    axes.set(ylabel="accuracy", ylim=(0, 1.02))


def _draw_columns(axes: Any, metrics: dict[str, Any], task: Task) -> None:
    shown = [c for c in task.columns if c not in COUNTS]
    columns = [c for c in shown if any(c in scores for scores in metrics["rows"].values())]
    if not columns:
        axes.set_axis_off()
        axes.text(0, 0.5, "No scores yet: see the table.", transform=axes.transAxes)
        return
    factor = 100 if task.is_percent else 1
    width = 0.8 / len(metrics["rows"])
    for k, (row, scores) in enumerate(metrics["rows"].items()):
        places = [i + (k - (len(metrics["rows"]) - 1) / 2) * width for i in range(len(columns))]
        bars = axes.bar(places, [factor * max(scores.get(c, 0.0), 0.0) for c in columns], width, label=row)
        words = [_number(scores.get(c), c, task) for c in columns]  # so that a score of 0 is seen, too
        axes.bar_label(
            bars, words, padding=2, fontsize=SMALL, rotation=90 if len(metrics["rows"]) * len(columns) > 16 else 0
        )
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_ylim(bottom=0, top=1.15 * max(axes.get_ylim()[1], 0.01))
    axes.set_ylabel("score × 100" if factor == 100 else "score")
