"""The demo of the bundled models: what it says is right, was generated, and is drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat
from llm_bridge.cli import main

FOLDER = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny"


DEMO = json.loads((FOLDER / "demo.json").read_text())


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["demo", "--output", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as drawn, Image.open(FOLDER / DEMO["picture"]) as picture:
        assert drawn.width > picture.width  # the talk stands beside it
        left = (drawn.height - picture.height) // 2
        shown = np.asarray(drawn.crop((0, left, picture.width, left + picture.height)), dtype=float)
        assert 1 < np.abs(shown - np.asarray(picture.convert("RGB"), dtype=float)).mean() < 40
        panel = np.asarray(drawn.convert("L").crop((picture.width, 0, *drawn.size)))
        assert panel[:, :16].min() > 200  # words begin inside it,
        assert panel[:, -8:].min() > 200  # and end inside it
        assert panel.min() < 80
    return capsys.readouterr().out


def truths() -> list[str]:
    """The answers to the talk's questions that the scene's geometry gives."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.language import caption
    from finetune.glyphs.questions import place_of
    from finetune.glyphs.scenes import SIZES, draw_scene, make_scene

    scene = make_scene(DEMO["scene"]["index"], DEMO["scene"]["split"], DEMO["scene"]["seed"])
    boxes = draw_scene(scene, 512).boxes
    known: list[Any] = []
    found = []
    for question in DEMO["talk"]:
        new = [
            scene.objects[int(np.abs(boxes - np.array(box)).sum(axis=1).argmin())] for box in question.get("boxes", ())
        ]
        known += new
        about = [*new, *(known[int(number) - 1] for number in re.findall(r"(?<!<)region(\d)", question["text"]))]
        if question["text"] == "What is <region>, and where is it?":
            found.append(f"{caption(about[0])} at the {place_of(about[0], scene)}")
        elif question["text"].startswith("What colour is"):
            found.append(about[0].colour)
        elif question["text"].startswith("Which is larger"):
            largest = max(about, key=lambda glyph: list(SIZES).index(glyph.size))
            found.append(f"region{known.index(largest) + 1}")
        else:
            assert question["text"].startswith("What is region"), question
            found.append(about[0].kind)
    return found


def test_answers_are_right(said: str) -> None:
    assert re.findall(r"^A: (.*)$", said, re.MULTILINE) == truths()
    assert len(re.findall(r"^Q: .*\?$", said, re.MULTILINE)) == len(DEMO["talk"])


def test_models_are_named_and_tap_answers_beside(said: str) -> None:
    assert "tap-tiny" in said
    assert "region-chat-tiny" in said
    assert "knows only GlyphScenes" in said
    shown = sum(len(question.get("boxes", ())) for question in DEMO["talk"])
    assert len(re.findall(r'TAP itself of region\d: "a [a-z ]+", concept [a-z ]+ \(\d+%\)', said)) == shown


def test_a_follow_up_shows_no_region_again(said: str) -> None:
    assert any("boxes" not in question for question in DEMO["talk"])
    regions = re.findall(r"TAP itself of (region\d)", said)
    assert regions == sorted(set(regions))


def test_answers_are_generated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Blind the projector: the answers change."""
    plain = RegionBridgeForConditionalGeneration.from_pretrained

    def blinded(*arguments: Any, **rest: Any) -> RegionBridgeForConditionalGeneration:
        model = plain(*arguments, **rest)
        for parameter in model.projector.parameters():
            parameter.data.zero_()
        return model

    monkeypatch.setattr(RegionBridgeForConditionalGeneration, "from_pretrained", blinded)
    assert main(["demo", "--output", str(tmp_path / "out.png")]) == 0
    answers = re.findall(r"^A: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert answers[0] != truths()[0]


def test_follow_ups_are_about_the_region_that_they_name() -> None:
    """Two regions in separate turns, then a question about each by its name."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.scenes import draw_scene, make_scene

    demo = json.loads((FOLDER / "demo.json").read_text())["scene"]
    scene = make_scene(demo["index"], demo["split"], demo["seed"])
    boxes = draw_scene(scene, 512).boxes.tolist()
    first, second = 0, next(i for i, glyph in enumerate(scene.objects) if glyph.colour != scene.objects[0].colour)
    chat = RegionChat.from_pretrained("region-chat-tiny")
    chat.ask("What is <region>?", image=str(FOLDER / "demo.png"), boxes=[boxes[first]])
    chat.ask("What is <region>?", boxes=[boxes[second]])
    assert chat.ask("What colour is region1?") == scene.objects[first].colour
    assert chat.ask("What colour is region2?") == scene.objects[second].colour


def test_card_belongs_to_the_weights() -> None:
    pytest.importorskip("matplotlib")
    from finetune.glyphs.questions import FAMILIES

    config = json.loads((FOLDER / "config.json").read_text())
    metrics = json.loads((FOLDER / "training" / "metrics.json").read_text())
    assert metrics["of"]["region_tokenizer_fingerprint"] == config["fingerprint"]
    card = (FOLDER / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", card, re.MULTILINE)
    assert {row[0] for row in rows} == set(FAMILIES)
    for family, count, *values in rows:
        assert int(count) == metrics["test"][f"n: {family}"], family
        for split, value in zip(("test", "test-compositional", "test-crowded"), values, strict=True):
            assert float(value) == pytest.approx(metrics[split][f"full: {family}"], abs=5.1e-4), (split, family)
    assert metrics["of"]["described_model"] == "region-words-tiny"
    header = next(line for line in card.splitlines() if line.startswith("| family |")).strip("| ").split(" | ")
    for cells in (line.strip("| ").split(" | ") for line in card.splitlines() if re.match(r"\| \w+ \| \d+ \|", line)):
        row = dict(zip(header, cells, strict=True))
        for column in ("follow-up", "described"):
            assert float(row[column]) == pytest.approx(metrics["test"][f"{column}: {row['family']}"], abs=5.1e-4), (
                column,
                row,
            )
    for command in re.findall(r"--config (\w+)", card):
        assert (FOLDER.parents[2] / "finetune" / "recipes" / f"{command}.yaml").is_file()


def test_the_words_model_has_its_card() -> None:
    """Its numbers are those of the described control on region-chat-tiny's card."""
    folder = FOLDER.parent / "region-words-tiny"
    metrics = json.loads((FOLDER / "training" / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    rows = re.findall(r"^\| ([a-z][a-z, ]+) ((?:\| [\d.]+ ){6})\|$", card, re.MULTILINE)
    assert len(rows) == 4
    for group, cells in rows:
        values = [float(cell) for cell in cells.strip("| ").split(" | ")]
        splits = ("test", "test-compositional", "test-crowded")
        measured = [metrics[split][f"{view}: {group}"] for view in ("described", "full") for split in splits]
        assert values == pytest.approx(measured, abs=5.1e-4), group
    last = json.loads((folder / "training" / "log.jsonl").read_text().splitlines()[-1])
    assert f"{last['val_answer']:.2f}".lstrip("0") in card


def test_what_is_farthest_is_answered_after_other_regions_were_described() -> None:
    """As the third question of a conversation; by chance one in three would be."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.questions import draw_question
    from finetune.glyphs.scenes import draw_scene, make_scene

    chat = RegionChat.from_pretrained("region-context-tiny")
    right = asked = 0
    for index in range(12):
        scene = make_scene(index, "test", 3)
        picture, question = draw_scene(scene, 512), draw_question(scene, "farthest", np.random.RandomState(index))
        if question is None:
            continue
        (here,) = question.objects
        other = next(i for i, mask in enumerate(picture.masks) if i != here and mask.any())
        chat.reset()
        boxes = picture.boxes[[here, other]].tolist()
        chat.ask("Describe <region1>.", image=picture.image, boxes=boxes[:1])
        chat.ask("Describe <region2>.", boxes=boxes[1:])
        right += chat.ask(question.text) == question.answer
        asked += 1
    assert asked >= 5
    assert right >= asked - 1
