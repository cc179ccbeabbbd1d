"""Every fault that a record can have is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

pytest.importorskip("datasets")

from small_files import SQUARE, write_picture

from finetune.data.__main__ import main
from finetune.data.boxes_csv import BoxesCsvSource
from finetune.data.validation import problems_of
from finetune.records import load_records


def good(**changes: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": "What is <region1>?"}, {"role": "assistant", "content": "a dog"}]
    return {
        "image": "a.jpg",
        "width": 60,
        "height": 40,
        "regions": [{"box": [1, 2, 30, 20]}],
        "conversations": talk,
        **changes,
    }


def region(**keys: Any) -> dict[str, Any]:
    return good(regions=[keys])


def talk(*contents: str, start: int = 0) -> dict[str, Any]:
    roles = ("user", "assistant")
    return good(conversations=[{"role": roles[(start + i) % 2], "content": text} for i, text in enumerate(contents)])


EMPTY = {"size": [40, 60], "counts": [2400]}

FAULTS = {
    "unknown key": [good(colour=1), region(box=[1, 2, 3, 4], lable="dog")],
    "missing key": [{"image": "a.jpg"}],
    "wrong type": [good(width="60"), good(regions=["box"]), good(width=-3), good(image=7), good(image={"bytes": "a"}),
        good(image={"bytes": None})],
    "missing picture": [good(image="none.jpg"), good(image="a\0b"), good(image="x" * 5000), good(image={"path": "none"})],
    "unreadable picture": [good(image="text.jpg")],
    "wrong size": [good(width=61), good(width=10**9, height=10**9)],
    "no prompt": [region(label="dog")],
    "wrong box": [region(box=[1, 2, 3]), region(box=[1, 2, float("nan"), 4]), region(box="1 2 3 4"),
        region(box=[1, 2, 10**400, 4]), region(box={"x": 1}), region(box=[[1, 2, 3, 4]])],
    "empty box": [region(box=[30, 2, 1, 20])],
    "box outside": [region(box=[1, 2, 70, 20]), region(box=[1, 2, 61.5, 20])],
    "thin box": [region(box=[0.1, 0.2, 0.5, 0.9]), region(box=[0, 0, 1, 1]), region(box=[5, 5, 5.5, 30]),
        region(box=[1, 2, 1.9, 20])],
    "point in the corner": [region(points=[[0.4, 0.6]])],
    "wrong points": [region(points=[]), region(points=[[1, 2, 3]])],
    "point outside": [region(points=[[70, 3]])],
    "wrong point labels": [region(points=[[7, 3]], point_labels=[1, 1]), region(points=[[7, 3]], point_labels=[2]),
        region(points=[[7, 3]], point_labels=1), region(points=[[7, 3]], point_labels=[[1]])],
    "wrong mask size": [region(mask={"size": [60, 40], "counts": [2400]})],
    "wrong mask": [region(mask=[[1, 2]]), region(mask={"size": [40, 60], "counts": "x"}),
        region(mask={"size": [40, 60]}), region(mask={"size": [40, 60], "counts": [100, 9999]}), region(mask=7),
        region(mask={"size": None, "counts": [2400]}), region(mask={"size": 5, "counts": [2400]}),
        region(mask={"size": [40, 60], "counts": [687052810, 1349997713, 974276318, 1601232375]}),
        region(mask={"size": [40, 60], "counts": [-5, 2405]}), region(mask="a.jpg"), region(mask={"size": [40, 60]}),
        region(mask={"size": [40, 60], "counts": "P^o7"}), region(mask=[[1e300, 2, 3, 4, 5, 6]])],
    "empty mask": [region(mask=EMPTY), region(mask=[[100, 100, 120, 100, 120, 120]])],
    "wrong turn": [talk("a dog", "What is <region1>?", start=1), good(conversations=["hello"])],
    "empty text": [talk("What is <region1>?", " ")],
    "unnumbered region": [talk("What is <region>, <region1>?", "a dog")],
    "unseen region": [talk("What is there?", "<region1>")],
    "regions do not match": [talk("What is <region2>?", "a dog"), talk("What is <region0>?", "a dog"),
        talk(f"What is <region{'1' * 5000}>?", "a dog"), talk("Hello?", "yes"), good(regions=[])],
    "broken line": ["the line is not JSON"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "a.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named(folder: Path, kind: str) -> None:
    for sample in FAULTS[kind]:
        assert kind in [found for found, _ in problems_of(sample, folder)], sample


def test_valid_records_pass(folder: Path) -> None:
    for sample in (good(), region(points=[[1, 2]]), region(mask=SQUARE), good(regions=[], conversations=[])):
        assert problems_of(sample, folder, "decode") == []


def test_a_conversation_in_words_needs_no_picture(folder: Path) -> None:
    said = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good morning."}]
    in_words = {"image": None, "regions": [], "conversations": said}
    assert problems_of(in_words, folder) == []
    assert problems_of({**in_words, "width": 0, "height": 0}, folder) == []
    shown = [{"role": "user", "content": "What is <region1>?"}, said[1]]
    assert [kind for kind, _ in problems_of({**in_words, "conversations": shown}, folder)] == ["regions do not match"]
    assert [kind for kind, _ in problems_of(good(image=None), folder)] == ["missing key"]
    assert [kind for kind, _ in problems_of({**in_words, "conversations": []}, folder)] == ["empty text"]
    pictured = [{"role": "user", "content": "<image>Hello."}, said[1]]
    assert [kind for kind, _ in problems_of({**in_words, "conversations": pictured}, folder)] == ["missing picture"]


def test_sizes_are_those_of_upright_pictures(folder: Path) -> None:
    """A camera held upright writes a lying picture and says so in its EXIF."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=turned)
    upright = {"width": 40, "height": 60, "regions": [{"box": [1, 2, 30, 55]}]}
    assert not problems_of(good(image="turned.jpg", **upright), folder)
    assert [kind for kind, _ in problems_of(good(image="turned.jpg"), folder)] == ["wrong size"]
    (folder / "mine.csv").write_text("image,x1,y1,x2,y2,answer\nturned.jpg,1,2,30,55,a cup\n")
    source = BoxesCsvSource(boxes=str(folder / "mine.csv"), images=str(folder), output=str(folder / "o.jsonl"))
    (sample,) = source.records()
    assert not problems_of(sample.to_dict(), folder)


def test_truncated_pictures_are_found_when_decoded(folder: Path) -> None:
    data = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(data[: len(data) // 2])
    assert [kind for kind, _ in problems_of(good(), folder, "decode")] == ["unreadable picture"]


def test_other_encodings_are_broken_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "r.jsonl").write_bytes(json.dumps(good(source="caf\xe9"), ensure_ascii=False).encode("latin-1") + b"\n")
    assert main(["validate", "--data", str(folder / "r.jsonl")]) == 1
    assert "record 1: broken line: the line is not UTF-8" in capsys.readouterr().out


def test_run_lengths_that_overflow_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(folder / "b.jpg", 64, 48)
    counts = [687052810, 1349997713, 974276318, 1601231992]
    sample = good(image="b.jpg", width=64, height=48, regions=[{"mask": {"size": [48, 64], "counts": counts}}])
    (folder / "r.jsonl").write_text(json.dumps(sample) + "\n")
    assert main(["validate", "--data", str(folder / "r.jsonl")]) == 1
    assert "has counts from 687052810 to 1601231992, expected 0 to 3072" in capsys.readouterr().out


def test_validate_names_problems_and_keeps_the_other_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(good()), "{torn", json.dumps(good(image="none.jpg")), json.dumps(good(source="mine"))]
    (folder / "r.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["validate", "--data", str(folder / "r.jsonl"), "--keep", str(folder / "kept.jsonl")]) == 1
    said = capsys.readouterr().out
    assert "record 2: broken line" in said
    assert "record 3: missing picture" in said
    assert "2 of 4 records are whole: 2 regions, 2 questions, 0 unanswered" in said
    assert main(["validate", "--data", str(folder / "kept.jsonl")]) == 0
    assert main(["validate", "--data", str(folder / "none.jsonl")]) == 2
    assert main(["validate", "--data", str(folder / "r.jsonl"), "--keep", str(folder / "kept.jsonl")]) == 2


def test_every_reader_accepts_a_byte_order_mark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps(good()).encode()
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\n" + line + b"\n")
    assert main(["validate", "--data", str(folder / "bom.jsonl"), "--keep", str(folder / "kept.jsonl")]) == 0
    assert "2 of 2 records are whole" in capsys.readouterr().out
    assert main(["show", "--data", str(folder / "bom.jsonl"), "--output", str(folder / "bom.png")]) == 0
    assert len(load_records(folder / "bom.jsonl")) == len(load_records(folder / "kept.jsonl")) == 2


def test_lines_that_break_the_parser_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = json.dumps(good(source="DEEP")).replace('"DEEP"', "[" * 10_000 + "]" * 10_000)
    lines = [json.dumps(good()), deep, json.dumps(good()) + " x", json.dumps(region(box=[float("nan")] * 4))]
    (folder / "r.jsonl").write_text("\n".join([*lines, json.dumps(good())]))
    assert main(["validate", "--data", str(folder / "r.jsonl")]) == 1
    said = capsys.readouterr().out
    assert "record 2: broken line: the line is nested more than 100 deep" in said
    assert "record 3: broken line: the line is not JSON: there is more text after its end" in said
    assert "record 4: wrong box" in said
    assert "2 of 5 records are whole" in said
