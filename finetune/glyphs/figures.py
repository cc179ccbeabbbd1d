"""Figures of a GlyphScenes evaluation: pictures with right and wrong answers, confused kinds, scores by size, and the
course of training.

The pictures are the first scenes of the evaluation; they were not selected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_bridge import replace_regions

from ..metrics import is_exact
from .benchmark import LONG_SIDE
from .scenes import KINDS, draw_scene, make_scene

SCENES = 6
"""Pictures of a page."""


def draw_figures(lines: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `answers-SPLIT.png` for each split with answers, `confusion.png` and `masks.png`."""
    regions = [line for line in lines if line["task"] == "region"]
    answers = [line for line in lines if line["task"] == "question" and line["view"] == "full"]
    for split in dict.fromkeys(line["split"] for line in answers):
        draw_answers([line for line in answers if line["split"] == split], folder / f"answers-{split}.png")
    draw_confusion(regions, folder / "confusion.png")
    draw_masks(regions, folder / "masks.png")


def draw_answers(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The first scenes, with every question under its picture: right answers in green, wrong ones in red with the truth."""
    from matplotlib.figure import Figure

    scenes = list(dict.fromkeys((line["split"], line["seed"], line["scene"]) for line in lines))[:SCENES]
    rows = -(-len(scenes) // 3)
    figure = Figure(figsize=(17, 8.2 * rows))  # no automatic layout: it makes room for the longest line of words
    edges = {"left": 0.01, "right": 0.99, "top": 0.97, "bottom": 0.01, "hspace": 0.04, "wspace": 0.03}
    grid = figure.subplots(2 * rows, 3, squeeze=False, height_ratios=[5, 3.2] * rows, gridspec_kw=edges)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (split, seed, index) in enumerate(scenes):
        above, below = (grid[2 * (place // 3) + row, place % 3] for row in (0, 1))
        own = [line for line in lines if (line["seed"], line["scene"]) == (seed, index)]
        boxes = list(dict.fromkeys(tuple(box) for line in own for box in line["boxes"]))
        above.imshow(draw_scene(make_scene(index, split, seed), LONG_SIDE).image)
        above.set_title(f"{split}, seed {seed}, scene {index}", fontsize=9)
        _draw_boxes(above, boxes)
        _write_answers(below, own, boxes)
    figure.savefig(path, dpi=70)


def _draw_boxes(axes: Any, boxes: Sequence[tuple[float, ...]]) -> None:
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="white", linewidth=1.5)
        axes.text(x1, y1, _letter(number), color="black", backgroundcolor="white", fontsize=8)


def _write_answers(axes: Any, lines: Sequence[dict[str, Any]], boxes: Sequence[tuple[float, ...]]) -> None:
    for number, line in enumerate(lines):
        is_right = is_exact(line["answer"], line["truth"])
        names = [_letter(boxes.index(tuple(box))) for box in line["boxes"]]
        axes.text(0, 1 - number / 15, _said(line, names, is_right), transform=axes.transAxes, fontsize=8.5, va="top",
                  color="#15722c" if is_right else "#b3261e")  # fmt: skip


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _said(line: dict[str, Any], names: Sequence[str], is_right: bool) -> str:
    """Question and answer in one line, regions by the letters on the picture; a wrong answer with the truth."""

    def lettered(text: str) -> str:
        return replace_regions(text, lambda number, is_shown: names[number - 1] if number <= len(names) else None)

    said = f"{lettered(line['question'])}  {lettered(line['answer'])}"
    return said if is_right else f"{said}   (truth: {lettered(line['truth'])})"


def stages_of(log: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of a model's `training/log.jsonl` by their `stage`, in the order in which the stages were run."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, log.read_text().splitlines()):
        stages.setdefault(line["stage"], []).append(line)
    return stages


def draw_curves(logs: Sequence[Path], path: Path) -> None:
    """What the held-out numbers of some models did in each stage of training; logs: see `stages_of`."""
    from matplotlib.figure import Figure

    stages = [(f"{log.parents[1].name}: {stage}", lines) for log in logs for stage, lines in stages_of(log).items()]
    rows = -(-len(stages) // 4)
    figure = Figure(figsize=(17, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.flat[len(stages) :]:
        axes.set_axis_off()
    shown: dict[str, Any] = {}  # of each name its line in the legend, which is one for all: the curves fill their axes
    for axes, (title, lines) in zip(grid.flat, stages):
        for name in dict.fromkeys(name for line in lines for name in line if name.startswith("val_")):
            own = [(line["step"], line[name]) for line in lines if name in line]
            colour = shown[name].get_color() if name in shown else _COLOURS[len(shown) % len(_COLOURS)]
            (curve,) = axes.plot(*zip(*own), marker=".", color=colour, label=name.removeprefix("val_"))
            shown.setdefault(name, curve)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step")
    if shown:
        figure.legend(handles=list(shown.values()), loc="outside upper center", ncols=8, fontsize=9)
    figure.savefig(path, dpi=70)


_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
            "#000080", "#800000", "#006400", "#b8860b", "#4b0082", "#696969")  # fmt: skip
"""Of the held-out numbers, one each in all curves."""


def draw_confusion(regions: Sequence[dict[str, Any]], path: Path) -> None:
    """Which kinds the concept head takes for which, in shares of the true kind."""
    from matplotlib.figure import Figure

    kinds = list(KINDS)
    table = np.zeros((len(kinds), len(kinds)))
    for (said, truth), count in Counter(tuple(region["kind"]) for region in regions).items():
        table[kinds.index(truth), kinds.index(said)] += count
    table /= table.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(9, 8.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(table), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(kinds)), kinds, rotation=90, fontsize=7)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=7)
    axes.set_xlabel("concept head")
    axes.set_ylabel("truth")
    bar = figure.colorbar(image, ticks=[0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1], shrink=0.7)
    bar.ax.set_yticklabels(["0", ".10", ".25", ".50", "1"])
    figure.savefig(path, dpi=80)


def draw_masks(regions: Sequence[dict[str, Any]], path: Path) -> None:
    """How mask IoU is spread, from boxes and from points, in each split."""
    from matplotlib.figure import Figure

    splits = list(dict.fromkeys(region["split"] for region in regions))
    figure = Figure(figsize=(4.2 * len(splits), 3.4), layout="constrained")
    for axes, split in zip(np.ravel(figure.subplots(1, len(splits), sharey=True)), splits):
        for prompt, words in (("box", "a box"), ("centre", "the centre point"), ("point", "a random point")):
            values = [region[f"iou_{prompt}"] for region in regions if region["split"] == split]
            axes.hist(values, bins=40, range=(0, 1), density=True, histtype="step", linewidth=1.6,
                      label=f"from {words}: mean {np.mean(values):.3f}")  # fmt: skip
        axes.set_title(split)
        axes.set_xlabel("mask IoU")
        axes.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=80)
