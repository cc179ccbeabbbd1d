"""Prompts that a bridge refuses, before the language model reads them: each check raises `ValueError`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .configuration_bridge import REGION_TOKEN, RegionBridgeConfig, fingerprint_number


class ContextFullError(ValueError):
    """A prompt leaves no room for an answer in the language model's context."""


def context_room(config: PreTrainedConfig, length: int) -> int | None:
    """How many tokens the context holds after a prompt of so many; None if the language model does not say."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if longest is None else longest - length


def check_context(config: PreTrainedConfig, length: int, new: int) -> None:
    """Refuse a prompt that leaves no room for an answer in the language model's context."""
    room = context_room(config, length)
    if room is not None and new > room:
        raise ContextFullError(
            f"The prompt has {length} tokens and the answer may have {new}, but the language model reads "
            f"{length + room} in all: ask about fewer regions, begin a new conversation, or lower max_new_tokens."
        )


def check_counts(positions: Tensor, region_mask: Tensor) -> None:
    """Refuse samples with more or fewer placeholders (B, L) than features (B, S)."""
    found, given = positions.sum(dim=1), region_mask.sum(dim=1)
    wrong = (found != given).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        raise ValueError(
            f"Sample {row} has {int(found[row])} {REGION_TOKEN} placeholders but {int(given[row])} region features: give "
            "one region per <region> in its text, in order, and do not cut the text."
        )


def check_features(config: RegionBridgeConfig, region_features: Tensor, region_source: Tensor | None) -> None:
    """Refuse features of another width, of another region tokenizer, and those that are no numbers."""
    width = config.feature_layout.size
    if region_features.shape[-1] != width:
        raise ValueError(
            f"Region features have width {region_features.shape[-1]}, this bridge reads {width}: they were made for "
            "another region tokenizer."
        )
    if not torch.isfinite(region_features).all():
        raise ValueError(
            "Region features hold NaN or infinity: check the picture, and the dtype of the region tokenizer."
        )
    if region_source is None or config.fingerprint is None or config.accept_any_tokenizer:
        return
    own = fingerprint_number(config.fingerprint, config.experts)
    strangers = (region_source != own).nonzero().flatten().tolist()
    if strangers and int(region_source[strangers[0]]) // 2 == own // 2:
        raise ValueError(
            f"Sample {strangers[0]} has features of a processor with other experts than {config.experts!r}, which "
            "this bridge reads: build the processor with RegionBridgeProcessor.for_bridge."
        )
    if strangers:
        raise ValueError(
            f"Sample {strangers[0]} has region tokens of another tokenizer than {config.fingerprint}, which this "
            "bridge was built on: encode with that one, or set config.accept_any_tokenizer to try anyway."
        )


def check_padding(config: RegionBridgeConfig, name: str, attention_mask: Tensor | None) -> None:
    """Refuse padding in front of a prompt where a language model, of the class `name`, would read it as words."""
    if config.ignores_padding or attention_mask is None or attention_mask.ndim != 2:
        return
    if not bool(attention_mask[:, 0].all()):
        raise ValueError(
            f"{name} reads the padding in front of a prompt as words, so an answer "
            "would depend on the other prompts in its batch: give one prompt at a time."
        )


def check_text_only(config: RegionBridgeConfig, input_ids: Tensor) -> None:
    """Refuse placeholders where no features came with them."""
    rows = (input_ids == config.region_token_id).any(dim=1).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"Sample {rows[0]} has {config.region_token} placeholders but no region features came with it: give "
            "all that the processor returned."
        )
