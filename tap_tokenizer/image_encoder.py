"""TAP's image encoder: pixel values → one embedding per patch.

It is a ViT whose attention never leaves its window. Four convolutional bottlenecks carry information across windows, and a
neck sets the width (arXiv 2312.09128, section 3.1).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import attend
from .configuration_tap import TapImageEncoderConfig


class TapImageEncoder(nn.Module):
    """Pixel values (B, 3, S, S) → image embeddings (B, D, G, G), where S is `image_size` and G is `grid_size`."""

    def __init__(self, config: TapImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embed = nn.Parameter(torch.zeros(config.grid_size**2, config.hidden_size))
        self.layers = nn.ModuleList(TapImageEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_window_layers = nn.ModuleList(
            TapCrossWindowLayer(config) for _ in range(config.num_cross_window_layers)
        )
        self.neck = TapImageEncoderNeck(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = self.embed_patches(pixel_values)
        blocks_per_group = len(self.layers) // len(self.cross_window_layers)
        for group, cross_window_layer in enumerate(self.cross_window_layers):
            windows = self.split_windows(grid)
            for layer in self.layers[group * blocks_per_group : (group + 1) * blocks_per_group]:
                windows = layer(windows)
            if group == len(self.cross_window_layers) - 1:  # the final norm comes before the last bottleneck
                windows = self.norm(windows)
            grid = cross_window_layer(self.merge_windows(windows))
        return self.neck(rearrange(grid, "b y x d -> b d y x"))

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Embeddings of patches and of their positions, added: (B, G, G, D)."""
        size = self.config.image_size
        if pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, expected (B, 3, {size}, {size}): "
                "prepare pictures with TapImageProcessor."
            )
        hidden = rearrange(self.patch_embed(pixel_values), "b d y x -> b (y x) d") + self.position_embed
        return rearrange(hidden, "b (y x) d -> b y x d", y=self.config.grid_size)

    def split_windows(self, grid: Tensor) -> Tensor:
        """A map (B, G, G, D) → its windows (B·windows, w², D), row by row."""
        side = self.config.window_size
        return rearrange(grid, "b (ny y) (nx x) d -> (b ny nx) (y x) d", y=side, x=side)

    def merge_windows(self, windows: Tensor) -> Tensor:
        """Put together what `split_windows` has split."""
        side, count = self.config.window_size, self.config.grid_size // self.config.window_size
        return rearrange(windows, "(b ny nx) (y x) d -> b (ny y) (nx x) d", y=side, x=side, ny=count, nx=count)


class TapImageEncoderLayer(nn.Module):
    """Pre-norm transformer block on windows (B·windows, w², D)."""

    def __init__(self, config: TapImageEncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = TapWindowAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.drop_path_rate = config.drop_path_rate

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self._drop_path(self.attention(self.norm1(hidden)))
        return hidden + self._drop_path(self.mlp(self.norm2(hidden)))

    def _drop_path(self, branch: Tensor) -> Tensor:
        """Stochastic depth: in training, zero the branch of some windows and scale up the others."""
        if not self.training or self.drop_path_rate == 0:
            return branch
        keep = 1 - self.drop_path_rate
        return branch * (torch.rand(len(branch), 1, 1, device=branch.device) < keep).to(branch.dtype) / keep


class TapWindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per head for every relative offset."""

    def __init__(self, config: TapImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        offsets = (2 * config.window_size - 1) ** 2
        self.relative_position_bias = nn.Parameter(torch.zeros(config.num_attention_heads, offsets))

    def forward(self, windows: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        query, key, value = rearrange(self.qkv(windows), "n t (three h d) -> three n h t d", three=3, h=heads)
        hidden = attend(query, key, value, mask=self.position_bias(), implementation=self.config._attn_implementation)
        return self.output(rearrange(hidden, "n h t d -> n t (h d)"))

    def position_bias(self) -> Tensor:
        """The bias of each head and (query, key) pair of a window: (heads, w², w²)."""
        index = relative_position_index(self.config.window_size, self.relative_position_bias.device)
        tokens = self.config.window_size**2
        return self.relative_position_bias.index_select(1, index).view(-1, tokens, tokens)


@lru_cache(maxsize=8)
def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """Column of the bias table for each (query, key) pair of a window, flattened to (w⁴,).

    The table is indexed by (Δy + w − 1)·(2w − 1) + (Δx + w − 1), with Δ = query − key.
    """
    axis = torch.arange(window_size, device=device)
    y, x = (g.flatten() for g in torch.meshgrid(axis, axis, indexing="ij"))
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return (dy * (2 * window_size - 1) + dx).flatten()


class TapCrossWindowLayer(nn.Module):
    """Bottleneck of 1×1, 3×3 and 1×1 convolutions on the merged map (B, G, G, D): the only path between windows."""

    def __init__(self, config: TapImageEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size // 2
        self.conv1 = nn.Conv2d(config.hidden_size, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps=config.batch_norm_eps)
        self.conv3 = nn.Conv2d(width, config.hidden_size, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(config.hidden_size, eps=config.batch_norm_eps)

    def forward(self, grid: Tensor) -> Tensor:
        hidden = rearrange(grid, "b y x d -> b d y x")
        hidden = nn.functional.gelu(self.norm1(self.conv1(hidden)))
        hidden = nn.functional.gelu(self.norm2(self.conv2(hidden)))
        return grid + rearrange(self.norm3(self.conv3(hidden)), "b d y x -> b y x d")


class TapImageEncoderNeck(nn.Module):
    """1×1 and 3×3 convolutions to the decoder's width, each with BatchNorm and without activation."""

    def __init__(self, config: TapImageEncoderConfig) -> None:
        super().__init__()
        self.lateral_conv = nn.Conv2d(config.hidden_size, config.output_size, 1, bias=False)
        self.lateral_norm = nn.BatchNorm2d(config.output_size, eps=config.batch_norm_eps)
        self.output_conv = nn.Conv2d(config.output_size, config.output_size, 3, padding=1, bias=False)
        self.output_norm = nn.BatchNorm2d(config.output_size, eps=config.batch_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output_norm(self.output_conv(self.lateral_norm(self.lateral_conv(hidden))))
