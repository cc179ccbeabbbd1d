"""Expressions that mean objects of GlyphScenes: one, several, or none. What each means follows from the scene alone.

An expression is drawn only if it can be understood in one way: objects near a border between places, or nearly as
large, as far or as far left as others, are not told apart by it. Expressions of no object make a fifth. Half of these
are near misses: all but one detail of them fits some object. No expression names a kind with a colour that its split
does not show together, for that would teach that there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..data.grounding import Expression
from .language import ATTRIBUTES
from .questions import BORDER_MARGIN, NEAREST_MARGIN, PLACES, SIDE_MARGIN, place_of, with_articles
from .scenes import COLOURS, HELD_OUT_PAIRS, KINDS, SIZES, SPLITS, GlyphObject, GlyphScene

NONE_SHARE = 0.2
"""Of the expressions of training records, the share that means nothing."""
SIZE_MARGIN = 1.15
"""The largest (smallest) of some objects is at least this factor larger (smaller) than the next, by its longer side."""
MOST_MEANT = 6
"""No expression means more objects than this."""

SIDES: dict[str, Callable[[GlyphObject, GlyphObject], float]] = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
"""How far an object lies on a side of another, in units of the picture's long side."""
_SIDE_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}
_ENDS: dict[str, tuple[tuple[str, ...], Callable[[GlyphObject], float]]] = {
    "left": (("leftmost",), lambda o: -o.x),
    "right": (("rightmost",), lambda o: o.x),
    "top": (("topmost", "highest"), lambda o: -o.y),
    "bottom": (("lowest", "bottommost"), lambda o: o.y),
}
"""Words for the object that is nearest to each edge, and how near it is."""
_EXTREMES: dict[str, int] = {"largest": 1, "biggest": 1, "smallest": -1}
ORDINALS = ("first", "second", "third", "fourth")
_IRREGULAR = {"die": "dice", "plus": "pluses", "scissors": "scissors"}


@dataclass(frozen=True)
class Description:
    """What is said of an object: some of its attributes, at least one."""

    size: str | None = None
    colour: str | None = None
    kind: str | None = None

    def fits(self, glyph: GlyphObject) -> bool:
        """Whether this is true of an object."""
        return all(said in (None, getattr(glyph, name)) for name, said in vars(self).items())

    def words(self, noun: str = "thing") -> str:
        """In words, e.g. "small red umbrella"; `noun` stands for a kind that is not said."""
        return " ".join(word for word in (self.size, self.colour, self.kind or noun) if word)

    def plural(self, noun: str = "thing") -> str:
        """The same for several objects."""
        *before, last = self.words(noun).split()
        return " ".join([*before, _IRREGULAR.get(last, f"{last}s")])

    def may_be_said(self, scene: GlyphScene) -> bool:
        """Whether it names no pair of kind and colour that the scene's split never shows."""
        pair = (self.kind, self.colour)
        return None in pair or (pair in HELD_OUT_PAIRS) == SPLITS[scene.split].held_out


Draw: TypeAlias = Callable[[GlyphScene, Sequence[int], np.random.RandomState], Expression | None]
"""Draws an expression about the visible objects of a scene; None if it found none that can be understood in one way."""


def draw_expressions(
    scene: GlyphScene, visible: Sequence[int], count: int, random: np.random.RandomState, lookups: float = 0.0
) -> list[Expression]:
    """Up to `count` different expressions of random types about the visible objects; `meant` are the objects' numbers.

    lookups: share of plain ones, as "the red things" (see `_lookup`), which teach what the others need first.
    """
    found: list[Expression] = []
    said: set[str] = set()
    for _ in range(4 * count):
        if lookups and random.random_sample() < lookups:
            names = [LOOKUP]
        else:
            is_none = random.random_sample() < NONE_SHARE
            names = [NONE] if is_none else random.permutation([name for name in TYPES if name != NONE]).tolist()
        drawn = (draw_expression(scene, visible, name, random) for name in names)
        one = next((one for one in drawn if one is not None and one.phrase not in said), None)
        if one is not None:
            said.add(one.phrase)
            found.append(one)
        if len(found) == count:
            break
    return found


TRIES = 12


def draw_expression(
    scene: GlyphScene, visible: Sequence[int], name: str, random: np.random.RandomState
) -> Expression | None:
    """An expression of the type `name`; None if `TRIES` draws gave none."""
    for _ in range(TRIES):
        one = (_lookup if name == LOOKUP else TYPES[name])(scene, visible, random)
        if one is not None and len(one.meant) <= MOST_MEANT:
            return replace(one, phrase=with_articles(one.phrase), type=name)
    return None


# --- parts ------------------------------------------------------------------------------------------------------------


def _pick(random: np.random.RandomState, items: Sequence[str]) -> str:
    return items[random.randint(len(items))]


def _one_of(random: np.random.RandomState, objects: Sequence[int]) -> int:
    return int(objects[random.randint(len(objects))])


def _noun(random: np.random.RandomState) -> str:
    return _pick(random, ("thing", "object"))


def _describe(glyph: GlyphObject, random: np.random.RandomState, without: Sequence[str] = ()) -> Description:
    """Some attributes of an object, chosen at random; none of those in `without`."""
    names = [name for name in ATTRIBUTES if name not in without]
    kept = [name for name in names if random.random_sample() < (0.8 if name == "kind" else 0.5)]
    kept = kept or [_pick(random, names)]
    return Description(**{name: getattr(glyph, name) for name in kept})


def _fitting(said: Description, scene: GlyphScene, visible: Sequence[int]) -> list[int]:
    return [i for i in visible if said.fits(scene.objects[i])]


def _group(
    scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState, least: int, without: Sequence[str] = ()
) -> tuple[Description | None, list[int]]:
    """Some visible objects that share a description, at least so many; or all of them, whose description is None."""
    if random.random_sample() < 0.15:
        return None, list(visible) if len(visible) >= least else []
    said = _describe(scene.objects[_one_of(random, visible)], random, without)
    objects = _fitting(said, scene, visible)
    return said, objects if len(objects) >= least else []


def _words(said: Description | None, random: np.random.RandomState) -> str:
    return said.words(_noun(random)) if said else _noun(random)


def _landmark(
    scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState
) -> tuple[int, Description] | None:
    """An object that its description, which says its kind, singles out."""
    landmark = _one_of(random, visible)
    glyph = scene.objects[landmark]
    colour = glyph.colour if random.random_sample() < 0.5 else None
    for said in (Description(None, colour, glyph.kind), Description(None, glyph.colour, glyph.kind)):
        if _fitting(said, scene, visible) == [landmark]:
            return landmark, said
    return None


# --- one object -------------------------------------------------------------------------------------------------------


def _attribute(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The small red umbrella."""
    target = _one_of(random, visible)
    said = _describe(scene.objects[target], random)
    if _fitting(said, scene, visible) != [target]:
        return None
    return Expression(_attribute_words(said, random), (target,))


def _attribute_words(said: Description, random: np.random.RandomState) -> str:
    noun = _noun(random)
    forms = [f"the {said.words(noun)}", f"the {said.words(noun)}", said.words(noun)]
    if said.colour and said.kind:
        forms.append(f"the {replace(said, colour=None).words()} that is {said.colour}")
    if said.size and said.kind:
        forms.append(f"the {replace(said, size=None).words()} that is {said.size}")
    return _pick(random, forms)


def _place(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The star at the top left. At the top may mean its middle or all of it: both must say the same."""
    target = _one_of(random, visible)
    place = place_of(scene.objects[target], scene)
    said = _describe(scene.objects[target], random)
    if place is None or not _is_at(place, target, _fitting(said, scene, visible), scene):
        return None
    return Expression(_place_words(said, place, random), (target,))


def _is_at(place: str, target: int, objects: Sequence[int], scene: GlyphScene) -> bool:
    """Whether, of these objects, only the target lies at a place, even if the place is understood as a whole side."""
    others = [place_of(scene.objects[i], scene) for i in objects if i != target]
    return all(other is not None and not set(place.split()) <= set(other.split()) for other in others)


def _place_words(said: Description, place: str, random: np.random.RandomState) -> str:
    words = said.words(_noun(random))
    if place == "center":
        return f"the {words} {_pick(random, ('in the center', 'in the middle', 'in the middle of the picture'))}"
    return f"the {words} {_pick(random, (f'at the {place}', f'at the {place} of the picture', f'on the {place}'))}"


def _comparison(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The largest red thing, or the leftmost."""
    if random.random_sample() < 0.5:
        said, objects = _group(scene, visible, random, 2, without=("size",))
        word = _pick(random, list(_EXTREMES))
        ranked = sorted(objects, key=lambda i: -_EXTREMES[word] * scene.objects[i].extent)
        if not ranked:
            return None
        extents = sorted((scene.objects[i].extent for i in ranked[:2]), reverse=True)
        if extents[0] < SIZE_MARGIN * extents[1]:
            return None
    else:
        said, objects = _group(scene, visible, random, 2)
        words, nearness = _ENDS[_pick(random, list(_ENDS))]
        word = _pick(random, words)
        ranked = sorted(objects, key=lambda i: -nearness(scene.objects[i]))
        if not ranked or nearness(scene.objects[ranked[0]]) - nearness(scene.objects[ranked[1]]) < SIDE_MARGIN:
            return None
    return Expression(f"the {word} {_words(said, random)}", (ranked[0],))


def _relation(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The star left of the anchor, or nearest to it."""
    found = _landmark(scene, visible, random)
    if found is None:
        return None
    landmark, other = found
    said, objects = _group(scene, [i for i in visible if i != landmark] or [landmark], random, 1)
    objects = [i for i in objects if i != landmark]
    words = f"the {_words(said, random)}"
    if random.random_sample() < 0.5:
        side = _pick(random, list(SIDES))
        there = _on_side(side, landmark, objects, scene)
        if there is None or len(there) != 1:
            return None
        return Expression(f"{words} {_pick(random, _SIDE_WORDS[side])} the {other.words()}", (there[0],))
    if len(objects) < 2:
        return None
    here, is_far = scene.objects[landmark], bool(random.random_sample() < 0.3)
    distances = {i: float(np.hypot(scene.objects[i].x - here.x, scene.objects[i].y - here.y)) for i in objects}
    ranked = sorted(objects, key=lambda i: -distances[i] if is_far else distances[i])
    near, far = sorted(distances[i] for i in ranked[:2])
    if far < NEAREST_MARGIN * near:
        return None
    form = _pick(random, ("farthest from",) if is_far else ("nearest to", "closest to"))
    return Expression(f"{words} {form} the {other.words()}", (ranked[0],))


def _on_side(side: str, landmark: int, objects: Sequence[int], scene: GlyphScene) -> list[int] | None:
    """Which of these objects lie on a side of the landmark; None if that is not clear of one of them."""
    leads = {i: SIDES[side](scene.objects[i], scene.objects[landmark]) for i in objects}
    if any(abs(lead) < SIDE_MARGIN for lead in leads.values()):
        return None
    return [i for i, lead in leads.items() if lead > 0]


def _ordinal(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The second star from the left."""
    said, objects = _group(scene, visible, random, 2)
    edge = _pick(random, list(_ENDS))
    nearness = _ENDS[edge][1]
    ranked = sorted(objects, key=lambda i: -nearness(scene.objects[i]))
    place = random.randint(min(len(ranked), len(ORDINALS))) if ranked else 0
    around = ranked[max(place - 1, 0) : place + 2]
    gaps = -np.diff([nearness(scene.objects[i]) for i in around])
    if not ranked or (gaps < SIDE_MARGIN).any():
        return None
    return Expression(f"the {ORDINALS[place]} {_words(said, random)} from the {edge}", (ranked[place],))


def _negation(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The star that is not green, where there is a green one."""
    name = _pick(random, list(ATTRIBUTES))
    said, objects = _group(scene, visible, random, 2, without=(name,))
    if said is None or not objects:
        return None
    value = getattr(scene.objects[_one_of(random, objects)], name)
    left = [i for i in objects if getattr(scene.objects[i], name) != value]
    if len(left) != 1:
        return None
    form = _pick(random, ("that is not", "which is not", "that isn't"))
    return Expression(f"the {said.words(_noun(random))} {form} {f'a {value}' if name == 'kind' else value}", (left[0],))


# --- several and none -------------------------------------------------------------------------------------------------


def _several(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """All stars, everything blue, both umbrellas, everything left of the anchor, everything but the anchor."""
    form = random.randint(4)
    if form < 2:
        said, objects = _group(scene, visible, random, 2)
        if said is None or not objects:
            return None
        noun = _noun(random)
        forms = [f"all {said.plural(noun)}", f"all the {said.plural(noun)}"]
        if said.kind != "scissors":
            forms.append(f"every {said.words(noun)}")
        if said.kind is None:
            forms.append(f"everything {' and '.join(word for word in (said.size, said.colour) if word)}")
        if len(objects) == 2:
            forms += [f"both {said.plural(noun)}", f"the two {said.plural(noun)}"]
        return Expression(_pick(random, forms), tuple(objects))
    found = _landmark(scene, visible, random)
    if found is None:
        return None
    landmark, other = found
    others = [i for i in visible if i != landmark]
    if form == 2:
        there: list[int] | None = others
        words = f"everything {_pick(random, ('but', 'except'))} the {other.words()}"
    else:
        side = _pick(random, list(SIDES))
        there = _on_side(side, landmark, others, scene)
        words = f"everything {_pick(random, _SIDE_WORDS[side])} the {other.words()}"
    return Expression(words, tuple(there)) if there is not None and len(there) > 1 else None


def _none(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """Something that is not there: as often a near miss as a kind and a colour that no object has."""
    draw = _near_miss if random.random_sample() < 0.5 else _far_miss
    return next((one for _ in range(TRIES) if (one := draw(scene, visible, random)) is not None), None)


def _far_miss(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """A kind that is not there, and if a colour, then one that is not there either."""
    kinds, colours = ({getattr(scene.objects[i], name) for i in visible} for name in ("kind", "colour"))
    absent = [word for word in COLOURS if word not in colours]
    size = _pick(random, list(SIZES)) if random.random_sample() < 0.3 else None
    colour = _pick(random, absent) if absent and random.random_sample() < 0.7 else None
    said = Description(size, colour, _pick(random, [word for word in KINDS if word not in kinds]))
    return Expression(_attribute_words(said, random), ()) if said.may_be_said(scene) else None


def _near_miss(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """A near miss: it differs from an object in an attribute, its place, or the side of another on which it lies."""
    target = _one_of(random, visible)
    glyph, form = scene.objects[target], random.randint(4)
    if form < 2:
        name = _pick(random, list(ATTRIBUTES))
        other = _pick(random, [word for word in ATTRIBUTES[name] if word != getattr(glyph, name)])
        about = Description(**{n: getattr(glyph, n) for n in ATTRIBUTES if n == name or random.random_sample() < 0.7})
        said = replace(about, **{name: other})
        is_alone = sum(word is not None for word in vars(said).values()) < 2  # then nothing is shared
        if is_alone or not said.may_be_said(scene) or _fitting(said, scene, visible):
            return None
        return Expression(_attribute_words(said, random), ())
    said = _describe(glyph, random)
    objects = _fitting(said, scene, visible)
    if form == 2:
        place = _pick(random, PLACES)
        if not _is_at(place, -1, objects, scene):
            return None
        return Expression(_place_words(said, place, random), ())
    found = _landmark(scene, visible, random)
    if found is None or found[0] in objects:
        return None
    side = _pick(random, list(SIDES))
    if _on_side(side, found[0], objects, scene) != []:
        return None
    words = f"the {said.words(_noun(random))} {_pick(random, _SIDE_WORDS[side])} the {found[1].words()}"
    return Expression(words, ())


# --- plain ones, for training alone -----------------------------------------------------------------------------------

_LOOKED_UP = {("colour",): 0.45, ("kind",): 0.35, ("colour", "kind"): 0.15, ("size",): 0.05}
_ABSENT_SHARE = 0.25
"""Of lookups, the share that asks for any word at all, which mostly no object fits."""
_PLACE_SHARE = 0.2
_HALVES: dict[str, Callable[[float, float], float]] = {
    "left": lambda x, y: 0.5 - x,
    "right": lambda x, y: x - 0.5,
    "top": lambda x, y: 0.5 - y,
    "bottom": lambda x, y: y - 0.5,
}
"""How far a point, in units of the picture, lies inside each half of it."""
_UNMISTAKABLE = ("top left", "top right", "center", "bottom left", "bottom right")
"""Places that nobody takes for a whole side."""


def _lookup(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The red things, the star, the red stars: whatever has a colour, a kind, a size or a place; often nothing."""
    if random.random_sample() < _PLACE_SHARE:
        return _whereabouts(scene, visible, random)
    names = list(_LOOKED_UP)[random.choice(len(_LOOKED_UP), p=list(_LOOKED_UP.values()))]
    if random.random_sample() < _ABSENT_SHARE:
        said = Description(**{name: _pick(random, list(ATTRIBUTES[name])) for name in names})
    else:
        glyph = scene.objects[_one_of(random, visible)]
        said = Description(**{name: getattr(glyph, name) for name in names})
    if not said.may_be_said(scene):
        return None
    objects, noun = _fitting(said, scene, visible), _noun(random)
    return Expression(f"the {said.plural(noun) if len(objects) > 1 else said.words(noun)}", tuple(objects))


def _whereabouts(scene: GlyphScene, visible: Sequence[int], random: np.random.RandomState) -> Expression | None:
    """The things in the left half, the thing at the top left; None if an object lies on a border."""
    if random.random_sample() < 0.5:
        half = _pick(random, list(_HALVES))
        inside = {
            i: _HALVES[half](scene.objects[i].x / scene.width, scene.objects[i].y / scene.height) for i in visible
        }
        if any(abs(lead) < BORDER_MARGIN for lead in inside.values()):
            return None
        objects, where = [i for i, lead in inside.items() if lead > 0], f"in the {half} half"
    else:
        place = _pick(random, _UNMISTAKABLE)
        places = {i: place_of(scene.objects[i], scene) for i in visible}
        if None in places.values():
            return None
        objects = [i for i, there in places.items() if there == place]
        where = "in the middle" if place == "center" else f"at the {place}"
    said, noun = Description(), _noun(random)
    return Expression(f"the {said.plural(noun) if len(objects) > 1 else said.words(noun)} {where}", tuple(objects))


NONE, LOOKUP = "none", "lookup"
TYPES: dict[str, Draw] = {
    "attribute": _attribute,
    "place": _place,
    "comparison": _comparison,
    "relation": _relation,
    "ordinal": _ordinal,
    "negation": _negation,
    "several": _several,
    NONE: _none,
}
"""Types of expressions by name. The benchmark draws each with a seed from its place here, so that a new one comes last."""
