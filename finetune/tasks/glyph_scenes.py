"""GlyphScenes: balanced questions, each asked alone. The scenes are drawn, so there is no file to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..data.entries import Problems
from ..glyphs.containment import says_truth
from ..glyphs.questions import FAMILIES
from ..glyphs.records import EVALUATION_SCENES, benchmark_records
from .items import EvaluationSet, Item
from .predictions import Line, match_answers
from .questions import Questions

CONTAINED = "contained"
"""The score of free answers, each of which is right if it contains the truth."""


@dataclass(kw_only=True)
class GlyphScenes(Questions):
    """Scenes of the test split, drawn with the seed of the options."""

    columns: ClassVar[Sequence[str]] = ("accuracy", CONTAINED, "majority", "chance")

    def read_published(self) -> EvaluationSet:
        count = self.options.limit or EVALUATION_SCENES
        return EvaluationSet(list(benchmark_records(seed=self.options.seed, count=count)), Path())

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """Exact answers, and beside them those that contain the truth, where the type of a question is a family."""
        scores = super().score(row, lines, items, found)
        answers = match_answers(lines, items, row, Problems())  # problems have been named above
        right: dict[str, list[bool]] = defaultdict(list)
        for item in items:
            if item.type in FAMILIES:
                kinds = [region.label or "" for region in item.record.regions]
                right[item.type].append(says_truth(answers[item.id]["answer"], item.references[0], item.type, kinds))
        for family, own in right.items():
            scores["by_type"][family][CONTAINED] = sum(own) / len(own)
        if every := [one for own in right.values() for one in own]:
            scores[CONTAINED] = sum(every) / len(every)
        return scores


GLYPH_SCENES = GlyphScenes(
    name="glyph_scenes", title="GlyphScenes", rules="exact answers 1, balanced questions", version=2
)
