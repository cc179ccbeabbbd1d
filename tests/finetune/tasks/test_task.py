"""Published files with everything wrong that they can have: each fault is named, and what is left is what it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

from PIL import Image

from finetune.glyphs.records import expression_record
from finetune.records import decode_mask, encode_mask
from finetune.tasks import TASKS
from finetune.tasks.items import EvaluationSet, Item, refuse_doubles
from finetune.tasks.masks import read_boxes
from finetune.tasks.task import TaskOptions

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
NAN = float("nan")


def annotation(number: Any, **other: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
            "segmentation": SQUARE, **other}  # fmt: skip


def read(tmp_path: Path, benchmark: str, content: Any, **more: Any) -> EvaluationSet:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    return read_set(benchmark, annotations=str(path), images=str(tmp_path), **more)


def read_set(benchmark: str, **options: Any) -> EvaluationSet:
    task = replace(TASKS[benchmark])
    task.configure(TaskOptions("out", caption_scorer="plain", **options))
    return task.read()


def items_of(found: EvaluationSet, benchmark: str) -> list[Item]:
    return [item for record in found.records for item in TASKS[benchmark].items(record, found.problems)]


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2)]
    return {"images": images, "annotations": list(annotations), "categories": [{"id": 1, "name": "cup"}], **more}


def problems(found: EvaluationSet) -> dict[str, Any]:
    return {kind: about["names"] for kind, about in found.problems.as_dict().items()}


def ids(found: EvaluationSet) -> list[str]:
    return [str(region.id) for record in found.records for region in record.regions]


def test_questions_whose_candidates_an_earlier_one_shows_are_not_asked_alone(tmp_path: Path) -> None:
    record = expression_record(3, "train", 0, turns=3, long_side=64, shown_once=True)
    (tmp_path / "once.jsonl").write_text(json.dumps(record.to_dict()))
    found = read_set("answers", data=str(tmp_path / "once.jsonl"))
    for history, count in (("none", 1), ("true", 3)):
        items = replace(TASKS["answers"], history=history).items(found.records[0], found.problems)
        assert len(items) == count
        assert all(len(item.rows) == len(record.regions) for item in items)
    (names,) = problems(found).values()
    assert len(names) == 2


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ([[1, 2, 3, 4]], "mask with a broken polygon"),  # two points, which pycocotools takes for a box
        ([[1, 2]], "mask with a broken polygon"),
        ([[]], "mask with a broken polygon"),
        ([[1, 2, 3, 4, 5, 6, 7]], "mask with a broken polygon"),
        ([[1, 2, NAN, 4, 5, 6]], "mask with a broken polygon"),  # with which pycocotools fills all memory
        ([[1, 2, 1e9, 4, 5, 6]], "mask with a broken polygon"),
        ([["a"] * 6], "mask with a broken polygon"),
        ({"size": [40, 60], "counts": [5, 5]}, "mask with broken counts"),
        ({"size": [40, 60], "counts": [0, 2401]}, "mask with broken counts"),
        ({"size": [40, 60], "counts": [-5, 2405]}, "mask with broken counts"),
        ({"size": [40, 60], "counts": "zzz"}, "mask with broken counts"),
        ({"size": [40, 60]}, "mask with broken counts"),
        ({"size": [60, 40], "counts": [0, 2400]}, "mask of another size than its picture"),
        ("text", "mask with broken counts"),
        ([], "no mask"),
        (None, "no mask"),
    ],
)
@pytest.mark.parametrize("benchmark", ["coco_masks", "prompted_masks"])
def test_broken_masks_are_named(tmp_path: Path, benchmark: str, mask: Any, kind: str) -> None:
    found = read(tmp_path, benchmark, coco(annotation(7), annotation(8, segmentation=mask)))
    assert problems(found) == {kind: ["8"]}
    assert ids(found) == ["7"]
    assert found.reference is not None
    assert [a["id"] for a in found.reference["annotations"]] == [7]


@pytest.mark.parametrize(
    "box", [[10, 10, 0, 5], [10, 10, -3, 5], [NAN, 10, 5, 5], [60, 0, 5, 5], [1, 2, 3], None, ["a", 0, 1, 1],
            [-9, 3, 5, 5], [0, 0, float("inf"), 1]]
)  # fmt: skip
def test_broken_boxes_are_named(tmp_path: Path, box: Any) -> None:
    content = coco(annotation(7), annotation(8, bbox=box))
    for benchmark in ("coco_classification", "prompted_masks"):
        found = read(tmp_path, benchmark, content)
        assert problems(found) == {"box empty or outside its picture": ["8"]}
        assert ids(found) == ["7"]
    assert found.reference is not None
    assert len(found.reference["annotations"]) == 1
    masks = read(tmp_path, "coco_masks", content)  # its mask is true whatever its box is
    assert problems(masks) == {"box empty or outside its picture": ["8"]}
    assert masks.reference is not None
    assert len(masks.reference["annotations"]) == 2


def test_a_box_beyond_the_border_is_clipped_and_named(tmp_path: Path) -> None:
    found = read(tmp_path, "coco_classification", coco(annotation(7, bbox=[40, 30, 30, 10.3]), annotation(8)))
    assert found.records[0].regions[0].box == [40, 30, 60, 40]
    assert problems(found) == {"box beyond its picture's border, clipped": ["7"]}
    rounded = read(tmp_path, "coco_classification", coco(annotation(7, bbox=[40, 30, 20.4, 10.3])))
    assert not problems(rounded)


def test_doubled_unknown_and_foreign_annotations(tmp_path: Path) -> None:
    content = coco(
        annotation(0), annotation(0, bbox=[1, 1, 5, 5]), annotation(3, image_id=99), annotation(4, category_id=5)
    )
    content["images"].append({**content["images"][0], "file_name": "other.png"})
    found = read(tmp_path, "coco_classification", content)
    assert problems(found) == {
        "annotation given twice, the first counts": ["0"],
        "annotation of a picture that is not listed": ["3"],
        "annotation of an unknown category": ["4"],
        "picture listed twice, the first counts": ["1"],
    }
    assert ids(found) == ["0"]
    assert [record.image for record in found.records] == ["1.png", "2.png"]


def test_annotations_without_ids_get_the_pictures_id(tmp_path: Path) -> None:
    without = [{k: v for k, v in annotation(1, image_id=i).items() if k != "id"} for i in (1, 1, 2)]
    found = read(tmp_path, "coco_classification", coco(*without))
    assert ids(found) == ["1_region_0", "1_region_1", "2_region_0"]
    refuse_doubles(items_of(found, "lvis_labels"))


def test_an_annotation_with_id_0_is_found(tmp_path: Path) -> None:
    """pycocotools writes down which annotation a detection matched by its id, and reads 0 as none."""
    masks = [annotation(n, segmentation=[[x, 5, x + 9, 5, x + 9, 20, x, 20]]) for n, x in ((0, 5), (1, 25), (2, 45))]
    found = read(tmp_path, "coco_masks", coco(*masks))
    lines = [{k: a[k] for k in ("image_id", "category_id", "segmentation")} | {"score": 0.5} for a in masks]
    for line in lines:
        line["segmentation"] = encode_mask(decode_mask(line["segmentation"], (40, 60)))
    assert TASKS["coco_masks"].score("x", lines, [], found)["AP"] == pytest.approx(1)
    assert not problems(found)


def test_areas_that_are_not_numbers_are_computed(tmp_path: Path) -> None:
    bare = annotation(8)
    del bare["area"]
    found = read(tmp_path, "coco_masks", coco(annotation(7, area=None), bare, annotation(9, bbox=None, area="x")))
    assert found.reference is not None
    assert [a["area"] for a in found.reference["annotations"]] == [400, 400, decode_mask(SQUARE, (40, 60)).sum()]
    assert problems(found)["area that is no number, taken from the box or the mask"] == ["7", "9"]


def test_empty_captions_are_named(tmp_path: Path) -> None:
    content = coco(*(annotation(n, caption=words) for n, words in enumerate(["a  cup", "", " \n", None, 5], 1)))
    found = read(tmp_path, "vg_full", content)
    assert ids(found) == ["1_region_0"]
    assert found.records[0].regions[0].captions == ["a cup"]
    assert problems(found) == {"empty reference": [f"1_region_{n}" for n in (1, 2, 3, 4)]}
    with pytest.raises(ValueError, match=r"is not the file of vg_full: KeyError\('caption'\)"):
        read(tmp_path, "vg_full", coco(annotation(1)))
    double = read(
        tmp_path, "vg_full", coco(annotation(1, caption="a"), annotation(1, caption="a"), annotation(1, caption="b"))
    )
    assert ids(double) == ["1_region_0", "1_region_2"]
    assert problems(double) == {"annotation given twice, the first counts": ["1_region_1"]}


def test_problems_outside_a_subset_are_not_named(tmp_path: Path) -> None:
    content = coco(annotation(1), annotation(2, image_id=2, bbox=[0, 0, 0, 0]))
    assert not problems(read(tmp_path, "coco_classification", content, limit=1))
    assert problems(read(tmp_path, "coco_classification", content))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"id": 1, "file_name": "a", "width": 0, "height": 4}], "Picture 1 has width 0"),
        ([{"id": 1, "file_name": "a", "width": "9", "height": 4}], "Picture 1 has width 9"),
        ([{"id": n, "file_name": "a", "width": 9, "height": 4} for n in (1, "b")], "numbers and words for ids"),
    ],
)
def test_invalid_picture_entries_are_refused(tmp_path: Path, images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, "coco_classification", {**coco(annotation(1)), "images": images})


def test_ospreys_lists(tmp_path: Path) -> None:
    good = {"segmentation": SQUARE}
    entry = {"file_name": "1.png", "height": 40, "width": 60}
    content = [
        {**entry, "categories": ["cup", None, "mug"], "annotations": [good, good, {"segmentation": [[1, 2]]}]},
        {**entry, "categories": ["cup"], "annotations": [good, good]},
        {**entry, "categories": ["cup"], "annotations": [{"segmentation": [[99, 1, 98, 1, 98, 2]]}]},
    ]
    found = read(tmp_path, "lvis_labels", content)
    items = items_of(found, "lvis_labels")
    assert [item.id for item in items] == ["0/0"]
    assert problems(found) == {
        "empty mask": ["2/0"], "entry with another number of names than of masks": ["1"],
        "mask with a broken polygon": ["0/2"], "region without a reference": ["0/1"],
    }  # fmt: skip


def test_gar_bench_questions_without_answers_or_choices(tmp_path: Path) -> None:
    mask = encode_mask(np.ones((40, 60), bool))
    entry = {"image": "1.png", "mask_rles": [mask], "question": "What is <Prompt0>?", "choices": ["A. cup", "B. dog"],
             "answer": "A", "type": "t"}  # fmt: skip
    other = encode_mask(np.ones((30, 60), bool))
    changes: list[dict[str, Any]] = [
        {}, {"answer": None}, {"answer": " "}, {"choices": None}, {"choices": [None]}, {"answer": "C"},
        {"mask_rles": [mask, other]}, {"mask_rles": [{**mask, "counts": [1]}]},
    ]  # fmt: skip
    found = read(tmp_path, "gar_bench", [{**entry, **change} for change in changes])
    assert ids(found) == ["0/0"]
    assert problems(found) == {
        "question about a mask of another size than its picture": ["6"],
        "question about a mask with broken counts": ["7"],
        "question without an answer": ["1", "2"],
        "question without choices": ["3", "4"],
        "question whose answer is none of its choices": ["5"],
    }
    del entry["question"]
    with pytest.raises(ValueError, match="is not the file of gar_bench"):
        read(tmp_path, "gar_bench", [entry])


def test_pope_reads_pictures_upright_and_names_invalid_labels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (60, 40)).save(tmp_path / "1.jpg", exif=exif)
    entry = {"question_id": 1, "image": "1.jpg", "text": "Is there a dog?", "label": "Yes"}
    changes: list[dict[str, Any]] = [
        {}, {"text": "again"}, {"question_id": 2, "label": None}, {"question_id": 3, "label": "maybe"},
        {"question_id": 4, "image": "none.jpg"},
    ]  # fmt: skip
    path = tmp_path / "pope.jsonl"
    path.write_text("\n\n".join(json.dumps({**entry, **change}) for change in changes) + "\n")
    found = read_set("pope", annotations=str(path), images=str(tmp_path))
    assert [(r.width, r.height) for r in found.records] == [(40, 60), (1, 1)]
    assert found.records[0].regions[0].box == [0, 0, 40, 60]
    assert found.records[0].conversations[1].content == "yes"
    assert problems(found) == {
        "question given twice, the first counts": ["1"],
        "question whose label is neither yes nor no": ["2", "3"],
    }


@pytest.mark.parametrize(
    ("bad", "kind", "name"),
    [
        (None, "entry without question_id", "entry 1"),
        ({"question_id": None}, "entry without question_id", "entry 1"),
        ({"label": ...}, "entry without label", "2"),
        ({"text": None}, "question without words", "2"),
        ({"image": None}, "entry of another form", "2"),
    ],
)
def test_a_malformed_question_is_named_and_the_others_are_asked(
    tmp_path: Path, bad: dict[str, Any] | None, kind: str, name: str
) -> None:
    entries: list[Any] = [
        {"question_id": n, "image": "1.jpg", "text": f"Is there a dog {n}?", "label": "yes"} for n in (1, 2, 3)
    ]
    changed = {**entries[1], **(bad or {})}
    entries[1] = bad and {key: value for key, value in changed.items() if value is not ...}
    path = tmp_path / "pope.json"
    path.write_text(json.dumps(entries))
    found = read_set("pope", annotations=str(path), images=str(tmp_path))
    assert [record.image_id for record in found.records] == [1, 3]
    assert problems(found) == {kind: [name]}
    assert len(found.places) == 3  # answers without ids are told apart by their places


def test_malformed_entries_of_lists_and_annotations_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    mask = encode_mask(np.ones((20, 30), bool))
    gar = {"image": "1.png", "mask_rles": [mask], "question": "What is <Prompt0>?", "choices": ["A. cup", "B. dog"],
           "answer": "A", "type": "t"}  # fmt: skip
    wrong: list[Any] = [
        "x",
        {**gar, "mask_rles": [None]},
        {**gar, "mask_rles": [{"counts": "x"}]},
        {**gar, "image": None},
    ]
    found = read(tmp_path, "gar_bench", [*wrong, gar])
    assert ids(found) == ["4/0"]
    assert problems(found) == {
        "entry of another form": ["1"], "entry whose image is null": ["3"], "entry without mask_rles": ["0"],
        "entry without size": ["2"],
    }  # fmt: skip
    osprey = {
        "file_name": "1.jpg",
        "height": 20,
        "width": 30,
        "categories": ["cup"],
        "annotations": [{"segmentation": mask}],
    }
    found = read(tmp_path, "lvis_labels", [None, {"file_name": "2.jpg"}, osprey])
    assert ids(found) == ["2/0"]
    assert problems(found) == {"entry without height": ["0", "1"]}
    box = {"id": 8, "image_id": 1, "category_id": 0, "bbox": [1, 1, 9, 9], "area": 81}
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 30, "height": 20}],
        "categories": [{"id": 0, "name": "cup"}],
        "annotations": [None, {"id": 7}, box],
    }
    found = read(tmp_path, "coco_classification", coco)
    assert ids(found) == ["8"]
    assert problems(found) == {"annotation without image_id": ["annotation 0", "annotation 1"]}


@pytest.mark.parametrize("form", ["lines", "list", "indented list"])
def test_pope_is_read_as_lines_and_as_a_list(tmp_path: Path, form: str) -> None:
    entries = [{"question_id": n, "image": "1.jpg", "text": f"Is there a dog {n}?", "label": "yes"} for n in (1, 2)]
    path = tmp_path / "pope.json"
    text = (
        "\n".join(map(json.dumps, entries))
        if form == "lines"
        else json.dumps(entries, indent=4 if "ind" in form else None)
    )
    path.write_text("\ufeff" * (form == "list") + text)
    found = read_set("pope", annotations=str(path), images=str(tmp_path))
    assert [record.image_id for record in found.records] == [1, 2]
    assert [place.id for place in found.places] == ["1/q0", "2/q0"]
    path.write_text('[{"question_id": 1, "image"')
    with pytest.raises(ValueError, match=r"pope\.json is not JSON: .*expected one whole JSON value"):
        read_set("pope", annotations=str(path), images=str(tmp_path))
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not the file of pope"):
        read_set("pope", annotations=str(path), images=str(tmp_path))


def test_every_published_set_of_pope_counts_as_complete() -> None:
    pope = TASKS["pope"]
    assert [pope.whole_of(count) for count in (3000, 2910, 2909, 2999)] == [3000, 2910, 3000, 3000]
    assert TASKS["refcocog"].whole_of(2910) is None


def own(path: Path, *regions: dict[str, Any], answers: tuple[Any, ...] = ()) -> str:
    turns = [{"role": r, "content": c} for a in answers for r, c in (("user", "What is <region1>?"), ("assistant", a))]
    record = {"image": "1.png", "width": 60, "height": 40, "regions": list(regions), "conversations": turns}
    path.write_text(json.dumps(record) + "\n")
    return str(path)


def test_records_can_replace_a_benchmarks_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    box, mask = {"box": [1, 1, 9, 9]}, {"mask": SQUARE}
    for bad, words in (({"box": [1, 1, 1, 9]}, "record 1: empty box"), ({"mask": [[1, 2]]}, "record 1: wrong mask"),
                       ({"label": "cup"}, "record 1: no prompt")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{words}.* names all that is wrong"):
            read_set("refcocog", data=own(path, bad))
    found = read_set("prompted_masks", data=own(path, box, mask, {"mask": [[90, 1, 95, 1, 95, 5]]}))
    assert ids(found) == ["0/1"]
    assert problems(found) == {"empty mask": ["0/2"], "region without a mask": ["0/0"]}
    found = read_set("coco_masks", data=own(path, {**box, "label": "a"}, {**mask, "label": "a"}, mask))
    assert ids(found) == ["0/1"]
    assert problems(found) == {"region without a label": ["0/2"], "region without a mask": ["0/0"]}


def test_questions_in_records_without_answers_are_named(tmp_path: Path) -> None:
    path = own(tmp_path / "own.jsonl", {"box": [1, 1, 9, 9]}, answers=("Yes.", "", "maybe", "no"))
    for name, kept in (("answers", ["0/q0", "0/q2", "0/q3"]), ("pope", ["0/q0", "0/q3"])):
        found = read_set(name, data=path)
        items = items_of(found, name)
        assert [item.id for item in items] == kept
        assert problems(found)["question without an answer"] == ["0/q1"]
    assert problems(found)["question whose answer is neither yes nor no"] == ["0/q2"]


def test_a_detectors_boxes(tmp_path: Path) -> None:
    found = read(tmp_path, "coco_masks", coco(annotation(1)), limit=1)
    good = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9], "score": 0.5}
    changes: list[dict[str, Any]] = [
        {}, {"bbox": [50, 30, 40, 40]}, {"bbox": [5, 5, 0, 9]}, {"bbox": [NAN, 5, 5, 9]}, {"bbox": [70, 5, 5, 9]},
        {"image_id": 2},
    ]  # fmt: skip
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{**good, **change} for change in changes]))
    boxes = read_boxes(str(path), found)
    assert {image: [d["bbox"] for d in some] for image, some in boxes.items()} == {1: [[5, 5, 9, 9], [50, 30, 10, 10]]}
    assert problems(found) == {
        "detector's box beyond its picture's border, clipped": ["detection 2"],
        "detector's box empty or outside its picture": ["detection 3", "detection 4", "detection 5"],
    }
    for change, words in (
        ({"score": NAN}, "detection 1 has score nan"), ({"score": None}, "detection 1 has score None"),
        ({"category_id": 9}, "detection 1 has category 9"), ({"image_id": 9}, "detection 1 is of picture 9"),
    ):  # fmt: skip
        path.write_text(json.dumps([{**good, **change}]))
        with pytest.raises(ValueError, match=words):
            read_boxes(str(path), found)
    path.write_text('["a"]')
    with pytest.raises(ValueError, match="holds no list of detections"):
        read_boxes(str(path), found)


def test_references_in_records_that_are_not_text_are_named(tmp_path: Path) -> None:
    box = {"box": [1, 1, 9, 9]}
    captions = (["a cup", " "], ["", None, 5], "a mug", [], None)
    path = own(tmp_path / "own.jsonl", *({**box, "captions": some} for some in captions), {**box, "label": 5})
    found = read_set("refcocog", data=path)
    items = items_of(found, "refcocog")
    assert [(item.id, item.references) for item in items] == [("0/0", ["a cup"]), ("0/2", ["a mug"])]
    assert problems(found) == {
        "empty reference": ["0/0"], "region without a reference": ["0/1", "0/3", "0/4", "0/5"],
    }  # fmt: skip
    found = read_set("coco_classification", data=path)
    assert problems(found) == {"region without a label": [f"0/{i}" for i in range(6)]}
