"""Region features → the language model's embedding space.

Knows one row of numbers per placeholder: token, embedding, position code, expert, context flag. Which text they stand in
is not its business.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .configuration_bridge import POSITION_SIZE, RegionBridgeConfig


class RegionProjector(nn.Module):
    """Two linear layers over normalised parts, scaled to the size of the language model's own embeddings."""

    def __init__(self, config: RegionBridgeConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.projector_hidden_size or config.hidden_size
        self.token_norm = nn.LayerNorm(config.token_size)
        self.embed_norm = nn.LayerNorm(config.embed_size) if config.use_semantic_embeds else None
        width = config.token_size + config.num_experts + 1
        width += config.embed_size * config.use_semantic_embeds
        width += POSITION_SIZE * (1 + 2 * config.position_frequencies) * config.use_position
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, config.hidden_size)
        self.output_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)

    def forward(self, region_features: Tensor) -> Tensor:
        """Features (S, `feature_size`) of S placeholders → embeddings (S, hidden_size)."""
        config = self.config
        token, embed, position, marks = region_features.split(
            [config.token_size, config.embed_size, POSITION_SIZE, config.num_experts + 1], dim=-1
        )
        dtype = self.linear_1.weight.dtype
        parts = [self.token_norm(token.to(dtype)), marks.to(dtype)]
        if self.embed_norm is not None:
            parts.append(self.embed_norm(embed.to(dtype)))
        if config.use_position:
            parts.append(self._spread(position.float()).to(dtype))
        hidden = nn.functional.gelu(self.linear_1(torch.cat(parts, dim=-1)))
        return self.output_norm(self.linear_2(hidden))

    def _spread(self, position: Tensor) -> Tensor:
        """Each number beside its sines and cosines at frequencies π·2ⁿ, so that small shifts become large ones."""
        octaves = math.pi * 2.0 ** torch.arange(self.config.position_frequencies, device=position.device)
        angles = (position.unsqueeze(-1) * octaves).flatten(-2)
        return torch.cat([position, angles.sin(), angles.cos()], dim=-1)
