"""Lines of a GlyphScenes evaluation → means over seeds, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics import accuracy, chance, is_exact, majority
from .questions import ATTRIBUTE_FAMILIES, CAPTION_FAMILIES, CONTEXT_FAMILIES, FAMILIES, PAIR_FAMILIES

GROUPS = {
    "attributes and position": ATTRIBUTE_FAMILIES,
    "captions": CAPTION_FAMILIES,
    "two regions compared": PAIR_FAMILIES,
    "nearest, farthest, counting": CONTEXT_FAMILIES,
}
"""Families as the first table groups them."""

_MASKS = {
    "mask mIoU from a box": "iou_box",
    "mask mIoU from the centre point": "iou_centre",
    "mask mIoU from a random point": "iou_point",
}
_CONCEPTS = {f"concept top-1 ({name})": name for name in ("kind", "colour", "size")}
"""Numbers of the region tokenizer alone, and the entries of a line that they are means of."""

_OVERVIEW = {
    **{name: name for name in ("regions", *_MASKS, *_CONCEPTS, "native caption exact")},
    "LLM: caption exact": "full: caption",
    **{f"LLM: {group}": f"full: {group}" for group in GROUPS},
}
"""Rows of the first table, and the numbers that they show."""

_COLUMNS = {
    "n": "n", "LLM": "full", "TAP alone": "tap alone", "no position": "no position", "regions shuffled": "shuffled",
    "question only": "question only", "objects given": "objects given", "follow-up": "follow-up",
    "described": "described", "chance": "chance", "majority": "majority",
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
    return metrics


def _of_seed(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    regions = [line for line in lines if line["task"] == "region"]
    result = {
        "regions": float(len(regions)),
        **{name: float(np.mean([region[key] for region in regions])) for name, key in _MASKS.items()},
        **{name: _share(regions, key) for name, key in _CONCEPTS.items()},
        "native caption exact": _share(regions, "caption"),
    }
    questions = [line for line in lines if line["task"] == "question"]
    for view in dict.fromkeys(q["view"] for q in questions):
        for family in FAMILIES:
            own = [q for q in questions if q["family"] == family and q["view"] == view]
            if own:
                result |= _of_family(own, view, family)
        for group, families in GROUPS.items():
            scores = [result[f"{view}: {family}"] for family in families if f"{view}: {family}" in result]
            if scores:
                result[f"{view}: {group}"] = float(np.mean(scores))
    return result


def _of_family(own: Sequence[dict[str, Any]], view: str, family: str) -> dict[str, float]:
    truths = [q["truth"] for q in own]
    result = {f"{view}: {family}": accuracy([q["answer"] for q in own], truths)}
    if view == "full":
        result[f"n: {family}"] = float(len(own))
        result[f"chance: {family}"] = chance([q["choices"] for q in own])
        result[f"majority: {family}"] = majority(truths)
        if "tap" in own[0]:
            result[f"tap alone: {family}"] = accuracy([q["tap"] for q in own], truths)
    return result


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
            f"Controls (no position … described) are of the first {of['control_scenes']} scenes of each seed, shuffled "
            f"regions of the first {of['shuffled_scenes']}, rounded up to whole batches."
        )
        if of["context_model"] != "none":
            families = ", ".join(CONTEXT_FAMILIES)
            note += f" {families} are answered by {of['context_model']}, on the first {of['context_scenes']}."
        parts += [note, *(_families(split, metrics[split]) for split in splits)]
    return "\n\n".join(parts) + "\n"


def _overview(metrics: dict[str, Any], splits: Sequence[str]) -> str:
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for row, name in _OVERVIEW.items():
        values = [metrics[split].get(name) for split in splits]
        if any(value is not None for value in values):
            lines.append(_row(row, [_cell(value, whole=name == "regions") for value in values]))
    return "\n".join(lines)


def _families(split: str, numbers: dict[str, float]) -> str:
    columns = {
        column: kind for column, kind in _COLUMNS.items() if any(name.startswith(f"{kind}: ") for name in numbers)
    }
    lines = [_row(split, list(columns)), "|---" * (len(columns) + 1) + "|"]
    for family in FAMILIES:
        if f"full: {family}" in numbers:
            cells = [_cell(numbers.get(f"{kind}: {family}"), whole=kind == "n") for kind in columns.values()]
            lines.append(_row(family, cells))
    return "\n".join(lines)


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | " + " | ".join(cells) + " |"


def _cell(value: float | None, *, whole: bool) -> str:
    return "" if value is None else f"{value:.0f}" if whole else f"{value:.3f}"
