"""region-chat in the shell: ask of pictures and folders, a conversation line by line, and exit codes."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_bridge import RegionChat
from llm_bridge.__main__ import main

FOLDER = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny"
DEMO = FOLDER / "demo.png"
QUESTIONS = json.loads((FOLDER / "demo.json").read_text())["questions"]
LARGER, BOXES = QUESTIONS[2]["text"], QUESTIONS[2]["boxes"]
FLAGS = ["--box", *BOXES[0], "--box", *BOXES[1]]


@pytest.fixture(scope="module")
def chat() -> RegionChat:
    return RegionChat.from_pretrained("region-chat-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copyfile(DEMO, tmp_path / "pictures" / name)
    rows = [f"{name},{','.join(str(x) for x in box)}" for name in ("a.png", "b.png") for box in BOXES]
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2\n" + "\n".join(rows) + "\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err.startswith("region-chat ")
    assert len(got.err.splitlines()) == 1
    return got.err


def test_ask_answers(capsys: pytest.CaptureFixture[str], chat: RegionChat, tmp_path: Path) -> None:
    chat.reset()
    answer = chat.ask(LARGER, image=DEMO, boxes=BOXES)
    assert said(capsys, "ask", DEMO, LARGER, *FLAGS) == f"{answer}\n"
    record = json.loads(said(capsys, "ask", DEMO, LARGER, *FLAGS, "--json", "--save", tmp_path / "out.png"))
    assert record["answer"] == answer
    assert record["question"] == LARGER
    assert [region["name"] for region in record["regions"]] == ["region1", "region2"]
    assert [region["box"] for region in record["regions"]] == BOXES
    assert [region["caption"] for region in record["regions"]] == [own.caption for own in chat.baseline()]
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (512, 512)


def test_points_and_masks_in_their_order(capsys: pytest.CaptureFixture[str], chat: RegionChat, tmp_path: Path) -> None:
    mask = Image.new("1", (512, 512))
    mask.paste(1, (190, 400, 260, 460))
    mask.save(tmp_path / "mask.png")
    flags = ["--point", 398, 240, "--mask", tmp_path / "mask.png"]
    chat.reset()
    answer = chat.ask(LARGER, image=DEMO, points=[[[398, 240]], None], masks=[None, mask])
    assert said(capsys, "ask", DEMO, LARGER, *flags) == f"{answer}\n"


def test_ask_of_a_folder(capsys: pytest.CaptureFixture[str], chat: RegionChat, folder: Path) -> None:
    flags = ["--boxes", folder / "boxes.csv", "--output"]
    said(capsys, "ask", folder / "pictures", LARGER, *flags, folder / "both.jsonl")
    lines = [json.loads(line) for line in (folder / "both.jsonl").read_text().splitlines()]
    chat.reset()
    assert [line["image"] for line in lines] == ["a.png", "b.png"]
    assert [entry["answer"] for entry in lines[1]["answers"]] == [chat.ask(LARGER, image=DEMO, boxes=BOXES)]
    assert [region["box"] for region in lines[1]["answers"][0]["regions"]] == BOXES
    said(capsys, "ask", folder / "pictures", "What is <region>?", *flags, folder / "each.jsonl")
    line = json.loads((folder / "each.jsonl").read_text().splitlines()[0])
    for entry, box in zip(line["answers"], BOXES):
        chat.reset()
        assert entry["answer"] == chat.ask("What is <region>?", image=DEMO, boxes=[box])
    three = "<region>, <region> or <region>?"
    assert "3 <region> and a.png has 2" in refused(
        capsys, "ask", folder / "pictures", three, *flags, folder / "x.jsonl"
    )


def test_a_conversation_line_by_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, chat: RegionChat, tmp_path: Path
) -> None:
    box = " ".join(str(x) for x in BOXES[1])
    lines = [
        "What is <region>?", "/box 1 2", "/save nothing.txt", f"/box {box}", "Is region1 larger than <region>?",
        "What is <region>?", "/json talk.json", "/save talk.png", "/new", f"/box {box}", "What is <region>?", "/quit", "never",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    out = said(capsys, "chat", DEMO, "--box", *BOXES[0])
    chat.reset()
    first = chat.ask("What is <region>?", image=DEMO, boxes=BOXES[:1])
    second = chat.ask("Is region1 larger than <region>?", boxes=BOXES[1:])
    talk = [{"role": role, "content": words} for role, words in chat.history]
    chat.reset()
    third = chat.ask("What is <region>?", image=DEMO, boxes=BOXES[1:])
    answers = out.splitlines()[3:]
    assert answers[0] == first
    assert "expected 4 numbers" in answers[1]
    assert "what kind of picture" in answers[2]
    assert answers[3] == second
    assert "Found 1 <region> placeholders but 0 regions" in answers[4]
    assert answers[5:] == ["Wrote talk.json.", "Wrote talk.png.", third]
    assert json.loads((tmp_path / "talk.json").read_text()) == {"messages": talk}
    assert (tmp_path / "talk.png").is_file()


def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pictures, table, output = folder / "pictures", folder / "boxes.csv", folder / "o.jsonl"
    for message, arguments in (
        ("no image file", ["ask", folder / "none.png", "what"]),
        ("<region> placeholders but 2 regions", ["ask", DEMO, "What is <region>?", *FLAGS]),
        ("--save draws regions", ["ask", DEMO, "what", "--save", folder / "out.png"]),
        ("for a folder", ["ask", DEMO, "what", "--boxes", table]),
        ("needs its regions", ["ask", pictures, "what", "--output", output]),
        ("are for one picture", ["ask", pictures, "what", "--boxes", table, "--output", output, "--json"]),
        ("--max_new_tokens is 0", ["ask", DEMO, "what", "--max_new_tokens", 0]),
        ("no folder at", ["ask", DEMO, "what", "--model", folder / "none"]),
        ("needs a region tokenizer", ["ask", DEMO, "what", "--mode", "described", "--model", "some/model"]),
        ("No such file", ["chat", DEMO, "--mask", folder / "none.png"]),
        ("queue is 0", ["app", "--queue", 0]),
        ("no folder", ["demo", "--output", folder / "none" / "x.png"]),
    ):
        assert message in refused(capsys, *arguments), arguments
    assert not output.exists()
