"""Folders → an index: what is unchanged is passed over, a stop loses little, and the shell finds what Python does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import RegionIndex, TapRegionTokenizer, folder_index, index_folder, pictures_of
from tap_tokenizer.cli import main
from tap_tokenizer.folder_index import IndexReport
from tap_tokenizer.picture_folders import PictureRegions

BOXES = [[2.0, 2.0, 30.0, 30.0], [5.0, 8.0, 28.0, 31.0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        save(tmp_path / "pictures" / name, i)
    return tmp_path


def save(path: Path, seed: int) -> None:
    low = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(np.kron(low, np.ones((10, 10, 1), np.uint8))).save(path)


def build(folder: Path, tokenizer: TapRegionTokenizer, find: Any = None, **options: Any) -> IndexReport:
    def boxes(picture: Any, pixels: np.ndarray) -> Any:
        return tokenizer.encode(pixels, boxes=BOXES)

    given = {"notes": {"regions": "two boxes"}, "captions": False, **options}
    return index_folder(pictures_of(folder / "pictures"), folder / "index", tokenizer, find or boxes, **given)


def stopped_at_the_fourth(folder: Path, tokenizer: TapRegionTokenizer) -> tuple[Callable[..., Any], list[str]]:
    """Begin an index, and stop it at the fourth picture: what finds regions, and the names of the pictures that it has seen."""
    seen: list[str] = []

    def find(picture: Any, pixels: np.ndarray) -> Any:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(picture.image)
        return tokenizer.encode(pixels, boxes=BOXES)

    with pytest.raises(KeyboardInterrupt):
        build(folder, tokenizer, find)
    return find, seen


def test_an_index_of_a_folder_is_that_of_its_pictures(folder: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    report = build(folder, tiny_tokenizer)
    assert report.added == ["a.png", "b.png", "c.png", "sub/d.png"]
    index = RegionIndex.load(folder / "index")
    assert len(index) == 8
    regions = tiny_tokenizer.encode(folder / "pictures" / "sub" / "d.png", boxes=BOXES)
    (hit,) = index.search(regions[1], top_k=1)
    assert (hit.picture, list(hit.box), hit.name) == (
        "sub/d.png",
        BOXES[1],
        tiny_tokenizer.classify(regions, 1)[1][0][0],
    )
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert sorted(path.name for path in folder.iterdir()) == ["index", "pictures"]


def test_only_what_has_changed_is_encoded_again(folder: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    build(folder, tiny_tokenizer)
    before = RegionIndex.load(folder / "index")
    seen: list[str] = []

    def find(picture: Any, pixels: np.ndarray) -> Any:
        seen.append(picture.image)
        return tiny_tokenizer.encode(pixels, boxes=BOXES)

    save(folder / "pictures" / "b.png", 77)
    save(folder / "pictures" / "e.png", 5)
    (folder / "pictures" / "a.png").touch()  # another time, the same content
    (folder / "pictures" / "c.png").unlink()
    (folder / "pictures" / "f.png").write_text("no picture")
    report = build(folder, tiny_tokenizer, find)
    assert seen == ["b.png", "e.png"]
    assert (report.added, report.replaced, report.vanished) == (["e.png"], ["b.png"], ["c.png"])
    assert (report.unchanged, list(report.unread)) == (["a.png", "sub/d.png"], ["f.png"])
    index = RegionIndex.load(folder / "index")
    assert sorted(picture.name for picture in index.pictures) == ["a.png", "b.png", "c.png", "e.png", "sub/d.png"]
    rows = [
        [i for i, n in enumerate(one.column("picture")) if one.pictures[int(n)].name == "b.png"]
        for one in (before, index)
    ]
    assert not torch.equal(before.column("embeds")[rows[0]], index.column("embeds")[rows[1]])
    (folder / "pictures" / "f.png").unlink()
    time = (folder / "index").stat().st_mtime_ns
    assert build(folder, tiny_tokenizer, find).vanished == ["c.png"]
    assert (folder / "index").stat().st_mtime_ns == time  # nothing to write
    build(folder, tiny_tokenizer, find, remove_vanished=True)
    assert "c.png" not in {picture.name for picture in RegionIndex.load(folder / "index").pictures}


def test_a_stop_loses_nothing_that_was_done(
    folder: Path, tiny_tokenizer: TapRegionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "PART", 2)
    find, seen = stopped_at_the_fourth(folder, tiny_tokenizer)
    assert not (folder / "index").exists()
    save(folder / "pictures" / "b.png", 99)  # changed while it was stopped
    begun = seen.copy()
    seen[:] = []
    report = build(folder, tiny_tokenizer, find)
    assert (begun, seen) == (["a.png", "b.png", "c.png"], ["b.png", "sub/d.png"])
    assert len(report.added) == 4
    index = RegionIndex.load(folder / "index")
    (folder / "index").unlink()
    build(folder, tiny_tokenizer)
    straight = RegionIndex.load(folder / "index")
    for picture in straight.pictures:
        regions = tiny_tokenizer.encode(folder / "pictures" / picture.name, boxes=BOXES)
        ours, theirs = (one.search(regions[0], top_k=1)[0] for one in (index, straight))
        assert (ours.picture, ours.score) == (theirs.picture, theirs.score)


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("left_to_do", [False, True])
def test_a_run_that_goes_on_loses_no_picture_when_a_whole_part_is_out_of_date(
    folder: Path,
    tiny_tokenizer: TapRegionTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    is_update: bool,
    left_to_do: bool,
) -> None:
    monkeypatch.setattr(folder_index, "PART", 2)
    names = ["a.png", "b.png", "c.png", "sub/d.png"]
    if is_update:
        build(folder, tiny_tokenizer)
        for i, name in enumerate(names):
            save(folder / "pictures" / name, 50 + i)
    find, seen = stopped_at_the_fourth(folder, tiny_tokenizer)
    for name in (*names[:2], *(() if left_to_do else names[3:])):
        (folder / "pictures" / name).unlink()
    kept = names[2:] if left_to_do else names[2:3]
    seen[:] = []
    report = build(folder, tiny_tokenizer, find, remove_vanished=True)
    assert seen == kept[1:]
    assert (report.replaced if is_update else report.added) == kept
    index = RegionIndex.load(folder / "index")
    assert (sorted(picture.name for picture in index.pictures), len(index)) == (kept, 2 * len(kept))
    regions = tiny_tokenizer.encode(folder / "pictures" / "c.png", boxes=BOXES)
    (hit,) = index.search(regions[0], top_k=1)
    assert (hit.picture, hit.score) == ("c.png", pytest.approx(1, abs=1e-3))


def test_an_index_of_no_pictures_is_refused(tmp_path: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    with pytest.raises(ValueError, match="Got no pictures, expected at least one"):
        index_folder([], tmp_path / "index", tiny_tokenizer, lambda picture, pixels: None, notes={})


class CountedName(str):
    """The name of a picture; counts how often any of them is looked up."""

    looked_up = 0

    def __hash__(self) -> int:
        CountedName.looked_up += 1
        return super().__hash__()


def test_many_pictures_take_no_more_looks_at_each_than_few(tmp_path: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    names = [CountedName(f"{i}.png") for i in range(200)]
    index, example = RegionIndex(), tiny_tokenizer.encode(np.zeros((40, 40, 3), np.uint8), boxes=[BOXES[0]])
    for name in names:
        index.add(example, [str(name)])
    writer = folder_index._Writer(tmp_path / "parts", tiny_tokenizer, lambda picture, pixels: example, {}, False, False)
    CountedName.looked_up = 0
    report, waiting = writer.compare([PictureRegions(name, tmp_path / name) for name in names], index)
    assert (len(report.unchanged), report.vanished, waiting) == (
        200,
        [],
        [],
    )  # files that are gone have no stamp, as these
    assert CountedName.looked_up <= 20 * len(names)


def test_what_an_index_says_of_its_tokenizer_may_change(folder: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    build(folder, tiny_tokenizer, hints={"model": "here", "text_encoder": "clip"})
    report = build(folder, tiny_tokenizer, hints={"model": "there"})
    assert len(report.unchanged) == 4
    notes = RegionIndex.load(folder / "index").notes
    assert (notes["model"], notes["text_encoder"], notes["regions"]) == ("there", "clip", "two boxes")


def test_an_index_that_was_made_otherwise_is_refused(folder: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    build(folder, tiny_tokenizer, notes={"regions": "two boxes", "encoder_precision": ""})
    for options, words in (
        ({"notes": {"regions": "others"}}, "different regions"),
        ({"notes": {"regions": "two boxes", "encoder_precision": "int8"}}, "different encoder_precision"),
        ({"with_tokens": True}, "different vectors"),
    ):
        with pytest.raises(ValueError, match=words):
            build(folder, tiny_tokenizer, **options)


def test_a_folder_without_a_readable_picture_is_refused(tmp_path: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="Got 1 picture, none of which can be read"):
        build(tmp_path, tiny_tokenizer)
    assert not (tmp_path / "index").exists()


# --- the shell ----------------------------------------------------------------------------------------------------------


def shell(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    got = capsys.readouterr()
    return code, got.out, got.err


def test_the_shell_indexes_a_table_and_finds_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,2,2,30,30\nsub/d.png,5,8,28,31\n")
    index, pictures = folder / "index", folder / "pictures"
    flags = ["index", pictures, "--boxes", folder / "boxes.csv", "--output", index, "--tokens"]
    code, out, err = shell(capsys, *flags)
    assert (code, "2 regions of 2 pictures (2 new)" in out, "tap-tiny knows only GlyphScenes" in err) == (0, True, True)
    like = ["--like", pictures / "sub" / "d.png", "--box", 5, 8, 28, 31]
    for extra in ([], ["--by", "tokens"], ["red umbrella"]):
        code, out, _ = shell(capsys, "search", index, *extra, *like, "--json", "--save", folder / "sheet.png")
        found = json.loads(out)["found"]
        assert (code, len(found)) == (0, 2)
        assert (folder / "sheet.png").is_file()
        assert extra == ["red umbrella"] or (found[0]["picture"], found[0]["box"]) == ("sub/d.png", [5, 8, 28, 31])
    code, out, _ = shell(capsys, "search", index, "red umbrella", "--top_k", 1)
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    (want,) = RegionIndex.load(index).search(words="red umbrella", tokenizer=tokenizer, top_k=1)
    assert out == f"1. {want.score:.3f} {want.picture} ({want.caption}; box {' '.join(f'{x:.0f}' for x in want.box)})\n"
    (folder / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,2,2,30,31\n")
    code, out, err = shell(capsys, *flags)
    assert (code, "2 regions of 2 pictures (1 changed, 1 vanished)" in out, "sub/d.png: is no longer" in err) == (
        0,
        True,
        True,
    )


def test_a_search_from_another_folder_finds_model_and_text_encoder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    assert tokenizer.text_encoder is not None
    tokenizer.text_encoder.save_pretrained(folder / "words")
    tokenizer.text_encoder = None
    tokenizer.save_pretrained(folder / "tap")
    (folder / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,2,2,30,30\n")
    monkeypatch.chdir(folder)
    flags = ["--boxes", "boxes.csv", "--output", "index", "--no_captions", "--model", "tap", "--text_encoder", "words"]
    assert shell(capsys, "index", "pictures", *flags)[0] == 0
    monkeypatch.chdir(folder / "pictures")
    code, out, err = shell(capsys, "search", "../index", "red umbrella", "--json")
    assert code == 0, err
    assert [hit["picture"] for hit in json.loads(out)["found"]] == ["a.png"]
    (folder / "words").rename(folder / "elsewhere")  # which an example does not need
    assert shell(capsys, "search", "../index", "--like", "a.png", "--box", 2, 2, 30, 30)[0] == 0


def test_an_index_in_int8_is_not_continued_in_float32(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "boxes.csv").write_text("image,x1,y1,x2,y2\na.png,2,2,30,30\n")
    flags = [
        "index",
        folder / "pictures",
        "--boxes",
        folder / "boxes.csv",
        "--no_captions",
        "--output",
        folder / "index",
    ]
    assert shell(capsys, *flags, "--encoder_precision", "int8")[0] == 0
    code, _, err = shell(capsys, *flags)
    assert (code, "was made with different encoder_precision" in err) == (2, True)
    index = RegionIndex.load(folder / "index")
    del index.notes["encoder_precision"]  # as of an index in float32 that is older than the choice
    index.save(folder / "older")
    assert shell(capsys, *flags[:-1], folder / "older")[0] == 0


def test_pictures_in_which_nothing_was_found_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64), "grey").save(folder / "pictures" / "empty.png")
    index = ["index", folder / "pictures", "--output", folder / "index", "--points_per_crop", 2, "--pred_iou_thresh", 1]
    code, out, err = shell(capsys, *index)
    assert code == 0
    assert "0 regions of 5 pictures (5 new, 5 without a region)." in out
    assert "\nempty.png: no region was found in it.\n" in f"\n{err}"
    code, out, err = shell(capsys, *index)
    assert "0 regions of 5 pictures (5 unchanged)." in out  # which was said when they were new
    assert "no region" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Got nothing to search for: give words, or --like"),
        (["--box", "1", "1", "5", "5"], "say in which picture, --like PICTURE"),
        (["--like", "pictures/a.png"], "--like needs a mark on its picture"),
        (["cat", "--top_k", "0"], "--top_k is 0"),
        (["cat", "--save", "sheet.txt"], "sheet.txt does not say what kind of picture"),
        (["cat"], "Found no file"),
    ],
)
def test_bad_searches_are_refused_in_the_shells_words(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = shell(capsys, "search", "index", *flags)
    assert (code, out) == (2, "")
    assert message in err
