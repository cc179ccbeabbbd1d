"""RefCOCO's pickle of references beside COCO's instances."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.refcoco import RefCocoSource


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
