"""Expressions mean what they say: each is read again, word by word, and looked for in its scene by a second program."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("datasets")

from finetune.data.grounding import Expression
from finetune.glyphs.expressions import TYPES, Description, draw_expression, draw_expressions
from finetune.glyphs.records import GlyphScenesSource, expression_record
from finetune.glyphs.scenes import COLOURS, HELD_OUT_PAIRS, KINDS, SIZES, SPLITS, GlyphObject, GlyphScene, make_scene
from llm_bridge import find_answer, find_question

SINGULAR = {"dice": "die", "pluses": "plus", **{f"{kind}s": kind for kind in KINDS if kind not in ("die", "plus")}}
SCENES = [(split, index) for split in sorted(SPLITS) for index in range(80)]
"""560 scenes."""


# --- a second reader of expressions -------------------------------------------------------------------------------------


def fitting(words: str, scene: GlyphScene) -> list[int]:
    """The objects that adjectives and a noun describe."""
    said = {}
    for word in words.removeprefix("the ").split():
        word = SINGULAR.get(word, word)
        name = next(
            (n for n, known in {"size": SIZES, "colour": COLOURS, "kind": KINDS}.items() if word in known), None
        )
        if name is None:
            assert word in ("thing", "object", "things", "objects", "and"), word
        else:
            said[name] = word
    return [i for i, o in enumerate(scene.objects) if all(getattr(o, n) == v for n, v in said.items())]


def one(words: str, scene: GlyphScene) -> GlyphObject:
    (found,) = fitting(words, scene)
    return scene.objects[found]


def column(o: GlyphObject, scene: GlyphScene) -> tuple[str, str]:
    x, y = o.x / scene.width, o.y / scene.height
    assert all(abs(v - b) > 0.01 for v in (x, y) for b in (1 / 3, 2 / 3)), "on a border"
    return ("left", "", "right")[int(3 * x)], ("top", "", "bottom")[int(3 * y)]


def sided(side: str, a: GlyphObject, b: GlyphObject) -> bool:
    lead = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[side]
    assert abs(lead) > 0.05, "hardly on a side"
    return lead > 0


SIDE = "to the left of|to the right of|left of|right of|above|higher than|below|lower than"
PLAIN_SIDE = {"to the left of": "left of", "to the right of": "right of", "higher than": "above", "lower than": "below"}
EDGES = {"leftmost": ("x", 1), "rightmost": ("x", -1), "topmost": ("y", 1), "highest": ("y", 1), "lowest": ("y", -1),
         "bottommost": ("y", -1), "left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}  # fmt: skip


def meaning(phrase: str, scene: GlyphScene) -> set[int]:
    """What a phrase means, by its words and the scene; fails where it could mean two things."""
    objects = scene.objects
    if m := re.fullmatch(r"everything (?:but|except) (.+)", phrase):
        gone = one(m[1], scene)
        return {i for i, o in enumerate(objects) if o is not gone}
    if m := re.fullmatch(rf"(everything|(?:the )?.+?) ({SIDE}) the (?!picture)(.+)", phrase):
        mark, side = one(m[3], scene), PLAIN_SIDE.get(m[2], m[2])
        among = range(len(objects)) if m[1] == "everything" else fitting(m[1], scene)
        return {i for i in among if objects[i] is not mark and sided(side, objects[i], mark)}
    if m := re.fullmatch(r"(.+) (nearest to|closest to|farthest from) the (.+)", phrase):
        mark = one(m[3], scene)
        far = m[2].startswith("far")
        near = sorted((float(np.hypot(objects[i].x - mark.x, objects[i].y - mark.y)), i)
                      for i in fitting(m[1], scene) if objects[i] is not mark)  # fmt: skip
        ranked = near[::-1] if far else near
        assert max(ranked[0][0], ranked[1][0]) > 1.1 * min(ranked[0][0], ranked[1][0])
        return {ranked[0][1]}
    if m := re.fullmatch(r"the (first|second|third|fourth) (.+) from the (\w+)", phrase):
        axis, sign = EDGES[m[3]]
        ranked = sorted((sign * getattr(objects[i], axis), i) for i in fitting(m[2], scene))
        place = ("first", "second", "third", "fourth").index(m[1])
        others = [abs(v - ranked[place][0]) for k, (v, _) in enumerate(ranked) if k != place]
        assert min(others) > 0.05
        return {ranked[place][1]}
    if m := re.fullmatch(r"the (largest|biggest|smallest) (.+)", phrase):
        ranked = sorted((objects[i].extent, i) for i in fitting(m[2], scene))
        ranked = ranked if m[1] == "smallest" else ranked[::-1]
        assert max(ranked[0][0], ranked[1][0]) > 1.1 * min(ranked[0][0], ranked[1][0])
        return {ranked[0][1]}
    if m := re.fullmatch(r"the (\w+most|highest|lowest) (.+)", phrase):
        axis, sign = EDGES[m[1]]
        ranked = sorted((sign * getattr(objects[i], axis), i) for i in fitting(m[2], scene))
        assert ranked[1][0] - ranked[0][0] > 0.05
        return {ranked[0][1]}
    if m := re.fullmatch(r"(.+) (?:that is not|which is not|that isn't) (?:an? )?(\w+)", phrase):
        without = set(fitting(m[2], scene))
        assert without & set(fitting(m[1], scene)), "nothing to tell apart"
        return set(fitting(m[1], scene)) - without
    if m := re.fullmatch(r"(.+) that is (\w+)", phrase):
        return set(fitting(m[1], scene)) & set(fitting(m[2], scene))
    if m := re.fullmatch(r"(.+) in the (left|right|top|bottom) half", phrase):
        axis, sign = EDGES[m[2]]
        middle = 0.5 * (scene.width if axis == "x" else scene.height)
        assert all(abs(getattr(o, axis) - middle) > 0.01 for o in objects)
        return {i for i in fitting(m[1], scene) if sign * (getattr(objects[i], axis) - middle) < 0}
    if m := re.fullmatch(r"(.+) (?:at|on|in) the (\w+(?: left| right)?)(?: of the picture)?", phrase):
        words = set(m[2].split()) - {"center", "middle"}
        loose = {i for i in fitting(m[1], scene) if words <= set(column(objects[i], scene))}
        exact = {i for i in fitting(m[1], scene) if words == set(column(objects[i], scene)) - {""}}
        if words:  # whether a side is taken for its middle or for all of it
            assert loose == exact
        return exact
    if m := re.fullmatch(r"(both|the two) (.+)", phrase):
        assert len(fitting(m[2], scene)) == 2
        return set(fitting(m[2], scene))
    if m := re.fullmatch(r"(all the|all|every|everything) (.+)", phrase):
        return set(fitting(m[2], scene))
    return set(fitting(phrase, scene))


def drawn(split: str, index: int, count: int = 8) -> tuple[GlyphScene, list[Expression]]:
    scene = make_scene(index, split, 3)
    visible = range(len(scene.objects))
    return scene, draw_expressions(scene, visible, count, np.random.RandomState([1, index]))


@pytest.fixture(scope="module")
def all_drawn() -> list[tuple[GlyphScene, list[Expression]]]:
    return [drawn(split, index) for split, index in SCENES]


def test_every_expression_means_what_it_says(all_drawn: list[tuple[GlyphScene, list[Expression]]]) -> None:
    checked: Counter[Any] = Counter()
    for scene, expressions in all_drawn:
        for own in expressions:
            assert meaning(own.phrase, scene) == set(own.meant), (scene.name, own)
            checked[own.type] += 1
            if own.type == "several":
                assert len(own.meant) > 1
            else:
                assert len(own.meant) == (own.type != "none")
    assert set(checked) == set(TYPES)
    assert min(checked.values()) > 100


def test_a_wrong_answer_would_be_noticed() -> None:
    """The second reader is no mirror: another object of the scene is never what it finds."""
    scene, expressions = drawn("train", 0)
    for own in expressions:
        for other in range(len(scene.objects)):
            assert meaning(own.phrase, scene) != {*own.meant} ^ {other}


def test_a_fifth_means_nothing_and_half_of_that_is_a_near_miss(
    all_drawn: list[tuple[GlyphScene, list[Expression]]],
) -> None:
    every = [(scene, own) for scene, expressions in all_drawn for own in expressions]
    nothing = [(scene, own) for scene, own in every if not own.meant]
    assert len(nothing) / len(every) == pytest.approx(0.2, abs=0.03)
    near = 0
    for scene, own in nothing:
        there = {getattr(o, name) for o in scene.objects for name in ("kind", "colour")}
        said = set(re.findall(r"\w+", own.phrase)) & {*KINDS, *COLOURS}
        near += bool(said & there) or not said
    assert near / len(nothing) == pytest.approx(0.5, abs=0.1)


def test_people_say_the_same_in_many_ways(all_drawn: list[tuple[GlyphScene, list[Expression]]]) -> None:
    forms: dict[Any, set[str]] = defaultdict(set)
    content = {*KINDS, *COLOURS, *SIZES, *SINGULAR}
    for _, expressions in all_drawn:
        for own in expressions:
            words = [word for word in own.phrase.replace(" an ", " a ").split() if word not in content]
            forms[own.type].add(" ".join(words))
    assert {name: len(own) > 5 for name, own in forms.items()} == dict.fromkeys(TYPES, True), forms


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_pairs_that_a_split_does_not_show_are_not_named(split: str) -> None:
    """Else training would say of every held-out pair that there is none of it."""
    for index in range(60):
        _, expressions = drawn(split, index)
        for own in expressions:
            for part in re.split(rf"{SIDE}|nearest to|closest to|farthest from|not", own.phrase):
                words = {SINGULAR.get(word, word) for word in part.split()}
                for kind in words & set(KINDS):
                    for colour in words & set(COLOURS):
                        assert ((kind, colour) in HELD_OUT_PAIRS) == SPLITS[split].held_out, own.phrase


def test_drawing_is_deterministic_and_tries_each_type_alone() -> None:
    assert drawn("test", 5) == drawn("test", 5)
    scene = make_scene(5, "test")
    for name in TYPES:
        own = draw_expression(scene, range(len(scene.objects)), name, np.random.RandomState(0))
        assert own is None or own.type == name


def test_plurals_are_english() -> None:
    assert Description("small", "red", "die").plural() == "small red dice"
    assert Description(None, None, "plus").plural() == "pluses"
    assert Description(None, "blue", "scissors").plural() == "blue scissors"
    assert Description(None, "blue", None).plural("object") == "blue objects"


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_show_all_candidates_before_each_question() -> None:
    record = expression_record(3, "train", 0, turns=5, long_side=256)
    scene = make_scene(3, "train", 0)
    count = len(record.regions)
    assert count == len(scene.objects)
    assert [region.label for region in record.regions] != [o.kind for o in scene.objects]  # shuffled
    for asked, answered in zip(record.conversations[::2], record.conversations[1::2], strict=True):
        phrase = asked.content.partition("Find ")[2].partition(". Answer")[0]
        assert asked.content == find_question(phrase, count)
        captions = sorted(record.regions[int(n) - 1].captions[0] for n in re.findall(r"region(\d+)", answered.content))
        meant = [scene.objects[i] for i in meaning(phrase, scene)]
        assert captions == sorted(f"a {o.size} {o.colour} {o.kind}" for o in meant)
        numbers = [int(n) for n in re.findall(r"region(\d+)", answered.content)]
        assert numbers == sorted(numbers)
        assert answered.content == find_answer(numbers)
        assert asked.type in TYPES
    assert record == expression_record(3, "train", 0, turns=5, long_side=256)


def test_candidates_may_be_shown_by_the_first_question_alone(tmp_path: Any) -> None:
    usual = expression_record(3, "train", 0, turns=5, long_side=256)
    once = expression_record(3, "train", 0, turns=5, long_side=256, shown_once=True)
    assert once.regions == usual.regions
    assert once.conversations[0] == usual.conversations[0]
    assert [turn.content for turn in once.conversations[1::2]] == [turn.content for turn in usual.conversations[1::2]]
    for asked, before in zip(once.conversations[2::2], usual.conversations[2::2], strict=True):
        assert "<region" not in asked.content
        assert before.content.endswith(asked.content)
    flags = {"scenes": 1, "long_side": 64, "workers": 1, "turns": 3, "expressions": 1.0}
    (record,) = GlyphScenesSource(output=str(tmp_path / "o.jsonl"), shown_once=True, lookups=1.0, **flags).records()
    assert ["<region1>" in turn.content for turn in record.conversations[::2]] == [True, False, False]
    assert {turn.type for turn in record.conversations[::2]} == {"lookup"}


def test_plain_expressions_are_drawn_alone_or_among_others() -> None:
    meant: Counter[int] = Counter()
    places: Counter[str] = Counter()
    for index in range(60):
        split = ("train", "train-packed", "test-compositional")[index % 3]
        scene = make_scene(index, split, 0)
        visible = list(range(len(scene.objects)))
        drawn = draw_expressions(scene, visible, 12, np.random.RandomState(index), lookups=1.0)
        assert len({one.phrase for one in drawn}) == len(drawn) > 6
        for one in drawn:
            assert one.type == "lookup"
            assert set(one.meant) == meaning(one.phrase, scene)
            pair = {SINGULAR.get(word, word) for word in one.phrase.split()}
            assert not pair & {*KINDS} or not pair & {*COLOURS} or any(
                {kind, colour} <= pair for kind, colour in HELD_OUT_PAIRS
            ) == SPLITS[split].held_out  # fmt: skip
            meant[min(len(one.meant), 2)] += 1
            places.update(re.findall(r"half|middle|at the", one.phrase))
    assert set(places) == {"half", "middle", "at the"}
    assert 0.05 < places.total() / meant.total() < 0.3
    assert 0.15 < meant[0] / meant.total() < 0.35
    assert meant[2] > 0.1 * meant.total()
    scene = make_scene(3, "train", 0)
    visible = list(range(len(scene.objects)))
    some = draw_expressions(scene, visible, 40, np.random.RandomState(0), lookups=0.5)
    assert 10 < sum(one.type == "lookup" for one in some) < 30


@pytest.mark.parametrize("flags", [{"lookups": 0.5}, {"shown_once": True}])
def test_what_only_expressions_read_is_refused_without_them(flags: Any, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(flags))} is set, but no record asks for expressions"):
        list(GlyphScenesSource(output=str(tmp_path / "o.jsonl"), scenes=1, **flags).records())


def test_the_place_of_a_candidate_says_nothing() -> None:
    """Among answers of one region in scenes of five, each number is right about equally often."""
    counts: Counter[str] = Counter()
    for index in range(150):
        record = expression_record(index, "train", 0, turns=4, long_side=64)
        if len(record.regions) == 5:
            counts.update(t.content for t in record.conversations[1::2] if " " not in t.content and t.content != "none")
    assert len(counts) == 5
    assert max(counts.values()) < 2.5 * min(counts.values()), counts


def test_a_share_of_the_records_asks_for_expressions(tmp_path: Any) -> None:
    def kinds(share: float) -> list[bool]:
        source = GlyphScenesSource(
            output=str(tmp_path / "o.jsonl"), scenes=20, long_side=64, workers=1, turns=2, expressions=share
        )
        return ["Answer with names of regions" in record.conversations[0].content for record in source.records()]

    assert not any(kinds(0))
    assert all(kinds(1))
    assert 4 < sum(kinds(0.5)) < 16
    with pytest.raises(ValueError, match="expressions is 2, expected a share"):
        kinds(2)
