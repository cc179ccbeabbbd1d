"""TAP's own caption decoder: one semantic token → one caption. It is the baseline that a language model must beat.

It is a causal LM as transformers defines it, so transformers' `generate` writes its text. It differs from other causal LMs
in one point: position 0 holds a region instead of a word (arXiv 2312.09128, section 3.3).
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import attend
from .configuration_tap import TapTextDecoderConfig


class TapTextDecoder(PreTrainedModel, GenerationMixin):
    """Region tokens (R, D) and ids (R, T) → next-word logits."""

    config_class = TapTextDecoderConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["TapTextDecoderLayer"]

    def __init__(self, config: TapTextDecoderConfig) -> None:
        super().__init__(config)
        self.region_proj = nn.Linear(config.region_size, config.hidden_size, bias=False)
        self.token_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TapTextDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def embed(self, region_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """Region tokens (R, D) and ids (R, T), the first of them bos → input embeddings (R, 1 + T, hidden_size)."""
        region = self.region_proj(region_tokens.to(self.region_proj.weight.dtype))
        return torch.cat([region.unsqueeze(1), self.token_embed(input_ids)], dim=1)

    def caption(self, region_tokens: Tensor, max_length: int, **generate_options: Any) -> Tensor:
        """Region tokens (R, D) → ids (R, max_length) by transformers' `generate`: bos first, padded after eos."""
        ids = region_tokens.new_full((len(region_tokens), max_length), self.config.pad_token_id, dtype=torch.long)
        ids[:, 0] = self.config.bos_token_id
        prompt = self.embed(region_tokens, ids[:, :1])
        new = self.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device),
            max_new_tokens=max_length - 1,
            **generate_options,
        )
        ids[:, 1 : 1 + new.shape[1]] = new
        return ids

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (R, L, vocab_size) after each position of `inputs_embeds`, or of `input_ids` that continue a cache.

        A caption starts from `inputs_embeds=embed(region_tokens, ids)`. Rows may only be padded on the right.
        `labels` (R, L), −100 where nothing is to be predicted, are shifted inside as for every causal LM.
        `attention_mask` is accepted because `generate` passes it, but has no effect: attention is causal and nothing more.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both or neither of input_ids and inputs_embeds: give one of them.")
        hidden = self.token_embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(hidden.shape[1], device=hidden.device) + seen
        rotary = rotary_embedding(positions, self.config.head_size, self.config.rope_theta)
        for layer in self.layers:
            hidden = layer(hidden, positions, rotary, past_key_values)
        kept = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self.lm_head(self.norm(hidden[:, kept])).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class TapTextDecoderLayer(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, config: TapTextDecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TapCausalAttention(config, layer_index)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, positions: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden), positions, rotary, cache))
        return hidden + self.dropout(self.mlp(self.norm2(hidden)))


class TapCausalAttention(nn.Module):
    """Attention to earlier positions, with rotary embedding of queries and keys."""

    def __init__(self, config: TapTextDecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, positions: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        heads = self.config.num_attention_heads
        query, key, value = rearrange(self.qkv(hidden), "r t (three h d) -> three r h t d", three=3, h=heads)
        query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        # A static cache returns all its slots: those after the present position are empty, and masked like the future.
        visible = torch.arange(key.shape[-2], device=key.device) <= positions[:, None]
        hidden = attend(
            query,
            key,
            value,
            mask=visible,
            dropout=self.config.dropout if self.training else 0.0,
            implementation=self.config._attn_implementation,
        )
        return self.output(rearrange(hidden, "r h t d -> r t (h d)"))


def rotary_embedding(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, head_size / 2) of position × frequency, in float32."""
    exponents = torch.arange(0, head_size, 2, device=positions.device).float() / head_size
    angles = positions.float()[:, None] * theta**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs of channels (2i, 2i + 1) by their angle: the interleaved form of RoPE."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
