"""Records and their pictures' features → region tokens and picture context, as caches hold them.

Knows the record's form and the region tokenizer's calls; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from llm_bridge import grid_points, region_features
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer

from .data.sample import Sample, region_prompts


def encode_regions(
    tokenizer: TapRegionTokenizer, features: ImageFeatures, samples: Sequence[Sample]
) -> Iterator[RegionTokens]:
    """Region tokens of each record, on the CPU."""
    prompts = [region_prompts(sample) for sample in samples]
    kinds = {kind for prompt in prompts for kind in prompt}
    count = [len(sample["regions"]) for sample in samples]
    columns: dict[str, Any] = {
        kind: [p.get(kind) or [None] * n for p, n in zip(prompts, count)] for kind in sorted(kinds)
    }
    regions = tokenizer.encode(features=features, **columns).to("cpu")
    return (regions.of_image(i) for i in range(len(samples)))


def picture_context(tokenizer: TapRegionTokenizer, features: ImageFeatures, side: int) -> list[Tensor]:
    """Context features (n², F) of each picture: a grid of `side` × `side` points."""
    points, labels = [], []
    for size in features.original_sizes.tolist():
        grid, ones = grid_points(side, (size[0], size[1]))
        points.append(grid)
        labels.append(ones)
    regions = tokenizer.encode(features=features, points=points, point_labels=labels)
    return list(region_features(regions, "routed", is_context=True).flatten(0, 1).split(side * side))
