"""Lines of a GlyphScenes evaluation → means over seeds, the tables that show them, and figures.

The figures are pictures with right and wrong answers, what expressions find in some that a seed chooses, confused kinds, how
mask IoU is spread, and the course of training. The pictures with answers are the first scenes of the evaluation; they were not
selected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from llm_bridge import replace_regions

from ..metrics import accuracy, chance, interval, is_exact, majority
from .containment import says_truth
from .free_questions import FREE_FAMILIES, KNOWLEDGE_FAMILIES, PHRASING_FAMILIES
from .grounding import draw_found, find_scores, find_tables
from .questions import ATTRIBUTE_FAMILIES, CAPTION_FAMILIES, CONTEXT_FAMILIES, FAMILIES, PAIR_FAMILIES
from .records import LONG_SIDE
from .retrieval import WAYS
from .scenes import KINDS, draw_scene, make_scene
from .views import TOLD_KINDS, TOLD_TRUTH

GROUPS = {
    "attributes and position": ATTRIBUTE_FAMILIES,
    "captions": CAPTION_FAMILIES,
    "two regions compared": PAIR_FAMILIES,
    "nearest, farthest, counting": CONTEXT_FAMILIES,
}
"""Families as the first table groups them."""

FREE_GROUPS = {
    "phrasing that no recipe contains": PHRASING_FAMILIES,
    "what takes general knowledge": KNOWLEDGE_FAMILIES,
}
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
    **{f"{view}: {group}": f"{view}: {group}" for view in (TOLD_TRUTH, TOLD_KINDS) for group in FREE_GROUPS},
}
"""Rows of the first table, and the numbers that they show."""

_COLUMNS = {
    "n": "n", "LLM": "full", "LLM, contained": "contained", "TAP alone": "tap alone", "no position": "no position",
    "regions shuffled": "shuffled", "question only": "question only", "objects given": "objects given",
    "follow-up": "follow-up", "described": "described", "described, contained": "described contained",
    TOLD_TRUTH: TOLD_TRUTH, TOLD_KINDS: TOLD_KINDS, "chance": "chance", "majority": "majority",
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
            f"interval for as many. Controls, and what is told in words, are of the first {of['control_scenes']} of split "
            f"{of['control_splits']}, shuffled regions of the first {of['shuffled_scenes']}, rounded up to whole batches."
        )
        if any(f"full: {group}" in metrics[split] for split in splits for group in FREE_GROUPS):
            note += (
                f" {' and '.join(FREE_GROUPS)}: on the first {of['free_scenes']} scenes of each seed there; an answer is right "
                "if it contains the truth."
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
    """Write `answers-SPLIT.png` for each split with answers, `confusion.png`, `masks.png`, and `found.png` for a finder."""
    regions = [line for line in lines if line["task"] == "region"]
    answers = [line for line in lines if line.get("view") == "full" and line["family"] in FAMILIES]
    for split in dict.fromkeys(line["split"] for line in answers):
        draw_answers([line for line in answers if line["split"] == split], folder / f"answers-{split}.png")
    draw_confusion(regions, folder / "confusion.png")
    draw_masks(regions, folder / "masks.png")
    if found := [line for line in lines if line["task"] == "find"]:
        draw_found(found, folder / "found.png")


def draw_answers(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The first scenes, with every question beside its picture: right answers in green, wrong ones in red with the truth."""
    from ..figure_style import COLUMN, new_figure, save_figure, styled

    scenes = list(dict.fromkeys((line["split"], line["seed"], line["scene"]) for line in lines))[:SCENES]
    owns = [[line for line in lines if (line["seed"], line["scene"]) == scene[1:]] for scene in scenes]
    said = [_answers(own) for own in owns]
    heights = [max(2.5, _LINE * (1 + sum(words.count("\n") + 1 for words, _ in answers))) for answers in said]
    with styled():
        figure = new_figure(sum(heights) + 0.1, layout="none")  # an automatic layout makes room for the longest line
        edges = {"left": 0.01, "right": 0.99, "top": 1 - 0.05 / sum(heights), "bottom": 0, "hspace": 0, "wspace": 0.03}
        grid = figure.subplots(len(scenes), 2, squeeze=False, height_ratios=heights, width_ratios=[2.3, COLUMN - 2.3],
                               gridspec_kw=edges)  # fmt: skip
        for (left, right), (split, seed, index), own, answers, height in zip(grid, scenes, owns, said, heights):
            left.imshow(draw_scene(make_scene(index, split, seed), LONG_SIDE).image)
            left.set_anchor("NW")
            _draw_boxes(left, _boxes(own))
            left.set_axis_off()
            right.set_axis_off()
            place = 0.0
            for words, colour in [(f"{split}, seed {seed}, scene {index}", "black"), *answers]:
                right.text(
                    0, 1 - place / height, words, va="top", transform=right.transAxes, color=colour, fontsize=8.5
                )
                place += _LINE * (words.count("\n") + 1)
        save_figure(figure, path)


_LINE = 0.165
"""Inches that a line of words takes."""


def _boxes(lines: Sequence[dict[str, Any]]) -> list[tuple[float, ...]]:
    """The boxes of a scene's questions, in the order in which they are lettered."""
    return list(dict.fromkeys(tuple(box) for line in lines for box in line["boxes"]))


def _draw_boxes(axes: Any, boxes: Sequence[tuple[float, ...]]) -> None:
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="white", linewidth=1.2)
        axes.text(x1, y1, _letter(number), color="black", fontsize=8.5, clip_on=True,
                  bbox={"facecolor": "white", "pad": 1})  # fmt: skip


def _answers(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Each question of a scene with its answer, broken into lines, and its colour."""
    from ..figure_style import RIGHT, WRONG

    boxes, found = _boxes(lines), []
    for line in lines:
        is_right = is_exact(line["answer"], line["truth"])
        names = [_letter(boxes.index(tuple(box))) for box in line["boxes"]]
        words = fill(_said(line, names, is_right), 74, subsequent_indent="    ")
        found.append((words, RIGHT if is_right else WRONG))
    return found


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
    from ..figure_style import new_figure, region_ink, save_figure, styled

    stages = [(f"{log.parents[1].name}: {stage}", lines) for log in logs for stage, lines in stages_of(log).items()]
    rows = -(-len(stages) // 2)
    with styled():
        figure = new_figure(0.9 + 2.1 * rows)
        grid = figure.subplots(rows, 2, squeeze=False)
        for axes in grid.flat[len(stages) :]:
            axes.set_axis_off()
        shown: dict[str, Any] = {}  # of each name its line in the legend, which is one for all curves
        for axes, (title, lines) in zip(grid.flat, stages):
            for name in dict.fromkeys(name for line in lines for name in line if name.startswith("val_")):
                own = [(line["step"], line[name]) for line in lines if name in line]
                colour = shown[name].get_color() if name in shown else region_ink(len(shown))
                (curve,) = axes.plot(*zip(*own), marker=".", color=colour, label=name.removeprefix("val_"))
                shown.setdefault(name, curve)
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.grid(axis="y")
        if shown:
            figure.legend(handles=list(shown.values()), loc="outside upper center", ncols=4)
        save_figure(figure, path)


def draw_confusion(regions: Sequence[dict[str, Any]], path: Path) -> None:
    """Which kinds the concept head takes for which, in shares of the true kind."""
    from ..figure_style import SHADES, SMALL, new_figure, save_figure, styled

    kinds = list(KINDS)
    table = np.zeros((len(kinds), len(kinds)))
    for (said, truth), count in Counter(tuple(region["kind"]) for region in regions).items():
        table[kinds.index(truth), kinds.index(said)] += count
    table /= table.sum(axis=1, keepdims=True).clip(min=1)
    with styled():
        figure = new_figure(1 + 0.14 * len(kinds))
        axes = figure.subplots()
        image = axes.imshow(np.sqrt(table), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(kinds)), kinds, rotation=90, fontsize=SMALL)
        axes.set_yticks(range(len(kinds)), kinds, fontsize=SMALL)
        axes.set(xlabel="concept head", ylabel="truth")
        bar = figure.colorbar(image, ticks=[0, 0.1**0.5, 0.25**0.5, 0.5**0.5, 1], shrink=0.5, aspect=30)
        bar.ax.set_yticklabels(["0", ".10", ".25", ".50", "1"])
        save_figure(figure, path)


def draw_masks(regions: Sequence[dict[str, Any]], path: Path) -> None:
    """How mask IoU is spread, from boxes and from points, in each split."""
    from ..figure_style import new_figure, save_figure, styled

    splits = list(dict.fromkeys(region["split"] for region in regions))
    with styled():
        figure = new_figure(0.4 + 1.9 * max(1, len(splits)))
        for axes, split in zip(np.ravel(figure.subplots(max(1, len(splits)), 1, sharex=True)), splits):
            for prompt, words in (("box", "a box"), ("centre", "the centre point"), ("point", "a random point")):
                values = [region[f"iou_{prompt}"] for region in regions if region["split"] == split]
                axes.hist(values, bins=40, range=(0, 1), density=True, histtype="step", linewidth=1.8,
                          label=f"from {words}: mean {np.mean(values):.3f}")  # fmt: skip
            axes.set_title(split)
            axes.set_yticks([])
            axes.legend(loc="upper left")
        if splits:
            axes.set_xlabel("mask IoU")
        save_figure(figure, path)
