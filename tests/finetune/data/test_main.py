"""Records as a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")

from PIL import Image
from small_files import SQUARE, write_json, write_picture

from finetune.data.__main__ import TILE, contact_sheet, lines_of, main
from finetune.records import Record, Region, Turn

TALK = [{"role": "user", "content": "What is <region1>?"}, {"role": "assistant", "content": "a dog"}]


def record(*regions: Region) -> Record:
    return Record("a.jpg", 300, 200, list(regions), list(map(Turn.from_dict, TALK)))


def test_every_kind_of_region_is_drawn(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 300, 200)
    plain = np.asarray(contact_sheet([record()], tmp_path), dtype=int)
    assert plain.shape[1] == TILE
    prompts = (
        Region([20, 20, 90, 90]),
        Region(points=[[50, 50], [150, 150]], point_labels=[1, 0]),
        Region(mask=SQUARE),
    )
    for prompt in prompts:
        sheet = np.asarray(contact_sheet([record(prompt)], tmp_path), dtype=int)
        assert np.abs(sheet - plain).max() > 60
    four = contact_sheet([record(prompts[0])] * 4, tmp_path, columns=3)
    assert four.width == 3 * TILE
    assert four.height == 2 * len(plain)


def test_what_a_teacher_was_told_is_shown_below_the_question(tmp_path: Path) -> None:
    question, answer = map(Turn.from_dict, TALK)
    told = replace(question, told="region1 is a dog.\nWhat is region1?")
    shown = replace(record(), conversations=[told, answer])
    assert lines_of(shown) == ["Q: What is <region1>?", "told: region1 is a dog. What is region1?", "A: a dog"]
    assert lines_of(record()) == ["Q: What is <region1>?", "A: a dog"]
    write_picture(tmp_path / "a.jpg", 300, 200)
    assert contact_sheet([shown], tmp_path).height > contact_sheet([record()], tmp_path).height


def test_a_picture_of_another_size_is_not_drawn_on(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 300, 200)
    with pytest.raises(ValueError, match=r"The record of a\.jpg says .* 600 × 400 pixels, but it has 300 × 200"):
        contact_sheet([replace(record(Region([20, 20, 90, 90])), width=600, height=400)], tmp_path)


def test_show_writes_a_sheet_and_refuses_a_start_behind_the_end(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    record = {"image": "a.jpg", "width": 60, "height": 40, "regions": [{"box": [1, 2, 30, 20]}], "conversations": TALK}
    write_json(tmp_path / "r.jsonl", {**record, "source": None, "license": None})
    assert main(["show", "--data", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "new" / "sheet.png")]) == 0
    assert Image.open(tmp_path / "new" / "sheet.png").width == TILE
    assert main(["show", "--data", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "x.png"), "--start", "5"]) == 2
    assert not (tmp_path / "x.png").exists()


def test_broken_records_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "[]",
        '{"image": "a.jpg"}',
        '{"image": "a.jpg", "width": 6, "height": 4, "regions": null, "conversations": null}',
    ):
        (tmp_path / "r.jsonl").write_text(line + "\n")
        assert main(["show", "--data", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "x.png")]) == 2
        assert "record 1: " in capsys.readouterr().err
    assert main(["show", "--data", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "x.gif")]) == 2
