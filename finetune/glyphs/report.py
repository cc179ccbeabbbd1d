"""Lines of a GlyphScenes evaluation → means over seeds, the tables that show them, and figures.

The figures are pictures with right and wrong answers, confused kinds, how mask IoU is spread, and the course of training. The
pictures are the first scenes of the evaluation; they were not selected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_bridge import replace_regions

from ..metrics import accuracy, chance, interval, is_exact, majority
from .containment import says_truth
from .free_questions import FREE_FAMILIES, KNOWLEDGE_FAMILIES, PHRASING_FAMILIES
from .grounding import find_scores, find_tables
from .questions import ATTRIBUTE_FAMILIES, CAPTION_FAMILIES, CONTEXT_FAMILIES, FAMILIES, PAIR_FAMILIES
from .records import LONG_SIDE
from .retrieval import WAYS
from .scenes import KINDS, draw_scene, make_scene
from .views import TOLD_TRUTH

GROUPS = {
    "attributes and position": ATTRIBUTE_FAMILIES,
    "captions": CAPTION_FAMILIES,
    "two regions compared": PAIR_FAMILIES,
    "nearest, farthest, counting": CONTEXT_FAMILIES,
}
"""Families as the first table groups them."""

FREE_GROUPS = {"phrasing that no recipe contains": PHRASING_FAMILIES, "what one must know": KNOWLEDGE_FAMILIES}
"""Families whose answers are free, as the tables group them. The score of a family or group is the mean over the questions that
are written in the files, of the share of their answers that contain the truth."""

_MASKS = {
    "mask mIoU from a box": "iou_box",
    "mask mIoU from the centre point": "iou_centre",
    "mask mIoU from a random point": "iou_point",
}
_CONCEPTS = {f"concept top-1 ({name})": name for name in ("kind", "colour", "size")}
"""Numbers of the region tokenizer alone, and the entries of a line that they are means of."""

_FOUND = ("recall@10", "mAP")
"""How well objects of the same kind and colour are found in other pictures, by each of `WAYS`."""

_LATER = "LLM: as the 2nd to 6th question of a talk, minus asked first"
_PERPLEXITY = ("LLM: perplexity of plain text", "the same without the adapter")

_OVERVIEW = {
    **{name: name for name in ("regions", *_MASKS, *_CONCEPTS, "native caption exact")},
    **{f"found again by {way}: {number}": f"found again by {way}: {number}" for way in WAYS for number in _FOUND},
    "LLM: caption exact": "full: caption",
    **{f"LLM: {group}": f"full: {group}" for group in (*GROUPS, *FREE_GROUPS)},
    **{name: name for name in (_LATER, *_PERPLEXITY)},
    **{f"{TOLD_TRUTH}: {group}": f"{TOLD_TRUTH}: {group}" for group in FREE_GROUPS},
}
"""Rows of the first table, and the numbers that they show."""

_COLUMNS = {
    "n": "n", "LLM": "full", "LLM, contained": "contained", "TAP alone": "tap alone", "no position": "no position",
    "regions shuffled": "shuffled", "question only": "question only", "objects given": "objects given",
    "follow-up": "follow-up", "described": "described", "described, contained": "described contained",
    TOLD_TRUTH: TOLD_TRUTH, "chance": "chance", "majority": "majority",
}  # fmt: skip
"""Columns of a split's table, and the kinds of numbers that they show: views, and what a view is measured by."""


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each split: the mean over seeds of every number, and under `spread` its range over them."""
    metrics: dict[str, Any] = {}
    for split in dict.fromkeys(line["split"] for line in lines):
        seeds = dict.fromkeys(line["seed"] for line in lines if line["split"] == split)
        per_seed = [_of_seed([x for x in lines if x["split"] == split and x["seed"] == seed]) for seed in seeds]
        names = dict.fromkeys(name for one in per_seed for name in one)
        columns = {name: [one[name] for one in per_seed if name in one] for name in names}
        metrics[split] = {
            name: float(np.sum(values) if name.startswith(("regions", "n: ")) else np.mean(values))
            for name, values in columns.items()
        }
        metrics[split]["spread"] = {name: float(np.ptp(values)) for name, values in columns.items()}
        metrics[split]["interval"] = _intervals([line for line in lines if line["split"] == split])
    return metrics


def _intervals(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each score of the view "full", for as many questions as were asked."""
    questions = [line for line in lines if line["task"] == "question" and line["view"] == "full"]
    names = {**{family: (family,) for family in (*FAMILIES, *FREE_FAMILIES)}, **GROUPS, **FREE_GROUPS}
    right = {name: [_is_right(q) for q in questions if q["family"] in own] for name, own in names.items()}
    return {f"full: {name}": interval(sum(own), len(own)) for name, own in right.items() if own}


def _is_right(q: dict[str, Any]) -> bool:
    return is_exact(q["answer"], q["truth"]) if q["family"] in FAMILIES else _says_truth(q)


def _of_seed(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    regions = [line for line in lines if line["task"] == "region"]
    result = {
        "regions": float(len(regions)),
        **{name: float(np.mean([region[key] for region in regions])) for name, key in _MASKS.items()},
        **{name: _share(regions, key) for name, key in _CONCEPTS.items()},
        "native caption exact": _share(regions, "caption"),
    }
    for line in (line for line in lines if line["task"] == "retrieval"):
        result |= {f"found again by {line['by']}: {number}": line[number] for number in _FOUND}
    result |= find_scores([line for line in lines if line["task"] == "find"])
    result |= _of_text([line for line in lines if line["task"] == "text"])
    questions = [line for line in lines if line["task"] == "question"]
    result |= _of_talks(questions)
    for view in dict.fromkeys(q["view"] for q in questions):
        for family in FAMILIES:
            own = [q for q in questions if q["family"] == family and q["view"] == view]
            if own:
                result |= _of_family(own, view, family)
        for group, families in GROUPS.items():
            scores = [result[f"{view}: {family}"] for family in families if f"{view}: {family}" in result]
            if scores:
                result[f"{view}: {group}"] = float(np.mean(scores))
            if scores and view == "full":
                result[f"n: {group}"] = sum(result.get(f"n: {family}", 0) for family in families)
        for name, families in {**{family: (family,) for family in FREE_FAMILIES}, **FREE_GROUPS}.items():
            own = [q for q in questions if q["family"] in families and q["view"] == view]
            if own:
                result |= _of_free(own, view, name)
    return result


def _of_text(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not lines:
        return {}
    nats, tokens = np.sum([line["nats"] for line in lines], axis=0), sum(line["tokens"] for line in lines)
    return {name: float(np.exp(own / tokens)) for name, own in zip(_PERPLEXITY, nats)}


def _of_talks(questions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How much more of the questions are right as follow-ups than when they were asked first."""
    right = {
        view: {
            (q["scene"], q["family"]): _is_right(q) for q in questions if q["view"] == view and q["family"] in FAMILIES
        }
        for view in ("full", "follow-up")
    }
    gained = [int(later) - right["full"][key] for key, later in right["follow-up"].items() if key in right["full"]]
    return {_LATER: float(np.mean(gained))} if gained else {}


def _of_family(own: Sequence[dict[str, Any]], view: str, family: str) -> dict[str, float]:
    truths = [q["truth"] for q in own]
    result = {f"{view}: {family}": accuracy([q["answer"] for q in own], truths)}
    if view in _CONTAINED:
        result[f"{_CONTAINED[view]}: {family}"] = float(np.mean([_says_truth(q) for q in own]))
    if view == "full":
        result[f"n: {family}"] = float(len(own))
        result[f"chance: {family}"] = chance([q["choices"] for q in own])
        result[f"majority: {family}"] = majority(truths)
        if "tap" in own[0]:
            result[f"tap alone: {family}"] = accuracy([q["tap"] for q in own], truths)
    return result


_CONTAINED = {"full": "contained", "described": "described contained"}
"""Views in which exact answers are also scored as free ones, and the kind of number that this gives."""


def _of_free(own: Sequence[dict[str, Any]], view: str, name: str) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for q in own:
        right.setdefault(q["written"], []).append(_says_truth(q))
    result = {f"{view}: {name}": float(np.mean([np.mean(answers) for answers in right.values()]))}
    if view == "full":
        result[f"n: {name}"] = float(len(own))
        if all(q["choices"] for q in own):
            result[f"chance: {name}"] = chance([q["choices"] for q in own])
    return result


def _says_truth(q: dict[str, Any]) -> bool:
    return says_truth(q["answer"], q["truth"], q["family"], q["kinds"], q.get("reject", ()))


def _share(regions: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([is_exact(*region[name]) for region in regions]))


# --- as Markdown ------------------------------------------------------------------------------------------------------


def as_tables(metrics: dict[str, Any]) -> str:
    """One table of all splits, then one of each split with the controls beside every family's score."""
    of, splits = metrics["of"], [name for name in metrics if name != "of"]
    head = (
        f"{of['benchmark']}: {of['scenes']} scenes of each split for each of the seeds {of['seeds']}; an answer is right if "
        f"every word is. {of['region_tokenizer']} ({of['region_tokenizer_fingerprint']}), {of['model']}."
    )
    parts = [head, _overview(metrics, splits)]
    if any(f"full: {family}" in metrics[split] for split in splits for family in FAMILIES):
        note = (
            f"Answers are to questions about the first {of['question_scenes']} scenes of each seed; in brackets, the 95 % "
            f"interval for as many. Controls (no position … described) are of split {of['control_splits']}, of the first "
            f"{of['control_scenes']}, shuffled regions of the first {of['shuffled_scenes']}, rounded up to whole batches."
        )
        if any(f"full: {group}" in metrics[split] for split in splits for group in FREE_GROUPS):
            note += (
                f" {' and '.join(FREE_GROUPS)}: on the first {of['free_scenes']} scenes of each seed; an answer is right if it "
                "contains the truth."
            )
        parts += [note, *(_families(split, metrics[split]) for split in splits)]
    parts += [table for split in splits for table in find_tables(split, metrics[split])]
    return "\n\n".join(parts) + "\n"


def _overview(metrics: dict[str, Any], splits: Sequence[str]) -> str:
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for row, name in _OVERVIEW.items():
        values = [metrics[split].get(name) for split in splits]
        if any(value is not None for value in values):
            ranges = [metrics[split]["interval"].get(name) for split in splits]
            cells = [_cell(value, whole=name == "regions", within=own) for value, own in zip(values, ranges)]
            lines.append(_row(row, cells))
    return "\n".join(lines)


def _families(split: str, numbers: dict[str, float]) -> str:
    columns = {
        column: kind for column, kind in _COLUMNS.items() if any(name.startswith(f"{kind}: ") for name in numbers)
    }
    lines = [_row(split, list(columns)), "|---" * (len(columns) + 1) + "|"]
    for family in (*GROUPS, *FREE_GROUPS, *FAMILIES, *PHRASING_FAMILIES, *KNOWLEDGE_FAMILIES):
        if f"full: {family}" in numbers:
            cells = [_cell(numbers.get(f"{kind}: {family}"), whole=kind == "n") for kind in columns.values()]
            lines.append(_row(family, cells))
    return "\n".join(lines)


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _cell(value: float | None, *, whole: bool, within: tuple[float, float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if whole else f"{value:.3f}" + (f" ({within[0]:.3f}–{within[1]:.3f})" if within else "")


# --- figures ----------------------------------------------------------------------------------------------------------


SCENES = 6
"""Pictures of a page."""


def draw_figures(lines: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `answers-SPLIT.png` for each split with answers, `confusion.png` and `masks.png`."""
    regions = [line for line in lines if line["task"] == "region"]
    answers = [line for line in lines if line.get("view") == "full" and line["family"] in FAMILIES]
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
