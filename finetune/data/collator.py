"""Records, with or without cached region tokens, → a training batch of the bridge, for our loop and for transformers' Trainer.

Knows the processor's door for ready-made features, and that only the assistant's words are learned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import BatchFeature

from llm_bridge import RegionBridgeConfig, RegionBridgeProcessor, region_features
from tap_tokenizer import RegionTokens

from ..cache import encode_regions
from ..records import Record
from .sample import Sample, cut_turns, open_image


@dataclass
class CachedSample:
    """A record, the region tokens of its regions, and its picture's context features (slots, F) if there are any.

    regions: None for a conversation without a picture.
    """

    sample: Sample
    regions: RegionTokens | None
    grid: Tensor | None = None


Item: TypeAlias = CachedSample | Sample
"""What a batch is made of: a record with its cached region tokens, or a record alone."""


class ConversationCollator:
    """Conversations → input_ids, attention_mask, labels and region features; −100 wherever nothing is learned.

    Items are records with their cached region tokens, or records alone, whose regions are then encoded here, by the
    processor's region tokenizer, every time that they come: leave the number of a DataLoader's workers at 0 if it is on a
    GPU. A record without a picture is a conversation in words.

    max_length: in tokens; a longer conversation loses its last questions.
    mask_history: only the last answer of each conversation is learned.
    images: the folder that paths of pictures start from.
    """

    def __init__(
        self,
        processor: RegionBridgeProcessor,
        max_length: int | None = None,
        mask_history: bool = False,
        images: str | Path = ".",
    ) -> None:
        processor.check_turn_ends()
        self.processor = processor
        self.max_length = max_length
        self.mask_history = mask_history
        self.images = images

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        items = self._encoded(items)
        batch = self._batch(items, return_assistant_tokens_mask=True, padding_side="right")
        if self.max_length is not None and batch["input_ids"].shape[1] > self.max_length:
            fitting = [self._fit(item) for item in items]
            batch = self._batch(fitting, return_assistant_tokens_mask=True, padding_side="right")
        learned = batch.pop("assistant_masks")
        if self.mask_history:
            learned = _last_run(learned)
        if not learned.any():
            raise ValueError(
                "Got conversations in which the assistant says nothing: give at least one answer to learn from."
            )
        batch["labels"] = batch["input_ids"].masked_fill(learned == 0, -100)
        if "region_features" not in batch:
            batch.update(self._no_regions(len(items)))
        return dict(batch)

    def _encoded(self, items: Sequence[Item]) -> list[CachedSample]:
        """The items, those that are records alone with the region tokens and context features of their pictures."""
        for item in items:
            if not isinstance(item, CachedSample) and "conversations" not in item:
                raise ValueError(
                    f"Got an item with {', '.join(map(str, item)) or 'nothing'}, expected a record with conversations: if a "
                    "trainer has removed them, set its remove_unused_columns=False."
                )
        seen = [item for item in items if not isinstance(item, CachedSample) and item.get("image") is not None]
        made = iter(self._cached(seen) if seen else [])
        return [
            item
            if isinstance(item, CachedSample)
            else CachedSample(item, None)
            if item.get("image") is None
            else next(made)
            for item in items
        ]

    def _cached(self, records: Sequence[Sample]) -> list[CachedSample]:
        """Records with what a cache would hold of them; all pictures are encoded at once."""
        tokenizer, context = self.processor.region_tokenizer, self.processor.context
        if tokenizer is None:
            raise ValueError("Records need region tokens: load the processor with its region tokenizer, or cache them.")
        features = tokenizer.embed_image([open_image(record, self.images) for record in records])
        sizes = features.original_sizes.tolist()
        records = [{"width": width, "height": height, **record} for record, (height, width) in zip(records, sizes)]
        grids = list(context.encode(tokenizer, features)) if context.slots else [None] * len(records)
        return list(
            map(CachedSample, records, encode_regions(tokenizer, features, list(map(Record.from_dict, records))), grids)
        )

    def _no_regions(self, count: int) -> dict[str, Tensor]:
        """Region features of a batch without any region, of which none is read: the projector still takes part.

        Without it, a loss that only the projector is trained for has no gradient, and processes that train together wait
        for the one that has no region.
        """
        if self.processor.region_tokenizer is None:
            return {}
        decoder = self.processor.region_tokenizer.model.config.image_decoder_config
        sizes = RegionBridgeConfig(
            token_size=decoder.hidden_size, embed_size=decoder.semantic_embed_size, num_experts=decoder.num_experts
        )
        features = self.processor.pad_features([torch.zeros(1, sizes.feature_size), *[None] * (count - 1)])
        return {**features, "region_mask": torch.zeros_like(features["region_mask"])}

    def _fit(self, item: CachedSample) -> CachedSample:
        """A conversation without as many of its last questions as are too many for `max_length`."""
        assert self.max_length is not None
        while (
            length := self._batch([item], return_assistant_tokens_mask=True)["input_ids"].shape[1]
        ) > self.max_length:
            questions = sum(turn["role"] == "user" for turn in item.sample["conversations"])
            if questions < 2:
                raise ValueError(
                    f"A question about {item.sample.get('image', 'a picture')} has {length} tokens with its answer, more than "
                    f"max_length {self.max_length}: raise max_length, or shorten the record."
                )
            sample, rows = cut_turns(item.sample, 0, questions - 1)
            item = CachedSample(sample, None if item.regions is None else item.regions[rows], item.grid)
        return item

    def prompts(self, items: Sequence[Item]) -> BatchFeature:
        """Conversations that end with a question → inputs of `generate`."""
        return self._batch(self._encoded(items), padding_side="left")

    def _batch(self, items: Sequence[CachedSample], **options: Any) -> BatchFeature:
        return self.processor.chat_batch(
            [self._messages(item) for item in items],
            [self._features(item) for item in items],
            [item.grid if self.processor.context.slots else None for item in items],
            [(0, 0) if item.regions is None else picture_size(item.regions) for item in items],
            **options,
        )

    def _features(self, item: CachedSample) -> Tensor:
        """Features of the regions that the conversation speaks of, which are the first ones of the record."""
        if item.regions is None:
            return torch.empty(0, 1, 0)
        return region_features(item.regions[: regions_named(item.sample)], self.processor.experts)

    def _messages(self, item: CachedSample) -> list[dict[str, Any]]:
        messages = [dict(message) for message in item.sample["conversations"]]
        if self.processor.context.slots and item.regions is not None and messages:
            messages[0]["content"] = "<image>\n" + messages[0]["content"]
        return messages


def _last_run(learned: Tensor) -> Tensor:
    """Of each row (B, L) of zeros and ones, the last unbroken run of ones."""
    ends = (learned[:, :-1] == 1) & (learned[:, 1:] == 0)
    later = ends.flip(1).cumsum(dim=1).flip(1)  # runs that end here or further on
    later = torch.cat([later, torch.zeros_like(later[:, :1])], dim=1)
    return learned * (later == (learned[:, -1:] == 0).long())


def picture_size(regions: RegionTokens) -> tuple[int, int]:
    """(height, width), in pixels, of the picture that all of some regions belong to."""
    number = int(regions.image_index[0]) if len(regions) else 0
    height, width = regions.image_sizes[number].tolist()
    return height, width


def regions_named(sample: Sample) -> int:
    """How many regions a conversation shows: the largest N of its <regionN>, as records number them without gaps."""
    numbers = [int(n) for turn in sample["conversations"] for n in re.findall(r"<region(\d+)>", turn["content"])]
    return max(numbers, default=0)
