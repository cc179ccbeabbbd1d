"""A table of boxes beside a folder of pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

from small_files import read_whole, talk_of, write_picture

from finetune.data.boxes_csv import BoxesCsvSource
from finetune.records import Region


def source(folder: Path, text: str, **knobs: Any) -> BoxesCsvSource:
    for name in ("a.jpg", "b b.jpg"):
        write_picture(folder / "pictures" / name)
    (folder / "mine.csv").write_text(text, encoding="utf-8-sig")
    return BoxesCsvSource(boxes=str(folder / "mine.csv"), images=str(folder / "pictures"),
                          output=str(folder / "o.jsonl"), **knobs)  # fmt: skip


def test_rows_of_a_picture_come_together(tmp_path: Path) -> None:
    text = 'image,x1,y1,x2,y2,answer\na.jpg,1,2,30,20,"a cup, red"\nb b.jpg,0,0,60,40,a wall\na.jpg,5,5,9,9,a lid\n'
    first, second = read_whole(source(tmp_path, text), tmp_path)
    assert talk_of(first) == ["What is <region1>?", "a cup, red", "What is <region2>?", "a lid"]
    assert (first.image, first.width, first.height) == ("pictures/a.jpg", 60, 40)
    assert second.regions == [Region([0, 0, 60, 40])]
    assert first.source == "mine.csv"


def test_a_table_may_have_its_own_questions(tmp_path: Path) -> None:
    text = "image,x1,y1,x2,y2,question,answer\na.jpg,1,2,30,20,Is <region> full?,yes\na.jpg,1,2,9,9,Colour?,red\n"
    (sample,) = read_whole(source(tmp_path, text), tmp_path)
    assert talk_of(sample)[::2] == ["Is <region1> full?", "<region2>: Colour?"]


@pytest.mark.parametrize(("text", "words"), [
    ("image,left,top,x2,y2,answer\n", "expected image, x1"),
    ("image,x1,y1,x2,y2,answer\na.jpg,1,2,thirty,20,x\n", "line 2"),
    ("image,x1,y1,x2,y2,answer\na.jpg,1,2,9,9,x,y\n", "line 2: more cells than columns"),
    ("image,x1,y1,x2,y2,answer\n,1,2,9,9,x\n", "line 2: no image"),
    ("image;x1;y1;x2;y2;answer\n", "separated by commas"),
    ("image,x1,y1,x2,y2,answer\na.jpg,1,2,nan,9,x\n", "line 2: the box is"),
    ('image,x1,y1,x2,y2,answer\na.jpg,1,2,9,9,"x\n', "is not a valid CSV file"),
    (" Image,X1,y1,x2,y2,answer\nnone.jpg,1,2,30,20,x\n", "line 2: found no file 'none.jpg'"),
])  # fmt: skip
def test_bad_tables_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(source(tmp_path, text, strict=True).records())


def test_bad_rows_are_left_out_by_their_lines(tmp_path: Path) -> None:
    rows = [
        "a.jpg,1,2,30,20,a cup", "a.jpg,1,2,thirty,20,x", ",1,2,9,9,x", "a.jpg,1,2,9,9,x,y", "a.jpg,1,2,9",
        "none.jpg,1,2,9,9,x", "none.jpg,1,2,9,9,y", "../mine.csv,1,2,9,9,x", "a.jpg,1,2,9,9, ", "a.jpg,9,2,1,9,x",
        "a.jpg,70,2,90,9,x", "a.jpg,.1,.2,.3,.9,x", "text.jpg,1,2,9,9,x", "a.jpg,1,2,1e999,9,x", "a.jpg,1,2,9,9,<region3>",
        "b b.jpg,0,0,60,40,a wall",
    ]  # fmt: skip
    made = source(tmp_path, "image,x1,y1,x2,y2,answer\n" + "\n".join(rows) + "\n")
    (tmp_path / "pictures" / "text.jpg").write_text("no picture")
    first, second = read_whole(made, tmp_path)
    assert (talk_of(first)[1::2], talk_of(second)[1::2]) == (["a cup"], ["a wall"])
    named = "\n".join(made.left_out.named)
    assert all(f"mine.csv, line {line}: " in named for line in range(3, 17))
    assert sum(made.left_out.faults.values()) == 14


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    made = source(tmp_path, "")
    (tmp_path / "mine.csv").write_bytes("image,x1,y1,x2,y2,answer\na.jpg,1,2,9,9,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        list(made.records())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_is_refused_as_a_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "boxes.csv")
    with pytest.raises(ValueError, match=r"boxes\.csv is a pipe, expected a file"):
        list(BoxesCsvSource(boxes=str(tmp_path / "boxes.csv"), images=str(tmp_path), output="x.jsonl").records())
