"""Records and their cached region tokens → a training batch of the bridge.

Knows the processor's door for ready-made features, and that only the assistant's words are learned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from llm_bridge import RegionBridgeProcessor, region_features
from tap_tokenizer import RegionTokens

from .sample import Sample, cut_turns


@dataclass
class CachedSample:
    """A record, the region tokens of its regions, and its picture's context features (slots, F) if there are any."""

    sample: Sample
    regions: RegionTokens
    grid: Tensor | None = None


class ConversationCollator:
    """Conversations → input_ids, attention_mask, labels and region features; −100 wherever nothing is learned.

    max_length: in tokens; a longer conversation loses its last questions.
    mask_history: only the last answer of each conversation is learned.
    """

    def __init__(
        self, processor: RegionBridgeProcessor, max_length: int | None = None, mask_history: bool = False
    ) -> None:
        processor.check_turn_ends()
        self.processor = processor
        self.max_length = max_length
        self.mask_history = mask_history

    def __call__(self, items: Sequence[CachedSample]) -> dict[str, Any]:
        batch = self._batch(items, return_assistant_tokens_mask=True, padding_side="right")
        if self.max_length is not None and batch["input_ids"].shape[1] > self.max_length:
            fitting = [self._fit(item) for item in items]
            batch = self._batch(fitting, return_assistant_tokens_mask=True, padding_side="right")
        learned = batch.pop("assistant_masks")
        if self.mask_history:
            learned = _last_run(learned)
        batch["labels"] = batch["input_ids"].masked_fill(learned == 0, -100)
        return dict(batch)

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
            item = CachedSample(sample, item.regions[rows], item.grid)
        return item

    def prompts(self, items: Sequence[CachedSample]) -> BatchFeature:
        """Conversations that end with a question → inputs of `generate`."""
        return self._batch(items, padding_side="left")

    def _batch(self, items: Sequence[CachedSample], **options: Any) -> BatchFeature:
        return self.processor.chat_batch(
            [self._messages(item.sample) for item in items],
            [self._features(item) for item in items],
            [item.grid if self.processor.context.slots else None for item in items],
            [picture_size(item.regions) for item in items],
            **options,
        )

    def _features(self, item: CachedSample) -> Tensor:
        """Features of the regions that the conversation speaks of, which are the first ones of the record."""
        return region_features(item.regions[: regions_named(item.sample)], self.processor.experts)

    def _messages(self, sample: Sample) -> list[dict[str, Any]]:
        messages = [dict(message) for message in sample["conversations"]]
        if self.processor.context.slots and messages:
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
