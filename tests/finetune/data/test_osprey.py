"""Osprey-724K's five files: names of pictures, regions in talk and outside it, descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.osprey import BRIEF, OspreySource
from finetune.records import Record


def read(folder: Path, kind: str, **entry: object) -> Record:
    write_picture(folder / "000000000009.jpg")
    content = {"file_name": "000000000009.jpg", "height": 40, "width": 60,
               "annotation": [{"segmentation": SQUARE}, {"segmentation": {"size": [40, 60], "counts": [100, 50, 2250]}}],
               **entry}  # fmt: skip
    path = write_json(folder / f"osprey_{kind}.json", [content])
    (sample,) = read_whole(OspreySource(annotations=path, images=str(folder), output=str(folder / "o.jsonl")), folder)
    return sample


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_a_conversation_shows_every_region_before_its_answers(tmp_path: Path) -> None:
    talk = turns("What is <region1>?", "A dog beside <region2>.", "Is it wet?", "No.")
    sample = read(tmp_path, "conversation", file_name="COCO_train2014_000000000009.jpg", conversations=talk)
    assert sample.image == "000000000009.jpg"
    first = talk_of(sample)[0]
    assert first.startswith("The picture has <region1>, <region2>.")  # region 2 would else be shown by the answer
    assert first.endswith("What is <region1>?")
    assert sample.regions[0].box == [10, 10, 30, 30]


def test_short_answers_and_parts(tmp_path: Path) -> None:
    talk = turns("<image>\nIs <region1> left of <region2>?", "Yes")
    sample = read(tmp_path, "short_form", conversations=talk)
    assert talk_of(sample) == [f"Is <region1> left of <region2>? {BRIEF}", "Yes"]


def test_positives_and_negatives_keep_the_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "val_9.jpg")
    talk = turns("Is <region1> a cat, and <region2>?", "No")
    sample = read(tmp_path, "lvis_positive_negative", file_name="val_9.jpg", conversations=talk)
    assert sample.image == "val_9.jpg"


def test_descriptions_become_answers(tmp_path: Path) -> None:
    sample = read(tmp_path, "detail_description", description=["<region1>: A brown dog: wet.", "<region2>: A wall."])
    assert talk_of(sample)[1::2] == ["A brown dog: wet.", "A wall."]


def test_unknown_file_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "other.json", [])
    with pytest.raises(ValueError, match="--kind"):
        list(OspreySource(annotations=path, images=str(tmp_path), output="o.jsonl").records())
