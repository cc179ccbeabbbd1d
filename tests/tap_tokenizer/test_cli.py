"""tap-tokenizer in the shell: words, JSON, pictures, folders that go on after an interruption, and exit codes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from shell import DEMO, Shell

from tap_tokenizer import RegionTokens, TapRegionTokenizer
from tap_tokenizer.cli import main

BOX = [361, 233, 436, 307]
said, refused = Shell("tap-tokenizer", main).said, Shell("tap-tokenizer", main).refused
LENIENT = ["--points_per_crop", "4", "--pred_iou_thresh", "0.5", "--stability_score_thresh", "0.6"]


# --- one picture ------------------------------------------------------------------------------------------------------


def test_describe_says_what_the_library_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mask = np.zeros((512, 512), dtype=bool)
    mask[400:460, 190:260] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = ["--point", 230, 430, "--box", *BOX, "--mask", tmp_path / "mask.png"]
    record = json.loads(said(capsys, "describe", DEMO, *flags, "--json", "--masks"))
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    regions = tokenizer.encode(
        DEMO,
        points=[[[230, 430]], None, None],
        point_labels=[[1], None, None],
        boxes=[None, BOX, None],
        masks=[None, None, mask],
    )
    assert [row["caption"] for row in record["regions"]] == tokenizer.caption(regions)
    assert [row["mask"] for row in record["regions"]] == regions.coco_rle()
    assert record["regions"][1]["box"] == BOX
    assert [c["name"] for c in record["regions"][0]["concepts"]] == [
        name for name, _ in tokenizer.classify(regions, 3)[0]
    ]
    assert (record["width"], record["height"], record["region_tokenizer"]) == (512, 512, tokenizer.fingerprint)
    words = said(capsys, "describe", DEMO, *flags)
    assert re.findall(r"^\d\. (.*?) \(", words, re.MULTILINE) == tokenizer.caption(regions)


def test_a_quality_that_is_shown_lies_within_0_and_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegionTokens, "scores", property(lambda regions: torch.full((len(regions),), 1.04)))
    assert "mask quality 1.00" in said(capsys, "describe", DEMO, "--box", *BOX)
    assert json.loads(said(capsys, "describe", DEMO, "--box", *BOX, "--json"))["regions"][0]["score"] == 1.0


def test_describe_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said(capsys, "describe", DEMO, "--box", *BOX, "--save", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as drawn, Image.open(DEMO) as plain:
        assert drawn.size == plain.size
        changed = np.abs(np.asarray(drawn, float) - np.asarray(plain.convert("RGB"), float)).sum(axis=2) > 0
    assert changed[233:307, 361:436].mean() > 0.3
    assert not changed[400:, :150].any()
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_everything_finds_regions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "all.png"
    record = json.loads(said(capsys, "everything", DEMO, *LENIENT, "--json", "--masks", "--save", output))
    found = TapRegionTokenizer.from_pretrained("tap-tiny").encode_everything(
        DEMO, points_per_crop=4, pred_iou_thresh=0.5, stability_score_thresh=0.6
    )
    assert len(record["regions"]) == len(found) > 1
    assert [row["mask"] for row in record["regions"]] == found.coco_rle()
    assert output.is_file()


def test_everything_says_when_nothing_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["everything", str(DEMO), "--points_per_crop", "2", "--pred_iou_thresh", "1", "--json"]) == 0
    got = capsys.readouterr()
    assert json.loads(got.out)["regions"] == []
    assert "lower --pred_iou_thresh" in got.err


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_and_its_table(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    output = folder / "out.jsonl"
    words = said(capsys, "describe", folder / "pictures", "--boxes", folder / "boxes.csv", "--output", output)
    assert "2 pictures" in words
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "sub/b.jpg"]
    assert [[region["id"] for region in line["regions"]] for line in lines] == [["7", "9"], ["8"]]
    alone = json.loads(said(capsys, "describe", DEMO, "--box", *BOX, "--json"))
    assert {k: v for k, v in lines[0]["regions"][0].items() if k != "id"} == alone["regions"][0]
    assert not Path(f"{output}.partial").exists()
    assert "exists" in refused(
        capsys, "describe", folder / "pictures", "--boxes", folder / "boxes.csv", "--output", output
    )


def test_everything_of_a_folder(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    said(capsys, "everything", folder / "pictures", *LENIENT, "--output", folder / "all.jsonl")
    lines = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "sub/b.jpg"]
    assert all(line["search"]["points_per_crop"] == 4 and line["regions"] for line in lines)


# --- refusals and the shell -------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pictures, table, output = folder / "pictures", folder / "boxes.csv", folder / "o.jsonl"
    for message, arguments in (
        ("Got no region", ["describe", DEMO]),
        ("no image file", ["describe", folder / "none.png", "--box", *BOX]),
        ("is not an image that Pillow", ["describe", table, "--box", *BOX]),
        ("Region 2: box [1, 2, 3, 9000] leaves the picture", ["describe", DEMO, "--box", *BOX, "--box", 1, 2, 3, 9000]),
        ("what kind of picture", ["describe", DEMO, "--box", *BOX, "--save", folder / "out.tx"]),
        ("no folder", ["describe", DEMO, "--box", *BOX, "--save", folder / "none" / "out.png"]),
        ("--top_k is 0", ["describe", DEMO, "--box", *BOX, "--top_k", 0]),
        ("--top_k is 0", ["describe", pictures, "--boxes", table, "--output", output, "--top_k", 0, "--model", "none"]),
        ("exists", ["describe", pictures, "--boxes", table, "--output", table, "--model", "not-asked-for"]),
        ("for a folder of pictures", ["describe", DEMO, "--boxes", table]),
        ("give its regions in a table", ["describe", pictures, "--output", output]),
        ("needs --output", ["describe", pictures, "--boxes", table]),
        ("are for one picture", ["describe", pictures, "--boxes", table, "--output", output, "--json"]),
        ("no folder", ["describe", pictures, "--boxes", table, "--output", folder / "none" / "o.jsonl"]),
        ("pred_iou_thresh is 3.0", ["everything", DEMO, "--pred_iou_thresh", 3]),
        ("holds no pictures", ["everything", folder / "pictures" / "empty", "--output", output]),
        ("exists", ["convert", "tap-tiny", pictures]),
    ):
        (pictures / "empty").mkdir(exist_ok=True)
        assert message in refused(capsys, *arguments), arguments
    assert not output.exists()


def test_what_is_read_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own name, a relative one, a symbolic link, a hard link, or the name of the file that grows first."""
    picture, mask = tmp_path / "p.png", tmp_path / "m.png"
    shutil.copyfile(DEMO, picture)
    Image.new("1", (512, 512), 1).save(mask)
    shutil.copyfile(DEMO, tmp_path / "q.partial.png")
    (tmp_path / "soft.png").symlink_to(picture)
    (tmp_path / "hard.png").hardlink_to(picture)
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for output in (picture, "p.png", "./p.png", "soft.png", "hard.png", mask):
        for command in (["describe", picture, "--mask", "m.png"], ["everything", picture]):
            if output == mask and command[0] == "everything":
                continue
            words = refused(capsys, *command, "--save", output)
            assert "would overwrite" in words
            assert "give another name" in words
    assert "would overwrite" in refused(capsys, "everything", "q.partial.png", "--save", "q.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_that_no_picture_can_have_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, message in (("out.psd", "what kind"), ("out.xbm", "what kind"), ("folder.png", "is a folder")):
        assert message in refused(capsys, "describe", DEMO, "--box", *BOX, "--save", tmp_path / name), name


def test_masks_are_files_of_any_kind_and_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = Image.new("L", (512, 512))
    mask.paste(255, (180, 395, 268, 467))
    mask.save(tmp_path / "sharp.png")
    mask.filter(ImageFilter.GaussianBlur(1.5)).convert("RGB").save(tmp_path / "soft.jpg")
    mask.point(lambda value: value // 255).save(tmp_path / "ones.png")
    for name in ("sharp.png", "soft.jpg", "ones.png"):
        record = json.loads(said(capsys, "describe", DEMO, "--mask", tmp_path / name, "--json"))
        assert record["regions"][0]["box"] == pytest.approx([180, 395, 268, 467], abs=1), name
    monkeypatch.setattr("tap_tokenizer.region_tokenizer.TapRegionTokenizer.from_pretrained", None)
    mask.point(lambda value: 0).save(tmp_path / "black.png")
    mask.resize((64, 64)).save(tmp_path / "small.png")
    assert "black.png is empty" in refused(capsys, "describe", DEMO, "--mask", tmp_path / "black.png")
    assert "neither black nor white" in refused(capsys, "describe", DEMO, "--mask", DEMO)
    assert "expected the picture's" in refused(capsys, "describe", DEMO, "--mask", tmp_path / "small.png")
    assert "Found no image file" in refused(capsys, "describe", DEMO, "--mask", tmp_path / "none.png")


def test_a_torn_picture_is_named_and_the_others_are_done(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """And once it is mended, the same command does the rest, and the lines are in the order of the pictures."""
    pictures, output = folder / "pictures", folder / "out.jsonl"
    whole = (pictures / "a.png").read_bytes()
    for torn in (whole[: len(whole) // 2], whole[:20], b""):
        (pictures / "a.png").write_bytes(torn)
        for command in (["describe", pictures, "--boxes", folder / "boxes.csv"], ["everything", pictures, *LENIENT]):
            assert main([str(word) for word in (*command, "--output", output)]) == 3
            got = capsys.readouterr()
            assert got.out == ""
            assert re.search(r"^a.png: .*a.png", got.err, re.MULTILINE)
            assert "1 of 2 pictures could not be read" in got.err
            assert not output.exists()
            lines = Path(f"{output}.partial").read_text().splitlines()
            assert [json.loads(line)["image"] for line in lines] == ["sub/b.jpg"]
            Path(f"{output}.partial").rename(folder / f"{command[0]}.partial")
    (pictures / "a.png").write_bytes(whole)
    (folder / "describe.partial").rename(f"{output}.partial")
    said(capsys, "describe", pictures, "--boxes", folder / "boxes.csv", "--output", output)
    assert [json.loads(line)["image"] for line in output.read_text().splitlines()] == ["a.png", "sub/b.jpg"]
    assert not list(folder.glob("out.jsonl.*"))
    assert "3 some pictures" in help_of("describe", capsys)


def test_one_file_holds_what_one_precision_saw(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pictures, output = folder / "pictures", folder / "out.jsonl"
    whole = (pictures / "a.png").read_bytes()
    (pictures / "a.png").write_bytes(b"")
    command = ["describe", pictures, "--boxes", folder / "boxes.csv", "--output", output]
    assert main([str(word) for word in command]) == 3
    capsys.readouterr()
    (pictures / "a.png").write_bytes(whole)
    assert "was begun with other" in refused(capsys, *command, "--encoder_precision", "int8")
    said(capsys, *command)


def test_convert_makes_a_folder_that_loads(
    capsys: pytest.CaptureFixture[str], original_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(original_checkpoint)])
    assert ended.value.code == 2
    capsys.readouterr()
    words = said(capsys, "convert", original_checkpoint, tmp_path / "tap")
    tokenizer = TapRegionTokenizer.from_pretrained(tmp_path / "tap")
    assert tokenizer.fingerprint in words


def test_convert_halves_a_folder_and_warns_of_what_it_cannot_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    TapRegionTokenizer.from_pretrained("tap-tiny", dtype="float32").save_pretrained(tmp_path / "trained")
    said(capsys, "convert", tmp_path / "trained", tmp_path / "half", "--dtype", "float16", "--limitation", "No photos.")
    half, before = (
        TapRegionTokenizer.from_pretrained(source, dtype="float16") for source in (tmp_path / "half", "tap-tiny")
    )
    assert half.limitation == "No photos."
    assert half.fingerprint == before.fingerprint
    assert half.concepts is not None
    assert half.text_tokenizer is not None
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("trained", "half")]
    assert sizes[1] < 0.51 * sizes[0]


@pytest.mark.slow
def test_the_examples_of_help_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as it is printed, on pictures of these names; the first in a process of its own, as in a shell."""
    shutil.copyfile(DEMO, folder / "picture.png")
    name = sorted((folder / "pictures").glob("*.png"))[0].name
    listed = {
        "images": [{"id": 1, "file_name": name, "width": 512, "height": 512}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [],
    }
    (folder / "instances.json").write_text(json.dumps(listed))
    found = [{"image_id": 1, "category_id": 1, "bbox": [177, 392, 94, 78], "score": 0.9}]
    (folder / "detections.json").write_text(json.dumps(found))
    shown = [help_of(command, capsys) for command in ("describe", "everything", "index", "search")]
    first, *others = re.findall(r"^  tap-tokenizer (.*)$", "\n".join(shown), re.MULTILINE)
    run(folder, first)
    monkeypatch.chdir(folder)
    for line in others:
        words = shlex.split(line.replace("everything pictures", "everything pictures --points_per_crop 3"))
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
    assert {path.name for path in folder.glob("*.jsonl")} == {"described.jsonl", "everything.jsonl"}
    assert (folder / "described.png").is_file()
    assert len(json.loads((folder / "described.json").read_text())["annotations"]) == 1


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def run(folder: Path, line: str) -> str:
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from tap_tokenizer.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *shlex.split(line)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def test_a_folder_can_be_finished_without_its_unreadable_pictures(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "pictures" / "a.png").write_text("torn")
    command = ["everything", folder / "pictures", *LENIENT, "--output", folder / "out.jsonl"]
    assert main([str(word) for word in command]) == 3
    assert "--skip_unreadable true" in capsys.readouterr().err
    assert main([str(word) for word in (*command, "--skip_unreadable", "true")]) == 0
    got = capsys.readouterr()
    assert re.search(r"^a.png: .*a.png", got.err, re.MULTILINE)
    assert "1 picture. 1 of 2 could not be read and is left out." in got.out
    assert [json.loads(line)["image"] for line in (folder / "out.jsonl").read_text().splitlines()] == ["sub/b.jpg"]
    assert not list(folder.glob("out.jsonl.*"))


def test_a_folder_of_unreadable_pictures_gives_no_empty_file(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for path in (folder / "pictures").rglob("*.*"):
        path.write_text("torn")
    command = ["everything", folder / "pictures", "--output", folder / "out.jsonl", "--skip_unreadable"]
    assert "Got 2 pictures, none of which can be read" in refused(capsys, *command)
    assert not list(folder.glob("out.jsonl*"))


def test_what_the_bundled_model_cannot_do_is_said_beside_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(DEMO), "--box", "177", "392", "271", "470", "--json"]) == 0
    got = capsys.readouterr()
    assert json.loads(got.out)["regions"]
    assert "it misreads photographs" in got.err
