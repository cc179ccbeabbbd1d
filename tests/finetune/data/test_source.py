"""Turns that every reader makes, the pictures that it may name, and its records in a file, whole or not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("matplotlib")

from small_files import read_whole, write_picture

from finetune.data.__main__ import FORMATS, main
from finetune.data.boxes_csv import BoxesCsvSource
from finetune.data.coco import CocoSource
from finetune.data.entries import EntryError
from finetune.data.source import convert, inside, literal, talk, with_all_shown
from finetune.glyphs.records import GlyphScenesSource
from finetune.records import Record, Region, load_records, load_rows, open_image
from tap_tokenizer import only_writer


def test_answers_become_turns_that_show_every_region() -> None:
    source = CocoSource(output="o.jsonl", images=".", annotations="a.json", regions_per_record=2)
    asked = [(Region([0, 0, 9, 9], label=name), "What is <region>?", name) for name in ("dog", "cat", "cow")]
    first, second = source.records_of("a.jpg", (40, 60), asked, "x", None)
    turns = first.conversations
    assert [turn.content for turn in turns] == ["What is <region1>?", "dog", "What is <region2>?", "cat"]
    assert [turn.content for turn in second.conversations] == ["What is <region1>?", "cow"]
    assert [region.label for record in (first, second) for region in record.regions] == ["dog", "cat", "cow"]
    assert first.size == (40, 60)
    assert with_all_shown(turns, 2) == turns
    assert with_all_shown(turns, 3)[0].content == "The picture has <region1>, <region2>, <region3>.\nWhat is <region1>?"


def test_a_picture_lies_inside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    inner = write_picture(folder / "train" / "a.jpg")
    outer = write_picture(tmp_path / "mine" / "secret.jpg")
    write_picture(tmp_path / "pictures of mine" / "b.jpg")
    (folder / "link.jpg").symlink_to(outer)
    (folder / "own.jpg").symlink_to(inner)
    (folder / "mine").symlink_to(outer.parent)
    for name in ("train/a.jpg", "train//../train/./a.jpg", str(inner), "train\\a.jpg", "not yet there.jpg"):
        assert inside(folder, name).parent in (inner.parent, folder)
    assert inside(folder, "own.jpg") == folder / "own.jpg"
    for name in ("../mine/secret.jpg", "train/../../mine/secret.jpg", str(outer), "..\\mine\\secret.jpg", "..", "", ".",
                 "../pictures of mine/b.jpg", "link.jpg", "mine/secret.jpg", "mine/new.jpg", "a\0.jpg"):  # fmt: skip
        with pytest.raises(EntryError):
            inside(folder, name)
    for name in ("link.jpg", "mine/secret.jpg"):
        assert inside(folder, name, follow_links=True) == folder / name
    (tmp_path / "linked").symlink_to(folder)  # the folder itself may be a link
    assert inside(tmp_path / "linked", "train/a.jpg") == tmp_path / "linked" / "train" / "a.jpg"


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a\\b.png")
    assert inside(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"


@pytest.mark.parametrize("value", ["[[" * 5000, "__import__('os')", "[1", "{1: [2}", "a\0b", "{" * 150])
def test_python_text_that_is_not_a_list_is_a_bad_entry(value: str) -> None:
    with pytest.raises(EntryError):
        literal(value)
    assert literal("[1, {'a': 2}]") == [1, {"a": 2}]


@pytest.mark.parametrize("turn", [
    None, "hello", {}, {"from": "human"}, {"from": "robot", "value": "x"}, {"from": [], "value": "x"},
    {"from": "human", "value": 7}, {"from": "human", "value": " "},
])  # fmt: skip
def test_malformed_turns_are_bad_entries(turn: object) -> None:
    with pytest.raises(EntryError):
        talk([turn])


def arguments(output: Path, scenes: int = 5, **changes: object) -> GlyphScenesSource:
    return GlyphScenesSource(output=str(output), scenes=scenes, long_side=96, workers=1, **changes)  # type: ignore[arg-type]


def test_records_are_whole(tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "records.jsonl"
    convert(arguments(output))
    samples = load_records(output)
    assert len(samples) == 5
    for sample in samples:
        assert open_image(sample, tmp_path).shape == (sample.height, sample.width, 3)
        assert all(prompt.box is not None for prompt in sample.prompts())
        text = " ".join(turn.content for turn in sample.conversations)
        for number in range(1, len(sample.regions) + 1):
            assert f"<region{number}>" in text
    assert [path.name for path in output.parent.iterdir()] == ["records.jsonl"]


def test_a_stopped_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    convert(arguments(whole))
    import finetune.glyphs.records as script

    plain = script.glyph_record

    def stop(index: int, split: str, seed: int, **rest: object) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return plain(index, split, seed, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(script, "glyph_record", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(arguments(cut))
    assert not cut.exists()
    (partial,) = tmp_path.glob("cut.jsonl*.partial")
    with partial.open("a") as file:
        file.write('{"image": "torn')  # as a kill may leave it
    drawn: list[int] = []
    monkeypatch.setattr(
        script, "glyph_record", lambda index, *place, **rest: drawn.append(index) or plain(index, *place, **rest)
    )
    convert(arguments(cut))
    assert drawn == [3, 4]
    assert cut.read_bytes() == whole.read_bytes()


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.jsonl").write_text("mine\n")
    for flags, words in (
        (["--output", str(tmp_path / "there.jsonl")], "exists already"),
        (["--output", str(tmp_path / "new.jsonl"), "--families", "kind,smell"], "smell"),
        (["--output", str(tmp_path / "new.jsonl"), "--split", "exam"], "exam"),
    ):
        assert main(["convert", "glyph_scenes", *flags]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "there.jsonl").read_text() == "mine\n"
    assert main(["convert", "smells"]) == 2
    assert "boxes_csv" in capsys.readouterr().err
    assert main([]) == 2
    assert "convert" in capsys.readouterr().err


def boxes(folder: Path, output: str, pictures: int = 4, **knobs: bool) -> BoxesCsvSource:
    rows = [f"{i}.png,1,2,30,20,answer {i}" for i in range(pictures)]
    for i in range(pictures):
        write_picture(folder / "pictures" / f"{i}.png", 60 + i, 40)
    (folder / "mine.csv").write_text("image,x1,y1,x2,y2,answer\n" + "\n".join(rows) + "\n")
    common = {"boxes": str(folder / "mine.csv"), "images": str(folder / "pictures"), "output": str(folder / output)}
    return BoxesCsvSource(**common, **knobs)  # type: ignore[arg-type]


def test_parquet_holds_the_pictures(tmp_path: Path) -> None:
    assert convert(boxes(tmp_path, "mine.parquet")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "mine.parquet", "pictures"]
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    samples, streamed = load_records(tmp_path / "mine.parquet"), load_rows(tmp_path / "mine.parquet", streaming=True)
    for i, (sample, other) in enumerate(zip(samples, streamed)):
        assert open_image(sample, tmp_path).shape == (40, 60 + i, 3)
        assert Record.from_dict(other).conversations == sample.conversations
        assert sample.regions == [Region([1, 2, 30, 20])]
    assert main(["validate", "--data", str(tmp_path / "mine.parquet")]) == 0


def test_another_source_does_not_continue_a_partial_file(tmp_path: Path) -> None:
    source = boxes(tmp_path, "mine.jsonl", strict=True)
    read_whole(source, tmp_path)
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png"):
        convert(source)
    (partial,) = tmp_path.glob("mine.jsonl*.partial")
    assert len(partial.read_text().splitlines()) == 2
    source.question = "Where is <region>?"
    write_picture(tmp_path / "pictures" / "2.png")
    convert(source)
    assert all("Where" in sample.conversations[0].content for sample in load_records(tmp_path / "mine.jsonl"))


def test_a_value_too_long_for_a_file_name_is_not_taken_for_a_file(tmp_path: Path) -> None:
    source = boxes(tmp_path, "mine.jsonl")
    source.question = "Where, in this picture, is <region>?" + " Look closely." * 30
    assert convert(source) == 4


def test_help_of_convert_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    assert "boxes_csv, coco" in capsys.readouterr().err


def test_every_format_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        with pytest.raises(SystemExit) as end:
            main(["convert", name, "--help"])
        assert end.value.code == 0
        assert "--output" in capsys.readouterr().out


def test_a_conversion_without_records_leaves_no_file(tmp_path: Path) -> None:
    source = boxes(tmp_path, "mine.jsonl", pictures=0)
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="yields no records"):
        convert(source)
    assert not list(tmp_path.glob("mine.jsonl*"))


def test_files_that_hold_no_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text('{"image": "x"')
    (tmp_path / "other.jsonl").write_text('{"picture": "x", "words": [1, 2]}\n')
    for name, words in (("empty", "is empty"), ("torn", "validate --data"), ("other", "validate --data")):
        with pytest.raises(ValueError, match=words):
            load_records(tmp_path / f"{name}.jsonl")


def test_an_edited_table_is_converted_from_the_start(tmp_path: Path) -> None:
    source = boxes(tmp_path, "mine.jsonl", strict=True)
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png"):
        convert(source)
    table = tmp_path / "mine.csv"
    table.write_text(table.read_text().replace("answer 0", "a kettle"))
    write_picture(tmp_path / "pictures" / "3.png")
    convert(source)
    assert load_records(tmp_path / "mine.jsonl")[0].conversations[1].content == "a kettle"


def command(folder: Path, output: str, *flags: str) -> list[str]:
    return ["convert", "boxes_csv", "--boxes", str(folder / "mine.csv"), "--images", str(folder / "pictures"),
            "--output", str(folder / output), *flags]  # fmt: skip


def test_the_last_lines_say_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes(tmp_path, "mine.jsonl", pictures=9)
    for i in range(7):
        (tmp_path / "pictures" / f"{i}.png").unlink()
    with (tmp_path / "mine.csv").open("a") as file:
        file.write("8.png,1,2,1,20,flat\n")
    assert main(command(tmp_path, "mine.jsonl")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [["7", "×", "missing", "picture"], ["1", "×", "empty", "box"]]
    assert not any(line.strip().startswith("left_out") for line in lines)  # it is no argument
    assert lines[-4:-2] == [f"wrote {tmp_path / 'mine.jsonl'}: 2 records", "8 entries left out as faulty:"]
    assert sum(line.startswith("left out: ") for line in lines) == 6
    assert f"left out: {tmp_path / 'mine.csv'}, line 11: empty box: box [1, 2, 1, 20] is empty or inverted" in "".join(
        lines
    )
    assert main(command(tmp_path, "all.jsonl", "--show_all", "true")) == 0
    assert capsys.readouterr().out.count("left out: ") == 8


def test_strict_stops_and_the_command_without_it_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes(tmp_path, "mine.jsonl")
    (tmp_path / "pictures" / "1.png").unlink()
    assert main(command(tmp_path, "mine.jsonl", "--strict", "true")) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'mine.csv'}, line 3: found no file '1.png'" in said
    (partial,) = tmp_path.glob("mine.jsonl*.partial")
    assert len(partial.read_text().splitlines()) == 1
    assert main(command(tmp_path, "mine.jsonl")) == 0
    assert [path.name for path in tmp_path.glob("mine.jsonl*")] == ["mine.jsonl"]
    assert len(load_records(tmp_path / "mine.jsonl")) == 3


def test_entries_left_out_before_a_stop_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = boxes(tmp_path, "mine.jsonl", pictures=6)
    for i in (0, 3, 5):
        (tmp_path / "pictures" / f"{i}.png").unlink()
    records = BoxesCsvSource.records

    def stop(self: BoxesCsvSource) -> Iterator[object]:
        for number, sample in enumerate(records(self)):
            if number == 2:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(BoxesCsvSource, "records", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    monkeypatch.setattr(BoxesCsvSource, "records", records)
    for _ in range(2):
        assert convert(source) == 3
        assert source.left_out.faults == {"missing picture": 3}
        assert len(source.left_out.named) == 3
        (tmp_path / "mine.jsonl").unlink()


def test_if_everything_is_left_out_the_error_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes(tmp_path, "mine.jsonl")
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    for output in ("mine.jsonl", "mine.parquet"):
        assert main(command(tmp_path, output)) == 2
        said = capsys.readouterr().err
        assert "yields no records. 4 entries left out as faulty: 4 × missing picture" in said
        assert "line 2: found no file '0.png'" in said
        assert not list(tmp_path.glob("mine.jsonl*")) + list(tmp_path.glob("mine.parquet*"))


def test_a_parquet_file_leaves_out_missing_pictures(tmp_path: Path) -> None:
    source = boxes(tmp_path, "mine.parquet")
    open_ = BoxesCsvSource.size_on_disk
    source.size_on_disk = lambda name: open_(source, "0.png")  # type: ignore[method-assign]
    (tmp_path / "pictures" / "2.png").unlink()
    assert convert(source) == 3
    assert source.left_out.faults == {"missing picture": 1}
    assert "mine.parquet, record 3: found none at" in source.left_out.named[0]
    assert len(load_records(tmp_path / "mine.parquet")) == 3


KILLED = """
import os, sys
from pathlib import Path
import finetune.data.source as converting
from finetune.data.__main__ import main
written = converting.ParquetWriter.write
def write(self, example, *rest):
    written(self, example, *rest)
    self.write_examples_on_file()
    if example["width"] == 62:
        os.kill(os.getpid(), 9)
converting.ParquetWriter.write = write
main(sys.argv[1:])
"""


def test_a_kill_while_packing_pictures_leaves_no_temporary_folder(tmp_path: Path) -> None:
    boxes(tmp_path, "mine.parquet")
    flags = command(tmp_path, "mine.parquet")
    killed = subprocess.run([sys.executable, "-c", KILLED, *flags], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    left = {path.name for path in tmp_path.iterdir()} - {"mine.csv", "pictures", "mine.parquet.lock"}
    assert len(left) == 2
    assert all(name.startswith("mine.parquet.") and name.endswith(".partial") for name in left)
    assert main(flags) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "pictures", "mine.parquet"}
    assert len(load_records(tmp_path / "mine.parquet")) == 4


def test_two_conversions_do_not_share_an_output(tmp_path: Path) -> None:
    output = tmp_path / "records.jsonl"
    source = GlyphScenesSource(output=str(output), scenes=1, long_side=96, workers=1)
    with only_writer(output), pytest.raises(ValueError, match="Another process is writing"):
        convert(source)
    assert not list(tmp_path.iterdir())
    assert convert(source) == 1


def test_a_read_only_folder_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str = "r", **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    source = GlyphScenesSource(output=str(tmp_path / "records.jsonl"), scenes=1, long_side=96, workers=1)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        convert(source)
