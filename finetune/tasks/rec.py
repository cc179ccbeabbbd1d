"""REC, referring expression comprehension (RefCOCO, RefCOCO+, RefCOCOg): the box of the one object that an expression means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from ..records import Region
from .expressions import ExpressionItem, ExpressionTask, by_split
from .predictions import Line

LEAST_IOU = 0.5
"""A box is right if its IoU with the true one is at least this."""


@dataclass(kw_only=True)
class Rec(ExpressionTask):
    """One object for each expression; of several boxes, the first counts, which is that of the region named first."""

    kind = "boxes of expressions"
    columns = ("accuracy", "expressions")

    def target_fault(self, targets: Sequence[Region], size: tuple[int, int]) -> str | None:
        return (
            None if len(targets) == 1 else "expression of several objects or of none, which this protocol does not have"
        )

    def scores(self, lines: Sequence[Line], items: Sequence[ExpressionItem]) -> dict[str, float]:
        right = [_iou(line, item) >= LEAST_IOU for line, item in zip(lines, items)]
        return {"accuracy": float(np.mean(right))}


def _iou(line: Line, item: ExpressionItem) -> float:
    boxes, true = line.get("boxes") or [], item.targets[0].around(item.record.size)
    if line.get("problem") or not boxes or true is None:
        return 0.0
    (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[0], true
    said, truth = [x1, y1, x2 - x1, y2 - y1], [a1, b1, a2 - a1, b2 - b1]
    return float(coco_mask.iou(np.array([said], float), np.array([truth], float), [0])[0, 0])


GETOK = "table of GETok (arXiv 2512.10554)"

REC = Rec(
    name="rec", title="Referring expressions: boxes", rules="share of expressions whose first box has IoU ≥ .5",
    by_split=by_split(
        "accuracy",
        ("VLM-FO1-3B", "wizwand, second hand", {"RefCOCO+": "86.4//", "RefCOCOg": "88.9/"}),
        ("GETok", GETOK, {"RefCOCO": "90.6/93.7/87.2", "RefCOCO+": "86.7/90.9/79.9", "RefCOCOg": "88.5/88.4"}),
        ("Qwen2.5-VL-7B", GETOK, {"RefCOCO": "90.0/92.5/85.4", "RefCOCO+": "84.2/89.1/76.9", "RefCOCOg": "87.2/87.2"}),
    ),
)  # fmt: skip
