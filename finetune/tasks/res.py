"""RES, referring expression segmentation (RefCOCO, RefCOCO+, RefCOCOg): the mask of the one object that an expression means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..records import Region
from .expressions import ExpressionItem, ExpressionTask, areas, by_split, masks_fault
from .predictions import Line


@dataclass(kw_only=True)
class Res(ExpressionTask):
    """One object for each expression; of several that are found, the union of masks counts."""

    kind = "masks of expressions"
    columns = ("cIoU", "gIoU", "expressions")

    def target_fault(self, targets: Sequence[Region], size: tuple[int, int]) -> str | None:
        if len(targets) != 1:
            return "expression of several objects or of none, which this protocol does not have"
        return masks_fault(targets, size)

    def scores(self, lines: Sequence[Line], items: Sequence[ExpressionItem]) -> dict[str, float]:
        both, either = areas(lines, items)
        return {"cIoU": float(both.sum() / max(either.sum(), 1)), "gIoU": float(np.mean(both / np.maximum(either, 1)))}


X_SAM, UNIPIXEL = "table of X-SAM's repository", "README of UniPixel's repository"

RES = Res(
    name="res", title="Referring expressions: masks",
    rules="cIoU: intersections over unions, each summed over all expressions; gIoU, which others call mIoU: mean IoU",
    by_split=by_split(
        "cIoU",
        ("X-SAM", X_SAM, {"RefCOCO": "85.1/87.1/83.4", "RefCOCO+": "78.0/81.0/74.4", "RefCOCOg": "83.8/83.9"}),
        ("GLaMM", X_SAM, {"RefCOCO": "79.5//", "RefCOCO+": "72.6//", "RefCOCOg": "74.2/"}),
        ("OMG-LLaVA", X_SAM, {"RefCOCO": "77.2//", "RefCOCO+": "68.7//", "RefCOCOg": "71.7/"}),
        ("Sa2VA-8B", X_SAM, {"RefCOCO": "81.6//", "RefCOCO+": "76.2//", "RefCOCOg": "78.7/"}),
        ("PSALM", X_SAM, {"RefCOCO": "83.6//", "RefCOCO+": "72.9//", "RefCOCOg": "73.8/"}),
        ("UniPixel-3B", UNIPIXEL, {"RefCOCO": "80.5/82.6/76.9", "RefCOCO+": "74.3//", "RefCOCOg": "76.3/77.0"}),
        ("UniPixel-7B", UNIPIXEL, {"RefCOCO": "80.8/83.0/77.4", "RefCOCO+": "75.3//", "RefCOCOg": "76.4/77.1"}),
    ),
)  # fmt: skip
