"""`DescribedRegionProcessor`: regions in words, for any unchanged instruct language model. This needs no projector and
no training.

What TAP itself says of each region (caption, concepts, place, overlaps) is written into the turn that shows it, and the rest
is `RegionBridgeProcessor`. It is the second baseline in every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tap_tokenizer import RegionTokens

from .chat_markup import Layout, MarkerExpander, Shown
from .configuration_bridge import RegionBridgeConfig
from .description import RegionDescription, baselines, describe_regions
from .processing_bridge import RegionBridgeProcessor
from .samples import Sample


class DescribedRegionProcessor(RegionBridgeProcessor):
    """Text, pictures and regions → text alone, with a description of every region before it is first mentioned.

    Takes the same calls as `RegionBridgeProcessor`; what it returns goes to the language model itself. The text
    tokenizer gets no new token. concepts: how many of TAP's concepts `describe` gives for each region.
    """

    _is_taught = False  # the language model is taken as it is

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, region_tokenizer: Any = None, chat_template: str | None = None,
        concepts: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, region_tokenizer, chat_template)
        self.concepts = concepts

    def _saved_options(self) -> dict[str, Any]:
        return {"concepts": self.concepts}

    @staticmethod
    def _placeholder(tokenizer: PreTrainedTokenizerBase) -> int:
        return -1

    def check_bridge(self, config: RegionBridgeConfig) -> None:
        """Accept any language model."""

    @property
    def layout(self) -> Layout:
        return Layout(image_slots=0, region_slots=0)

    def _expander(self, sample: Sample | None, images: int, regions: int, name: str) -> MarkerExpander:
        if sample is None:
            raise ValueError(f"{name}: regions can only be described from a picture, not from ready-made features.")
        return _DescribingExpander(self, sample, name)

    def _feature_rows(self, samples: Sequence[Sample], shown: Sequence[Shown]) -> list[Tensor | None]:
        return [None] * len(samples)

    def describe(self, sample: Sample) -> tuple[list[RegionDescription], list[tuple[int, int]]]:
        """What TAP says about a sample's regions, and the (height, width) of their pictures."""
        regions, sizes = self.encoder.regions_of(sample)
        return self.describe_tokens(regions), sizes

    def describe_tokens(self, regions: RegionTokens) -> list[RegionDescription]:
        """What TAP says about regions that were encoded before: region1, region2, …, in their order."""
        said = baselines(self.encoder.tokenizer, regions, self.concepts)
        return [
            RegionDescription(own.name, own.caption, own.concepts, tuple(box))
            for own, box in zip(said, regions.boxes.tolist())
        ]


class _DescribingExpander(MarkerExpander):
    """Writes descriptions before each text that shows regions for the first time."""

    def __init__(self, processor: DescribedRegionProcessor, sample: Sample, name: str) -> None:
        super().__init__(processor.layout, len(sample.images), len(sample.regions), name)
        self.processor, self.sample = processor, sample
        self._described: tuple[list[RegionDescription], list[tuple[int, int]]] | None = None

    def expand(self, text: str, again: bool = True) -> str:
        before = len(self.order)
        words = super().expand(text, again=False)  # a description binds its name to words: once is enough
        new = [number for kind, number in self.order[before:] if kind == "region" and number < self.regions]
        if not new:
            return words
        if self._described is None:
            self._described = self.processor.describe(self.sample)
        regions, sizes = self._described
        shown = {number for kind, number in self.order if kind == "region"}
        blocks = []
        for image in range(self.images):
            own = [i for i in sorted(new) if self.sample.regions[i][0] == image]
            earlier = [i for i in sorted(shown - set(new)) if self.sample.regions[i][0] == image]
            if own:
                name = "the picture" if self.images == 1 else f"picture {image + 1}"
                blocks.append(
                    describe_regions([regions[i] for i in own], sizes[image], [regions[i] for i in earlier], name)
                )
        return "\n".join([*blocks, words])
