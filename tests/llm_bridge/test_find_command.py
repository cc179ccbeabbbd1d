"""`region-chat find`: what it prints of a picture, writes of a folder, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from shell import BOXES, DEMO, FLAGS, LARGER, Shell, folder_of_two

from llm_bridge import RegionChat
from llm_bridge.cli import main

said, refused = Shell("region-chat", main).said, Shell("region-chat", main).refused


@pytest.fixture(scope="module")
def chat() -> RegionChat:
    return RegionChat.from_pretrained("region-chat-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_two(tmp_path)


def test_find_prints_what_is_found(capsys: pytest.CaptureFixture[str], chat: RegionChat, tmp_path: Path) -> None:
    chat.reset()
    found = chat.find("the red umbrella", image=DEMO, boxes=BOXES, threshold=1)
    assert len(found) >= 1
    command = ["find", DEMO, "the red umbrella", *FLAGS]
    lines = said(capsys, *command, "--threshold", 1).splitlines()
    assert [line.partition(":")[0] for line in lines] == found.names
    assert lines[0].endswith(f"({float(found.probabilities[0]):.0%})")
    record = json.loads(said(capsys, *command, "--threshold", 1, "--json", "--save", tmp_path / "out.png"))
    assert record["phrase"] == "the red umbrella"
    assert record["max_new_tokens"] is None  # as many as names of regions take
    assert (record["candidates"], record["rounds"], record["answer"]) == (2, found.rounds, found.answer)
    assert [region["box"] for region in record["regions"]] == found.boxes.tolist()
    assert [region["mask"] for region in record["regions"]] == found.coco_rle()
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (512, 512)
    nothing = [*command, "--threshold", 0]
    assert said(capsys, *nothing) == "none\n"
    record = json.loads(said(capsys, *nothing, "--json", "--save", tmp_path / "none.png"))
    assert record["regions"] == []
    assert record["none_probability"] == round(found.none_probability, 4)
    with Image.open(tmp_path / "none.png") as drawn, Image.open(DEMO) as plain:
        assert drawn.tobytes() == plain.convert("RGB").tobytes()


def test_find_says_that_the_bundled_model_was_not_taught_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(DEMO), "the red umbrella", *map(str, FLAGS)]) == 0
    assert "Note: This model was not taught to find regions by words" in capsys.readouterr().err
    assert main(["ask", str(DEMO), LARGER, *map(str, FLAGS)]) == 0
    assert "not taught" not in capsys.readouterr().err


def test_find_in_a_folder(capsys: pytest.CaptureFixture[str], chat: RegionChat, folder: Path) -> None:
    table = folder / "phrases.csv"
    table.write_text('image,phrase\nb.png,the red umbrella\na.png,"the star, which is small"\nb.png,a zebra\n')
    command = ["find", folder / "pictures", "--phrases", table, "--boxes", folder / "boxes.csv", "--threshold", 1]
    assert said(capsys, *command, "--output", folder / "found.jsonl").endswith("found.jsonl: 2 pictures.\n")
    lines = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    assert [(line["image"], [one["phrase"] for one in line["found"]]) for line in lines] == [
        ("b.png", ["the red umbrella", "a zebra"]), ("a.png", ["the star, which is small"])
    ]  # fmt: skip
    chat.reset()
    found = chat.find("a zebra", image=DEMO, boxes=BOXES, threshold=1)
    entry = lines[0]["found"][1]
    assert [region["box"] for region in entry["regions"]] == found.boxes.tolist()
    assert [region["candidate"] for region in entry["regions"]] == found.rows
    assert [region["mask"] for region in entry["regions"]] == found.coco_rle()
    said(capsys, *command[:-1], 0, "--output", folder / "none.json")
    said(capsys, *command, "--output", folder / "found.json")
    coco = json.loads((folder / "found.json").read_text())
    phrases = {category["id"]: category["name"] for category in coco["categories"]}
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    told = [(names[a["image_id"]], phrases[a["category_id"]], a["bbox"][:2], a["score"]) for a in coco["annotations"]]
    assert told == [(line["image"], one["phrase"], region["box"][:2], region["probability"])
                    for line in lines for one in line["found"] for region in one["regions"]]  # fmt: skip
    assert all(a["area"] == sum(a["segmentation"]["counts"][1::2]) for a in coco["annotations"])
    nothing = json.loads((folder / "none.json").read_text())
    assert nothing["annotations"] == []
    assert [image["neg_category_ids"] for image in nothing["images"]] == [[1, 2], [3]]
    assert not list(folder.glob("*.lines*"))


def test_tables_of_phrases_that_are_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for words, text in (
        ("has columns image, text, expected image and phrase", "image,text\na.png,x\n"),
        ("line 2: there is no picture", "image,phrase\nc.png,x\n"),
        ("line 2: Got the phrase ' ', expected words", "image,phrase\na.png, \n"),
        ("line 3: 'x' is asked about a.png twice", "image,phrase\na.png,x\na.png,x\n"),
        ("line 2: expected a picture and a phrase", "image,phrase\na.png,x,y\n"),
        ("has no rows", "image,phrase\n"),
    ):
        (folder / "phrases.csv").write_text(text)
        told = refused(capsys, "find", folder / "pictures", "--phrases", folder / "phrases.csv", "--output",
                       folder / "f.json", "--model", "not-asked-for")  # fmt: skip
        assert words in told
