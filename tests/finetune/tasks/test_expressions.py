"""REC, RES and gRefCOCO on small files in the published layouts, against scores that are worked out here, pixel by pixel."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from PIL import Image, ImageDraw
from small_files import write_json

from finetune import evaluate
from finetune.records import encode_mask
from finetune.tasks import TASKS
from finetune.tasks.expressions import SPLITS
from llm_bridge import find_question

SIZE = (40, 60)
POLYGONS = {11: [2, 2, 20, 2, 20, 18, 2, 18], 12: [30, 5, 55, 5, 42, 30], 13: [5, 25, 15, 25, 15, 38, 5, 38],
            21: [1, 1, 30, 1, 30, 30, 1, 30], 22: [35, 10, 58, 10, 58, 39, 35, 39]}  # fmt: skip
"""Polygons of annotations, of which the first digit is their picture."""


def drawn(*polygons: list[float]) -> np.ndarray:
    """A mask of polygons, drawn by Pillow's own rules."""
    image = Image.new("1", SIZE[::-1])
    for polygon in polygons:
        ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "train2014").mkdir()
    images = []
    for number in (1, 2):
        name = f"COCO_train2014_{number:012d}.jpg"
        Image.new("RGB", SIZE[::-1], (30 * number, 120, 60)).save(tmp_path / "train2014" / name)
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    annotations = []
    for key, polygon in POLYGONS.items():
        (x1, y1), (x2, y2) = (
            (f(polygon[0::2]), f(polygon[1::2]))
            for f in (min, max)  # type: ignore[operator]
        )
        mask = encode_mask(drawn(polygon))
        annotations.append({"id": key, "image_id": key // 10, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "segmentation": mask, "iscrowd": 0, "area": 1})  # fmt: skip
    write_json(
        tmp_path / "instances.json",
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]},
    )

    def reference(number: int, ann: Any, image: int, split: str, *sentences: str) -> dict[str, Any]:
        return {"ref_id": number, "ann_id": ann, "category_id": 1, "image_id": image, "split": split, "sent_ids": [0],
                "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
                "sentences": [{"sent_id": 0, "sent": s, "raw": s, "tokens": s.split()} for s in sentences]}  # fmt: skip

    refs = [reference(0, 11, 1, "val", "the square", "left one"), reference(1, 12, 1, "val", "triangle"),
            reference(2, 22, 2, "val", "right"), reference(3, 21, 2, "testA", "left")]  # fmt: skip
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs))
    grefs = [reference(0, [11, 13], 1, "val", "both squares"), reference(1, [12], 1, "val", "triangle"),
             reference(2, [-1], 1, "val", "a zebra", "no dog"), reference(3, [-1], 2, "val", "a cat"),
             reference(4, [21], 2, "val", "left"), reference(5, [22], 2, "val", "right")]  # fmt: skip
    write_json(tmp_path / "grefs(unc).json", grefs)
    return {"annotations": str(tmp_path / "instances.json"), "images": str(tmp_path / "train2014"),
            "references": str(tmp_path / "refs(unc).p"), "grefs": str(tmp_path / "grefs(unc).json")}  # fmt: skip


def run(files: dict[str, str], output: Path, benchmark: str, *flags: str) -> dict[str, Any]:
    references = files["grefs" if benchmark == "grefcoco" else "references"]
    evaluate.main(["--benchmark", benchmark, "--output", str(output), "--annotations", files["annotations"],
                   "--images", files["images"], "--references", references, *flags])  # fmt: skip
    return dict(json.loads((output / "metrics.json").read_text()))


def scored(
    files: dict[str, str], folder: Path, benchmark: str, lines: list[dict[str, Any]], *flags: str
) -> dict[str, Any]:
    path = write_json(folder / f"{benchmark}.predictions.json", lines)
    return run(files, folder / benchmark, benchmark, "--predictions", path, *flags)


SAID = [[1, 3, 19, 19], [28, 4, 50, 4, 44, 33], [36, 12, 57, 37]]
"""What some model says of the three references: a box, a triangle, a box."""


def rectangle(box: list[float]) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    return mask


def counts(said: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    both = either = 0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            both += bool(said[row, column] and true[row, column])
            either += bool(said[row, column] or true[row, column])
    return both, either


def test_boxes_of_expressions(files: dict[str, str], tmp_path: Path) -> None:
    boxes = {"0/0": [[2, 2, 11, 18], [2, 2, 20, 18]], "0/1": [[2, 2, 11.1, 18]], "1/0": [[30, 5, 55, 30]], "2/0": []}
    lines = [{"id": key, "boxes": own} for key, own in boxes.items()]
    metrics = scored(files, tmp_path, "rec", lines)
    # of the square's 18 columns, half makes an IoU of just .5; only the first box counts, and no box is wrong
    assert metrics["rows"]["given predictions"] == {"accuracy": 0.75, "expressions": 4}
    lines[0]["boxes"] = [[2, 2, 10.9, 18], [2, 2, 20, 18]]
    metrics = scored(files, tmp_path / "less", "rec", lines)
    assert metrics["rows"]["given predictions"]["accuracy"] == 0.5


def test_masks_of_expressions(files: dict[str, str], tmp_path: Path) -> None:
    said = {"0/0": rectangle([1, 3, 19, 19]), "0/1": np.zeros(SIZE, bool), "1/0": drawn([28, 4, 50, 4, 44, 33]),
            "2/0": rectangle([36, 12, 57, 37])}  # fmt: skip
    truths = {"0/0": 11, "0/1": 11, "1/0": 12, "2/0": 22}
    lines = [{"id": key, "mask": encode_mask(mask)} for key, mask in said.items()]
    metrics = scored(files, tmp_path, "res", lines)
    pairs = [counts(mask, drawn(POLYGONS[truths[key]])) for key, mask in said.items()]
    expected = {"cIoU": sum(i for i, _ in pairs) / sum(u for _, u in pairs),
                "gIoU": sum(i / u for i, u in pairs) / 4, "expressions": 4}  # fmt: skip
    assert metrics["rows"]["given predictions"] == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["cIoU"] < 1
    left_out = scored(files, tmp_path / "fewer", "res", lines[1:])
    i, u = pairs[0]
    assert left_out["rows"]["given predictions"]["gIoU"] == pytest.approx(expected["gIoU"] - i / u / 4)
    area = int(drawn(POLYGONS[11]).sum())
    less = (sum(i for i, _ in pairs) - i) / (sum(u for _, u in pairs) - u + area)
    assert left_out["rows"]["given predictions"]["cIoU"] == pytest.approx(less)


def test_any_number_of_objects(files: dict[str, str], tmp_path: Path) -> None:
    """By the evaluator of GRES, step by step: a missed target has no intersection, a zebra that is found only a union."""
    nothing = np.zeros(SIZE, bool)
    said = {"0/0": rectangle([2, 2, 20, 18]), "1/0": nothing, "2/0": nothing, "2/1": rectangle([0, 0, 5, 5]),
            "3/0": nothing, "4/0": drawn(POLYGONS[21]), "5/0": rectangle([0, 0, 9, 9])}  # fmt: skip
    truths = {"0/0": [11, 13], "1/0": [12], "2/0": [], "2/1": [], "3/0": [], "4/0": [21], "5/0": [22]}
    metrics = scored(files, tmp_path, "grefcoco", [{"id": key, "mask": encode_mask(m)} for key, m in said.items()])
    intersection = union = iou = none_right = none = target_right = target = 0.0
    for key, mask in said.items():
        true = drawn(*(POLYGONS[n] for n in truths[key]))
        both, either = counts(mask, true)
        if not truths[key]:
            none += 1
            if not mask.any():
                none_right += 1
                iou += 1
            else:
                union += either
            continue
        target += 1
        target_right += bool(mask.any())
        intersection, union, iou = intersection + both, union + either, iou + both / either
    expected = {"gIoU": iou / 7, "cIoU": intersection / union, "N-acc": none_right / none, "T-acc": target_right / target,
                "expressions": 7}  # fmt: skip
    assert metrics["rows"]["given predictions"] == pytest.approx(expected, abs=1e-12)
    assert (expected["N-acc"], expected["T-acc"]) == (2 / 3, 3 / 4)


def test_published_figures_are_of_the_split_that_is_measured(files: dict[str, str], tmp_path: Path) -> None:
    for benchmark, column in (("rec", "accuracy"), ("res", "cIoU")):
        task = TASKS[benchmark]
        for split, rows in task.by_split.items():  # type: ignore[attr-defined]
            for row in rows:
                assert row.system.endswith(f" {split}")
                assert split in SPLITS[row.system.rpartition(" ")[0].rpartition(", ")[2]]
                assert 0.6 < row.scores[column] < 1
                assert row.source
    scored(files, tmp_path, "res", [{"id": "3/0", "mask": encode_mask(drawn(POLYGONS[21]))}], "--split", "testA")
    table = (tmp_path / "res" / "table.md").read_text()
    assert "| *X-SAM, RefCOCO testA* [1] | 87.10 |" in table
    assert "val*" not in table
    assert "| given predictions | 100.00 | 100.00 | 1 |" in table


@pytest.mark.parametrize("candidates", ["true", "everything", "file"])
def test_predictions_come_from_find(files: dict[str, str], tmp_path: Path, candidates: str) -> None:
    """The bundled bridge was not taught to find, but what it says is scored as what it found, among what it was shown."""
    flags = ["--rows", "language model;language model, shuffled regions;concept head", "--limit", "1"]
    if candidates == "file":
        found = [
            {"image_id": 1, "bbox": [2, 2, 18, 16], "score": 1},
            {"image_id": 1, "bbox": [30, 5, 25, 25], "score": 1},
        ]
        flags += ["--candidates", write_json(tmp_path / "found.json", found)]
    elif candidates == "everything":
        flags += ["--candidates", candidates]
    metrics = run(files, tmp_path / "out", "grefcoco", *flags)
    assert list(metrics["rows"]) == ["language model", "language model, shuffled regions"]
    assert list(metrics["not_run"]) == ["concept head"]
    assert metrics["decoding"] == "greedy, enough tokens to name all candidates"
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0/0", "1/0", "2/0", "2/1"] * 2
    assert lines[0]["asked"] == "Find both squares. Answer with names of regions, or none."
    assert [line["truth"] for line in lines[:3]] == [["11", "13"], ["12"], ["none"]]
    known = {"true": [[2, 2, 20, 18], [30, 5, 55, 30], [5, 25, 15, 38]], "file": [[2, 2, 20, 18], [30, 5, 55, 30]]}
    if candidates in known:
        assert all(box in known[candidates] for line in lines for box in line["boxes"])
    row = metrics["rows"]["language model"]
    silent = [not line["boxes"] for line in lines[:4]]
    assert row["N-acc"] == sum(silent[2:]) / 2
    assert row["T-acc"] == 1 - sum(silent[:2]) / 2


def test_what_does_not_fit_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    nowhere = write_json(tmp_path / "elsewhere.json", [{"image_id": 9, "bbox": [1, 2, 3, 4]}])
    for words, flags in (
        (r"split is train, expected one of \['testA', 'val'\]", ["--split", "train"]),
        ("candidates is nowhere, expected true, everything, or a file", ["--candidates", "nowhere"]),
        ("give records of your own, or the benchmark's files", ["--data", "mine.jsonl"]),
        ("cache needs data", ["--cache", "c"]),
        ("has regions of none of these pictures", ["--candidates", nowhere]),
    ):
        with pytest.raises(ValueError, match=words):
            run(files, tmp_path / "out", "rec", *flags)
    with pytest.raises(ValueError, match="rec needs its references"):
        evaluate.main(["--benchmark", "rec", "--output", str(tmp_path / "out"), "--images", files["images"],
                       "--annotations", files["annotations"]])  # fmt: skip
    for line in ({"id": "0/0"}, {"id": "0/0", "boxes": [[1, 2, 3]]}):
        with pytest.raises(ValueError, match=r"prediction 1 (lacks boxes or mask|has boxes that are not)"):
            scored(files, tmp_path, "rec", [line])
    with pytest.raises(ValueError, match="leave it out"):
        evaluate.main(["--benchmark", "pope", "--output", str(tmp_path / "out"), "--split", "val"])


def test_records_of_your_own(files: dict[str, str], tmp_path: Path) -> None:
    from finetune.data.refcoco import GRefCocoSource
    from finetune.data.source import convert

    own = str(tmp_path / "own.jsonl")
    convert(GRefCocoSource(references=files["grefs"], annotations=files["annotations"], images=files["images"],
                           split="val", output=own))  # fmt: skip
    lines = [{"id": "0/q1", "mask": encode_mask(drawn(POLYGONS[12]))}]
    path = write_json(tmp_path / "said.json", lines)
    evaluate.main(["--benchmark", "grefcoco", "--data", own, "--output", str(tmp_path / "out"), "--predictions", path])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    row = metrics["rows"]["given predictions"]
    assert row["expressions"] == 7
    assert row["gIoU"] == pytest.approx(1 / 7)
    assert metrics["problems"]["given predictions: no prediction"]["count"] == 6


def test_answers_of_your_own_that_cannot_be_read_are_not_taken_for_none(files: dict[str, str], tmp_path: Path) -> None:
    answers = {"the square": "regions 1 and 2", "the dog": "none", "left": "the left one", "right": "region9"}
    turns = [{"role": role, "content": words} for phrase, answer in answers.items()
             for role, words in (("user", f"<region1> <region2> {find_question(phrase)}"), ("assistant", answer))]  # fmt: skip
    image = "train2014/COCO_train2014_000000000001.jpg"
    regions = [{"box": [2, 2, 20, 18], "mask": encode_mask(drawn(POLYGONS[11]))},
               {"box": [5, 25, 15, 38], "mask": encode_mask(drawn(POLYGONS[13]))}]  # fmt: skip
    own = {"image": image, "width": 60, "height": 40, "regions": regions, "conversations": turns}
    (tmp_path / "own.jsonl").write_text(json.dumps(own))
    lines = [{"id": "0/q0", "mask": encode_mask(drawn(POLYGONS[11], POLYGONS[13]))}, {"id": "0/q1", "boxes": []}]
    path = write_json(tmp_path / "said.json", lines)
    evaluate.main(["--benchmark", "grefcoco", "--data", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out"),
                   "--predictions", path])  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    row = metrics["rows"]["given predictions"]
    assert (row["expressions"], row["gIoU"], row["N-acc"], row["T-acc"]) == (2, 1, 1, 1)
    (kind,) = metrics["problems"]
    assert kind.startswith("answer that neither names regions")
    assert metrics["problems"][kind]["names"] == ["0/q2", "0/q3"]
