"""The pictures and regions of prompts, and the feature rows that their placeholders stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tap_tokenizer import ImageFeatures, RegionPrompt, RegionTokens, TapRegionTokenizer

from .chat_markup import Shown
from .configuration_bridge import FeatureLayout
from .feature_rows import region_features
from .picture_context import PictureContext
from .pictures import PictureCache, content_key, open_picture


@dataclass
class Sample:
    """One prompt's pictures and regions: each region is the number of its picture, from 0, and what points at it."""

    images: list[Any] = field(default_factory=list)
    regions: list[tuple[int, RegionPrompt]] = field(default_factory=list)


def read_sample(images: Any, prompts: dict[str, Any], name: str = "The text", where: str = "") -> Sample:
    """A picture or a list of them, and prompts by kind (boxes, …), of one text; of several pictures, a list for each.

    `name` is what errors call the text, and `where` begins those of its prompts.
    """
    prompts = {key: value for key, value in prompts.items() if value is not None}
    if images is None:
        if any(len(value) for value in prompts.values()):
            raise ValueError(f"{name} has regions but no picture: give images=….")
        return Sample()
    if not isinstance(images, (list, tuple)):
        return Sample([images], [(0, prompt) for prompt in RegionPrompt.read_lists(**prompts, where=where)])
    for key, value in prompts.items():
        if len(value) != len(images):
            raise ValueError(f"{name} has {len(images)} images and {key} for {len(value)}: give one list per image.")
    regions = []
    for number in range(len(images)):
        own = {key: value[number] for key, value in prompts.items()}
        regions += [(number, prompt) for prompt in RegionPrompt.read_lists(**own, where=f"{where}Image {number}: ")]
    return Sample(list(images), regions)


def read_samples(count: int, images: Any, prompts: dict[str, Any]) -> list[Sample]:
    """Pictures and prompts of `count` texts, an entry for each text; None where a text has none."""
    columns = {"images": images, **prompts}
    for name, value in columns.items():
        if value is not None and (not isinstance(value, (list, tuple)) or len(value) != count):
            got = len(value) if isinstance(value, (list, tuple)) else "one"
            raise ValueError(
                f"Got {count} texts and {name} for {got}: give one entry per text, None where there is none."
            )
    samples = []
    for i in range(count):
        own = {name: None if value is None else value[i] for name, value in columns.items()}
        samples.append(read_sample(own.pop("images"), own, f"Sample {i}", f"Sample {i}: "))
    return samples


def rows_in_order(shown: Shown, contexts: Sequence[Tensor], regions: Tensor) -> Tensor | None:
    """Rows (S, F) of all placeholders of a prompt; None if there are none.

    contexts: features (slots, F) of each picture; regions: features (R, slots, F) of the regions by their numbers.
    """
    parts = [contexts[number] if kind == "image" else regions[number] for kind, number in shown.order]
    return torch.cat(parts) if parts else None


@dataclass
class _Seen:
    """Encoded samples: the features of each picture by its content, each sample's pictures, and all regions."""

    keys: list[list[str]]
    features: dict[str, ImageFeatures]
    regions: RegionTokens
    rows: list[list[int]]
    """Where the regions of each sample stand among all regions."""

    def sizes(self, sample: int) -> list[tuple[int, int]]:
        """(height, width) of each picture of a sample."""
        sizes = [self.features[key].original_sizes[0].tolist() for key in self.keys[sample]]
        return [(height, width) for height, width in sizes]


class SampleEncoder:
    """What a region tokenizer sees of samples. Each picture is encoded once, and not again while it is among the latest.

    experts and context: as in the bridge's config. cached_images: how many of the latest pictures are remembered.
    """

    def __init__(
        self,
        tokenizer: TapRegionTokenizer,
        experts: Literal["routed", "all"],
        context: PictureContext,
        cached_images: int,
    ) -> None:
        self.tokenizer, self.experts, self.context = tokenizer, experts, context
        self.layout = FeatureLayout.of(tokenizer.model.config)
        self.cache = PictureCache(tokenizer, context, cached_images)

    def feature_rows(self, samples: Sequence[Sample], shown: Sequence[Shown]) -> list[Tensor | None]:
        """Rows (S, F) of each sample, in the order of its placeholders; None for one without any."""
        seen = self._see(samples)
        features = region_features(seen.regions, self.experts)
        rows: list[Tensor | None] = []
        for i, (sample, one) in enumerate(zip(samples, shown)):
            regions = features[seen.rows[i]]
            contexts: list[Tensor] = []
            for number, (key, size) in enumerate(zip(seen.keys[i], seen.sizes(i)) if self.context.slots else ()):
                asked = [region for region in one.asked if sample.regions[region][0] == number]
                contexts.append(self.beside(self.cache.context_of(key, seen.features[key]), regions[asked], size))
            rows.append(rows_in_order(one, contexts, regions))
        return rows

    def beside(self, context: Tensor, regions: Tensor, size: tuple[int, int]) -> Tensor:
        """Context features (slots, F) of a picture of (height, width) `size` beside features (R, slots, F) of asked regions."""
        return self.context.beside(context, regions[:, 0], self.layout, size)

    def regions_of(self, sample: Sample) -> tuple[RegionTokens, list[tuple[int, int]]]:
        """Region tokens of one sample's regions in their order, and the (height, width) of its pictures."""
        seen = self._see([sample])
        return seen.regions[seen.rows[0]], seen.sizes(0)

    def embed_image(self, image: Any) -> ImageFeatures:
        """The features of one picture; those of the latest pictures cost nothing."""
        picture = open_picture(image)
        return replace(self.cache.features({content_key(picture): picture}), is_batch=False)

    def _see(self, samples: Sequence[Sample]) -> _Seen:
        """Encode all pictures and regions of some samples, each picture once and all regions in one go."""
        pictures: dict[str, np.ndarray] = {}
        keys: list[list[str]] = []
        for sample in samples:
            opened = [open_picture(image) for image in sample.images]
            keys.append([content_key(picture) for picture in opened])
            pictures.update(zip(keys[-1], opened))
        features = self.cache.features(pictures)
        prompts: dict[str, list[RegionPrompt]] = {key: [] for key in pictures}
        places: list[list[tuple[str, int]]] = []
        for sample, own in zip(samples, keys):
            places.append([])
            for image, prompt in sample.regions:
                places[-1].append((own[image], len(prompts[own[image]])))
                prompts[own[image]].append(prompt)
        starts = dict(zip(prompts, accumulate(map(len, prompts.values()), initial=0)))
        return _Seen(
            keys=keys,
            features={key: features[i] for i, key in enumerate(pictures)},
            regions=self.tokenizer.encode(features=features, prompts=list(prompts.values())),
            rows=[[starts[key] + number for key, number in own] for own in places],
        )
