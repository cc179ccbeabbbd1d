"""The benchmark of expressions: always the same, scored by masks, with TAP alone and a control beside the bridge."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")

from finetune.glyphs import grounding
from finetune.glyphs.expressions import TYPES
from finetune.glyphs.grounding import (
    EVERYTHING,
    FINDS,
    HEAD,
    MEASURES,
    ONE,
    SHUFFLED,
    TRUE,
    benchmark_expressions,
    chance_of_one,
    chosen_lines,
    draw_found,
    find_lines,
    find_scores,
    find_tables,
)
from finetune.glyphs.records import benchmark_scenes
from finetune.glyphs.scenes import draw_scene, make_scene
from finetune.glyphs.seen_scenes import SeenScenes
from finetune.records import encode_mask
from llm_bridge import RegionChat


def test_each_scene_has_one_expression_of_each_type_that_it_offers() -> None:
    counts: Counter[Any] = Counter()
    for index in range(30):
        scene = make_scene(index, "test")
        visible = range(len(scene.objects))
        own = benchmark_expressions(scene, visible)
        assert own == benchmark_expressions(scene, visible)
        counts.update(one.type for one in own)
        assert max(Counter(one.type for one in own if one.type != "none").values()) == 1
    assert set(counts) == set(TYPES)
    assert counts["none"] > 50
    assert min(counts.values()) > 10


def test_chance_is_the_share_of_candidates_that_would_be_right() -> None:
    covers = [[True, False], [False, True], [True, False], [False, False]]
    assert chance_of_one(covers, [0]) == 2 / 4
    assert chance_of_one(covers, [1]) == 1 / 4
    assert chance_of_one(covers[3:], [0]) == 0  # no candidate covers it
    assert chance_of_one(covers, [0, 1]) == 0
    assert chance_of_one([], [0]) == 0


@pytest.mark.slow
def test_whoever_knows_is_right_and_wrong_when_candidates_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that knows what is meant, by the boxes of what it is shown; without everything mode, which is slow."""
    chat = RegionChat.from_pretrained("region-chat-tiny")
    (scene, other) = benchmark_scenes("test", 0, 2)
    seen = SeenScenes.encode(chat.region_tokenizer, [scene, other])
    known = {}
    for one in (scene, other):
        for expression in benchmark_expressions(one.scene, one.picture.visible):
            boxes = [tuple(one.picture.boxes[i].tolist()) for i in expression.meant]
            known[one.picture.image.tobytes(), expression.phrase] = boxes

    class Found:
        def __init__(self, rows: list[int]) -> None:
            self.rows = rows

    def knows(model: Any, processor: Any, picture: np.ndarray, phrase: str, candidates: Any) -> Found:
        boxes = known[picture.tobytes(), phrase]
        return Found([row for row, prompt in enumerate(candidates.prompts) if tuple(prompt.box) in boxes])

    plain = grounding.Candidates.of
    monkeypatch.setattr(grounding, "find_among", knows)
    monkeypatch.setattr(
        grounding.Candidates, "of",
        classmethod(lambda cls, processor, picture, given: plain(processor, picture, [] if given is None else given)),
    )  # fmt: skip
    lines = list(find_lines(chat, seen))
    scores = find_scores(lines)
    assert [scores[f"{TRUE}, {FINDS}: {measure}"] for measure in MEASURES] == [1, 1, 1, 1, 0]
    assert scores[f"{TRUE}, {SHUFFLED}: one answer"] < 0.7
    assert scores[f"{EVERYTHING}, {FINDS}: one answer"] == 0  # among no candidates, nothing is right
    heads = [line for line in lines if line["view"] == HEAD and line["candidates"] == TRUE]
    assert all(line["found"] is None or len(line["found"]) == 1 for line in heads)
    ours = [line for line in lines if line["view"] == FINDS]
    assert all(len(line["masks"]) == len(line["found"]) for line in ours)
    assert not any("masks" in line for line in lines if line["view"] != FINDS)
    attribute = [line["right"] for line in heads if line["type"] == "attribute"]
    assert all(attribute)
    assert scores[f"{TRUE}, {HEAD}: several, exactly"] == 0
    (true, _) = find_tables("test", scores)
    head, _, first, second, third, chance = true.splitlines()
    assert head.startswith("| test: expressions, true candidates (")
    assert first.startswith(f"| {HEAD} | ")
    assert second == f"| {FINDS} | 1.000 | 1.000 | 1.000 | 1.000 | 0.000 |"
    assert third.startswith(f"| {SHUFFLED} | ")
    visible = {one.scene.index: len(one.picture.visible) for one in (scene, other)}
    by_lot = np.mean([1 / visible[line["scene"]] for line in lines if line["view"] == FINDS and line["type"] in ONE])
    assert chance.startswith(f"| chance | {by_lot:.3f} | ")
    assert scores[f"{EVERYTHING}, chance: one answer"] == 0
    assert find_tables("test", {}) == []


@pytest.fixture(scope="module")
def found_lines() -> list[dict[str, Any]]:
    """What a bridge that is always right finds in four scenes, and lines of a control."""
    lines: list[dict[str, Any]] = []
    for index in range(4):
        scene = make_scene(index, "test")
        picture = draw_scene(scene, 512)
        for expression in benchmark_expressions(scene, picture.visible):
            masks = [encode_mask(picture.masks[i]) for i in expression.meant]
            about = {"split": "test", "seed": 0, "scene": index, "type": expression.type, "phrase": expression.phrase}
            lines += [
                {**about, "view": FINDS, "candidates": kind, "meant": list(expression.meant),
                 "found": list(range(len(masks))), "masks": masks, "right": True}
                for kind in (TRUE, EVERYTHING)
            ]  # fmt: skip
            lines.append({**about, "view": SHUFFLED, "candidates": TRUE})
    return lines


def test_a_seed_chooses_answers_of_every_type_and_kind(found_lines: list[dict[str, Any]]) -> None:
    chosen = chosen_lines(found_lines)
    assert len(chosen) == 20
    assert len({(line["scene"], line["phrase"], line["candidates"]) for line in chosen}) == 20
    assert {line["view"] for line in chosen} == {FINDS}
    assert set(Counter(line["type"] for line in chosen)) == set(TYPES)
    assert set(Counter(line["candidates"] for line in chosen)) == {TRUE, EVERYTHING}
    assert chosen == chosen_lines(found_lines)
    assert len(chosen_lines(found_lines[:5])) == 4  # all that there are


def test_what_is_found_is_drawn(found_lines: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "found.png"
    ours = [line for line in found_lines if line["view"] == FINDS]
    two = [next(line for line in ours if line["type"] == name) for name in ("several", "none")]
    sizes = []
    for right in (True, False):
        draw_found([{**line, "right": right} for line in two], path)
        with Image.open(path) as picture:
            assert picture.size[0] == 1440
            colours = picture.convert("RGB").getcolors(2**24)
        assert colours is not None
        own = {colour: count for count, colour in colours}
        sizes.append((own.get((47, 125, 91), 0), own.get((180, 73, 63), 0)))  # RIGHT and WRONG
    (green, red), (less_green, more_red) = sizes
    assert (red, more_red > 1000) == (0, True)  # frames and titles; outlines stay green: what is outlined is meant
    assert green > less_green > 1000
