"""gRefCOCO (https://github.com/henghuiding/gRefCOCO): masks of one object, of several, or of none, by the rules of GRES."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.refcoco import GRefCocoSource
from ..records import Region
from .expressions import ExpressionItem, ExpressionTask, areas, masks_fault, predicted_mask
from .predictions import Line


@dataclass(kw_only=True)
class GRefCoco(ExpressionTask):
    """Any number of objects for each expression."""

    source = GRefCocoSource
    kind = "masks of any number of objects"
    columns = ("gIoU", "cIoU", "N-acc", "T-acc", "expressions")

    def target_fault(self, targets: Sequence[Region], size: tuple[int, int]) -> str | None:
        return masks_fault(targets, size)

    def scores(self, lines: Sequence[Line], items: Sequence[ExpressionItem]) -> dict[str, float]:
        both, either = areas(lines, items)
        is_none = np.array([not item.targets for item in items])
        finds = np.array([_finds(line, item.record.size) for line, item in zip(lines, items)])
        says_none = ~finds & np.array([not line.get("problem") for line in lines])
        iou = np.where(is_none, says_none, both / np.maximum(either, 1))
        scores = {"gIoU": float(iou.mean()), "cIoU": float(both.sum() / max(either.sum(), 1))}
        if is_none.any():
            scores["N-acc"] = float(says_none[is_none].mean())
        if not is_none.all():
            scores["T-acc"] = float(finds[~is_none].mean())
        return scores


def _finds(line: Line, size: tuple[int, int]) -> bool:
    """Whether a line finds anything: boxes, or a mask that is not empty."""
    return not line.get("problem") and (bool(line.get("boxes")) or bool(predicted_mask(line, size).any()))


GREFCOCO = GRefCoco(
    name="grefcoco", title="gRefCOCO: any number of objects",
    rules="gIoU: mean IoU, which is 1 where none is said of none and 0 where something is; cIoU: intersections over unions, "
          "each summed over all expressions; N-acc: none said of none; T-acc: something found where there is something",
)  # fmt: skip
