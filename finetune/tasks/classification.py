"""Classification of given boxes (COCO, LVIS): AP of their labels, as TAP measures it.

The boxes are given. A label's score is √(p · IoU), and labels above .001 count. NMS at .5 is applied within each category, and
the 300 most confident labels of a picture are kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .average_precision import TOP_DETECTIONS, average_precision, published
from .items import EvaluationSet, Item, Seen, make_reference, share_pictures
from .predictions import Line, match_answers
from .task import Task


@dataclass(kw_only=True)
class Classification(Task):
    """Labels of boxes in COCO's layout; federated: by LVIS's rules."""

    rules: str = "AP of boxes; boxes given, score √(p · IoU), labels above .001, NMS .5 within a category, top 300"
    max_new_tokens: int = 20
    federated: bool = False

    kind = "detections"
    coco = frozenset({"scored", "crowds"})  # TAP's protocol labels crowds, too
    columns = ("AP", "AP50", "AP75", "APr", "APc", "APf")
    needs = frozenset({"label", "box"})
    is_percent = True

    def read_own(self, data: str, limit: int | None) -> EvaluationSet:
        found = super().read_own(data, limit)
        share_pictures(found)
        make_reference(found)
        return found

    def answer(self, seen: Seen, words: str) -> Line:
        return {"answer": words, "iou": float(seen.regions.scores[0])}

    def categories(self, found: EvaluationSet) -> dict[str, Any]:
        assert found.reference is not None
        return {plain_name(str(c["name"])): c["id"] for c in found.reference["categories"]}

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """AP of the labels. A row that answers in words has one label for a box if the words are a category's name."""
        assert found.reference is not None
        by_id = match_answers(lines, items, row, found.problems)
        ids = [c["id"] for c in found.reference["categories"]]
        names = {plain_name(str(c["name"])): place for place, c in enumerate(found.reference["categories"])}
        places = {str(number): place for place, number in enumerate(ids)}
        pictures: dict[Any, list[Item]] = defaultdict(list)
        for item in items:
            pictures[item.record.image_id].append(item)
        detections = []
        for image, some in pictures.items():
            probabilities = np.zeros((len(some), len(ids)))
            for r, item in enumerate(some):
                line = by_id[item.id]
                if "labels" in line:
                    for number, p in line["labels"].items():
                        if number in places:
                            probabilities[r, places[number]] = p
                        else:
                            found.problems.add(f"{row}: label of an unknown category", f"{item.id}, category {number}")
                elif (place := names.get(plain_name(line["answer"].rstrip(".")))) is not None:
                    probabilities[r, place] = 1.0
                if "iou" not in line and not line.get("problem"):
                    found.problems.add(f"{row}: no predicted IoU, taken as 1", item.id)
            ious = np.array([by_id[item.id].get("iou", 1.0) for item in some])
            boxes = np.array([item.record.regions[0].around(item.record.size) for item in some], dtype=float)
            for region, place, value in tap_detections(probabilities, ious, boxes):
                x1, y1, x2, y2 = boxes[region].tolist()
                detections.append(
                    {"image_id": image, "category_id": ids[place], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": value}
                )
        images = [record.image_id for record in found.records]
        scores = average_precision(found.reference, detections, kind="bbox", federated=self.federated, images=images)
        return {**scores, "detections": len(detections)}


COCO_CLASSIFICATION = Classification(
    name="coco_classification", title="COCO classification of given boxes", whole_pictures=5000
)
LVIS_CLASSIFICATION = Classification(
    name="lvis_classification", title="LVIS classification of given boxes", whole=244707, federated=True,
    published=(
        published("TAP-B v1.1", "AP APr APc APf", 0.574, 0.586, 0.568, 0.575),
        published("TAP-L v1.1", "AP APr APc APf", 0.591, 0.617, 0.589, 0.583),
        published("TAP-H v1.1", "AP APr APc APf", 0.596, 0.616, 0.600, 0.582),
    ),
)  # fmt: skip


def tap_detections(
    probabilities: np.ndarray,
    iou_scores: np.ndarray,
    boxes: np.ndarray,
    *,
    minimum: float = 1e-3,
    nms_threshold: float = 0.5,
    top: int = TOP_DETECTIONS,
) -> list[tuple[int, int, float]]:
    """TAP's detections of one picture: (region, category, score), the most confident first.

    probabilities (R, N) of N categories; iou_scores (R,), clipped to 0 … 1; boxes (R, 4) xyxy. A region has every label
    whose probability is above `minimum`, with score √(p · IoU); then NMS within each category (a box is dropped if its
    IoU with a surer one is above `nms_threshold`), and the `top` surest of the picture stay.
    """
    regions, labels = np.nonzero(probabilities > minimum)
    scores = np.sqrt(probabilities[regions, labels] * np.clip(iou_scores[regions], 0, 1))
    kept: list[int] = []
    overlaps = _box_ious(boxes)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = rows[np.argsort(-scores[rows], kind="stable")]
        chosen: list[int] = []
        for row in order:
            if all(overlaps[regions[row], regions[other]] <= nms_threshold for other in chosen):
                chosen.append(int(row))
        kept += chosen
    kept.sort(key=lambda row: (-scores[row], row))
    return [(int(regions[row]), int(labels[row]), float(scores[row])) for row in kept[:top]]


def _box_ious(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes (R, 4) xyxy → (R, R)."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    union = areas[:, None] + areas[None, :] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-12), 0.0)


def plain_name(name: str) -> str:
    """A category's name as the original's concept files spell it: lower case, spaces for underscores and hyphens."""
    return re.sub(r"[_\-\s]+", " ", name.lower()).strip()
