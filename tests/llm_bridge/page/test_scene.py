"""What browsers are sent of a picture: masks in runs, candidates, examples that are what they say."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.page.handlers import EXAMPLES, examples
from llm_bridge.page.scene import Scene, cutout, mask_runs
from tap_tokenizer import RegionPrompt

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]


def drawn(mask: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask from its runs, as a browser draws it."""
    whole = np.zeros(size, bool)
    flat = np.zeros(mask["width"] * mask["height"], bool)
    at = 0
    for number, run in enumerate(mask["runs"]):
        flat[at : at + run] = number % 2
        at += run
    assert at == len(flat)
    rows, columns = slice(mask["y"], mask["y"] + mask["height"]), slice(mask["x"], mask["x"] + mask["width"])
    whole[rows, columns] = flat.reshape(mask["height"], mask["width"])
    return whole


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_a_mask_comes_back_from_its_runs(density: float) -> None:
    mask = np.random.default_rng(0).random((23, 31)) < density
    assert np.array_equal(drawn(mask_runs(mask), mask.shape), mask)


def test_a_glance_shows_the_mask_that_the_conversation_will_have(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    scene = Scene(np.asarray(picture), RegionChat(*make_bridge()))
    prompts = [RegionPrompt(points=((30.0, 20.0),), point_labels=(1,)), RegionPrompt(box=(5, 5, 40, 30))]
    seen = scene.see(prompts)
    for i, shown in enumerate(scene.glance(prompts)):
        assert np.array_equal(drawn(shown["mask"], scene.size), seen.masks[i].numpy())
        assert np.allclose(shown["box"], seen.boxes[i].tolist(), atol=0.06)
        assert shown["concept"] == scene.chat.region_tokenizer.classify(seen, 1)[i][0]
    assert scene.glance([]) == []


@pytest.mark.parametrize("side", [512, 2000])
def test_what_is_found_is_asked_about_by_a_prompt_that_brings_it_back(side: int) -> None:
    """The face has two parts, and its box holds a cross as well: asked about the box, TAP would see the cross."""
    with Image.open(EXAMPLES / "scene126.webp") as picture:
        scene = Scene(
            np.asarray(picture.convert("RGB").resize((side, side))), RegionChat.from_pretrained("region-chat-tiny")
        )
    shown = scene.everything()
    assert [one["concept"][0] for one in shown] == ["plus", "face", "telephone"]
    assert ["points" in one["prompt"] for one in shown] == [False, True, False]
    prompts = [RegionPrompt.read(json.loads(json.dumps(one["prompt"]))) for one in shown]
    assert [one["mask"] for one in scene.glance(prompts)] == [one["mask"] for one in shown]
    seen = scene.chat.region_tokenizer.classify(scene.see(prompts), 1)
    assert [best[0][0] for best in seen] == ["plus", "face", "telephone"]


def test_finding_asks_about_what_will_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(EXAMPLES / "scene126.webp") as picture:
        scene = Scene(np.asarray(picture.convert("RGB")), RegionChat.from_pretrained("region-chat-tiny"))
    given: list[Any] = []

    def find(self: RegionChat, words: str, *, image: Any, prompts: Any) -> Any:
        given.extend(prompts)
        return SimpleNamespace(rows=[1], probabilities=torch.tensor([0.75]))

    monkeypatch.setattr(RegionChat, "find", find)
    [found] = scene.find("the face")
    assert (found["concept"][0], found["probability"]) == ("face", 0.75)
    assert found["prompt"] == given[1].as_dict()
    assert found == scene.everything()[1] | {"probability": 0.75}
    blank = Scene(np.full((64, 64, 3), 90, np.uint8), scene.chat)
    monkeypatch.setattr(Scene, "_search", lambda self: [])
    assert blank.find("the face") == []


def test_a_mask_that_would_vanish_on_the_shown_picture_keeps_a_pixel(make_bridge: Callable[..., Pair]) -> None:
    mask = np.zeros((1500, 3000), bool)
    mask[700, 1500] = True  # which no pixel of the shown picture need hit
    scene = Scene(np.full((1500, 3000, 3), 90, np.uint8), RegionChat(*make_bridge()))
    scene.boxes, scene.masks = [[1500.0, 700.0, 1501.0, 701.0]], [np.packbits(mask)]
    assert drawn(scene.known()[0]["mask"], scene.shown_size).sum() == 1


@pytest.mark.parametrize("shade", [0, 60, 128, 200, 255])
def test_a_cutout_stands_out_from_what_surrounds_it(shade: int) -> None:
    picture, mask = np.full((60, 60, 3), 120, np.uint8), np.zeros((60, 60), bool)
    mask[15:45, 15:45] = True
    picture[mask] = shade
    _, file = cutout(picture, mask).split(",")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("L")).astype(int)
    assert abs(shown[18, 18] - shown[1, 1]) > 80
    assert abs(shown[18, 18] - shade) < 4


def test_examples_are_the_scenes_that_they_name() -> None:
    """Drawn again, they are what lies in the package, but for what compressing them cost."""
    for example in examples():
        scene = example["scene"]
        again = draw_scene(make_scene(scene["index"], scene["split"], scene["seed"]), 512)
        with Image.open(EXAMPLES / example["file"]) as picture:
            kept = np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(kept - again.image).mean() < 4, example["file"]
        assert all(again.masks[:, y, x].any() for x, y in example["points"])
        assert example["question"].count("<region>") == len(example["points"])
    assert {path.name for path in EXAMPLES.glob("*.webp")} == {example["file"] for example in examples()}
    assert json.loads((EXAMPLES / "examples.json").read_text()) == examples()
