"""GlyphScenes: balanced questions about scenes that are drawn, so that there is no file to read; each is asked alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..glyphs.records import EVALUATION_SCENES, benchmark_records
from .items import EvaluationSet
from .questions import Questions


@dataclass(kw_only=True)
class GlyphScenes(Questions):
    """Scenes of the test split; the seed is the options'."""

    def read_published(self) -> EvaluationSet:
        count = self.options.limit or EVALUATION_SCENES
        return EvaluationSet(list(benchmark_records(seed=self.options.seed, count=count)), Path())


GLYPH_SCENES = GlyphScenes(
    name="glyph_scenes", title="GlyphScenes", rules="exact answers 1, balanced questions", version=2
)
