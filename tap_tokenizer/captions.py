"""TAP's captions of regions: what may be asked of its decoder, and the words of what it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .configuration_tap import TapTextDecoderConfig
from .interruption import before_step
from .modeling_tap import TapModel
from .region_decoder import frozen

_CAPTIONS_OWN = {"input_ids", "inputs_embeds", "attention_mask", "max_new_tokens", "return_dict_in_generate"}
"""What `caption` says to `generate`, or counts on."""


def caption_ids(
    model: TapModel, tokens: Tensor, temperature: float, max_length: int | None, generate_options: dict[str, Any]
) -> Tensor:
    """Region tokens (R, D) → ids (R, max_length); see `TapRegionTokenizer.caption`, also for what is refused."""
    longest = model.config.text_decoder_config.max_position_embeddings - 1
    max_length = longest if max_length is None else max_length
    if not 2 <= max_length <= longest:
        raise ValueError(f"max_length is {max_length}, expected 2 to {longest}: bos and at least one id.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}, expected 0 (greedy) or more.")
    if taken := sorted(_CAPTIONS_OWN & generate_options.keys()):
        raise ValueError(
            f"Got {', '.join(taken)}, which caption sets itself: give max_length, temperature, num_beams, …."
        )
    if generate_options.get("num_return_sequences", 1) != 1:
        raise ValueError(
            f"num_return_sequences is {generate_options['num_return_sequences']}, expected 1: each region gets one "
            "caption. To get others, call caption again with a temperature."
        )
    if temperature:
        generate_options = {**generate_options, "do_sample": True, "temperature": temperature}
    parts = []
    with frozen(model):
        for own in tokens.to(model.device).split(64):
            before_step()
            if generate_options:
                parts.append(model.text_decoder.caption(own, max_length, **{"do_sample": False, **generate_options}))
            else:
                parts.append(model.greedy_captions(own, max_length))
    return torch.cat(parts)


def caption_words(ids: Tensor, tokenizer: PreTrainedTokenizerBase | None, config: TapTextDecoderConfig) -> list[str]:
    """The ids of each caption, after bos and up to eos, as text."""
    assert tokenizer is not None
    captions = []
    for row in ids.tolist():
        words = row[1 : row.index(config.eos_token_id)] if config.eos_token_id in row else row[1:]
        captions.append(tokenizer.decode(words).strip())
    return captions
