"""Records and their pictures' features → region tokens, as caches hold them.

Knows the record's form and the region tokenizer's calls; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
    regions = tokenizer.encode(features=features, **columns).without_masks().to("cpu")
    return (regions.of_image(i) for i in range(len(samples)))
