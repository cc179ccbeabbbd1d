"""The GlyphScenes benchmark: which questions are asked about which scenes. They are always the same, and balanced.

It goes through the scenes of a split and seed in order. Each family asks at most one question about a scene: the one whose
answer has come up least so far, or none if all answers that the scene offers are already ahead of the rarest one. So each
answer is right about equally often, and the score of guessing is known. The first n scenes have the same questions no matter
how many are evaluated. `finetune.evaluate` and `finetune.evaluate_glyphs` ask these questions. The data set's card is
`GLYPH_SCENES.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ..records import Record
from .questions import FAMILIES, Family, Question
from .records import record_of
from .scenes import VERSION, GlyphPicture, GlyphScene, draw_scene, make_scene

BENCHMARK_VERSION = "1"
TITLE = f"GlyphScenes {VERSION}, questions {BENCHMARK_VERSION}"
LONG_SIDE = 512
"""Pictures are drawn, and masks compared, with this many pixels on the long side."""

EVALUATION_SPLITS = ("test", "test-compositional", "test-crowded")
EVALUATION_SEEDS = (0, 1, 2)
EVALUATION_SCENES = 234
"""Scenes of each split and seed: the first ones."""

_OPEN_TRIES = 12
"""How often an open family is drawn until it has a question about what can be seen, and any other until its first."""
_TRIES_PER_CHOICE = 6
"""How often another is drawn for each of its answers: enough to meet most of those that the scene offers."""
_LEAD = 1
"""By how many questions an answer may lead a family's rarest."""


@dataclass(frozen=True)
class BenchmarkScene:
    """A scene of the benchmark, drawn, with the questions that are asked about it."""

    scene: GlyphScene
    picture: GlyphPicture
    questions: list[Question]


def benchmark_scenes(split: str = "test", seed: int = 0, count: int = EVALUATION_SCENES) -> Iterator[BenchmarkScene]:
    """The first `count` scenes of a split and seed."""
    balance = QuestionBalance()
    for index in range(count):
        scene = make_scene(index, split, seed)
        picture = draw_scene(scene, LONG_SIDE)
        yield BenchmarkScene(scene, picture, balance.questions(scene, picture.visible))


def benchmark_records(split: str = "test", seed: int = 0, count: int = EVALUATION_SCENES) -> Iterator[Record]:
    """`benchmark_scenes` as records with only those regions that are asked about; a question's type is its family.

    Every question is to be asked in a conversation of its own.
    """
    for one in benchmark_scenes(split, seed, count):
        record = record_of(one.scene, one.picture, one.questions)
        record.image_id = one.scene.index
        objects = dict.fromkeys(i for question in one.questions for i in question.objects)
        for region, i in zip(record.regions, objects, strict=True):
            region.id = f"{one.scene.index}/{i}"
        for turn, question in zip(record.conversations[::2], one.questions, strict=True):
            turn.options = list(question.choices)
        yield record


class QuestionBalance:
    """Draws the questions of one split and seed; scenes are to be given in order, from the first on."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}

    def questions(self, scene: GlyphScene, visible: Collection[int]) -> list[Question]:
        """The scene's questions, at most one of each family, about objects that can be seen (`visible`)."""
        drawn = (
            self._question(scene, family, np.random.RandomState([223, scene.seed, scene.index, number]), set(visible))
            for number, family in enumerate(FAMILIES.values())
        )
        return [question for question in drawn if question is not None]

    def _question(
        self, scene: GlyphScene, family: Family, random: np.random.RandomState, visible: set[int]
    ) -> Question | None:
        offered = _offered(scene, family, random, visible)
        if family.is_open or not offered:
            return next(iter(offered.values()), None)
        counts = self._counts[family.name]
        counts.update(dict.fromkeys(offered, 0))  # answers that some scene has offered: a split may lack others
        answer = min(offered, key=lambda answer: counts[answer])
        if counts[answer] > min(counts.values()) + _LEAD:
            return None
        counts[answer] += 1
        return offered[answer]


def _offered(
    scene: GlyphScene, family: Family, random: np.random.RandomState, visible: set[int]
) -> dict[str, Question]:
    """The answers that the scene offers, in the order in which they were drawn, each with its first question. An open family
    offers only one.
    """
    offered: dict[str, Question] = {}
    tries = _OPEN_TRIES
    while tries:
        tries -= 1
        question = family.draw(scene, random)
        if question is None or not set(question.objects) <= visible:
            continue
        if not offered:
            tries = 0 if family.is_open else _TRIES_PER_CHOICE * len(question.choices)
        offered.setdefault(question.answer, question)
    return offered
