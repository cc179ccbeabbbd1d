"""What others bring to an evaluation: predictions to be scored, and a detector's boxes; checked before anything runs.

Knows files and the reference they are for, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.entries import clipped_box, is_number, mask_fault
from ..data.problems import Problems, counted
from ..data.sample import decode_mask, encode_mask
from .benchmarks import Benchmark, Task
from .places import Place
from .reading import EvaluationSet
from .text_files import read_entries, read_json, read_json_lines

GIVEN = "given predictions"
NEEDED: dict[str, tuple[str, ...]] = {
    "masks": ("image_id", "category_id", "segmentation", "score"),
    "prompts": ("id", "iou"),
}
"""What a line has, by task; elsewhere an id, and an answer or, for detections, labels."""


@dataclass(frozen=True)
class RawForm:
    """A line as another system's script writes it: which key names the item (None: its place), and which is the answer.

    besides: keys that such a line has, too; without: keys that it never has, for with them it is a file of questions.
    """

    id: str | None
    answer: str
    besides: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    def fits(self, line: dict[str, Any]) -> bool:
        """Whether a line is of this form."""
        needed = {self.answer, *self.besides, *([self.id] if self.id else [])}
        return needed <= set(line) and not self.without & set(line)


QUESTION_KEYS = frozenset({"label", "choices", "mask_rles", "mask_rle", "gt_answers"})
RAW_FORMS = {
    "GAR": RawForm(None, "model_output"),
    "GAR on MDVP-Bench": RawForm(None, "caption", frozenset({"gt"})),
    "Draw-and-Understand": RawForm(None, "prediction", frozenset({"answer"})),
    "PixelRefer": RawForm(None, "pred", frozenset({"Answer"})),
    "LLaVA": RawForm("question_id", "text", without=QUESTION_KEYS),
    "VQA": RawForm("question_id", "answer", without=QUESTION_KEYS),
    "POPE": RawForm(None, "answer", frozenset({"question"}), without=QUESTION_KEYS),
    "coco-caption": RawForm("image_id", "caption"),
}
"""By whose script writes them; of several that fit, the first."""


def read_predictions(path: str, benchmark: Benchmark, places: Sequence[Place] = ()) -> list[dict[str, Any]]:
    """Predictions of someone else, as lines of one row, or of the rows that they name.

    A file of lines, or a JSON list of the same, or one JSON object of answers by id; or the answer file of another
    system's script (`RAW_FORMS`). places: the items in the order of the published file, for answers without ids. Raises
    `ValueError` for lines that lack what the task's score needs.
    """
    if not Path(path).is_file():
        raise ValueError(f"Found no predictions at {path}: give a file of lines, or JSON.")
    lines = _lines_of(path)
    if not lines:
        raise ValueError(f"{path} holds no predictions.")
    if benchmark.task not in ("masks", "prompts"):
        lines = _with_ids(path, lines, places)
    for number, line in enumerate(lines, 1):
        if fault := _line_fault(line, benchmark.task):
            raise ValueError(f"{path}, prediction {number} {fault}.")
    rows = {line.get("row", GIVEN) for line in lines}
    return [{**line, "row": line.get("row", GIVEN) if len(rows) > 1 else GIVEN} for line in lines]


def _lines_of(path: str) -> list[Any]:
    """The predictions of a file as they stand there; of an object, a line for each key."""
    if not path.endswith(".json"):
        return list(read_entries(path))
    try:
        content = read_json(path)
    except ValueError as error:
        try:  # lines may have any name
            return list(read_json_lines(path))
        except ValueError:
            raise error from None
    if isinstance(content, dict):
        # a benchmark's script puts its judge's replies beside the text, and means at the end
        judged = any(isinstance(v, dict) and "pred" in v for v in content.values())
        told = {k: v["pred"] for k, v in content.items() if isinstance(v, dict) and "pred" in v} if judged else content
        return [{"id": k, "answer": v} for k, v in told.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a list of predictions.")
    return content


def _with_ids(path: str, lines: list[Any], places: Sequence[Place]) -> list[Any]:
    """Lines with id and answer, where they are of a raw form; others as they are, with the whole id of their item.

    The record's number or question_id stands for its only question. Raises `ValueError` for answers without ids that do
    not fit the file's places.
    """
    known = {place.id for place in places}
    found: list[Any] = []
    for number, line in enumerate(lines):
        form = _form_of(line)
        if form is not None:
            if form.id is not None:
                key = line[form.id]
            elif not places:  # the benchmark's file has no order to go by
                found.append(line)
                continue
            elif len(lines) != len(places):
                raise ValueError(
                    f"{path} has {counted(len(lines), 'answer')} without ids, and the benchmark's file "
                    f"{counted(len(places), 'entry', 'entries')}: expected one for each."
                )
            elif fault := places[number].fault(line):
                raise ValueError(f"{path}, prediction {number + 1} {fault}: is it the file of another split?")
            else:
                key = places[number].id
            line = {"id": key, "answer": line[form.answer]}
        if isinstance(line, dict) and "id" in line and str(line["id"]) not in known and f"{line['id']}/q0" in known:
            line = {**line, "id": f"{line['id']}/q0"}
        found.append(line)
    return found


def _form_of(line: Any) -> RawForm | None:
    """The form of a line without an id of ours; None for ours, or one that is unknown."""
    if not isinstance(line, dict) or "id" in line:
        return None
    return next((form for form in RAW_FORMS.values() if form.fits(line)), None)


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
        return None if good else "has an iou that is not an object of finite numbers"
    if "answer" not in line and "labels" not in line:
        return "lacks answer"
    if not isinstance(line.get("answer"), (str, int, float, type(None))):
        return f"has a {type(line['answer']).__name__} for an answer, expected text"
    labels, iou = line.get("labels", {}), line.get("iou", 1.0)
    if not is_number(iou) or not isinstance(labels, dict) or not all(is_number(p) for p in labels.values()):
        return "has labels or an iou that are not finite numbers"
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
        line = {**line, "image_id": found.pictures.get(line["image_id"], line["image_id"])}
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
