"""A run's log as a picture: what it learns from, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_losses(lines: Sequence[dict[str, float]], path: Path, title: str = "") -> None:
    """Write a PNG of `loss` and `val_loss` over steps, and of shares such as `val_answer` below, if the log has any."""
    shares = [
        name for name in dict.fromkeys(n for line in lines for n in line) if name in ("val_answer", "val_accuracy")
    ]
    figure = Figure(figsize=(8, 3.2 + 2.2 * bool(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(1 + bool(shares), 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + bool(shares)])[
        :, 0
    ]
    for name, words in (("loss", "training"), ("val_loss", "held out")):
        _curve(rows[0], lines, name, words)
    rows[0].set_ylabel("cross entropy per token")
    rows[0].set_title(title, loc="left", fontsize=10)
    for name in shares:
        _curve(rows[1], lines, name, "answers right, held out")
    if shares:
        rows[1].set_ylim(-0.02, 1.02)
    for row in rows:
        row.grid(alpha=0.3)
        if row.lines:
            row.legend(frameon=False)
    rows[-1].set_xlabel("step")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)


def _curve(axes: object, lines: Sequence[dict[str, float]], name: str, words: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        marker = "o" if len(points) < 40 else ""
        axes.plot(*zip(*points), marker=marker, markersize=3, linewidth=1.2, label=words)  # type: ignore[attr-defined]
