"""Questions about regions of GlyphScenes with their answers, by family.

If a family has few answers, the answer is drawn first, evenly, and then a region or a pair for which it is right; a scene
without one gives no question. So the score of guessing is known. The right answer follows from the scene's geometry, and no
question is asked that could be answered in two ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llm_bridge import replace_regions

from .language import ATTRIBUTES, caption
from .scenes import COLOURS, KINDS, SIZES, GlyphObject, GlyphScene

YES_NO = ("yes", "no")

PLACES = tuple(
    " ".join(word for word in (row, column) if word) or "center"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
)
"""The nine places of a picture cut into thirds, row by row."""

NUMBERS = ("zero", "one", "two")
"""Answers of counting questions; a scene that would need a larger one is not asked."""

BORDER_MARGIN = 0.015
"""No question about the place of an object whose centre is nearer than this to a border between thirds."""
SIDE_MARGIN = 0.06
"""No question about left, right, above or below for centres nearer than this, in units of the long side."""
NEAREST_MARGIN = 1.15
"""The second nearest (farthest) object is at least this factor farther (nearer)."""


@dataclass(frozen=True)
class Question:
    """One question. `text` and `answer` name regions as <region1>, <region2>; `objects` says which objects they are.

    choices: the possible answers of this question, from which chance follows.
    """

    family: str
    text: str
    answer: str
    objects: tuple[int, ...]
    choices: tuple[str, ...]

    def numbered(self, order: list[int]) -> tuple[str, str]:
        """Text and answer with regions numbered by their objects' places in `order`, which grows by those that are new."""
        order += [i for i in self.objects if i not in order]

        def rename(number: int, is_shown: bool) -> str:
            name = f"region{order.index(self.objects[number - 1]) + 1}"
            return f"<{name}>" if is_shown else name

        return replace_regions(self.text, rename), replace_regions(self.answer, rename)


Draw: TypeAlias = Callable[[GlyphScene, np.random.RandomState], Question | None]
"""Draws a question about a scene; None if the scene has none with the answer that was drawn."""


@dataclass(frozen=True)
class Family:
    """Questions of one kind.

    is_open: its answers are too many to be balanced one by one; even the commonest is rare.
    """

    name: str
    draw: Draw
    is_open: bool = False


def draw_question(scene: GlyphScene, family: str, random: np.random.RandomState) -> Question | None:
    """A question of a family about a scene, or None if the scene has none with the answer that was drawn."""
    if family not in FAMILIES:
        raise ValueError(f"Got question family {family!r}, expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[family].draw(scene, random)


def place_of(glyph: GlyphObject, scene: GlyphScene) -> str | None:
    """Which of the nine places holds an object's centre; None if it lies on a border."""
    x, y = glyph.x / scene.width, glyph.y / scene.height
    if any(abs(value - border) < BORDER_MARGIN for value in (x, y) for border in (1 / 3, 2 / 3)):
        return None
    return PLACES[3 * min(int(3 * y), 2) + min(int(3 * x), 2)]


# --- kinds of families ------------------------------------------------------------------------------------------------


def _pick(random: np.random.RandomState, items: Sequence[str]) -> str:
    return items[random.randint(len(items))]


def _one(
    name: str, texts: Sequence[str], choices: Sequence[str], answer_of: Callable[[GlyphObject, GlyphScene], str | None]
) -> Family:
    """About one region, with few answers."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        wanted = _pick(random, choices)
        fitting = [i for i, glyph in enumerate(scene.objects) if answer_of(glyph, scene) == wanted]
        if not fitting:
            return None
        return Question(name, _pick(random, texts), wanted, (fitting[random.randint(len(fitting))],), tuple(choices))

    return Family(name, draw)


def _open(name: str, texts: Sequence[str], answer_of: Callable[[GlyphObject, GlyphScene], str | None]) -> Family:
    """About one region, with open answers: the region is drawn evenly."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        index = random.randint(len(scene.objects))
        answer = answer_of(scene.objects[index], scene)
        return None if answer is None else Question(name, _pick(random, texts), answer, (index,), _CAPTIONS)

    return Family(name, draw, is_open=True)


_CAPTIONS = tuple(f"a {size} {colour} {kind}" for size in SIZES for colour in COLOURS for kind in KINDS)


def _pair(
    name: str,
    texts: Sequence[str],
    choices: tuple[str, str],
    answer_of: Callable[[GlyphObject, GlyphObject], str | None],
) -> Family:
    """About two regions that are compared, with two answers."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        wanted = _pick(random, choices)
        fitting = [
            (i, j)
            for i, a in enumerate(scene.objects)
            for j, b in enumerate(scene.objects)
            if i != j and answer_of(a, b) == wanted
        ]
        if not fitting:
            return None
        return Question(name, _pick(random, texts), wanted, fitting[random.randint(len(fitting))], choices)

    return Family(name, draw)


def _neighbour(name: str, texts: Sequence[str], *, farthest: bool) -> Family:
    """What lies nearest to, or farthest from, a region: the answer is the other object's caption."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        index = random.randint(len(scene.objects))
        here = scene.objects[index]

        def distance(glyph: GlyphObject) -> float:
            return float(np.hypot(glyph.x - here.x, glyph.y - here.y))

        others = [glyph for i, glyph in enumerate(scene.objects) if i != index]
        others.sort(key=distance, reverse=farthest)
        if len(others) < 2:
            return None
        near, far = sorted(distance(glyph) for glyph in others[:2])
        if far < NEAREST_MARGIN * near:
            return None
        choices = tuple(dict.fromkeys(caption(glyph) for glyph in others))
        return Question(name, _pick(random, texts), caption(others[0]), (index,), choices)

    return Family(name, draw, is_open=True)


def _count(name: str, text: str, same: Callable[[GlyphObject, GlyphObject], bool]) -> Family:
    """How many other objects of the picture share something with a region."""

    def answer_of(glyph: GlyphObject, scene: GlyphScene) -> str | None:
        others = sum(same(glyph, other) for other in scene.objects) - 1
        return NUMBERS[others] if others < len(NUMBERS) else None

    return _one(name, (text,), NUMBERS, answer_of)


def _draw_statement(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
    """A statement about one region to be confirmed or denied; a false one has one attribute changed."""
    wanted = _pick(random, YES_NO)
    index = random.randint(len(scene.objects))
    glyph = scene.objects[index]
    said = {"kind": glyph.kind, "colour": glyph.colour, "size": glyph.size}
    form = random.randint(4)
    if wanted == "no":
        changed = (0, 1, 2, random.randint(2))[form]
        attribute, words = list(ATTRIBUTES.items())[changed]
        said[attribute] = _pick(random, [word for word in words if word != said[attribute]])
    text = (
        with_articles(f"Is <region1> a {said['kind']}?"),
        f"Is <region1> {said['colour']}?",
        f"Is <region1> {said['size']}?",
        with_articles(f"Is <region1> a {said['colour']} {said['kind']}?"),
    )[form]
    return Question("statement", text, wanted, (index,), YES_NO)


def with_articles(text: str) -> str:
    """A text with "an" for "a" before vowels."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _side(words: str, lead: Callable[[GlyphObject, GlyphObject], float]) -> Family:
    """Whether one region lies on a side of another; `lead` says how far."""

    def answer_of(a: GlyphObject, b: GlyphObject) -> str | None:
        distance = lead(a, b)
        return None if abs(distance) < SIDE_MARGIN else "yes" if distance > 0 else "no"

    return _pair("side", (f"Is <region1> {words} <region2>?",), YES_NO, answer_of)


_SIDES = (
    _side("to the left of", lambda a, b: b.x - a.x),
    _side("to the right of", lambda a, b: a.x - b.x),
    _side("above", lambda a, b: b.y - a.y),
    _side("below", lambda a, b: a.y - b.y),
)


def _draw_side(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
    return _SIDES[random.randint(len(_SIDES))].draw(scene, random)


def _larger(a: GlyphObject, b: GlyphObject) -> str | None:
    order = list(SIZES)
    if a.size == b.size:
        return None
    return "region1" if order.index(a.size) > order.index(b.size) else "region2"


def _caption_and_place(glyph: GlyphObject, scene: GlyphScene) -> str | None:
    place = place_of(glyph, scene)
    return None if place is None else f"{caption(glyph)} at the {place}"


# --- the families -----------------------------------------------------------------------------------------------------


FAMILIES: dict[str, Family] = {family.name: family for family in (
    _one("kind", ("What is <region1>?", "What kind of object is <region1>?"), tuple(KINDS), lambda o, s: o.kind),
    _one("colour", ("What colour is <region1>?", "Which colour does <region1> have?"), tuple(COLOURS), lambda o, s: o.colour),
    _one("size", ("How big is <region1>?", "What size is <region1>?"), tuple(SIZES), lambda o, s: o.size),
    _one("place", ("Where is <region1>?", "Where in the picture is <region1>?"), PLACES, place_of),
    _open("caption", ("Describe <region1>.", "Give a caption of <region1>."), lambda o, s: caption(o)),
    _open("caption_place", ("What is <region1>, and where is it?",), _caption_and_place),
    Family("statement", _draw_statement),
    _pair("same_colour",
          ("Are <region1> and <region2> the same colour?", "Do <region1> and <region2> share a colour?"),
          YES_NO, lambda a, b: "yes" if a.colour == b.colour else "no"),
    _pair("same_kind",
          ("Are <region1> and <region2> the same kind of object?", "Do <region1> and <region2> show the same kind?"),
          YES_NO, lambda a, b: "yes" if a.kind == b.kind else "no"),
    _pair("larger",
          ("Which is larger, <region1> or <region2>?", "Which of <region1> and <region2> is bigger?"),
          ("region1", "region2"), _larger),
    Family("side", _draw_side),
    _neighbour("nearest", ("What is nearest to <region1>?", "Which object is closest to <region1>?"), farthest=False),
    _neighbour("farthest", ("What is farthest from <region1>?",), farthest=True),
    _count("count_colour", "How many other objects are the same colour as <region1>?", lambda a, b: a.colour == b.colour),
    _count("count_kind", "How many other objects are the same kind as <region1>?", lambda a, b: a.kind == b.kind),
)}  # fmt: skip
"""Every family by name. The benchmark draws each with a seed from its place here, so that a new one comes last."""

ATTRIBUTE_FAMILIES = ("kind", "colour", "size", "place", "statement")
CAPTION_FAMILIES = ("caption", "caption_place")
PAIR_FAMILIES = ("same_colour", "same_kind", "larger", "side")
CONTEXT_FAMILIES = ("nearest", "farthest", "count_colour", "count_kind")
"""Families about objects that the question does not name, which need picture context."""
