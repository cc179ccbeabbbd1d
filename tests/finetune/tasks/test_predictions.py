"""Predictions from elsewhere: what does not fit is refused or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from finetune.data.entries import Problems
from finetune.records import Record, Region
from finetune.tasks import TASKS
from finetune.tasks.items import EvaluationSet, Item, Place
from finetune.tasks.predictions import GIVEN, match_answers, match_lines

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
MASK = {"image_id": 1, "category_id": 1, "segmentation": SQUARE, "score": 0.5}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "[]", "holds no predictions"),
        ("a.json", "3", "holds a int, expected a list"),
        ("a.json", '["x"]', "prediction 1 is a str, expected an object"),
        ("a.json", '[{"answer": "x"}]', "prediction 1 lacks id"),
        ("a.jsonl", '{"id": 1, "answer": "x"}\n{"id": 2}', "prediction 2 lacks answer"),
        ("a.jsonl", '{"id": 1, "answer": ["x"]}', "has a list for an answer, expected text"),
        ("a.jsonl", '{"id": 1, "labels": {"1": NaN}}', "labels or an iou that are not finite numbers"),
        ("a.jsonl", '{"id": 1', "line 1 is not JSON"),
    ],
)
def test_invalid_prediction_files_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        TASKS["coco_classification"].read_predictions(str(tmp_path / name), [])


@pytest.mark.parametrize(
    ("benchmark", "line", "words"),
    [
        ("coco_masks", {k: v for k, v in MASK.items() if k != "score"}, "lacks score"),
        ("coco_masks", {**MASK, "score": float("nan")}, "score nan, expected a finite number"),
        ("prompted_masks", {"id": "1"}, "lacks iou"),
        ("prompted_masks", {"id": "1", "iou": {"box": None}}, "not an object of finite numbers"),
    ],
)
def test_invalid_mask_lines_are_refused(tmp_path: Path, benchmark: str, line: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=words):
        TASKS[benchmark].read_predictions(str(path), [])


def test_a_byte_order_mark_and_an_object_of_answers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"1": "x", "2": null}')
    lines = TASKS["pope"].read_predictions(str(path), [])
    assert lines == [{"id": "1", "answer": "x", "row": GIVEN}, {"id": "2", "answer": None, "row": GIVEN}]


PLACES = [Place(f"{n}/q0", {"question": f"Is there a {word} in the image?", "image": f"{n}.jpg"})
          for n, word in ((11, "dog"), (12, "cup"))]  # fmt: skip
REPEATED = {"mask_rles": [], "choices": ["A. x", "B. y"], "image_path": "elsewhere/1.jpg", "type": "t"}


@pytest.mark.parametrize(
    "lines",
    [
        [{"id": "11/q0", "answer": "x"}, {"id": "12/q0", "answer": "y"}],
        [{"id": 11, "answer": "x"}, {"id": "12", "answer": "y"}],  # a record's only question
        [{"question_id": 12, "prompt": "?", "text": "y", "answer_id": "k", "model_id": "m", "metadata": {}},
         {"question_id": 11, "prompt": "?", "text": "x"}],
        [{"question_id": 11, "answer": "x"}, {"question_id": "12", "answer": "y"}],
        # GAR repeats the entry, whose "answer" is the truth
        [{**REPEATED, "answer": "A", "question": p.repeats["question"], "image": p.repeats["image"], "model_output": said}
         for p, said in zip(PLACES, "xy")],
        [{**REPEATED, "answer": "A", "model_output": said, "eval_result": "True"} for said in "xy"],
        [{"question": "is there a DOG in the image?", "answer": "x"},
         {"question": "Is there a cup in the image?", "answer": "y"}],
        [{"image": "11.jpg", "Answer": "yes", "pred": "x", "region_num": 0}, {"image": "12.jpg", "Answer": "no", "pred": "y"}],
        [{"image_path": "a", "caption": "x", "gt": "t"}, {"image_path": "b", "caption": "y", "gt": "t"}],
        [{"image_name": "a", "question_id": 5, "prediction": "x", "answer": "t"},
         {"image_name": "b", "question_id": 5, "prediction": "y", "answer": "t"}],
        [{"image_id": "11/q0", "caption": "x"}, {"image_id": "12/q0", "caption": "y"}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "lines.json"])
def test_answer_files_of_other_systems_are_read(tmp_path: Path, name: str, lines: list[dict[str, Any]]) -> None:
    """As a JSON list or as lines, whatever the file's name ends with."""
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, lines)) if name != "a.json" else json.dumps(lines))
    found = TASKS["pope"].read_predictions(str(path), PLACES)
    assert {line["id"]: line["answer"] for line in found} == {"11/q0": "x", "12/q0": "y"}


def test_a_list_in_a_file_of_lines_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([{"id": 11, "answer": "x"}]))
    assert TASKS["pope"].read_predictions(str(tmp_path / "a.jsonl"), PLACES)[0]["id"] == "11/q0"


def test_texts_beside_a_judges_replies_are_the_answers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"7": {"pred": "a cup", "response": ["Yes"]}, "avg_pos": 0.5}))
    lines = TASKS["dlc_bench"].read_predictions(str(tmp_path / "a.json"), [])
    assert [(line["id"], line["answer"]) for line in lines] == [("7", "a cup")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"model_output": "x"}], r"has 1 answer without ids, and the benchmark's file 2 entries: expected one for each"),
        ([{"question": "Is there a cup in the image?", "answer": "x"}] * 2, "prediction 1 has the question 'Is there a cup"),
        ([{"image": "9.jpg", "model_output": "x"}] * 2, "prediction 1 has the image '9.jpg', where .* '11.jpg'"),
        # a file of questions is none of answers
        ([{**REPEATED, "question": "Is there a dog in the image?", "answer": "A"}] * 2, "prediction 1 lacks id"),
        ([{"question_id": 11, "image": "11.jpg", "text": "Is there a dog?", "label": "no"}], "prediction 1 lacks id"),
        ([{"question_id": 1, "image_name": "1.png", "question": "?", "gt_answers": "a"}], "prediction 1 lacks id"),
    ],
)  # fmt: skip
def test_answers_of_another_file_and_questions_are_refused(
    tmp_path: Path, lines: list[dict[str, Any]], words: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(lines))
    with pytest.raises(ValueError, match=words):
        TASKS["pope"].read_predictions(str(tmp_path / "a.json"), PLACES)


def test_answers_without_ids_need_a_file_with_an_order(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"model_output": "x"}]')
    with pytest.raises(ValueError, match="prediction 1 lacks id"):
        TASKS["coco_classification"].read_predictions(str(tmp_path / "a.json"), [])


def test_a_missing_answer_counts_as_an_empty_one() -> None:
    items = [Item(str(n), Record(), [], ["yes"]) for n in range(4)]
    lines = [{"id": 0, "answer": None}, {"id": 1, "answer": " "}, {"id": "2", "answer": 3}]
    problems = Problems()
    found = match_answers(lines, items, "r", problems)
    assert [found[item.id]["answer"] for item in items] == ["", " ", "3", ""]
    assert {kind: about["names"] for kind, about in problems.as_dict().items()} == {
        "r: empty answer": ["0", "1"], "r: no prediction": ["3"],
    }  # fmt: skip


def test_one_prediction_is_named_in_the_singular() -> None:
    with pytest.raises(ValueError, match="None of the 1 prediction of r is for an id"):
        match_lines([{"id": "x"}], ["1"], "r", Problems())


def found() -> EvaluationSet:
    images = [{"id": n, "width": 60, "height": 40} for n in (1, 2, 3)]
    truth = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "segmentation": SQUARE}
             for n in (1, 2, 3)]  # fmt: skip
    records = [Record(None, 60, 40, [Region(id=f"r{n}")], image_id=n) for n in (1, 2)]
    reference = {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "cup"}]}
    return EvaluationSet(records, Path(), reference=reference)


def test_every_problem_of_predicted_masks_is_named() -> None:
    about = found()
    lines = [MASK, MASK, {**MASK, "image_id": 2, "segmentation": [[1, 2, 3, 4]]}, {**MASK, "image_id": 3}]
    scores = TASKS["coco_masks"].score("x", lines, [], about)
    assert scores["detections"] == 1
    assert {kind: names["names"] for kind, names in about.problems.as_dict().items()} == {
        "x: mask with a broken polygon": ["prediction 3"],
        "x: picture without predictions": ["2"],
        "x: prediction given twice, the first counts": ["prediction 2"],
        "x: prediction of a picture that is not evaluated": ["prediction 4"],
    }


def test_lines_of_the_mask_decoder_are_matched_by_id() -> None:
    about = found()
    lines = [{**MASK, "id": "r1"}, {**MASK, "id": "r1", "score": 0.9}, {**MASK, "id": "r9"}]
    scores = TASKS["coco_masks"].score("mask decoder", lines, [], about)
    assert scores["detections"] == 1
    assert {kind: names["names"] for kind, names in about.problems.as_dict().items()} == {
        "mask decoder: no prediction": ["r2"],
        "mask decoder: picture without predictions": ["2"],
        "mask decoder: prediction for an unknown id": ["r9"],
        "mask decoder: prediction given twice, the first counts": ["r1"],
    }


def test_prompted_masks_are_matched_by_id() -> None:
    about = found()
    names = ["box", "1 point", *(f"{n} points" for n in (3, 5, 9)), *(f"click {n}" for n in range(1, 10))]
    line = {"id": "r1", "iou": dict.fromkeys(names, 0.5)}
    scores = TASKS["prompted_masks"].score("x", [line, {**line, "iou": {}}, {"id": "r9"}], [], about)
    assert scores["regions"] == 1
    assert scores["mIoU box"] == 0.5
    assert {kind: names["names"] for kind, names in about.problems.as_dict().items()} == {
        "x: no prediction": ["r2"], "x: prediction for an unknown id": ["r9"],
        "x: prediction given twice, the first counts": ["r1"],
    }  # fmt: skip
    with pytest.raises(ValueError, match="lacks the IoU of box, 1 point, 3 points, …"):
        TASKS["prompted_masks"].score("x", [{**line, "iou": {}}], [], about)
    with pytest.raises(ValueError, match="None of 2 regions could be measured"):
        TASKS["prompted_masks"].score("x", [], [], about)
