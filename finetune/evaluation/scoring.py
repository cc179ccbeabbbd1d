"""Lines of predictions + truth → numbers of each row, and what was wrong with the lines.

A line that is missing, or whose picture did not open, counts as an empty answer and marks the score; one for an id that does
not exist is named; of lines that are double, the first counts. Where no id is known at all, lines are refused: another
split's file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.problems import Problems, counted, first_names
from .benchmarks import Benchmark
from .caption_metrics import Scorer, caption_scores
from .detection_metrics import average_precision, tap_detections
from .given import usable_masks
from .items import Item, plain_truth
from .mask_rows import CLICKS, POINT_COUNTS, names_of_boxes
from .question_metrics import answer_scores, yes_no_scores, yes_or_no
from .reading import EvaluationSet
from .recognition_metrics import (
    NORMALISATIONS,
    SentenceEncoder,
    mean_by_class,
    semantic_iou,
    semantic_similarity,
)
from .rows import MASKS, plain_name

Line = dict[str, Any]


def match_lines(lines: Sequence[Line], ids: Sequence[str], row: str, problems: Problems) -> dict[str, Line]:
    """The line of each id; one with a "problem" where there is none. Raises `ValueError` if no id is known."""
    known = set(ids)
    found: dict[str, Line] = {}
    for line in lines:
        key = str(line["id"])
        if key not in known:
            problems.add(f"{row}: prediction for an unknown id", key)
        elif key in found:
            problems.add(f"{row}: prediction given twice, the first counts", key)
        else:
            found[key] = line
    if ids and lines and not found:
        raise ValueError(
            f"None of the {counted(len(lines), 'prediction')} of {row} is for an id of the reference, such as {ids[0]}: "
            "is it the file of another split?"
        )
    for key in ids:
        line = found.setdefault(key, {"id": key, "answer": "", "problem": "no prediction"})
        if line.get("problem"):
            problems.add(f"{row}: {line['problem']}", key)
    return found


def match_answers(lines: Sequence[Line], items: Sequence[Item], row: str, problems: Problems) -> dict[str, Line]:
    """`match_lines` of items, with a text for every answer; those that say nothing are named."""
    found = {}
    for key, line in match_lines(lines, [item.id for item in items], row, problems).items():
        answer = "" if line.get("answer") is None else str(line["answer"])
        if not answer.strip() and not line.get("problem") and "labels" not in line:
            problems.add(f"{row}: empty answer", key)
        found[key] = {**line, "answer": answer}
    return found


def score_row(
    benchmark: Benchmark,
    row: str,
    lines: Sequence[Line],
    items: Sequence[Item],
    problems: Problems,
    *,
    scorer: Scorer = "plain",
    encoder: SentenceEncoder | None = None,
    found: EvaluationSet | None = None,
) -> dict[str, Any]:
    """The numbers of one row of a text task, or of the labels of given boxes."""
    if not items:
        raise ValueError("Got no answered questions and no regions with a reference: there is nothing to score.")
    by_id = match_answers(lines, items, row, problems)
    said = [by_id[item.id]["answer"] for item in items]
    if benchmark.task == "captions":
        return dict(
            caption_scores(
                {item.id: words for item, words in zip(items, said)},
                {item.id: item.references for item in items},
                scorer,
            )
        )
    if benchmark.task == "labels":
        return _label_scores(said, [item.references[0] for item in items], encoder)
    if benchmark.task == "detections":
        assert found is not None
        return _detection_scores(benchmark, by_id, items, found, problems, row)
    if benchmark.task == "yes_no":
        silent = [item.id for item, words in zip(items, said) if yes_or_no(words) is None]
        problems.extend(f"{row}: answer that is neither yes nor no, a yes to the script", silent)
        return dict(yes_no_scores(said, [plain_truth(item.references[0]) for item in items]))
    return answer_scores(
        [
            {"asked": i.asked, "answer": words, "truth": i.references[0], "type": i.type, "options": len(i.options)}
            for i, words in zip(items, said)
        ],
        letters_alone=benchmark.layout == "gar_bench",
    )


def _label_scores(said: list[str], true: list[str], encoder: SentenceEncoder | None) -> dict[str, float]:
    scores: dict[str, float] = {}
    values = {f"S-IoU ({n})": [semantic_iou(a, b, n) for a, b in zip(said, true)] for n in NORMALISATIONS}
    if encoder is not None:
        values |= {f"SS ({n})": semantic_similarity(said, true, encoder, n) for n in NORMALISATIONS}
    for name, each in values.items():
        scores[name] = float(np.mean(each))
        scores[f"{name}, mean of classes"] = mean_by_class(each, true)
    return scores


def _detection_scores(
    benchmark: Benchmark,
    by_id: dict[str, Line],
    items: Sequence[Item],
    found: EvaluationSet,
    problems: Problems,
    row: str,
) -> dict[str, float]:
    """AP of the labels of given boxes; a row of words has one label for each box, if its words are a category's name."""
    assert found.reference is not None
    ids = [c["id"] for c in found.reference["categories"]]
    names = {plain_name(str(c["name"])): place for place, c in enumerate(found.reference["categories"])}
    places = {str(number): place for place, number in enumerate(ids)}
    pictures: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        pictures[item.sample["image_id"]].append(item)
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
                        problems.add(f"{row}: label of an unknown category", f"{item.id}, category {number}")
            elif (place := names.get(plain_name(line["answer"].rstrip(".")))) is not None:
                probabilities[r, place] = 1.0
            if "iou" not in line and not line.get("problem"):
                problems.add(f"{row}: no predicted IoU, taken as 1", item.id)
        ious = np.array([by_id[item.id].get("iou", 1.0) for item in some])
        boxes = np.array([item.sample["regions"][0]["box"] for item in some], dtype=float)
        for region, place, value in tap_detections(probabilities, ious, boxes):
            x1, y1, x2, y2 = boxes[region].tolist()
            detections.append(
                {"image_id": image, "category_id": ids[place], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": value}
            )
    images = [sample["image_id"] for sample in found.records]
    scores = average_precision(found.reference, detections, kind="bbox", federated=benchmark.federated, images=images)
    return {**scores, "detections": len(detections)}


def score_masks(
    benchmark: Benchmark, lines: Sequence[Line], found: EvaluationSet, problems: Problems, row: str
) -> dict[str, float]:
    """AP of masks; lines in COCO's result format, of pictures that did not open with a "problem".

    Where the mask decoder was asked about boxes, every box has its line.
    """
    assert found.reference is not None
    if row == MASKS and all("id" in line for line in lines):
        names = [name for sample in found.records for name in names_of_boxes(sample, found.boxes)]
        lines = [line for line in match_lines(lines, names, row, problems).values() if not line.get("problem")]
    detections = usable_masks(lines, found, problems, row)
    images = [sample["image_id"] for sample in found.records]
    silent = set(images) - {d["image_id"] for d in detections}
    having = {a["image_id"] for a in found.reference["annotations"]}
    problems.extend(f"{row}: picture without predictions", sorted(str(i) for i in silent & having))
    return {
        **average_precision(found.reference, detections, kind="segm", federated=benchmark.federated, images=images),
        "detections": len(detections),
    }


def score_prompts(lines: Sequence[Line], found: EvaluationSet, problems: Problems, row: str) -> dict[str, float]:
    """Mean IoU over regions of every prompt, and the share that the clicks bring to an IoU of .85 and .90."""
    ids = [str(region["id"]) for sample in found.records for region in sample["regions"]]
    whole = [line for line in match_lines(lines, ids, row, problems).values() if not line.get("problem")]
    if not whole:
        raise ValueError(f"None of {counted(len(ids), 'region')} could be measured: do their pictures open?")
    names = ["box", *(f"{n} point{'s' * (n > 1)}" for n in POINT_COUNTS), *(f"click {n}" for n in range(1, CLICKS + 1))]
    for line in whole:
        if missing := [name for name in names if name not in line["iou"]]:
            raise ValueError(f"The prediction of {row} for {line['id']} lacks the IoU of {first_names(missing)}.")
    scores: dict[str, float] = {"regions": len(whole)}
    scores |= {f"mIoU {name}": float(np.mean([line["iou"][name] for line in whole])) for name in names}
    for target in (0.85, 0.9):
        reached = [
            next((n for n in range(1, CLICKS + 1) if line["iou"][f"click {n}"] >= target), CLICKS + 1) for line in whole
        ]
        scores[f"IoU ≥ {target:.2f} within {CLICKS} clicks"] = float(np.mean([n <= CLICKS for n in reached]))
    return scores
