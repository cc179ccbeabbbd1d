"""Objects found again: the two numbers, by hand, and that a tokenizer that sees finds more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.glyphs.records import benchmark_scenes
from finetune.glyphs.retrieval import WAYS, Retrieval, _measured
from finetune.glyphs.seen_scenes import SeenScenes
from tap_tokenizer import TapRegionTokenizer


def test_the_numbers_are_those_of_rankings_that_one_can_count() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    alike = np.array([[False, True, False, True], [True, True, True, True], [False, False, False, False]])
    searched = np.ones((3, 4), bool)
    searched[1, 3] = False
    (line,) = _measured("semantic token", scores, alike, searched)
    assert line["queries"] == 2
    assert line["recall@10"] == 1
    assert line["mAP"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)


def test_recall_counts_those_of_ten_that_could_be_there() -> None:
    scores = -np.arange(24.0)[None]
    alike = np.zeros((1, 24), bool)
    alike[0, [0, 3, 9, 10, *range(12, 24)]] = True
    (line,) = _measured("words", scores, alike, np.ones((1, 24), bool))
    assert line["recall@10"] == pytest.approx(3 / 10)


def test_equal_scores_are_no_better_than_chance() -> None:
    random = np.random.RandomState(0)
    alike = random.rand(200, 300) < 0.1
    (line,) = _measured("caption words", np.zeros((200, 300)), alike, np.ones((200, 300), bool))
    assert line["mAP"] == pytest.approx(0.1, abs=0.05)


def test_objects_of_the_same_kind_and_colour_are_found_in_other_pictures() -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    retrieval = Retrieval()
    seen = SeenScenes.encode(tokenizer, list(benchmark_scenes("test", 0, 12)))
    captions = iter(tokenizer.caption(seen.tokens))
    lines = [
        {
            "scene": one.scene.index,
            "kind": [None, glyph.kind],
            "colour": [None, glyph.colour],
            "caption": [next(captions)],
        }
        for one in seen.scenes
        for glyph in (one.scene.objects[i] for i in one.picture.visible)
    ]
    retrieval.add(seen, lines)
    found = list(retrieval.lines())
    assert [line["by"] for line in found] == list(WAYS)
    assert all(line["mAP"] > 0.5 for line in found)
    scenes = [line["scene"] for line in lines]
    pairs = [(line["kind"][1], line["colour"][1]) for line in lines]
    again = sum(any(o == p and t != s for o, t in zip(pairs, scenes)) for p, s in zip(pairs, scenes))
    assert [line["queries"] for line in found] == [again] * 3 + [len(set(pairs))]
