"""GlyphScenes as records: regions of a scene with a conversation of several questions about them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np

from ..config import knob
from ..data.source import Source
from ..records import GLYPH_SCHEME, Record, Region, Turn, encode_mask
from .language import caption
from .questions import FAMILIES, Question, draw_question
from .scenes import SPLITS, GlyphPicture, GlyphScene, draw_scene, make_scene

LICENSE = "Apache-2.0"


@dataclass(kw_only=True)
class GlyphScenesSource(Source):
    """GlyphScenes, the procedural world: scenes 0, 1, … of a seed with questions about them."""

    split: str = knob(default="train", help=f"one of {', '.join(SPLITS)}")
    seed: int = knob(default=0, help="seed of the scenes and the questions")
    scenes: int = knob(default=1000, help="how many scenes to ask about, counted from the first; each gives a record")
    turns: int = knob(default=6, help="questions in a record, at most")
    families: str = knob(
        default=",".join(FAMILIES),
        help="question families, separated by commas; one that is named twice is asked twice as often",
    )
    long_side: int = knob(default=512, help="longer side of the pictures, in pixels")
    all_regions: bool = knob(
        default=False,
        help="keep objects that no question is about, as picture context (see cache_regions --context_from)",
    )
    offering: str = knob(
        default="",
        help="only scenes that have a question with one of these answers, as FAMILY=ANSWER separated by commas, such as "
        "count_kind=two, which is rare; their other questions are kept",
    )
    workers: int = knob(default=2, help="processes that draw scenes")

    def records(self) -> Iterator[Record]:
        return self.limited()

    def limited(self, start: int = 0) -> Iterator[Record]:
        families = self._families()
        draw = partial(
            glyph_record,
            split=self.split,
            seed=self.seed,
            turns=self.turns,
            families=families,
            long_side=self.long_side,
            all_regions=self.all_regions,
        )
        numbers = islice(self._numbers(families), start, self.limit)
        if self.workers < 2:
            yield from map(draw, numbers)
            return
        with get_context("spawn").Pool(self.workers) as pool:
            yield from pool.imap(draw, numbers, chunksize=8)

    def _families(self) -> tuple[str, ...]:
        families = tuple(self.families.split(","))
        if unknown := [name for name in families if name not in FAMILIES]:
            raise ValueError(f"families has {', '.join(map(repr, unknown))}, expected some of {', '.join(FAMILIES)}.")
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split}, expected one of {', '.join(SPLITS)}.")
        return families

    def _numbers(self, families: Collection[str]) -> Iterator[int]:
        """The scenes to ask about: all, or those that have a question with one of the answers in `offering`."""
        if not self.offering:
            yield from range(self.scenes)
            return
        pairs = (pair.partition("=") for pair in self.offering.split(",") if pair)
        wanted = [(family, answer) for family, _, answer in pairs]
        if strange := [f"{family}={answer}" for family, answer in wanted if family not in families or not answer]:
            known = ", ".join(dict.fromkeys(families))
            raise ValueError(f"offering has {', '.join(strange)}, expected FAMILY=ANSWER, FAMILY one of {known}.")
        found = False
        for index in range(self.scenes):
            if _offers(make_scene(index, self.split, self.seed), wanted):
                found = True
                yield index
        if not found:
            raise ValueError(
                f"None of {self.scenes} scenes has a question of offering, {self.offering}: correct its answer."
            )


_TRIES = 24
"""How often each wanted family is drawn from a scene before it is passed over."""


def _offers(scene: GlyphScene, wanted: Collection[tuple[str, str]]) -> bool:
    """Whether a scene has a question with one of the wanted (family, answer)."""
    random = np.random.RandomState([101, scene.seed, scene.index])
    drawn = (draw_question(scene, family, random) for _ in range(_TRIES) for family, _ in wanted)
    return any(question is not None and (question.family, question.answer) in wanted for question in drawn)


def glyph_record(
    index: int,
    split: str,
    seed: int,
    *,
    turns: int = 6,
    families: Sequence[str] = tuple(FAMILIES),
    long_side: int = 512,
    all_regions: bool = False,
) -> Record:
    """The record of a scene: up to `turns` questions of random families. With `all_regions`, objects that no question is
    about come last.

    The same for the same arguments. A scene with nothing to ask about has an empty conversation.
    """
    scene = make_scene(index, split, seed)
    picture = draw_scene(scene, long_side)
    random = np.random.RandomState([97, seed, index])
    questions = draw_questions(scene, picture, families, turns, random)
    return record_of(scene, picture, questions, shown=picture.visible if all_regions else ())


def draw_questions(
    scene: GlyphScene, picture: GlyphPicture, families: Sequence[str], count: int, random: np.random.RandomState
) -> list[Question]:
    """Up to `count` different questions, each of a family drawn at random, about objects that can be seen."""
    visible = set(picture.visible)
    questions: list[Question] = []
    for _ in range(8 * count):
        question = draw_question(scene, families[random.randint(len(families))], random)
        if question is None or question in questions or not set(question.objects) <= visible:
            continue
        questions.append(question)
        if len(questions) == count:
            break
    return questions


def record_of(
    scene: GlyphScene, picture: GlyphPicture, questions: Iterable[Question], *, shown: Iterable[int] = ()
) -> Record:
    """A scene as a record: the questions as one conversation, regions numbered as they are first named; the objects in
    `shown` that no question is about come after them.
    """
    order: list[int] = []
    turns: list[Turn] = []
    for question in questions:
        text, answer = question.numbered(order)
        turns += [Turn("user", text, type=question.family), Turn("assistant", answer)]
    order += [number for number in shown if number not in order]
    height, width = picture.image.shape[:2]
    regions = [
        Region(
            box=picture.boxes[i].tolist(),
            mask=encode_mask(picture.masks[i]),
            label=scene.objects[i].kind,
            captions=[caption(scene.objects[i])],
        )
        for i in order
    ]
    address = f"{GLYPH_SCHEME}{scene.split}/{scene.seed}/{scene.index}/{max(height, width)}"
    return Record(address, width, height, regions, turns, "GlyphScenes", LICENSE)
