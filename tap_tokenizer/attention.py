"""Scaled dot-product attention, in the two implementations that every part of TAP offers.

Projections, windows and caches are left to the parts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    implementation: str | None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax(query · key / √D + mask) · value, shape (..., heads, queries, D).

    `mask` broadcasts to (..., heads, queries, keys): booleans say which keys may be seen, floats are added to the scores.
    `implementation` is transformers' `attn_implementation`: `"eager"` spells the formula out with a float32 softmax,
    anything else is PyTorch's fused kernel. Both give the same numbers up to rounding.
    """
    if implementation != "eager":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout) @ value
