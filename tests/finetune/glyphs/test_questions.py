"""Questions: true, balanced, and never about what could be read either way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("datasets")

from finetune.data.validation import problems_of
from finetune.glyphs.language import caption
from finetune.glyphs.questions import (
    ATTRIBUTE_FAMILIES,
    CAPTION_FAMILIES,
    CONTEXT_FAMILIES,
    FAMILIES,
    NUMBERS,
    PAIR_FAMILIES,
    PLACES,
    Question,
    draw_question,
    place_of,
)
from finetune.glyphs.records import draw_questions, glyph_record
from finetune.glyphs.scenes import SIZES, GlyphObject, GlyphScene, draw_scene, make_scene


def some(family: str, scenes: int = 600) -> list[tuple[GlyphScene, Question]]:
    random = np.random.RandomState(0)
    found = ((scene, draw_question(scene, family, random)) for scene in (make_scene(i, "test") for i in range(scenes)))
    return [(scene, question) for scene, question in found if question is not None]


def truth(scene: GlyphScene, question: Question) -> bool:
    """Whether an answer is true, worked out apart from the code that asks."""
    a = scene.objects[question.objects[0]]
    b = scene.objects[question.objects[1]] if len(question.objects) > 1 else a
    others = [o for o in scene.objects if o is not a]

    def distance(o: GlyphObject) -> float:
        return ((o.x - a.x) ** 2 + (o.y - a.y) ** 2) ** 0.5

    answer, text = question.answer, question.text
    sides = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return {
        "kind": lambda: answer == a.kind,
        "colour": lambda: answer == a.colour,
        "size": lambda: answer == a.size,
        "place": lambda: answer == place_of(a, scene),
        "caption": lambda: answer == caption(a),
        "caption_place": lambda: answer == f"{caption(a)} at the {place_of(a, scene)}",
        "statement": lambda: (answer == "yes") == all(
            word in ("Is", "<region1>", "a", "an") or word in (a.kind, a.colour, a.size)
            for word in text.removesuffix("?").split()
        ),
        "same_colour": lambda: (answer == "yes") == (a.colour == b.colour),
        "same_kind": lambda: (answer == "yes") == (a.kind == b.kind),
        "larger": lambda: (answer == "region1") == (list(SIZES).index(a.size) > list(SIZES).index(b.size)),
        "side": lambda: (answer == "yes") == (next(v for k, v in sides.items() if k in text) > 0),
        "nearest": lambda: answer == caption(min(others, key=distance)),
        "farthest": lambda: answer == caption(max(others, key=distance)),
        "count_colour": lambda: NUMBERS.index(answer) == sum(o.colour == a.colour for o in others),
        "count_kind": lambda: NUMBERS.index(answer) == sum(o.kind == a.kind for o in others),
    }[question.family]()  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_are_true_and_among_the_choices(family: str) -> None:
    questions = some(family)
    assert len(questions) > 40
    for scene, question in questions:
        assert truth(scene, question), question
        assert question.answer in question.choices or family == "caption_place"
        assert question.family == family
        assert all(f"<region{i + 1}>" in question.text for i in range(len(question.objects)))


@pytest.mark.parametrize("family", ["size", "statement", "same_colour", "larger", "side"])
def test_families_of_few_answers_are_balanced(family: str) -> None:
    counts = Counter(question.answer for _, question in some(family, 1500))
    shares = [count / sum(counts.values()) for count in counts.values()]
    assert len(shares) in (2, 3)
    assert max(shares) < 1 / len(shares) + 0.08


def test_every_family_belongs_to_one_group() -> None:
    groups = [*ATTRIBUTE_FAMILIES, *CAPTION_FAMILIES, *PAIR_FAMILIES, *CONTEXT_FAMILIES]
    assert sorted(groups) == sorted(FAMILIES)


def test_nothing_is_asked_close_to_a_border() -> None:
    for scene, question in some("place"):
        glyph = scene.objects[question.objects[0]]
        x, y = glyph.x / scene.width, glyph.y / scene.height
        assert all(abs(value - border) >= 0.015 for value in (x, y) for border in (1 / 3, 2 / 3))
    assert len(PLACES) == 9


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="Got question family 'shape', expected one of kind"):
        draw_question(make_scene(0), "shape", np.random.RandomState(0))


def test_records_number_regions_in_order_of_mention() -> None:
    order: list[int] = [4]
    question = Question("larger", "Which is larger, <region1> or <region2>?", "region2", (2, 4), ("region1", "region2"))
    assert question.numbered(order) == ("Which is larger, <region2> or <region1>?", "region1")
    assert order == [4, 2]


def test_records_are_whole_and_always_the_same() -> None:
    record = glyph_record(11, "train", 0)
    assert record == glyph_record(11, "train", 0)
    asked = [turn for turn in record.conversations if turn.role == "user"]
    assert asked
    assert all(turn.type in FAMILIES for turn in asked)  # by which an evaluation scores them
    sizes = glyph_record(11, "train", 0, families=["size"])
    assert [turn.type for turn in sizes.conversations[::2]] == ["size"] * 6
    assert record.image == "glyph-scene:train/0/11/512"
    assert len(record.conversations) == 12
    text = " ".join(turn.content for turn in record.conversations)
    for i in range(len(record.regions)):
        assert f"<region{i + 1}>" in text
    assert f"<region{len(record.regions) + 1}>" not in text


def test_records_of_scenes_pass_validation(tmp_path: Path) -> None:
    assert problems_of(glyph_record(11, "train", 0).to_dict(), tmp_path) == []


def test_hidden_objects_are_never_asked_about() -> None:
    scene = make_scene(2, "test-crowded")
    picture = draw_scene(scene, 128)
    picture.masks[1:] = False
    questions = draw_questions(scene, picture, tuple(FAMILIES), 6, np.random.RandomState(0))
    assert questions
    assert all(set(question.objects) == {0} for question in questions)
