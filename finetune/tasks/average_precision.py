"""Average precision of masks and boxes: COCO's by pycocotools, and LVIS's federated variant on top of it.

LVIS's own package needs OpenCV and a NumPy older than 1.24, so its rules are implemented here: a picture is judged only in
categories that it is known to have or to lack; an unmatched detection of a category that is not exhaustively annotated is
ignored; the 300 most confident detections of a picture count, over all categories; and nothing is a crowd.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tap_tokenizer import counted

from .task import Published

TOP_DETECTIONS = 300
COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def average_precision(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    kind: Literal["segm", "bbox"],
    federated: bool = False,
    images: Sequence[Any] | None = None,
) -> dict[str, float]:
    """AP of detections in COCO's result format against a COCO or LVIS file, as shares; −1 if nothing can be measured.

    federated: LVIS's rules, with APr, APc, APf if categories have a `frequency`. images: ids to evaluate; default all.
    """
    known, categories = {i["id"] for i in truth["images"]}, {c["id"] for c in truth["categories"]}
    if strangers := {d["image_id"] for d in detections} - known:
        raise ValueError(
            f"Got detections of {counted(len(strangers), 'picture')} that the reference file lacks, such as "
            f"{sorted(strangers, key=str)[0]}: is it the file of another split?"
        )
    if strangers := {d["category_id"] for d in detections} - categories:
        raise ValueError(f"Got detections of unknown categories {sorted(strangers)[:3]}: use the reference file's ids.")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference = COCO()
        reference.dataset = _as_coco(truth, federated)
        reference.createIndex()
        found = reference.loadRes([dict(d) for d in detections]) if detections else _nothing(reference)
        evaluation = (_LvisEval if federated else COCOeval)(reference, found, kind)
        if images is not None:
            evaluation.params.imgIds = sorted(images)
        evaluation.evaluate()
        evaluation.accumulate()
        if federated:
            return evaluation.summary()
        evaluation.summarize()
    return dict(zip(COCO_NAMES, (float(v) for v in evaluation.stats[:6])))


class _LvisEval(COCOeval):
    """COCO's evaluation under LVIS's rules."""

    def __init__(self, truth: COCO, found: COCO, kind: str) -> None:
        super().__init__(truth, found, kind)
        self.params.maxDets = [TOP_DETECTIONS]
        self.pictures = {image["id"]: image for image in truth.dataset["images"]}

    def _prepare(self) -> None:
        super()._prepare()
        present: dict[Any, set[int]] = defaultdict(set)
        surest: dict[Any, list[Any]] = defaultdict(list)
        for (image, category), true in self._gts.items():
            if true:
                present[image].add(category)
        found: dict[Any, list[Any]] = self._dts  # type: ignore[has-type]
        for (image, _), detections in found.items():
            surest[image] += detections
        self._dts = defaultdict(list)
        for image, detections in surest.items():
            about = self.pictures[image]
            judged = present[image] | set(about["neg_category_ids"])
            for detection in sorted(detections, key=lambda d: -d["score"])[:TOP_DETECTIONS]:
                if detection["category_id"] in judged:
                    self._dts[image, detection["category_id"]].append(detection)

    def evaluateImg(self, imgId: Any, catId: int, aRng: Sequence[float], maxDet: int) -> dict[str, Any] | None:  # noqa: N802, N803
        """COCO's matching; then unmatched detections of categories that are not exhaustively annotated are ignored."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and catId in self.pictures[imgId]["not_exhaustive_category_ids"]:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result

    def summary(self) -> dict[str, float]:
        """AP over all categories, at IoU .5 and .75, by size, and by how frequent categories are."""
        precision = self.eval["precision"][..., -1]  # thresholds, recalls, categories, areas
        thresholds = self.params.iouThrs
        groups: dict[str, list[int]] = defaultdict(list)
        for place, category in enumerate(self.params.catIds):
            groups[self.cocoGt.cats[category].get("frequency", "")].append(place)
        parts = {
            "AP": precision[:, :, :, 0],
            "AP50": precision[np.isclose(thresholds, 0.5), :, :, 0],
            "AP75": precision[np.isclose(thresholds, 0.75), :, :, 0],
            **{f"AP{size}": precision[:, :, :, place] for place, size in enumerate("sml", 1)},
            **{f"AP{g}": precision[:, :, groups[g], 0] for g in "rcf" if groups[g]},
        }
        return {name: float(part[part > -1].mean()) if (part > -1).any() else -1.0 for name, part in parts.items()}


def _as_coco(truth: Mapping[str, Any], federated: bool) -> dict[str, Any]:
    images = [dict(image) for image in truth["images"]]
    if federated:
        for image in images:
            for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[name] = image.get(name) or []
    annotations = []
    for number, a in enumerate(truth["annotations"], 1):  # pycocotools takes what is matched by id 0 for unmatched
        crowd = 0 if federated else a.get("iscrowd", 0)
        area = a["area"] if "area" in a else a["bbox"][2] * a["bbox"][3]
        annotations.append({**a, "id": number, "iscrowd": crowd, "area": area})
    return {"images": images, "annotations": annotations, "categories": [dict(c) for c in truth["categories"]]}


def _nothing(reference: COCO) -> COCO:
    empty = COCO()
    empty.dataset = {**reference.dataset, "annotations": []}
    empty.createIndex()
    return empty


def published(system: str, names: str, *values: float) -> Published:
    """Figures printed by TAP's notebooks."""
    return Published(system, dict(zip(names.split(), values)), "notebooks of baaivision/tokenize-anything")
