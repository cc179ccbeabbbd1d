"""The mask decoder's lines: masks from given boxes, and how well boxes, points and clicks do. Knows prompts, not AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tap_tokenizer import ImageFeatures, TapRegionTokenizer

from ..data.sample import Sample, decode_mask, encode_mask, mask_box
from .mask_metrics import mask_iou, next_click, sample_points

POINT_COUNTS = (1, 3, 5, 9)
"""How many points are drawn on a mask, each number by itself."""
CLICKS = 9
"""Clicks one after the other, each into the larger error of what came before."""


def names_of_boxes(sample: Sample, boxes: Mapping[Any, Sequence[Any]] | None) -> list[str]:
    """What a picture's lines are called: its regions' ids, or, of a detector's boxes by picture, their numbers."""
    if boxes is None:
        return [str(region["id"]) for region in sample["regions"]]
    return [f"{sample['image_id']}/box{i}" for i in range(len(boxes.get(sample["image_id"], [])))]


def masks_from_boxes(
    tokenizer: TapRegionTokenizer, features: ImageFeatures, sample: Sample, boxes: Sequence[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """A line for each box: COCO's detection with its mask.

    boxes: detections (bbox xywh, category_id, score) of the picture, whose score stays; None for the true boxes, whose
    score is the predicted IoU.
    """
    if boxes is None:
        size = (sample["height"], sample["width"])
        given = [{**r, "box": r.get("box") or mask_box(r["mask"], size), "name": r["id"]} for r in sample["regions"]]
    else:
        given = []
        for name, d in zip(names_of_boxes(sample, {sample["image_id"]: boxes}), boxes):
            x, y, w, h = d["bbox"]
            given.append({"box": [x, y, x + w, y + h], "name": name, **{k: d[k] for k in ("category_id", "score")}})
    if not given:
        return []
    regions = tokenizer.encode(features=features, boxes=[[g["box"] for g in given]], with_masks=True)
    masks, scores = regions.masks.cpu().numpy(), regions.scores.tolist()
    return [
        {"id": str(g["name"]), "image_id": sample["image_id"], "category_id": g["category_id"],
         "segmentation": encode_mask(mask), "score": float(g.get("score", score))}
        for g, mask, score in zip(given, masks, scores)
    ]  # fmt: skip


def ious_of_prompts(
    tokenizer: TapRegionTokenizer, features: ImageFeatures, sample: Sample, seed: int
) -> list[dict[str, Any]]:
    """A line for each region that has a mask: IoU of what its box, drawn points, and clicks give.

    Regions whose mask is empty get a line with a "problem".
    """
    size = (sample["height"], sample["width"])
    masked = [r for r in sample["regions"] if r.get("mask")]
    truths = [decode_mask(r["mask"], size) for r in masked]
    lines: list[dict[str, Any]] = [{"id": str(r["id"]), "iou": {}} for r in masked]
    for line, truth in zip(lines, truths):
        if not truth.any():
            line["problem"] = "empty mask"
    whole = [i for i, line in enumerate(lines) if "problem" not in line]
    if not whole:
        return lines
    true = [truths[i] for i in whole]
    names = [lines[i]["id"] for i in whole]

    def measure(name: str, **prompts: Any) -> list[np.ndarray]:
        found = tokenizer.encode(features=features, with_masks=True, **prompts).masks.cpu().numpy()
        for i, mask in zip(whole, found):
            lines[i]["iou"][name] = mask_iou(mask, truths[i])
        return list(found)

    measure("box", boxes=[[_box(masked[i], truths[i]) for i in whole]])
    for count in POINT_COUNTS:
        points = [sample_points(truth, count, seed, name) for truth, name in zip(true, names)]
        measure(f"{count} point{'s' * (count > 1)}", points=[points], point_labels=[[[1] * count] * len(points)])
    clicks: list[list[list[float]]] = [[] for _ in whole]
    labels: list[list[int]] = [[] for _ in whole]
    predicted: list[np.ndarray | None] = [None] * len(whole)
    for number in range(1, CLICKS + 1):
        for k, truth in enumerate(true):
            point, label = next_click(predicted[k], truth)
            clicks[k].append(point)
            labels[k].append(label)
        found = measure(f"click {number}", points=[[list(c) for c in clicks]], point_labels=[[list(x) for x in labels]])
        predicted = list(found)
    return lines


def _box(region: dict[str, Any], truth: np.ndarray) -> list[float]:
    if region.get("box") is not None:
        return list(region["box"])
    rows, columns = np.nonzero(truth.any(axis=1))[0], np.nonzero(truth.any(axis=0))[0]
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
