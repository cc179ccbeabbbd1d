"""Folders described by actors of Ray: the bytes of one process, whoever dies, and however it goes on."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from killed_actor import one_actor_killed
from PIL import Image
from ray_stand_in import without_ray
from shell import DEMO, Shell

from tap_tokenizer import folder_actors
from tap_tokenizer.cli import main

said, refused = Shell("tap-tokenizer", main).said, Shell("tap-tokenizer", main).refused
COUNT = 8
SEARCH = ["--points_per_crop", "3", "--pred_iou_thresh", "0.5", "--stability_score_thresh", "0.6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that differ, and two regions of each, as a table and in COCO's layout."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "pictures").mkdir()
    rows, images, annotations = [], [], []
    with Image.open(DEMO) as demo:
        for number in range(COUNT):
            name = f"{number}.png"
            demo.convert("RGB").crop((40 * number, 30, 40 * number + 200, 210)).save(folder / "pictures" / name)
            images.append({"id": number, "file_name": name, "width": 200, "height": 180})
            for box in ((10, 20, 90, 100), (60 + number, 50, 190, 170)):
                rows.append([name, *box])
                x1, y1, x2, y2 = box
                annotations.append(
                    {"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                )
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "x1", "y1", "x2", "y2"], *rows])
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two workers, on this machine."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tap-bridge[ray]'")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


COMMANDS = [
    ("describe", ["--boxes", "boxes.csv", "--masks"]),
    ("describe", ["--coco", "coco.json"]),
    ("everything", SEARCH),
]


@pytest.mark.parametrize(("command", "flags"), COMMANDS)
def test_what_is_sent_to_actors_is_all_they_need(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    flags: list[str],
) -> None:
    monkeypatch.chdir(folder)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    words = said(capsys, command, "pictures", *flags, "--output", one).replace("one", "two")
    without_ray(monkeypatch, folder_actors)
    assert said(capsys, command, "pictures", *flags, "--output", two, "--ray", 2) == words
    assert two.read_bytes() == one.read_bytes()


def test_an_actor_with_other_weights_words_or_concepts_or_without_the_pictures_refuses_to_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch, folder_actors)
    describe = [
        "describe",
        folder / "pictures",
        "--boxes",
        folder / "boxes.csv",
        "--output",
        tmp_path / "out.jsonl",
        "--ray",
        2,
    ]
    load = folder_actors.load_tokenizer

    def others(arguments: Any) -> Any:
        found = load(arguments)
        found._fingerprint = "another"
        return found

    with monkeypatch.context() as patch:
        patch.setattr(folder_actors, "load_tokenizer", others)
        assert "has the tokenizer another under the name tap-tiny, expected " in refused(capsys, *describe)

    def without_words(arguments: Any) -> Any:
        found = load(arguments)
        found.text_tokenizer.add_tokens(["another"])
        return found

    def renamed(arguments: Any) -> Any:
        found = load(arguments)
        names = [f"other {name}" for name in found.concepts.names]
        found.concepts = replace(found.concepts, names=names)
        return found

    for other, part in ((without_words, "caption vocabulary"), (renamed, "concept bank")):
        with monkeypatch.context() as patch:
            patch.setattr(folder_actors, "load_tokenizer", other)
            words = refused(capsys, *describe)
            assert f"has the {part} " in words
            assert "have all machines read the same files" in words
    with monkeypatch.context() as patch:
        run = folder_actors.run_chunks

        def moved(*given: Any, **named: Any) -> Any:
            (folder / "pictures").rename(folder / "moved")
            try:
                yield from run(*given, **named)
            finally:
                (folder / "moved").rename(folder / "pictures")

        patch.setattr(folder_actors, "run_chunks", moved)
        assert "sees no folder" in refused(capsys, *describe)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "flags"), COMMANDS)
def test_actors_write_the_bytes_of_one_process(
    cluster: None,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    flags: list[str],
) -> None:
    monkeypatch.chdir(folder)  # where the actors must find what is named from there
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    words = said(capsys, command, "pictures", *flags, "--output", one).replace("one", "two")
    assert said(capsys, command, "pictures", *flags, "--output", two, "--ray", 2) == words
    assert two.read_bytes() == one.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_what_was_written_is_kept(
    cluster: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins with a picture that cannot be read, goes on where it was, and one of its actors dies."""
    flags = ["--boxes", folder / "boxes.csv", "--device", "cpu"]
    said(capsys, "describe", folder / "pictures", *flags, "--output", tmp_path / "one.jsonl")
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    output, broken = tmp_path / "two.jsonl", folder / "pictures" / "5.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    partial = output.with_name("two.jsonl.partial")
    command = ["describe", folder / "pictures", *flags, "--output", output, "--ray", 2]
    try:
        with one_actor_killed(lambda: partial.exists() and b"\n" in partial.read_bytes()):
            assert main([str(argument) for argument in command]) == 3
    finally:
        broken.write_bytes(whole)
    words = capsys.readouterr().err
    assert "5.png: " in words
    assert "1 of 8 pictures could not be read" in words
    kept = partial.read_text().splitlines()
    assert sorted(json.loads(line)["image"] for line in kept) == [f"{n}.png" for n in range(COUNT) if n != 5]
    said(capsys, "describe", folder / "pictures", *flags, "--output", output)  # and without Ray
    assert output.read_text().splitlines() == lines


def test_flags_of_ray_that_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    describe = ["describe", folder / "pictures", "--boxes", folder / "boxes.csv", "--output", output]
    assert "for a folder of pictures" in refused(capsys, "describe", DEMO, "--box", 1, 2, 30, 40, "--ray", 2)
    assert "for a folder of pictures" in refused(capsys, "everything", DEMO, "--ray", 2)
    assert "without --ray: say how many" in refused(capsys, *describe, "--ray_address", "auto")
    assert "Got ray -1: expected at least 0" in refused(capsys, *describe, "--ray", -1)
    monkeypatch.setattr("tap_tokenizer.cluster.find_spec", lambda name: None)
    assert "needs Ray: pip install 'tap-bridge[ray]'" in refused(capsys, *describe, "--ray", 2)
    assert os.listdir(tmp_path) == []
