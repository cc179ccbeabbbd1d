"""Lines of a GlyphScenes evaluation → means over seeds, and the tables that show them.

Knows what a line holds, nothing of models or pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics import accuracy, chance, is_exact, majority
from .glyphs.questions import ATTRIBUTE_FAMILIES, CAPTION_FAMILIES, CONTEXT_FAMILIES, FAMILIES, PAIR_FAMILIES

GROUPS = {
    "attributes and position": ATTRIBUTE_FAMILIES,
    "captions": CAPTION_FAMILIES,
    "two regions compared": PAIR_FAMILIES,
    "nearest, farthest, counting": CONTEXT_FAMILIES,
}
"""Families as the first table groups them."""

VIEWS = ("full", "shuffled", "question only", "no position", "objects given", "follow-up", "described")
"""What the language model is given: the regions; regions and picture of another scene; no regions; all but position; as
picture context the true objects instead of those that are found; the regions in earlier turns, each described there, and then
another; TAP's words instead of tokens."""

_REGION_ROWS = (
    "mask mIoU from a box", "mask mIoU from the centre point", "mask mIoU from a random point", "concept top-1 (kind)",
    "concept top-1 (colour)", "concept top-1 (size)", "native caption exact",
)  # fmt: skip


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
        "mask mIoU from a box": float(np.mean([r["iou_box"] for r in regions])),
        "mask mIoU from the centre point": float(np.mean([r["iou_centre"] for r in regions])),
        "mask mIoU from a random point": float(np.mean([r["iou_point"] for r in regions])),
        **{f"concept top-1 ({name})": _share(regions, name) for name in ("kind", "colour", "size")},
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
    rows = ["regions", *_REGION_ROWS, "full: caption", *(f"full: {group}" for group in GROUPS)]
    lines = ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for name in rows:
        values = [metrics[split].get(name) for split in splits]
        if any(value is not None for value in values):
            shown = name.replace("full: caption", "full: caption exact", 1) if name == "full: caption" else name
            cells = ["" if v is None else f"{v:.0f}" if name == "regions" else f"{v:.3f}" for v in values]
            lines.append(f"| {shown.replace('full: ', 'LLM: ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _families(split: str, numbers: dict[str, float]) -> str:
    columns = {
        "n": "n", "LLM": "full", "TAP alone": "tap alone", "no position": "no position", "regions shuffled": "shuffled",
        "question only": "question only", "objects given": "objects given", "follow-up": "follow-up",
        "described": "described", "chance": "chance", "majority": "majority",
    }  # fmt: skip
    columns = {shown: kind for shown, kind in columns.items() if any(name.startswith(f"{kind}: ") for name in numbers)}
    lines = [f"| {split} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for family in FAMILIES:
        if f"full: {family}" not in numbers:
            continue
        values = [numbers.get(f"{kind}: {family}") for kind in columns.values()]
        cells = ["" if v is None else f"{v:.0f}" if kind == "n" else f"{v:.3f}" for kind, v in zip(columns, values)]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
