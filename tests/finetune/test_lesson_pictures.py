"""What lessons are made of: which pictures are kept for evaluation, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from small_files import write_picture

from finetune.lesson_arguments import LessonArguments
from finetune.lesson_pictures import LessonPictures, checksums


def record(image: str, **more: Any) -> dict[str, Any]:
    row = {"image": image, "width": 60, "height": 40, "regions": [{"box": [1, 2, 30, 20]}], "conversations": []}
    return {**row, "source": None, "license": None, **more}


def write(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def pictures_of(folder: Path, records: Sequence[dict[str, Any]], **options: Any) -> LessonPictures:
    write(folder / "r.jsonl", *records)
    return LessonPictures(LessonArguments(data=str(folder / "r.jsonl"), **options))


def kept(pictures: LessonPictures) -> list[int]:
    return [row for row in range(len(pictures)) if pictures.is_held_out(row)]


def test_pictures_are_kept_and_not_records_of_them(tmp_path: Path) -> None:
    rows = [record(f"{number // 16}.jpg") for number in range(20 * 16)]
    assert kept(pictures_of(tmp_path, rows)) == list(range(19 * 16, 20 * 16))


def test_of_one_record_a_picture_every_so_many_are_kept(tmp_path: Path) -> None:
    rows = [record(f"{number}.jpg") for number in range(40)]
    assert kept(pictures_of(tmp_path, rows)) == [19, 39]
    assert kept(pictures_of(tmp_path, rows, held_out=0.34))[:3] == [2, 5, 8]


def test_one_picture_is_kept_at_least(tmp_path: Path) -> None:
    rows = [record(f"{number}.jpg") for number in range(19)]
    assert kept(pictures_of(tmp_path, rows)) == [18]
    with pytest.raises(ValueError, match="Got 1 picture, expected at least 2"):
        pictures_of(tmp_path, rows[:1] * 2)


def test_a_region_that_does_not_fit_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    rows = [record("a.jpg"), record("b.jpg", regions=[{"box": [1, 2, 300, 20]}])]
    with pytest.raises(ValueError, match=r"Record 1 of .*r\.jsonl: Region 0: box .* leaves .*data validate"):
        pictures_of(tmp_path, rows).check_regions()
    pictures_of(tmp_path, [rows[0], {**rows[1], "width": 0, "height": 0}]).check_regions()  # nobody can know yet


def test_only_labels_and_captions_that_are_told_say_something(tmp_path: Path) -> None:
    rows = [record("a.jpg"), record("b.jpg", regions=[{"box": [1, 2, 30, 20], "label": "dog"}])]
    assert pictures_of(tmp_path, rows).say_something()
    assert not pictures_of(tmp_path, rows, true_words=False).say_something()
    assert not pictures_of(tmp_path, [rows[0], record("b.jpg")]).say_something()


def test_what_lessons_are_made_of_is_known_again(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / "p" / name)
    (tmp_path / "own.yaml").write_text("mine: ['Is <region1> ripe?']\n")
    folder = LessonArguments(pictures=str(tmp_path / "p"), instructions=["shipped", str(tmp_path / "own.yaml")])
    write(tmp_path / "r.jsonl", record("a.jpg"))
    data = LessonArguments(data=str(tmp_path / "r.jsonl"))
    before, records = checksums(folder), checksums(data)
    assert checksums(folder) == before
    write_picture(tmp_path / "p" / "c.jpg")
    (tmp_path / "own.yaml").write_text("mine: ['Is <region1> raw?']\n")
    write(tmp_path / "r.jsonl", record("b.jpg"))
    assert {name for name, now in checksums(folder).items() if now != before[name]} == {
        str(tmp_path / "p"),
        str(tmp_path / "own.yaml"),
    }
    assert checksums(data)["shipped"] == records["shipped"]
    assert checksums(data)[str(tmp_path / "r.jsonl")] != records[str(tmp_path / "r.jsonl")]
    assert set(checksums(LessonArguments(data=str(tmp_path / "gone.jsonl")))) == {"shipped"}
