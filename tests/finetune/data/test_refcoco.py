"""References of RefCOCO and gRefCOCO beside COCO's instances: descriptions, and expressions to be found among candidates."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.entries import LeftOut
from finetune.data.grounding import CandidateFile, candidate_order
from finetune.data.refcoco import GRefCocoSource, RefCocoSource
from finetune.records import Record
from llm_bridge import find_question


def reference(ann: int, split: str, *sentences: str) -> dict[str, object]:
    return {"ref_id": ann, "ann_id": ann, "category_id": 1, "image_id": 581857, "split": split, "sent_ids": [0],
            "file_name": f"COCO_train2014_000000581857_{ann}.jpg",
            "sentences": [{"sent_id": 0, "sent": s, "raw": s, "tokens": s.split()} for s in sentences]}  # fmt: skip


@pytest.fixture
def common(tmp_path: Path) -> dict[str, str]:
    write_picture(tmp_path / "train2014" / "COCO_train2014_000000581857.jpg")
    references = [reference(1, "train", "dog on the left", "left dog"), reference(2, "train", "brown dog"),
                  reference(3, "val", "cat")]  # fmt: skip
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    write_json(tmp_path / "instances.json", {
        "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": i, "image_id": 581857, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": SQUARE}
                        for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "dog"}]})  # fmt: skip
    return {"references": str(tmp_path / "refs(unc).p"), "annotations": str(tmp_path / "instances.json"),
            "images": str(tmp_path / "train2014"), "output": str(tmp_path / "o.jsonl")}  # fmt: skip


def test_every_expression_comes_once(tmp_path: Path, common: dict[str, str]) -> None:
    one, two = read_whole(RefCocoSource(**common), tmp_path)
    assert talk_of(one)[1::2] == ["dog on the left", "brown dog"]
    assert talk_of(two)[1::2] == ["left dog"]
    assert one.image == "train2014/COCO_train2014_000000581857.jpg"
    assert one.regions[0].captions == ["dog on the left", "left dog"]
    assert len(read_whole(RefCocoSource(**common, sentences="first"), tmp_path)) == 1
    (val,) = read_whole(RefCocoSource(**common, split="val"), tmp_path)
    assert talk_of(val)[1::2] == ["cat"]


def test_bad_input_is_refused(tmp_path: Path, common: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"exam.*train"):
        list(RefCocoSource(**common, split="exam").records())

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("run",)

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(pickle.UnpicklingError):
        list(RefCocoSource(**common).records())


def test_unusable_references_are_named(tmp_path: Path, common: dict[str, str]) -> None:
    good = reference(1, "train", "dog on the left", " ")
    wrong: list[object] = [7, {**good, "ref_id": 2, "ann_id": 99}, {**good, "ref_id": 3, "sentences": None},
                           {**good, "ref_id": 4, "image_id": 5}, {**good, "ref_id": 5, "split": None},
                           {**good, "ref_id": 6, "sentences": [{"sent": 7}]}]  # fmt: skip
    source = RefCocoSource(**{**common, "references": write_json(tmp_path / "refs.json", [good, *wrong])})
    (sample,) = read_whole(source, tmp_path)
    assert talk_of(sample)[1::2] == ["dog on the left"]
    assert source.left_out.faults == {"no object": 1, "annotation not listed": 1, "no sentences": 1, "picture not listed": 1,
                                      "no split": 1, "no sent": 1, "wrong sent": 1, "no expression": 1}  # fmt: skip
    (tmp_path / "refs.p").write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(ValueError, match="holds a dict, expected a list of references"):
        list(RefCocoSource(**{**common, "references": str(tmp_path / "refs.p")}).records())


# --- grounding --------------------------------------------------------------------------------------------------------


BOXES = {1: [0, 0, 10, 10], 2: [20, 0, 10, 10], 3: [40, 0, 10, 10], 4: [0, 20, 10, 10], 5: [20, 20, 30, 15]}
"""COCO's boxes of five objects, of which 5 is a crowd."""


def square(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture
def crowded(tmp_path: Path, common: dict[str, str]) -> dict[str, str]:
    """The same pictures with five objects, and references of gRefCOCO's form."""
    instances = json.loads((tmp_path / "instances.json").read_text())
    instances["annotations"] = [
        {
            "id": i,
            "image_id": 581857,
            "category_id": 1,
            "bbox": box,
            "segmentation": square(*box),
            "iscrowd": int(i == 5),
        }
        for i, box in BOXES.items()
    ]
    write_json(tmp_path / "instances.json", instances)
    grefs = [{**reference(0, "train", *sentences), "ref_id": number, "ann_id": objects, "category_id": [1]}
             for number, (objects, sentences) in enumerate((([1, 3], ["both ends", "left and right"]), ([2], ["the middle"]),
                                                            ([-1], ["a zebra"]), ([5, 1], ["a crowd"])))]  # fmt: skip
    write_json(tmp_path / "grefs(unc).json", grefs)
    return common


def answers(record: Record) -> dict[str, list[list[float]]]:
    """The boxes that each question's answer names, by its expression."""
    found = {}
    for asked, answered in zip(record.conversations[::2], record.conversations[1::2], strict=True):
        phrase = asked.content.partition("Find ")[2].partition(". Answer")[0]
        assert asked.content == find_question(phrase, len(record.regions))
        numbers = [int(number) for number in re.findall(r"region(\d+)", answered.content)]
        assert numbers == sorted(numbers)
        assert numbers or answered.content == "none"
        found[phrase] = sorted(record.regions[number - 1].box or [] for number in numbers)
    return found


def xyxy(*numbers: int) -> list[list[float]]:
    return sorted([float(x), float(y), float(x + w), float(y + h)] for x, y, w, h in (BOXES[n] for n in numbers))


def test_expressions_are_found_among_the_annotated_objects(tmp_path: Path, crowded: dict[str, str]) -> None:
    (record,) = read_whole(RefCocoSource(**crowded, grounding="true"), tmp_path)
    assert answers(record) == {"dog on the left": xyxy(1), "left dog": xyxy(1), "brown dog": xyxy(2)}
    assert len(record.regions) == 4  # no crowd
    order = candidate_order(record.image, 4)
    assert order != [0, 1, 2, 3]
    assert [region.box for region in record.regions] == [xyxy(i + 1)[0] for i in order]
    assert all(region.mask for region in record.regions)
    short = read_whole(RefCocoSource(**crowded, grounding="true", expressions_per_record=2), tmp_path)
    assert [len(one.conversations) for one in short] == [4, 2]
    assert [one.regions for one in short] == [record.regions] * 2
    assert len(answers(read_whole(RefCocoSource(**crowded, grounding="true", sentences="first"), tmp_path)[0])) == 2


def test_expressions_of_several_objects_and_of_none(tmp_path: Path, crowded: dict[str, str]) -> None:
    source = GRefCocoSource(**{**crowded, "references": str(tmp_path / "grefs(unc).json")})
    (record,) = read_whole(source, tmp_path)
    both = xyxy(1, 3)
    assert answers(record) == {"both ends": both, "left and right": both, "the middle": xyxy(2), "a zebra": [],
                               "a crowd": xyxy(1)}  # fmt: skip
    assert [turn.type for turn in record.conversations[::2]] == ["several", "several", "one", "none", "one"]
    assert (record.source, source.left_out.faults) == ("gRefCOCO", {})
    assert source.left_out.doubtful["reference to a crowd and other objects: only these are meant"] == 1


def test_references_keep_the_reason_why_they_mean_nothing(tmp_path: Path, crowded: dict[str, str]) -> None:
    instances = json.loads((tmp_path / "instances.json").read_text())
    instances["annotations"][1]["bbox"] = [0, 0, 0, 9]
    write_json(tmp_path / "instances.json", instances)
    grefs = [{**reference(0, "train", "it"), "ref_id": number, "ann_id": objects}
             for number, objects in enumerate(([1], [5], [2], [77]))]  # fmt: skip
    source = GRefCocoSource(**{**crowded, "references": write_json(tmp_path / "grefs.json", grefs)})
    (record,) = read_whole(source, tmp_path)
    assert answers(record) == {"it": xyxy(1)}
    faults = {"crowd alone": 1, "object that cannot be used": 1, "annotation not listed": 1, "empty box": 1}
    assert source.left_out.faults == faults
    (named,) = [line for line in source.left_out.named if "grefs.json" in line and "annotation '2'" in line]
    assert named.endswith("of annotation '2', bbox is [0, 0, 0, 9], which has no area")


FORMS = ("lines of everything mode", "lines of a folder above", "results", "annotations", "annotations with images")


@pytest.mark.parametrize("form", FORMS)
def test_expressions_are_found_among_what_was_found(tmp_path: Path, crowded: dict[str, str], form: str) -> None:
    """The first object a little off, none that covers the second, and something that is no object."""
    found = {"first": [1, 0, 9, 10], "off": [26, 0, 10, 10], "third": BOXES[3], "sky": [20, 15, 40, 20]}
    rows: list[dict[str, Any]] = [{"image_id": "581857", "category_id": 1, "score": 0.9, "bbox": box,
                                   "segmentation": square(*box)} for box in found.values()]  # fmt: skip
    path = tmp_path / "found.json"
    if form == "results":
        write_json(path, rows)
    elif form == "annotations":
        write_json(path, {"annotations": [{k: v for k, v in row.items() if k != "segmentation"} for row in rows]})
    elif form == "annotations with images":  # whose ids are their own
        images = [{"id": 1, "file_name": "else.jpg"},
                  {"id": 2, "file_name": "coco/train2014/COCO_train2014_000000581857.jpg"}]  # fmt: skip
        write_json(path, {"images": images, "annotations": [{**row, "image_id": 2} for row in rows]})
    else:
        path = tmp_path / "found.jsonl"
        regions = [{"box": [x, y, x + w, y + h], "mask": None, "score": 1} for x, y, w, h in found.values()]
        name = "train2014/" * (form == FORMS[1]) + "COCO_train2014_000000581857.jpg"
        path.write_text(json.dumps({"image": name, "width": 60, "height": 40, "regions": regions}) + "\n")
    options = {**crowded, "candidates": str(path)}
    references = str(tmp_path / "grefs(unc).json")
    boxes = {name: [float(x), float(y), float(x + w), float(y + h)] for name, (x, y, w, h) in found.items()}
    source = GRefCocoSource(**{**options, "references": references}, grounding="found")
    (record,) = read_whole(source, tmp_path)
    both = sorted([boxes["first"], boxes["third"]])
    first = [boxes["first"]]
    assert answers(record) == {"both ends": both, "left and right": both, "a zebra": [], "a crowd": first}
    assert source.left_out.faults == {"no candidate covers its object": 1}
    assert any("no candidate covers what 'the middle' means" in line for line in source.left_out.named)
    (record,) = read_whole(GRefCocoSource(**{**options, "references": references}, grounding="both"), tmp_path)
    assert answers(record)["the middle"] == xyxy(2)
    assert sorted(region.box or [] for region in record.regions) == sorted(
        [*xyxy(1, 2, 3, 4), boxes["off"], boxes["sky"]]
    )


def test_pictures_that_a_file_of_candidates_lacks_are_counted(tmp_path: Path, crowded: dict[str, str]) -> None:
    instances = json.loads((tmp_path / "instances.json").read_text())
    other = {**instances["images"][0], "id": 7, "file_name": "other.jpg"}
    instances["images"].append(other)
    instances["annotations"].append({**instances["annotations"][0], "id": 70, "image_id": 7})
    write_json(tmp_path / "instances.json", instances)
    write_picture(tmp_path / "train2014" / "other.jpg")
    refs = [reference(1, "train", "left dog"), {**reference(70, "train", "a dog"), "image_id": 7}]
    options = {**crowded, "references": write_json(tmp_path / "refs.json", refs)}
    entry = {"bbox": [40, 20, 10, 10], "image_id": 7}
    for picture in (7, 581857):
        path = write_json(tmp_path / "found.json", [{**entry, "image_id": picture}])
        source = RefCocoSource(**options, grounding="both", candidates=path)
        assert sorted(len(record.regions) for record in source.records()) == ([2, 4] if picture == 7 else [1, 5])
        assert source.left_out.doubtful == {
            "picture without candidates in the file: its annotated objects alone are shown": 1,
        }
    path = write_json(tmp_path / "found.json", [{**entry, "image_id": 8}])
    for grounding in ("found", "both"):
        with pytest.raises(ValueError, match=r"found\.json has regions of none of these pictures, expected pictures"):
            list(RefCocoSource(**options, grounding=grounding, candidates=path).records())  # type: ignore[arg-type]


def test_candidates_belong_to_the_picture_whose_path_is_most_alike(tmp_path: Path) -> None:
    rows = [{"image": name, "regions": [{"box": [x, 0, x + 9, 9]}]}
            for x, name in enumerate(("a/1.jpg", "b/1.jpg", "c/2.jpg"))]  # fmt: skip
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with CandidateFile(path, LeftOut(strict=True)) as file:
        for names, x in ((["5", "pictures/b/1.jpg", "1.jpg"], 1), (["5", "2.jpg"], 2), (["a/1.jpg"], 0)):
            (region,) = file.regions(names, (40, 60))
            assert region.box == [x, 0, x + 9, 9]
        assert file.regions(["5", "3.jpg"], (40, 60)) == []
        with pytest.raises(ValueError, match=r"of a/1\.jpg and of b/1\.jpg, expected one of them to be 1\.jpg"):
            file.regions(["5", "1.jpg"], (40, 60))


def test_candidates_that_cannot_be_used_are_named(tmp_path: Path, crowded: dict[str, str]) -> None:
    rows: list[Any] = [7, {"image_id": 581857}, {"image_id": 581857, "bbox": [0, 0, 10, 10]},
                       {"image_id": 581857, "bbox": [99, 0, 10, 10]}]  # fmt: skip
    path = write_json(tmp_path / "found.json", rows)
    source = RefCocoSource(**crowded, grounding="found", candidates=path)
    (record,) = read_whole(source, tmp_path)
    assert answers(record) == {"dog on the left": xyxy(1), "left dog": xyxy(1)}
    assert source.left_out.faults == {
        "no object": 1,
        "no bbox": 1,
        "box outside": 1,
        "no candidate covers its object": 1,
    }


def test_options_of_grounding_that_do_not_go_together(tmp_path: Path, crowded: dict[str, str]) -> None:
    for options in ({"grounding": "found"}, {"grounding": "true", "candidates": crowded["annotations"]},
                    {"candidates": crowded["annotations"]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"give (candidates with|grounding) found or both"):
            list(RefCocoSource(**crowded, **options).records())  # type: ignore[arg-type]


def test_options_that_a_kind_of_records_does_not_read_are_refused(crowded: dict[str, str]) -> None:
    names = {one.name for one in fields(GRefCocoSource)}
    assert not names & {"question", "regions_per_record"}
    for options in ({"grounding": "true", "question": "What is <region>?"}, {"grounding": "true", "regions_per_record": 3},
                    {"expressions_per_record": 3}):  # fmt: skip
        with pytest.raises(ValueError, match=rf"Got {list(options)[-1]} with grounding (true|none), which asks"):
            list(RefCocoSource(**crowded, **options).records())  # type: ignore[arg-type]


def test_an_expression_that_names_a_region_is_left_out(tmp_path: Path, crowded: dict[str, str]) -> None:
    refs = [reference(1, "train", "Region 2 of the shelf", "left dog")]
    source = RefCocoSource(**{**crowded, "references": write_json(tmp_path / "refs.json", refs)}, grounding="true")
    (record,) = read_whole(source, tmp_path)
    assert list(answers(record)) == ["left dog"]
    assert source.left_out.faults == {"expression that cannot be asked": 1}
