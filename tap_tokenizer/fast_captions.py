"""TAP's captions with a fraction of the work; see `fast_inference.py` for why there are two formulations.

Keys and values have their places from the start, heads beside each other as they are computed. Pairs of channels are turned as
complex numbers, weights lie as small products want them, and captions that have ended leave the batch.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .fast_inference import keep_freed_memory, state_of
from .text_decoder import TapTextDecoder, TapTextDecoderLayer, rotary_embedding


class FastCaptions:
    """The greedy captions that transformers' `generate` writes with `TapTextDecoder`."""

    def __init__(self, decoder: TapTextDecoder) -> None:
        self.decoder = decoder
        self._packed: dict[nn.Module, Tensor] = {}
        self._state: object = None

    def __getstate__(self) -> dict[str, Any]:  # packed weights can be neither copied nor pickled
        return {"decoder": self.decoder, "_packed": {}, "_state": None}

    def forget(self) -> None:
        """Prepare again at the next call, because weights may have changed."""
        self._packed, self._state = {}, None

    def __call__(self, region_tokens: Tensor, max_length: int) -> Tensor:
        """Region tokens (R, D) → ids (R, max_length): bos first, padded after eos."""
        keep_freed_memory()
        self._pack()
        decoder, config, device = self.decoder, self.decoder.config, region_tokens.device
        ids = torch.full((len(region_tokens), max_length), config.pad_token_id, device=device)
        ids[:, 0] = config.bos_token_id
        hidden = decoder.embed(region_tokens, ids[:, :1])
        positions = torch.arange(max_length, device=device)
        turns = torch.complex(*rotary_embedding(positions, config.head_size, config.rope_theta))
        shape = (len(decoder.layers), 2, len(ids), max_length, config.num_attention_heads, config.head_size)
        cache = hidden.new_empty(shape)
        alive = torch.arange(len(ids), device=device)  # rows of ids whose captions go on
        start, ended = 0, torch.zeros(len(ids), dtype=torch.bool, device=device)
        for length in range(1, max_length):
            for layer, kept in zip(cast("list[TapTextDecoderLayer]", list(decoder.layers)), cache):
                hidden = self._continue(layer, hidden, start, turns, kept)
            words = self._linear(decoder.lm_head, decoder.norm(hidden[:, -1])).argmax(dim=1)
            ids[alive, length] = torch.where(ended, config.pad_token_id, words)
            ended |= words == config.eos_token_id
            # To ask who has ended makes a GPU wait, and to make room makes copies: both only now and then.
            if (device.type == "cpu" or length % 8 == 0) and ended.sum() * 4 >= len(ended):
                going_on = (~ended).nonzero().squeeze(1)
                if not len(going_on):
                    break
                alive, words, ended = alive[going_on], words[going_on], ended[going_on]
                cache = cache[:, :, going_on]
            hidden, start = decoder.token_embed(words).unsqueeze(1), length + 1
        return ids

    def _continue(self, layer: TapTextDecoderLayer, hidden: Tensor, start: int, turns: Tensor, kept: Tensor) -> Tensor:
        """A block at the positions from `start` on; kept (2, R, T, heads, d) are its keys and values.

        turns (T, d / 2): the cosine and the sine of a pair of channels, as a complex number.
        """
        attention, stop = layer.attention, start + hidden.shape[1]
        qkv = self._linear(attention.qkv, layer.norm1(hidden))
        parts = rearrange(qkv, "r t (three h d) -> three r t h d", three=3, h=attention.config.num_attention_heads)
        pairs = torch.view_as_complex(parts[:2].float().unflatten(-1, (-1, 2)))
        turned = pairs * turns[start:stop, None]
        query, key = torch.view_as_real(turned).flatten(-2).to(qkv.dtype)
        kept[0, :, start:stop], kept[1, :, start:stop] = key, parts[2]
        seen = rearrange(kept[:, :, :stop], "two r t h d -> two r h t d")
        found = F.scaled_dot_product_attention(query.transpose(1, 2), seen[0], seen[1], is_causal=start == 0)
        hidden = hidden + self._linear(attention.output, rearrange(found, "r h t d -> r t (h d)"))
        inner = F.gelu(self._linear(cast(nn.Linear, layer.mlp[0]), layer.norm2(hidden)))
        return hidden + self._linear(cast(nn.Linear, layer.mlp[2]), inner)

    def _linear(self, layer: nn.Linear, hidden: Tensor) -> Tensor:
        packed = self._packed.get(layer)
        if packed is None:
            return layer(hidden)
        return torch.ops.mkldnn._linear_pointwise(hidden, packed, layer.bias, "none", [], "")

    def _pack(self) -> None:
        """Lay weights out once as a CPU's small products want them, which it else does at every word; a copy of each.

        The operators are those of PyTorch's own compiler, which promises nothing for them: where there are none, none is used.
        """
        layers = [layer for layer in self.decoder.modules() if isinstance(layer, nn.Linear)]
        state = state_of(layer.weight for layer in layers)
        if state == self._state:
            return
        self._packed, self._state = {}, state
        usable = all(layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 for layer in layers)
        if usable and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
            pack = torch.ops.mkldnn._reorder_linear_weight
            self._packed = {layer: pack(layer.weight.detach(), None) for layer in layers}
