"""Folders of pictures: tables are checked whole, records go on where they stopped, what cannot be read is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tap_tokenizer import read_region_table, write_records
from tap_tokenizer.picture_folders import PictureRegions, pictures_of

DEMO = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"


def test_an_interrupted_folder_continues(folder: Path) -> None:
    pictures = read_region_table(folder / "boxes.csv", folder / "pictures")
    output, asked = folder / "out.jsonl", []

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        asked.append(picture.image)
        assert pixels.shape in ((512, 512, 3), (256, 256, 3))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"answer": len(picture.regions)}

    with pytest.raises(KeyboardInterrupt):
        write_records(output, pictures, {"model": "m"}, record)
    assert not output.exists()
    partial = Path(f"{output}.partial")
    with open(partial, "a") as file:
        file.write('{"image": "sub/b.j')  # a line that was cut off
    with pytest.raises(ValueError, match="begun with other"):
        write_records(output, pictures, {"model": "another"}, record)
    with pytest.raises(ValueError, match="begun with other"):
        write_records(output, pictures[1:], {"model": "m"}, record)
    with pytest.raises(ValueError, match="begun with other"):
        write_records(output, pictures, {"model": "m"}, record, {"top_k": 3})
    before = pictures[0].regions
    pictures[0].regions = before[:1]
    with pytest.raises(ValueError, match="begun with other"):
        write_records(output, pictures, {"model": "m"}, record)
    pictures[0].regions = before
    write_records(output, pictures, {"model": "m"}, record)
    assert asked == ["a.png", "sub/b.jpg", "sub/b.jpg"]
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        {"image": "a.png", "model": "m", "answer": 2},
        {"image": "sub/b.jpg", "model": "m", "answer": 1},
    ]
    assert not partial.exists()


def test_a_picture_that_is_given_twice_is_refused(folder: Path) -> None:
    pictures = read_region_table(folder / "boxes.csv", folder / "pictures")
    with pytest.raises(ValueError, match=r"Got the picture a\.png twice, expected each once"):
        write_records(folder / "out.jsonl", [*pictures, pictures[0]], {}, lambda picture, pixels: {})
    assert not Path(f"{folder / 'out.jsonl'}.partial").exists()


TABLES = [
    ("picture,x1,y1,x2,y2\na.png,1,2,3,4\n", "expected image and"),
    ("image,x1,y1,x2\na.png,1,2,3\n", "expected image and"),
    ("image,x,y,caption\na.png,1,2,a\n", "has a column caption"),
    ("image,x1,y1,x2,y2\n", "has no rows"),
    ("image,x1,y1,x2,y2\na.png,1,2,3\n", "line 2: got 4 cells"),
    ("image,x1,y1,x2,y2\na.png,1,2,3,4,5\n", "line 2"),
    ("image,x1,y1,x2,y2\na.png,1,2,3,4\nb.png,1,2,3,4\n", "line 3: there is no picture"),
    ("image,x1,y1,x2,y2\na.png,1,2,x,4\n", "line 2: box is 1, 2, x, 4"),
    ("image,x1,y1,x2,y2\na.png,10,2,3,4\n", "line 2: box"),
    ("image,x1,y1,x2,y2\na.png,1,2,3,999\n", "leaves the picture of 512 × 512"),
    ("image,x,y\na.png,1,\n", "expected 2 numbers"),
    ("image,x,y\na.png,,\n", "no box and no point"),
    ("image,x,y\na.png,nan,3\n", "line 2: point is nan, 3, expected finite numbers"),
    (
        "image,x1,y1,x2,y2\na.png,0.1,0.2,0.5,0.6\n",
        "line 2: box .* thinner than a pixel.*multiply x by 512 and y by 512",
    ),
    ("image,x1,y1,x2,y2\na.png,100,200,900,960\n", "thousandths of the picture.*multiply x by 0.512 and y by 0.512"),
    ("image,x,y\na.png,0.4,0.7\n", "line 2: point .* lies in the one pixel in the corner"),
]


@pytest.mark.parametrize(("table", "message"), TABLES)
def test_wrong_tables_are_refused(folder: Path, table: str, message: str) -> None:
    (folder / "wrong.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        read_region_table(folder / "wrong.csv", folder / "pictures")


def test_tables_of_points_and_turned_pictures(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 40)).save(folder / "pictures" / "turned.jpg", exif=exif)
    (folder / "t.csv").write_text(
        "image,x1,y1,x2,y2,x,y\nturned.jpg,1,2,30,90,,\nturned.jpg,,,,,20,80\na.png,1,2,30,90,5,6\n"
    )
    turned, other = read_region_table(folder / "t.csv", folder / "pictures")
    assert [prompt.as_dict() for prompt in turned.prompts] == [
        {"box": (1, 2, 30, 90)},
        {"points": ((20, 80),), "point_labels": (1,)},
    ]
    assert [prompt.as_dict() for prompt in other.prompts] == [
        {"box": (1, 2, 30, 90), "points": ((5, 6),), "point_labels": (1,)}
    ]


def test_an_unreadable_picture_is_skipped_and_done_once_repaired(folder: Path) -> None:
    pictures = [*read_region_table(folder / "boxes.csv", folder / "pictures"), *pictures_of(folder / "pictures")[:1]]
    pictures[-1].image = "c.png"
    output, asked = folder / "out.jsonl", []

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        asked.append(picture.image)
        return {"width": pixels.shape[1]}

    whole = (folder / "pictures" / "sub" / "b.jpg").read_bytes()
    (folder / "pictures" / "sub" / "b.jpg").write_bytes(whole[:3000])
    for _ in range(2):
        unread = write_records(output, pictures, {}, record)
        assert list(unread) == ["sub/b.jpg"]
        assert "b.jpg cannot be decoded" in unread["sub/b.jpg"]
        assert not output.exists()
    assert asked == ["a.png", "c.png"]
    (folder / "pictures" / "sub" / "b.jpg").write_bytes(whole)
    assert write_records(output, pictures, {}, record) == {}
    assert asked == ["a.png", "c.png", "sub/b.jpg"]
    assert [json.loads(line) for line in output.read_text().splitlines()] == [
        {"image": "a.png", "width": 512}, {"image": "sub/b.jpg", "width": 256}, {"image": "c.png", "width": 512},
    ]  # fmt: skip


def test_removing_a_picture_keeps_the_lines_of_the_others(folder: Path) -> None:
    (folder / "pictures" / "b.gif").write_text("torn")
    (folder / "pictures" / "d.png").symlink_to(folder / "nowhere.png")
    pictures = pictures_of(folder / "pictures")
    unread = write_records(folder / "out.jsonl", pictures, {}, lambda picture, pixels: {})
    assert list(unread) == ["b.gif", "d.png"]
    pictures = [picture for picture in pictures if picture.image not in unread]
    assert write_records(folder / "out.jsonl", pictures, {}, lambda picture, pixels: {}) == {}
    assert len((folder / "out.jsonl").read_text().splitlines()) == 2


def test_a_file_of_another_kind_is_left_alone(folder: Path) -> None:
    partial = folder / "out.jsonl.partial"
    partial.write_text("notes of mine\nwithout an end")
    with pytest.raises(ValueError, match="begun with other"):
        write_records(folder / "out.jsonl", pictures_of(folder / "pictures"), {}, lambda picture, pixels: {})
    assert partial.read_text() == "notes of mine\nwithout an end"


def test_boxes_of_a_picture_without_a_size_are_checked_all_the_same(folder: Path) -> None:
    (folder / "pictures" / "a.png").write_text("torn")
    assert len(read_region_table(folder / "boxes.csv", folder / "pictures")) == 2
    (folder / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,30,1,20,5\n")
    with pytest.raises(ValueError, match=r"line 2: box .* whose size cannot be read"):
        read_region_table(folder / "boxes.csv", folder / "pictures")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_is_refused_as_a_table(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(ValueError, match=r"pipe\.csv is a pipe, expected a file"):
        read_region_table(folder / "pipe.csv", folder)
