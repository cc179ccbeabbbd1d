"""TAP's prompt encoder: points and box corners → sparse embeddings, and the positions of the image grid.

All coordinates are in pixels of the model frame, 0 … `image_size`; the processor converts the user's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor, nn

from .configuration_tap import TapConfig


class PointLabel(IntEnum):
    """What a point of a prompt means (arXiv 2312.09128, section 3.1)."""

    BACKGROUND = 0
    FOREGROUND = 1
    TOP_LEFT = 2
    BOTTOM_RIGHT = 3
    PADDING = 4
    """Ends every prompt that has no box. The decoder sees it as a token of its own."""


class TapPromptEncoder(nn.Module):
    """Adds random Fourier features of a position and a learned embedding of its label."""

    coord_matrix: Tensor

    def __init__(self, config: TapConfig) -> None:
        super().__init__()
        width = config.image_encoder_config.output_size
        self.image_size = config.image_size
        self.register_buffer("coord_matrix", torch.randn(2, width // 2))
        self.label_embed = nn.Embedding(len(PointLabel), width)

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """Points (R, P, 2) as x, y in pixels of the model frame and labels (R, P) → embeddings (R, P, D)."""
        xy = ((points.float() + 0.5) / self.image_size).clamp(0, 1)
        positions = self._encode(xy) * (labels != PointLabel.PADDING).unsqueeze(-1)
        return positions + self.label_embed(labels)

    def encode_grid(self, size: int) -> Tensor:
        """Positions of the pixel centres of a size × size map → (size², D), row by row."""
        axis = (torch.arange(size, device=self.coord_matrix.device) + 0.5) / size
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return self._encode(torch.stack([x, y], dim=-1).flatten(0, 1))

    def _encode(self, xy: Tensor) -> Tensor:
        """Relative positions in 0 … 1 (..., 2) → (..., D), computed in float32 whatever the model's dtype."""
        angles = 2 * math.pi * (2 * xy - 1) @ self.coord_matrix
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.label_embed.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TapPromptEncoder:
        """Move the buffer with the module, but keep it in float32: half precision would shift positions by pixels."""
        exact = self.coord_matrix
        super()._apply(fn, recurse)
        if self.coord_matrix.dtype != torch.float32:
            self.coord_matrix = exact.float().to(self.coord_matrix.device)
        return self
