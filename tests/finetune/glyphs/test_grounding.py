"""The benchmark of expressions: always the same, scored by masks, with TAP alone and a control beside the bridge."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")

from finetune.glyphs import grounding
from finetune.glyphs.expressions import TYPES
from finetune.glyphs.grounding import (
    EVERYTHING,
    FINDS,
    HEAD,
    MEASURES,
    SHUFFLED,
    TRUE,
    benchmark_expressions,
    find_lines,
    find_scores,
    find_tables,
)
from finetune.glyphs.records import benchmark_scenes
from finetune.glyphs.scenes import make_scene
from finetune.glyphs.seen_scenes import SeenScenes
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
    attribute = [line["right"] for line in heads if line["type"] == "attribute"]
    assert all(attribute)
    assert scores[f"{TRUE}, {HEAD}: several, exactly"] == 0
    (true, _) = find_tables("test", scores)
    head, _, first, second, third, chance = true.splitlines()
    assert head.startswith("| test: expressions, true candidates (")
    assert first.startswith(f"| {HEAD} | ")
    assert second == f"| {FINDS} | 1.000 | 1.000 | 1.000 | 1.000 | 0.000 |"
    assert third.startswith(f"| {SHUFFLED} | ")
    assert chance.startswith("| chance | 0.")
    assert find_tables("test", {}) == []
