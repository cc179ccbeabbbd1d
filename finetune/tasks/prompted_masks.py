"""Masks from boxes, drawn points and clicks, measured by their IoU with the true mask.

Points are drawn on the mask with a seed that belongs to the region, so that they depend on nothing else. Clicks go where a
patient user would click: into the middle of the larger error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tap_tokenizer import ImageFeatures, TapRegionTokenizer, counted

from ..data.entries import first_names, is_number
from ..metrics import mask_iou, next_click, sample_points
from ..records import Record, decode_mask
from .items import EvaluationSet, Item
from .predictions import Line, lacking, match_lines
from .task import DrawnTask

POINT_COUNTS = (1, 3, 5, 9)
"""Numbers of points that are drawn on a mask, each in a prompt of its own."""
CLICKS = 9
"""How many clicks follow each other, each into the larger error of the mask before it."""

PROMPTS = ("box", *(f"{n} point{'s' * (n > 1)}" for n in POINT_COUNTS), *(f"click {n}" for n in range(1, CLICKS + 1)))


@dataclass(kw_only=True)
class PromptedMasks(DrawnTask):
    """Masks in COCO's layout."""

    kind = "prompts"
    coco = frozenset({"masks"})
    columns = (
        "regions",
        "mIoU box",
        "mIoU 1 point",
        *(f"mIoU {n} points" for n in (3, 5, 9)),
        *(f"mIoU click {n}" for n in (1, 3, 5, 9)),
        "IoU ≥ 0.85 within 9 clicks",
        "IoU ≥ 0.90 within 9 clicks",
    )
    needs = frozenset({"mask"})
    may_be_partial = True

    def line_fault(self, line: Line) -> str | None:
        if fault := lacking(line, "id", "iou"):
            return fault
        good = isinstance(line["iou"], dict) and all(is_number(value) for value in line["iou"].values())
        return None if good else "has an iou that is not an object of finite numbers"

    def lines(
        self, tokenizer: TapRegionTokenizer, features: ImageFeatures, record: Record, found: EvaluationSet
    ) -> list[Line]:
        """A line for each region: the IoU of the masks from its box, points and clicks; a "problem" if its mask is empty."""
        truths = [decode_mask(region.mask, record.size) for region in record.regions]
        lines: list[Line] = [{"id": str(region.id), "iou": {}} for region in record.regions]
        for line, truth in zip(lines, truths):
            if not truth.any():
                line["problem"] = "empty mask"
        whole = [i for i, line in enumerate(lines) if "problem" not in line]
        if not whole:
            return lines
        true = [truths[i] for i in whole]

        def measure(name: str, **prompts: Any) -> list[np.ndarray]:
            masks = tokenizer.encode(features=features, with_masks=True, **prompts).masks.cpu().numpy()
            for i, mask in zip(whole, masks):
                lines[i]["iou"][name] = mask_iou(mask, truths[i])
            return list(masks)

        regions = [record.regions[i] for i in whole]
        measure("box", boxes=[[region.around(record.size) for region in regions]])
        for count in POINT_COUNTS:
            points = [sample_points(truth, count, self.options.seed, lines[i]["id"]) for truth, i in zip(true, whole)]
            measure(f"{count} point{'s' * (count > 1)}", points=[points], point_labels=[[[1] * count] * len(points)])
        clicks: list[list[list[float]]] = [[] for _ in whole]
        labels: list[list[int]] = [[] for _ in whole]
        predicted: list[np.ndarray | None] = [None] * len(whole)
        for number in range(1, CLICKS + 1):
            for k, truth in enumerate(true):
                point, label = next_click(predicted[k], truth)
                clicks[k].append(point)
                labels[k].append(label)
            masks = measure(
                f"click {number}", points=[[list(c) for c in clicks]], point_labels=[[list(x) for x in labels]]
            )
            predicted = list(masks)
        return lines

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """Mean IoU over regions for every prompt, and the share of regions that clicks bring to an IoU of .85 and .90."""
        ids = [str(region.id) for record in found.records for region in record.regions]
        whole = [line for line in match_lines(lines, ids, row, found.problems).values() if not line.get("problem")]
        if not whole:
            raise ValueError(f"None of {counted(len(ids), 'region')} could be measured: do their pictures open?")
        for line in whole:
            if missing := [name for name in PROMPTS if name not in line["iou"]]:
                raise ValueError(f"The prediction of {row} for {line['id']} lacks the IoU of {first_names(missing)}.")
        scores: dict[str, float] = {"regions": len(whole)}
        scores |= {f"mIoU {name}": float(np.mean([line["iou"][name] for line in whole])) for name in PROMPTS}
        for target in (0.85, 0.9):
            reached = [any(line["iou"][f"click {n}"] >= target for n in range(1, CLICKS + 1)) for line in whole]
            scores[f"IoU ≥ {target:.2f} within {CLICKS} clicks"] = float(np.mean(reached))
        return scores


PROMPTED_MASKS = PromptedMasks(
    name="prompted_masks",
    title="Masks from boxes, points and clicks",
    rules="mean IoU over regions; points drawn on the mask; clicks into the larger error's middle",
)
