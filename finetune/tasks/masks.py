"""Masks from boxes (COCO, LVIS): AP of what the mask decoder draws in the true boxes, or in a detector's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tap_tokenizer import ImageFeatures, TapRegionTokenizer

from ..data.entries import clipped_box, is_number, mask_fault
from ..data.json_files import read_json
from ..records import Record, decode_mask, encode_mask
from .average_precision import average_precision, published
from .items import EvaluationSet, Item, make_reference, one_record_a_picture, share_pictures
from .predictions import Line, lacking, match_lines
from .task import MASKS, DrawnTask


@dataclass(kw_only=True)
class Masks(DrawnTask):
    """Masks in COCO's layout; federated: by LVIS's rules."""

    rules: str = "AP of masks (pycocotools)"
    federated: bool = False

    kind = "masks"
    coco = frozenset({"masks", "scored"})
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    takes = frozenset({"boxes"})
    needs = frozenset({"mask", "label"})
    is_percent = True

    def read_own(self, data: str, limit: int | None) -> EvaluationSet:
        found = super().read_own(data, limit)
        share_pictures(found)
        one_record_a_picture(found)
        make_reference(found)
        return found

    def prepare(self, items: Sequence[Item], found: EvaluationSet, device: str) -> None:
        super().prepare(items, found, device)
        if self.options.boxes is not None:
            found.boxes = read_boxes(self.options.boxes, found)

    def line_fault(self, line: Line) -> str | None:
        fault = lacking(line, "image_id", "category_id", "segmentation", "score")
        if fault is None and not is_number(line["score"]):
            return f"has score {line['score']}, expected a finite number"
        return fault

    def names(self, record: Record, found: EvaluationSet) -> list[str]:
        """The regions' ids, or the numbers of a detector's boxes."""
        if found.boxes is None:
            return super().names(record, found)
        return [f"{record.image_id}/box{i}" for i in range(len(found.boxes.get(record.image_id, [])))]

    def lines(
        self, tokenizer: TapRegionTokenizer, features: ImageFeatures, record: Record, found: EvaluationSet
    ) -> list[Line]:
        """A line for each box: COCO's detection with its mask.

        A detection's own score stays; a true box has the predicted IoU for a score.
        """
        given: list[dict[str, Any]]
        if found.boxes is None:
            given = [{"box": r.around(record.size), "category_id": r.category_id} for r in record.regions]
        else:
            given = []
            for d in found.boxes.get(record.image_id, []):
                x, y, w, h = d["bbox"]
                given.append({"box": [x, y, x + w, y + h], **{k: d[k] for k in ("category_id", "score")}})
        regions = tokenizer.encode(features=features, boxes=[[g["box"] for g in given]], with_masks=True)
        masks, scores = regions.masks.cpu().numpy(), regions.scores.tolist()
        return [
            {"id": name, "image_id": record.image_id, "category_id": g["category_id"],
             "segmentation": encode_mask(mask), "score": float(g.get("score", score))}
            for name, g, mask, score in zip(self.names(record, found), given, masks, scores)
        ]  # fmt: skip

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """AP of lines in COCO's result format, of pictures that did not open with a "problem".

        Where the mask decoder was asked about boxes, every box has its line.
        """
        assert found.reference is not None
        problems = found.problems
        if row == MASKS and all("id" in line for line in lines):
            names = [name for record in found.records for name in self.names(record, found)]
            lines = [line for line in match_lines(lines, names, row, problems).values() if not line.get("problem")]
        detections = usable_masks(lines, found, row)
        images = [record.image_id for record in found.records]
        silent = set(images) - {d["image_id"] for d in detections}
        having = {a["image_id"] for a in found.reference["annotations"]}
        problems.extend(f"{row}: picture without predictions", sorted(str(i) for i in silent & having))
        scores = average_precision(found.reference, detections, kind="segm", federated=self.federated, images=images)
        return {**scores, "detections": len(detections)}

    def notes(self) -> list[str]:
        if self.options.predictions is not None:
            return []
        true, given = "the true ones, scores the predicted IoU", "a detector's, with its scores"
        boxes = true if self.options.boxes is None else given
        return [f"boxes are {boxes}; published rows have a detector's boxes (--boxes)"]


def read_boxes(path: str, found: EvaluationSet) -> dict[Any, list[dict[str, Any]]]:
    """A detector's boxes (bbox xywh inside the picture) by picture, from COCO's result format.

    Boxes beyond the border are clipped and named, boxes of no area named and left out. Raises `ValueError` for pictures,
    categories and fields that do not fit the reference.
    """
    content = read_json(path)
    detections = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(detections, list) or not all(isinstance(d, dict) for d in detections):
        raise ValueError(f"{path} holds no list of detections: expected COCO's result format.")
    assert found.reference is not None
    sizes = {image["id"]: (image["width"], image["height"]) for image in found.reference["images"]}
    categories = {c["id"] for c in found.reference["categories"]}
    asked = {record.image_id for record in found.records}
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for number, d in enumerate(detections, 1):
        if fault := lacking(d, "image_id", "category_id", "bbox", "score"):
            raise ValueError(f"{path}, detection {number} {fault}: expected COCO's result format.")
        d = {**d, "image_id": found.pictures.get(d["image_id"], d["image_id"])}
        if d["image_id"] not in sizes:
            raise ValueError(f"{path}, detection {number} is of picture {d['image_id']}, which the reference lacks.")
        if d["category_id"] not in categories:
            raise ValueError(f"{path}, detection {number} has category {d['category_id']}, which the reference lacks.")
        if not is_number(d["score"]):
            raise ValueError(f"{path}, detection {number} has score {d['score']}, expected a finite number.")
        if d["image_id"] not in asked:
            continue
        inside = clipped_box(d["bbox"], *sizes[d["image_id"]])
        if inside is None:
            found.problems.add("detector's box empty or outside its picture", f"detection {number}")
            continue
        if inside[1]:
            found.problems.add(f"detector's box {inside[1]}", f"detection {number}")
        x1, y1, x2, y2 = inside[0]
        boxes.setdefault(d["image_id"], []).append({**d, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    return boxes


def usable_masks(lines: Sequence[Line], found: EvaluationSet, row: str) -> list[dict[str, Any]]:
    """COCO's detections in the pictures that are evaluated; what is wrong with others is named.

    Raises `ValueError` for pictures that the reference lacks.
    """
    assert found.reference is not None
    sizes = {image["id"]: (image["height"], image["width"]) for image in found.reference["images"]}
    asked = {record.image_id for record in found.records}
    kept: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        name = str(line.get("id", f"prediction {number}"))
        if line.get("problem"):
            found.problems.add(f"{row}: {line['problem']}", name)
            continue
        line = {**line, "image_id": found.pictures.get(line["image_id"], line["image_id"])}
        if line["image_id"] not in sizes:
            raise ValueError(
                f"Prediction {number} of {row} is of picture {line['image_id']}, which the reference file lacks: is it "
                "the file of another split?"
            )
        key = line.get("id") or (line["image_id"], line["category_id"], line["score"], str(line["segmentation"]))
        if key in kept:
            found.problems.add(f"{row}: prediction given twice, the first counts", name)
        elif line["image_id"] not in asked:
            found.problems.add(f"{row}: prediction of a picture that is not evaluated", name)
        elif fault := mask_fault(line["segmentation"], sizes[line["image_id"]]):
            found.problems.add(f"{row}: {fault}", name)
        else:  # pycocotools reads compressed counts alone
            mask = decode_mask(line["segmentation"], sizes[line["image_id"]])
            about = {k: line[k] for k in ("image_id", "category_id", "score")}
            kept[key] = {**about, "segmentation": encode_mask(mask)}
    return list(kept.values())


COCO_MASKS = Masks(
    name="coco_masks", title="COCO masks from boxes", whole_pictures=5000,
    published=(
        published("TAP-B v1.1, ViTDet-H boxes", "AP", 0.451),
        published("TAP-L v1.1, ViTDet-H boxes", "AP", 0.460),
        published("TAP-H v1.1, ViTDet-H boxes", "AP", 0.463),
    ),
)  # fmt: skip
LVIS_MASKS = Masks(
    name="lvis_masks", title="LVIS masks from boxes", rules="AP of masks, LVIS's rules", whole_pictures=19809,
    federated=True,
    published=(
        published("TAP-B v1.1, ViTDet-H boxes", "AP APr APc APf", 0.422, 0.336, 0.431, 0.450),
        published("TAP-L v1.1, ViTDet-H boxes", "AP APr APc APf", 0.430, 0.337, 0.441, 0.460),
        published("TAP-H v1.1, ViTDet-H boxes", "AP APr APc APf", 0.432, 0.337, 0.441, 0.463),
    ),
)  # fmt: skip
