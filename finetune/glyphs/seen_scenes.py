"""Scenes of the benchmark, encoded, and what the region tokenizer alone makes of their objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from llm_bridge import PictureContext, RegionBridgeProcessor
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer

from ..metrics import mask_iou, next_click
from .language import caption, concept_banks
from .records import BenchmarkScene
from .scenes import GlyphPicture, GlyphScene


@dataclass(frozen=True)
class SeenScenes:
    """Some scenes of the benchmark, encoded.

    tokens: those of all visible objects, scene by scene, from their tight boxes.
    """

    scenes: Sequence[BenchmarkScene]
    features: ImageFeatures
    tokens: RegionTokens
    _contexts: dict[PictureContext, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def encode(cls, tokenizer: TapRegionTokenizer, scenes: Sequence[BenchmarkScene]) -> SeenScenes:
        features = tokenizer.embed_image([one.picture.image for one in scenes])
        boxes = [one.picture.boxes[one.picture.visible].tolist() for one in scenes]
        return cls(scenes, features, tokenizer.encode(features=features, boxes=boxes, with_masks=True))

    def tokens_of(self, number: int, objects: Sequence[int]) -> RegionTokens:
        """Tokens of some objects of the scene with this number."""
        visible = self.scenes[number].picture.visible
        return self.tokens.of_image(number)[[visible.index(i) for i in objects]]

    def contexts(self, processor: RegionBridgeProcessor) -> Sequence[Tensor | None]:
        """What a bridge is shown around the regions of each scene; objects are looked for once."""
        context = processor.context
        if not context.slots:
            return [None] * len(self.scenes)
        if context not in self._contexts:
            self._contexts[context] = context.encode(processor.encoder.tokenizer, self.features)
        return self._contexts[context]

    def boxes_of(self, number: int, objects: Sequence[int]) -> list[list[float]]:
        """True boxes, in pixels, of some objects of the scene with this number."""
        return self.scenes[number].picture.boxes[list(objects)].tolist()


def region_lines(tokenizer: TapRegionTokenizer, seen: SeenScenes) -> Iterator[dict[str, Any]]:
    """A line for each visible object: IoU of its mask from a box and from two points, concepts, and native caption.

    One point is the mask's innermost pixel, as in the single-point evaluation of Segment Anything, the other a random one.
    """
    by_centre, by_point = (
        tokenizer.encode(
            features=seen.features,
            points=points,
            point_labels=[[[1]] * len(own) for own in points],
            with_masks=True,
        )
        for points in (
            [_centres(one.picture) for one in seen.scenes],
            [_random_points(one.scene, one.picture) for one in seen.scenes],
        )
    )
    captions = tokenizer.caption(seen.tokens)
    kinds, colours, sizes = (
        [top[0][0] for top in tokenizer.classify(seen.tokens, 1, concepts=bank)] for bank in concept_banks()
    )
    objects = [(one, i) for one in seen.scenes for i in one.picture.visible]
    for row, (one, i) in enumerate(objects):
        glyph, mask = one.scene.objects[i], one.picture.masks[i]
        yield {
            "task": "region",
            **place_in_benchmark(one.scene),
            "object": i,
            "iou_box": _iou(seen.tokens.mask_parts[row], mask),
            "iou_centre": _iou(by_centre.mask_parts[row], mask),
            "iou_point": _iou(by_point.mask_parts[row], mask),
            "kind": [kinds[row], glyph.kind],
            "colour": [colours[row], glyph.colour],
            "size": [sizes[row], glyph.size],
            "caption": [captions[row], caption(glyph)],
        }


def place_in_benchmark(scene: GlyphScene) -> dict[str, Any]:
    """What every line says of its scene."""
    return {"split": scene.split, "seed": scene.seed, "scene": scene.index}


def _centres(picture: GlyphPicture) -> list[list[list[float]]]:
    return [[next_click(None, picture.masks[i])[0]] for i in picture.visible]


def _random_points(scene: GlyphScene, picture: GlyphPicture) -> list[list[list[float]]]:
    random = np.random.RandomState([211, scene.seed, scene.index])
    pixels = [np.argwhere(picture.masks[i]) for i in picture.visible]
    return [[own[random.randint(len(own))][::-1].tolist()] for own in pixels]


def _iou(predicted: Any, truth: np.ndarray) -> float:
    """IoU of a region's mask, wherever it lies, and the true one (H, W)."""
    return mask_iou(predicted.cpu().numpy(), truth)
