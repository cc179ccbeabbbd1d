"""Whether a language model with a bridge's adapter still knows its language: its perplexity on plain text, with and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from llm_bridge import RegionChat, adapter_off, has_adapter

from .free_questions import load_words

SHARES = 3
"""A seed has every third of the passages."""


@torch.no_grad()
def text_lines(chat: RegionChat, split: str, seed: int) -> Iterator[dict[str, Any]]:
    """A line for each of a seed's passages: the nats of its words with the adapter and without, and how many tokens those are.

    A bridge that has no adapter is no longer the language model that it was made from, and has no lines.
    """
    bridge = chat.model
    if not has_adapter(bridge):
        return
    for passage in load_words("plain_text")[seed % SHARES :: SHARES]:
        ids = chat.processor.tokenizer(passage, return_tensors="pt")["input_ids"].to(bridge.device)
        with_adapter = _nats(bridge, ids)
        with adapter_off(bridge):
            without = _nats(bridge, ids)
        tokens = ids.shape[1] - 1
        yield {"task": "text", "split": split, "seed": seed, "nats": [with_adapter, without], "tokens": tokens}


def _nats(bridge: Any, ids: torch.Tensor) -> float:
    """Negative log-likelihood of ids (1, L) after the first."""
    logits = bridge(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
