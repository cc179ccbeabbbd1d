"""Questions about regions of GlyphScenes with their answers, by family, each balanced so that guessing is known.

A question is drawn by choosing its answer first, uniformly, and then a region or a pair that has it; a scene without
one gives no question. Truth comes from the scene's geometry, with margins where a picture could be read either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .language import caption
from .scenes import COLOURS, KINDS, SIZES, GlyphObject, GlyphScene

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


def place_of(glyph: GlyphObject, scene: GlyphScene) -> str | None:
    """Which of the nine places holds an object's centre; None if it lies on a border."""
    x, y = glyph.x / scene.width, glyph.y / scene.height
    if any(abs(value - border) < BORDER_MARGIN for value in (x, y) for border in (1 / 3, 2 / 3)):
        return None
    return PLACES[3 * min(int(3 * y), 2) + min(int(3 * x), 2)]


def draw_question(scene: GlyphScene, family: str, random: np.random.RandomState) -> Question | None:
    """A question of a family about a scene, or None if the scene has none with the answer that was drawn."""
    if family not in FAMILIES:
        raise ValueError(f"Got question family {family!r}, expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[family](scene, random)


def _pick(random: np.random.RandomState, items: Sequence[str]) -> str:
    return items[random.randint(len(items))]


def _one(
    family: str,
    texts: Sequence[str],
    choices: Sequence[str],
    answer_of: Callable[[GlyphObject, GlyphScene], str | None],
) -> Callable[[GlyphScene, np.random.RandomState], Question | None]:
    """A family about one region, whose answer is a function of the object; answers are drawn uniformly."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        wanted = _pick(random, choices)
        fitting = [i for i, glyph in enumerate(scene.objects) if answer_of(glyph, scene) == wanted]
        if not fitting:
            return None
        return Question(family, _pick(random, texts), wanted, (fitting[random.randint(len(fitting))],), tuple(choices))

    return draw


def _any(
    family: str, texts: Sequence[str], answer_of: Callable[[GlyphObject, GlyphScene], str | None]
) -> Callable[[GlyphScene, np.random.RandomState], Question | None]:
    """A family about one region whose answers are too many to balance one by one: the region is drawn uniformly."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        index = random.randint(len(scene.objects))
        answer = answer_of(scene.objects[index], scene)
        if answer is None:
            return None
        kinds, colours, sizes = list(KINDS), list(COLOURS), list(SIZES)
        choices = tuple(f"a {s} {c} {k}" for s in sizes for c in colours for k in kinds)
        return Question(family, _pick(random, texts), answer, (index,), choices)

    return draw


def _pair(
    family: str,
    texts: Sequence[str],
    choices: tuple[str, str],
    answer_of: Callable[[GlyphObject, GlyphObject], str | None],
) -> Callable[[GlyphScene, np.random.RandomState], Question | None]:
    """A family that compares two regions, with two answers drawn evenly."""

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
        return Question(family, _pick(random, texts), wanted, fitting[random.randint(len(fitting))], choices)

    return draw


def _neighbour(
    family: str, texts: Sequence[str], farthest: bool
) -> Callable[[GlyphScene, np.random.RandomState], Question | None]:
    """What lies nearest to, or farthest from, a region: the answer is the other object's caption."""

    def draw(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
        index = random.randint(len(scene.objects))
        here = scene.objects[index]
        others = [glyph for i, glyph in enumerate(scene.objects) if i != index]
        others.sort(key=lambda o: np.hypot(o.x - here.x, o.y - here.y), reverse=farthest)
        if len(others) < 2:
            return None
        first, second = (float(np.hypot(o.x - here.x, o.y - here.y)) for o in others[:2])
        if max(first, second) < NEAREST_MARGIN * min(first, second):
            return None
        choices = tuple(dict.fromkeys(caption(o) for o in others))
        return Question(family, _pick(random, texts), caption(others[0]), (index,), choices)

    return draw


def _count(family: str, texts: Sequence[str], same: Callable[[GlyphObject, GlyphObject], bool]) -> Callable[
    [GlyphScene, np.random.RandomState], Question | None
]:  # fmt: skip
    """How many other objects of the picture share something with a region."""

    def answer_of(glyph: GlyphObject, scene: GlyphScene) -> str | None:
        others = sum(same(glyph, other) for other in scene.objects) - 1
        return NUMBERS[others] if others < len(NUMBERS) else None

    return _one(family, texts, NUMBERS, answer_of)


def _statement(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
    """A statement about one region to be confirmed or denied; a false one has one attribute changed."""
    wanted = _pick(random, ("yes", "no"))
    index = random.randint(len(scene.objects))
    glyph = scene.objects[index]
    kind, colour, size = glyph.kind, glyph.colour, glyph.size
    form = random.randint(4)
    if wanted == "no":
        which = (0, 1, 2, random.randint(2))[form]
        if which == 0:
            kind = _pick(random, [k for k in KINDS if k != kind])
        elif which == 1:
            colour = _pick(random, [c for c in COLOURS if c != colour])
        else:
            size = _pick(random, [s for s in SIZES if s != size])
    article = "an" if kind[0] in "aeiou" else "a"
    colour_article = "an" if colour[0] in "aeiou" else "a"
    text = (
        f"Is <region1> {article} {kind}?",
        f"Is <region1> {colour}?",
        f"Is <region1> {size}?",
        f"Is <region1> {colour_article} {colour} {kind}?",
    )[form]
    return Question("statement", text, wanted, (index,), ("yes", "no"))


def _side(word: str, sign_of: Callable[[GlyphObject, GlyphObject], float]) -> Callable[
    [GlyphScene, np.random.RandomState], Question | None
]:  # fmt: skip
    def answer_of(a: GlyphObject, b: GlyphObject) -> str | None:
        distance = sign_of(a, b)
        return None if abs(distance) < SIDE_MARGIN else "yes" if distance > 0 else "no"

    return _pair("side", (f"Is <region1> {word} <region2>?",), ("yes", "no"), answer_of)


_SIDES = (
    _side("to the left of", lambda a, b: b.x - a.x),
    _side("to the right of", lambda a, b: a.x - b.x),
    _side("above", lambda a, b: b.y - a.y),
    _side("below", lambda a, b: a.y - b.y),
)


def _draw_side(scene: GlyphScene, random: np.random.RandomState) -> Question | None:
    return _SIDES[random.randint(len(_SIDES))](scene, random)


def _larger(a: GlyphObject, b: GlyphObject) -> str | None:
    order = list(SIZES)
    if a.size == b.size:
        return None
    return "region1" if order.index(a.size) > order.index(b.size) else "region2"


def _whole(glyph: GlyphObject, scene: GlyphScene) -> str | None:
    place = place_of(glyph, scene)
    return None if place is None else f"{caption(glyph)} at the {place}"


FAMILIES: dict[str, Callable[[GlyphScene, np.random.RandomState], Question | None]] = {
    "kind": _one(
        "kind", ("What is <region1>?", "What kind of object is <region1>?"), tuple(KINDS), lambda o, s: o.kind
    ),
    "colour": _one(
        "colour",
        ("What colour is <region1>?", "Which colour does <region1> have?"),
        tuple(COLOURS),
        lambda o, s: o.colour,
    ),
    "size": _one("size", ("How big is <region1>?", "What size is <region1>?"), tuple(SIZES), lambda o, s: o.size),
    "place": _one("place", ("Where is <region1>?", "Where in the picture is <region1>?"), PLACES, place_of),
    "caption": _any("caption", ("Describe <region1>.", "Give a caption of <region1>."), lambda o, s: caption(o)),
    "caption_place": _any("caption_place", ("What is <region1>, and where is it?",), _whole),
    "statement": _statement,
    "same_colour": _pair(
        "same_colour",
        ("Are <region1> and <region2> the same colour?", "Do <region1> and <region2> share a colour?"),
        ("yes", "no"),
        lambda a, b: "yes" if a.colour == b.colour else "no",
    ),
    "same_kind": _pair(
        "same_kind",
        ("Are <region1> and <region2> the same kind of object?", "Do <region1> and <region2> show the same kind?"),
        ("yes", "no"),
        lambda a, b: "yes" if a.kind == b.kind else "no",
    ),
    "larger": _pair(
        "larger",
        ("Which is larger, <region1> or <region2>?", "Which of <region1> and <region2> is bigger?"),
        ("region1", "region2"),
        _larger,
    ),
    "side": _draw_side,
    "nearest": _neighbour("nearest", ("What is nearest to <region1>?", "Which object is closest to <region1>?"), False),
    "farthest": _neighbour("farthest", ("What is farthest from <region1>?",), True),
    "count_colour": _count(
        "count_colour",
        ("How many other objects are the same colour as <region1>?",),
        lambda a, b: a.colour == b.colour,
    ),
    "count_kind": _count(
        "count_kind", ("How many other objects are the same kind as <region1>?",), lambda a, b: a.kind == b.kind
    ),
}
"""Every family by name. Those from `nearest` on ask about objects outside the named regions, and need picture context."""

ATTRIBUTE_FAMILIES = ("kind", "colour", "size", "place", "statement")
CAPTION_FAMILIES = ("caption", "caption_place")
PAIR_FAMILIES = ("same_colour", "same_kind", "larger", "side")
CONTEXT_FAMILIES = ("nearest", "farthest", "count_colour", "count_kind")
