"""Records and their pictures' features → region tokens, as caches hold them.

Knows the record's form and the region tokenizer's calls; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from tap_tokenizer import ImageFeatures, RegionPrompt, RegionTokens, TapRegionTokenizer, prompts_in_picture

from .data.sample import Sample, check_size, record_name, region_prompts


def encode_regions(
    tokenizer: TapRegionTokenizer, features: ImageFeatures, samples: Sequence[Sample]
) -> Iterator[RegionTokens]:
    """Region tokens of each record, on the CPU.

    Raises `WrongSizeError` if a picture is not as large as its record says, and `ValueError`, which names the record, for a
    region that is refused.
    """
    for sample, size in zip(samples, features.original_sizes.tolist()):
        check_size(sample, (size[0], size[1]))
    prompts = [region_prompts(sample) for sample in samples]
    kinds = {kind for prompt in prompts for kind in prompt}
    count = [len(sample["regions"]) for sample in samples]
    columns: dict[str, Any] = {
        kind: [p.get(kind) or [None] * n for p, n in zip(prompts, count)] for kind in sorted(kinds)
    }
    try:
        regions = tokenizer.encode(features=features, **columns).without_masks().to("cpu")
    except ValueError:
        for sample, size, prompt in zip(samples, features.original_sizes, prompts):
            _check_prompts(sample, size, prompt)
        raise
    return (regions.of_image(i) for i in range(len(samples)))


def _check_prompts(sample: Sample, size: Tensor, prompts: dict[str, Any]) -> None:
    """Raise what is wrong with a record's prompts, under its name."""
    try:
        height, width = size.tolist()
        prompts_in_picture(RegionPrompt.read_lists(**prompts), (height, width))
    except ValueError as error:
        raise ValueError(f"{record_name(sample)}: {error}") from None
