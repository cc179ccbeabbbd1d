"""GlyphScenes: balanced questions, each asked alone. The scenes are drawn, so there is no file to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..glyphs.records import EVALUATION_SCENES, benchmark_records
from .items import EvaluationSet
from .questions import Questions


@dataclass(kw_only=True)
class GlyphScenes(Questions):
    """Scenes of the test split, drawn with the seed of the options."""

    def read_published(self) -> EvaluationSet:
        count = self.options.limit or EVALUATION_SCENES
        return EvaluationSet(list(benchmark_records(seed=self.options.seed, count=count)), Path())


GLYPH_SCENES = GlyphScenes(
    name="glyph_scenes", title="GlyphScenes", rules="exact answers 1, balanced questions", version=2
)
