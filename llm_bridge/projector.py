"""Region features → the language model's embedding space, by the projector that the config names.

A projector is a module that is made from a `RegionBridgeConfig` and turns feature rows (S, `feature_layout.size`) into
embeddings (S, hidden_size). To add another one, write its class here and its line in `PROJECTORS`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .configuration_bridge import RegionBridgeConfig


class MlpProjector(nn.Module):
    """Two linear layers over normalised parts, scaled to the size of the language model's own embeddings."""

    def __init__(self, config: RegionBridgeConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = layout = config.feature_layout
        hidden = config.projector_hidden_size or config.hidden_size
        self.token_norm = nn.LayerNorm(config.token_size)
        self.embed_norm = nn.LayerNorm(config.embed_size) if config.use_semantic_embeds else None
        width = config.token_size + layout.context.stop - layout.expert.start
        width += config.embed_size * config.use_semantic_embeds
        position_size = layout.position.stop - layout.position.start
        width += position_size * (1 + 2 * config.position_frequencies) * config.use_position
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, config.hidden_size)
        self.output_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)

    def forward(self, region_features: Tensor) -> Tensor:
        layout, dtype = self.layout, self.linear_1.weight.dtype
        parts = [
            self.token_norm(region_features[..., layout.token].to(dtype)),
            region_features[..., layout.expert].to(dtype),
            region_features[..., layout.context].to(dtype),
        ]
        if self.embed_norm is not None:
            parts.append(self.embed_norm(region_features[..., layout.embed].to(dtype)))
        if self.config.use_position:
            parts.append(self._spread(region_features[..., layout.position].float()).to(dtype))
        hidden = nn.functional.gelu(self.linear_1(torch.cat(parts, dim=-1)))
        return self.output_norm(self.linear_2(hidden))

    def _spread(self, position: Tensor) -> Tensor:
        """Each number beside its sines and cosines at frequencies π·2ⁿ, so that small shifts become large ones."""
        octaves = math.pi * 2.0 ** torch.arange(self.config.position_frequencies, device=position.device)
        angles = (position.unsqueeze(-1) * octaves).flatten(-2)
        return torch.cat([position, angles.sin(), angles.cos()], dim=-1)


PROJECTORS: dict[str, type[nn.Module]] = {"mlp": MlpProjector}
"""Projectors by the `projector_type` of a config."""


def make_projector(config: RegionBridgeConfig) -> nn.Module:
    """A projector with fresh weights of the type that a config names."""
    if config.projector_type not in PROJECTORS:
        raise ValueError(f"projector_type is {config.projector_type!r:.40}, expected one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[config.projector_type](config)
