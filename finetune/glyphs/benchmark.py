"""The GlyphScenes benchmark: which questions are asked about which scenes, the same for everybody, and balanced.

Scenes of a split and seed are gone through in order. Of each, every family asks at most one question: the one whose answer
has come up least so far, and none if every answer that the scene offers is already ahead of the rarest. So each answer that
a split's scenes offer is the truth about equally often, and guessing is known. The first n scenes have the same questions
whether n or more are evaluated. The data set's card is `GLYPH_SCENES.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from .questions import FAMILIES, Question, draw_question
from .scenes import GlyphScene

BENCHMARK_VERSION = "1"
LONG_SIDE = 512
"""Pictures are drawn, and masks compared, with this many pixels on the long side."""

EVALUATION_SPLITS = ("test", "test-compositional", "test-crowded")
EVALUATION_SEEDS = (0, 1, 2)

_OPEN = ("caption", "caption_place", "nearest", "farthest")
"""Families whose answers are too many to balance one by one; the commonest is still rare."""
_LEAD = 1
"""By how many questions an answer may lead a family's rarest."""


class QuestionBalance:
    """Draws the questions of one split and seed; scenes are to be given in order, from the first on."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}

    def questions(self, scene: GlyphScene, visible: Collection[int]) -> list[Question]:
        """The scene's questions, at most one of each family, about objects that can be seen (`visible`)."""
        found = []
        for number, family in enumerate(FAMILIES):
            random = np.random.RandomState([223, scene.seed, scene.index, number])
            question = self._pick(scene, family, random, set(visible))
            if question is not None:
                found.append(question)
        return found

    def _pick(
        self, scene: GlyphScene, family: str, random: np.random.RandomState, visible: set[int]
    ) -> Question | None:
        counts = self._counts[family]
        candidates: dict[str, Question] = {}
        tries = 12
        while tries:
            tries -= 1
            question = draw_question(scene, family, random)
            if question is None or not set(question.objects) <= visible:
                continue
            if not candidates and family not in _OPEN:
                tries = 6 * len(question.choices)  # enough to meet most answers that the scene offers
            candidates.setdefault(question.answer, question)
            if family in _OPEN:
                return question
        if not candidates:
            return None
        counts.update(dict.fromkeys(candidates, 0))  # answers that some scene has offered: a split may lack others
        answer = min(candidates, key=lambda answer: counts[answer])
        if counts[answer] > min(counts.values()) + _LEAD:
            return None
        counts[answer] += 1
        return candidates[answer]
