"""The pictures and regions of prompts, and the feature rows that their placeholders stand for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tap_tokenizer import ImageFeatures, RegionPrompt, RegionTokens, TapRegionTokenizer, counted

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
            raise ValueError(
                f"{name} has {counted(len(images), 'image')} and {key} for {len(value)}: give one list per image."
            )
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
    """The pictures of samples: features of each picture by its content, and the content keys of each sample's pictures."""

    keys: list[list[str]]
    features: dict[str, ImageFeatures]

    def sizes(self, sample: int) -> list[tuple[int, int]]:
        """(height, width) of each picture of a sample."""
        sizes = [self.features[key].original_sizes[0].tolist() for key in self.keys[sample]]
        return [(height, width) for height, width in sizes]

    def prompts(self, samples: Sequence[Sample]) -> list[list[tuple[str, RegionPrompt]]]:
        """Each sample's regions in their order: the key of the picture, and what points at it."""
        return [[(own[image], prompt) for image, prompt in one.regions] for one, own in zip(samples, self.keys)]


class SampleEncoder:
    """What a region tokenizer sees of samples. Each picture is encoded once, and not again while it is among the latest.

    The feature rows of the latest regions are remembered, too: a region that is spoken of again has the same rows, bit for
    bit, whatever stands beside it.

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
        self.lock = RLock()
        """Whoever asks the tokenizer holds it, where several threads do: what the tokenizer prepares is not made for that."""
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()

    def feature_rows(self, samples: Sequence[Sample], shown: Sequence[Shown]) -> list[Tensor | None]:
        """Rows (S, F) of each sample, in the order of its placeholders; None for one without any."""
        with self.lock:
            return self._feature_rows(samples, shown)

    def _feature_rows(self, samples: Sequence[Sample], shown: Sequence[Shown]) -> list[Tensor | None]:
        seen = self._see(samples)
        prompts = seen.prompts(samples)
        features = iter(self._region_features(seen, [pair for own in prompts for pair in own]))
        rows: list[Tensor | None] = []
        for i, (sample, one) in enumerate(zip(samples, shown)):
            own = [next(features) for _ in prompts[i]]
            regions = torch.stack(own) if own else torch.empty(0, 1, self.layout.size)
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
        with self.lock:
            seen = self._see([sample])
            return self._encode(seen, seen.prompts([sample])[0]), seen.sizes(0)

    def embed_image(self, image: Any) -> ImageFeatures:
        """The features of one picture; those of the latest pictures cost nothing."""
        picture = open_picture(image)
        with self.lock:
            return replace(self.cache.features({content_key(picture): picture}), is_batch=False)

    def _see(self, samples: Sequence[Sample]) -> _Seen:
        """Encode the pictures of some samples, each picture once."""
        pictures: dict[str, np.ndarray] = {}
        known: dict[int, str] = {}  # several samples may have the same picture in their hands
        for image in (image for sample in samples for image in sample.images):
            if id(image) not in known:
                picture = open_picture(image)
                known[id(image)] = content_key(picture)
                pictures[known[id(image)]] = picture
        keys = [[known[id(image)] for image in sample.images] for sample in samples]
        features = self.cache.features(pictures)
        return _Seen(keys, {key: features[i] for i, key in enumerate(pictures)})

    def _encode(self, seen: _Seen, prompts: Sequence[tuple[str, RegionPrompt]]) -> RegionTokens:
        """Tokens of all regions, each of which is its picture's key and a prompt, in their order and in one go."""
        places: dict[str, list[int]] = {key: [] for key in seen.features}
        for place, (key, _) in enumerate(prompts):
            places[key].append(place)
        regions = self.tokenizer.encode(
            features=ImageFeatures.concatenate(list(seen.features.values())),
            prompts=[[prompts[place][1] for place in own] for own in places.values()],
        )
        order = {place: row for row, place in enumerate(place for own in places.values() for place in own)}
        return regions[[order[place] for place in range(len(prompts))]]

    def _region_features(self, seen: _Seen, prompts: Sequence[tuple[str, RegionPrompt]]) -> list[Tensor]:
        """Features (slots, F) of each region. Nothing is encoded if all regions are known.

        Otherwise all are, because only together do their coordinates show whether they are in pixels.
        """
        made_by = f"{self.tokenizer.fingerprint} {self.tokenizer.model.encoder_precision}"
        keys = [_key_of(made_by, picture, prompt) for picture, prompt in prompts]
        if all(key in self._rows for key in keys):
            fresh = [self._rows[key] for key in keys if key is not None]
        else:
            fresh = [rows.clone() for rows in region_features(self._encode(seen, prompts), self.experts)]
        features = []
        for key, rows in zip(keys, fresh):
            features.append(rows if key is None else self._rows.setdefault(key, rows))
            if key is not None:
                self._rows.move_to_end(key)
        while len(self._rows) > _LATEST_REGIONS:
            self._rows.popitem(last=False)
        return features


_LATEST_REGIONS = 1024
"""How many regions' rows are remembered: 5 MB for TAP's own sizes, or four times as much with all experts."""


def _key_of(fingerprint: str, picture: str, prompt: RegionPrompt) -> Hashable | None:
    """What a region's rows are remembered by; None for a mask of another form than run lengths or booleans (H, W)."""
    parts: list[Any] = [prompt.box, prompt.points, prompt.point_labels]
    if isinstance(prompt.mask, dict):
        parts += [
            tuple(value) if isinstance(value, list) else value for value in map(prompt.mask.get, ("size", "counts"))
        ]
    elif isinstance(prompt.mask, np.ndarray) and prompt.mask.dtype == bool:
        parts += [prompt.mask.shape, hashlib.sha256(np.packbits(prompt.mask).tobytes()).digest()]
    elif prompt.mask is not None:
        return None
    if not all(part is None or isinstance(part, (tuple, str, bytes)) for part in parts):
        return None
    key = (fingerprint, picture, len(parts), *parts)
    try:
        hash(key)
    except TypeError:  # run lengths that are lists of lists: refused where masks are read
        return None
    return key
