"""What others bring to an evaluation: predictions to be scored, and a detector's boxes; checked before anything runs.

Knows files and the reference they are for, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.sample import decode_mask, encode_mask
from .benchmarks import Benchmark, Task
from .coco_reading import clipped_box, is_number, mask_fault
from .problems import Problems
from .reading import EvaluationSet
from .text_files import read_json, read_json_lines

GIVEN = "given predictions"
NEEDED: dict[str, tuple[str, ...]] = {
    "masks": ("image_id", "category_id", "segmentation", "score"),
    "prompts": ("id", "iou"),
}
"""What a line has, by task; elsewhere an id, and an answer or, for detections, labels."""


def read_predictions(path: str, benchmark: Benchmark) -> list[dict[str, Any]]:
    """Predictions of someone else, as lines of one row, or of the rows that they name.

    A file of lines, or a JSON list of the same, or one JSON object of answers by id. Raises `ValueError` for lines that
    lack what the task's score needs.
    """
    if not Path(path).is_file():
        raise ValueError(f"Found no predictions at {path}: give a file of lines, or JSON.")
    lines: list[Any]
    if path.endswith(".json"):
        content = read_json(path)
        lines = [{"id": k, "answer": v} for k, v in content.items()] if isinstance(content, dict) else content
        if not isinstance(lines, list):
            raise ValueError(f"{path} holds a {type(content).__name__}, expected a list of predictions.")
    else:
        lines = list(read_json_lines(path))
    if not lines:
        raise ValueError(f"{path} holds no predictions.")
    for number, line in enumerate(lines, 1):
        if fault := _line_fault(line, benchmark.task):
            raise ValueError(f"{path}, prediction {number} {fault}.")
    rows = {line.get("row", GIVEN) for line in lines}
    return [{**line, "row": line.get("row", GIVEN) if len(rows) > 1 else GIVEN} for line in lines]


def _line_fault(line: Any, task: Task) -> str | None:
    """What is wrong with a line in words; None if nothing is, or if it says itself that nothing was predicted."""
    if not isinstance(line, dict):
        return f"is a {type(line).__name__}, expected an object"
    if "id" in line and line.get("problem"):
        return None
    if missing := [key for key in NEEDED.get(task, ("id",)) if key not in line]:
        return f"lacks {', '.join(missing)}"
    if task == "masks":
        return None if is_number(line["score"]) else f"has score {line['score']}, expected a finite number"
    if task == "prompts":
        good = isinstance(line["iou"], dict) and all(is_number(value) for value in line["iou"].values())
        return None if good else "has an iou that is no object of finite numbers"
    if "answer" not in line and "labels" not in line:
        return "lacks answer"
    if not isinstance(line.get("answer"), (str, int, float, type(None))):
        return f"has a {type(line['answer']).__name__} for an answer, expected text"
    labels, iou = line.get("labels", {}), line.get("iou", 1.0)
    if not is_number(iou) or not isinstance(labels, dict) or not all(is_number(p) for p in labels.values()):
        return "has labels or an iou that are no finite numbers"
    return None


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
    asked = {sample["image_id"] for sample in found.records}
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for number, d in enumerate(detections, 1):
        if missing := [k for k in ("image_id", "category_id", "bbox", "score") if k not in d]:
            raise ValueError(f"{path}, detection {number} lacks {', '.join(missing)}: expected COCO's result format.")
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


def usable_masks(
    lines: Sequence[dict[str, Any]], found: EvaluationSet, problems: Problems, row: str
) -> list[dict[str, Any]]:
    """COCO's detections of the pictures in question; what is wrong with others is named.

    Raises `ValueError` for pictures that the reference lacks.
    """
    assert found.reference is not None
    sizes = {image["id"]: (image["height"], image["width"]) for image in found.reference["images"]}
    asked = {sample["image_id"] for sample in found.records}
    kept: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        name = str(line.get("id", f"prediction {number}"))
        if line.get("problem"):
            problems.add(f"{row}: {line['problem']}", name)
            continue
        if line["image_id"] not in sizes:
            raise ValueError(
                f"Prediction {number} of {row} is of picture {line['image_id']}, which the reference file lacks: is it "
                "the file of another split?"
            )
        key = line.get("id") or (line["image_id"], line["category_id"], line["score"], str(line["segmentation"]))
        if key in kept:
            problems.add(f"{row}: prediction given twice, the first counts", name)
        elif line["image_id"] not in asked:
            problems.add(f"{row}: prediction of a picture that is not evaluated", name)
        elif fault := mask_fault(line["segmentation"], sizes[line["image_id"]]):
            problems.add(f"{row}: {fault}", name)
        else:
            mask = decode_mask(
                line["segmentation"], sizes[line["image_id"]]
            )  # pycocotools reads compressed counts alone
            about = {k: line[k] for k in ("image_id", "category_id", "score")}
            kept[key] = {**about, "segmentation": encode_mask(mask)}
    return list(kept.values())
