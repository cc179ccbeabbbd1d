"""The benchmark's questions: the same for everybody, and balanced, so that guessing is known."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("datasets")

from finetune.glyphs.questions import Question
from finetune.glyphs.records import (
    EVALUATION_SPLITS,
    GlyphScenesSource,
    QuestionBalance,
    benchmark_records,
    benchmark_scenes,
    glyph_record,
)
from finetune.glyphs.scenes import HELD_OUT_PAIRS, make_scene
from llm_bridge import region_numbers


def questions(split: str, scenes: int, seed: int = 0) -> list[list[Question]]:
    balance = QuestionBalance()
    found = (make_scene(index, split, seed) for index in range(scenes))
    return [balance.questions(scene, range(len(scene.objects))) for scene in found]


@pytest.mark.parametrize("split", EVALUATION_SPLITS)
def test_every_answer_of_a_family_is_true_about_equally_often(split: str) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for own in questions(split, 120):
        for question in own:
            answers[question.family][question.answer] += 1
    for family in ("colour", "size", "place", "statement", "same_colour", "same_kind", "larger", "side",
                   "count_colour", "count_kind"):  # fmt: skip
        counts = answers[family].values()
        assert sum(counts) >= 40, family
        assert max(counts) - min(counts) <= 3, (family, answers[family])
    for family in ("kind", "caption", "nearest", "farthest"):
        assert max(answers[family].values()) <= 0.1 * sum(answers[family].values()), family


def test_the_first_scenes_have_the_same_questions_however_many_follow() -> None:
    assert questions("test", 12) == questions("test", 20)[:12]


def test_questions_are_frozen() -> None:
    """Of the first scenes of each split and seed; a change here is a new version of the benchmark."""
    words = repr([questions(split, 6, seed) for split in EVALUATION_SPLITS for seed in (0, 1, 2)])
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "4686e8d2050a0c56"


def test_scenes_and_records_have_the_same_questions() -> None:
    scenes, records = list(benchmark_scenes("test-crowded", 1, 4)), list(benchmark_records("test-crowded", 1, 4))
    assert [record.image for record in records] == [f"glyph-scene:test-crowded/1/{i}/512" for i in range(4)]
    for one, record in zip(scenes, records, strict=True):
        asked, said = record.conversations[::2], record.conversations[1::2]
        assert [turn.type for turn in asked] == [question.family for question in one.questions]
        assert [turn.options for turn in asked] == [list(question.choices) for question in one.questions]
        order: list[int] = []
        words = [question.numbered(order) for question in one.questions]
        assert [(turn.content, answer.content) for turn, answer in zip(asked, said, strict=True)] == words
        assert [region.box for region in record.regions] == one.picture.boxes[order].tolist()
        assert [region.id for region in record.regions] == [f"{one.scene.index}/{i}" for i in order]


def test_hidden_objects_are_not_asked_about() -> None:
    scene = make_scene(3, "test")
    found = QuestionBalance().questions(scene, [0, 1])
    assert found
    assert all(set(question.objects) <= {0, 1} for question in found)


def test_compositional_pairs_are_new_and_all_the_others_are_not() -> None:
    known = ("train", "train-packed", "train-scaled", "val", "test", "test-crowded")
    for split, is_new in (*((name, False) for name in known), ("test-compositional", True)):
        pairs = {(o.kind, o.colour) for index in range(40) for o in make_scene(index, split).objects}
        assert all((pair in HELD_OUT_PAIRS) == is_new for pair in pairs), split


def test_a_talk_ends_with_the_families_that_it_should_and_is_often_about_the_same_region() -> None:
    ends, lengths, same = ("nearest", "count_kind"), set(), []
    for index in range(40):
        record = glyph_record(index, "train", 0, turns=4, families=("colour", "kind"), ends_with=ends, long_side=128)
        asked = [turn for turn in record.conversations if turn.role == "user"]
        if asked:
            assert asked[-1].type in ends
            assert {turn.type for turn in asked[:-1]} <= {"colour", "kind"}
            lengths.add(len(asked))
            last = region_numbers(asked[-1].content, names=True)
            same += [region_numbers(turn.content, names=True) == last for turn in asked[:-1]]
    assert lengths == {1, 2, 3, 4}
    assert 0.3 < sum(same) / len(same) < 0.8


def test_scenes_of_several_splits_take_turns(tmp_path: Path) -> None:
    source = GlyphScenesSource(output=str(tmp_path / "x.jsonl"), scenes=4, split="train,train-packed", workers=1)
    found = [(record.image.split(":")[1].split("/")[0], record) for record in source.records()]
    assert [split for split, _ in found] == ["train", "train-packed"] * 2
    assert found[3][1] == glyph_record(1, "train-packed", 0)
    with pytest.raises(ValueError, match="split is nowhere, expected"):
        list(GlyphScenesSource(output="x.jsonl", split="train,nowhere").records())
