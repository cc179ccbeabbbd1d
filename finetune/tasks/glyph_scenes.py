"""GlyphScenes: a question of every family that a drawn scene has one for, each asked alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..glyphs.questions import FAMILIES, draw_question, number_regions
from ..glyphs.scenes import draw_scene, make_scene
from ..records import GLYPH_SCHEME, Record, Region, Turn, encode_mask
from .items import EvaluationSet
from .questions import Questions

SCENES = 200
"""Scenes of the test split, unless `limit` says otherwise."""


@dataclass(kw_only=True)
class GlyphScenes(Questions):
    """Scenes that are drawn, so that there is no file to read."""

    def read_published(self) -> EvaluationSet:
        seed = self.options.seed
        return EvaluationSet([_record(i, seed) for i in range(self.options.limit or SCENES)], Path())


def _record(index: int, seed: int) -> Record:
    scene = make_scene(index, "test", seed)
    picture = draw_scene(scene)
    visible = set(np.flatnonzero(picture.masks.any(axis=(1, 2))).tolist())
    order: list[int] = []
    turns: list[Turn] = []
    for k, family in enumerate(FAMILIES):
        question = draw_question(scene, family, np.random.RandomState([223, seed, index, k]))
        if question is None or not set(question.objects) <= visible:
            continue
        text, answer = number_regions(question, order)
        turns += [Turn("user", text, family, list(question.choices)), Turn("assistant", answer)]
    height, width = picture.image.shape[:2]
    regions = [
        Region(
            picture.boxes[i].tolist(),
            mask=encode_mask(picture.masks[i]),
            label=scene.objects[i].kind,
            id=f"{index}/{i}",
        )
        for i in order
    ]
    image = f"{GLYPH_SCHEME}test/{seed}/{index}/512"
    return Record(image, width, height, regions, turns, "GlyphScenes", image_id=index)


GLYPH_SCENES = GlyphScenes(name="glyph_scenes", title="GlyphScenes", rules="exact answers 1, a question of each family")
