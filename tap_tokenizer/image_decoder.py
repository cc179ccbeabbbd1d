"""TAP's image decoder: prompt embeddings × image embedding → masks, IoU scores, semantic tokens and embeddings.

It is SAM's two-way transformer with four more tokens, the semantic ones (arXiv 2312.09128, section 3.2). Regions are rows of a
batch. `TapModel` decides which picture a row belongs to and which of the four experts answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .attention import attend
from .configuration_tap import TapImageDecoderConfig


@dataclass
class TapImageDecoderOutput(ModelOutput):
    """What the decoder says about R regions, with K experts and an image grid of side G.

    iou_scores (R, K): predicted IoU of each expert's mask, float32.
    semantic_tokens (R, K, D) and semantic_embeds (R, K, E).
    pred_masks (R, K, 4G, 4G): mask logits over the model frame, or None if they were not asked for.
    """

    iou_scores: Tensor | None = None
    semantic_tokens: Tensor | None = None
    semantic_embeds: Tensor | None = None
    pred_masks: Tensor | None = None


class TapImageDecoder(nn.Module):
    """Learned tokens and a prompt attend to the picture and gather what it shows of the region."""

    def __init__(self, config: TapImageDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width, experts = config.hidden_size, config.num_experts
        self.semantic_tokens = nn.Parameter(torch.zeros(experts, width))
        self.iou_token = nn.Parameter(torch.zeros(1, width))
        self.mask_tokens = nn.Parameter(torch.zeros(experts, width))
        self.transformer = TapTwoWayTransformer(config)
        self.mask_upscaler = TapMaskUpscaler(width)
        self.mask_heads = nn.ModuleList(_mlp(width, width, width // 8) for _ in range(experts))
        self.iou_head = _mlp(width, width, experts)
        self.semantic_head = _mlp(width, config.semantic_embed_size, config.semantic_embed_size)

    def forward(
        self,
        image_embeddings: Tensor,
        image_positions: Tensor,
        prompt_embeddings: Tensor,
        prompt_mask: Tensor | None = None,
        output_masks: bool = True,
    ) -> TapImageDecoderOutput:
        """Decode R regions.

        image_embeddings (R, D, G, G): the picture of each region; image_positions (G², D); prompt_embeddings (R, P, D);
        prompt_mask (R, P): False where a row is shorter than P.
        """
        regions, _, side, _ = image_embeddings.shape
        experts = self.config.num_experts
        learned = torch.cat([self.semantic_tokens, self.iou_token, self.mask_tokens])
        tokens = torch.cat([learned.expand(regions, -1, -1), prompt_embeddings], dim=1)
        token_mask = None
        if prompt_mask is not None:  # (R, 1, 1, tokens): attention from anywhere skips the absent points
            present = prompt_mask.new_ones(regions, len(learned))
            token_mask = torch.cat([present, prompt_mask], dim=1)[:, None, None, :]
        image = rearrange(image_embeddings, "r d y x -> r (y x) d")
        tokens, image = self.transformer(tokens, image, image_positions, token_mask)
        semantic_tokens, iou_token, mask_tokens, _ = tokens.split(
            [experts, 1, experts, tokens.shape[1] - len(learned)], dim=1
        )
        pred_masks = None
        if output_masks:
            features = self.mask_upscaler(rearrange(image, "r (y x) d -> r d y x", y=side))
            kernels = torch.stack([head(mask_tokens[:, k]) for k, head in enumerate(self.mask_heads)], dim=1)
            pred_masks = torch.einsum("rkd,rdyx->rkyx", kernels, features)
        return TapImageDecoderOutput(
            iou_scores=self.iou_head(iou_token.squeeze(1)).float(),
            semantic_tokens=semantic_tokens,
            semantic_embeds=self.semantic_head(semantic_tokens),
            pred_masks=pred_masks,
        )


class TapTwoWayTransformer(nn.Module):
    """Blocks in which tokens read the image and the image reads the tokens; then the tokens read it once more."""

    def __init__(self, config: TapImageDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TapTwoWayLayer(config, is_first=i == 0) for i in range(config.num_hidden_layers))
        self.final_attention = TapDecoderAttention(config, config.attention_downsample_rate)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, image: Tensor, image_positions: Tensor, token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (R, T, D) and image (R, G², D) → both, after reading each other."""
        positions = tokens  # the initial tokens serve as their own positions throughout
        for layer in self.layers:
            tokens, image = layer(tokens, image, positions, image_positions, token_mask)
        read = self.final_attention(tokens + positions, image + image_positions, image)
        return self.norm(tokens + self.dropout(read)), image


class TapTwoWayLayer(nn.Module):
    """Self-attention of tokens, tokens read the image, MLP, the image reads the tokens; a LayerNorm after each."""

    def __init__(self, config: TapImageDecoderConfig, is_first: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.is_first = is_first
        self.self_attention = TapDecoderAttention(config)
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.token_to_image = TapDecoderAttention(config, config.attention_downsample_rate)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.intermediate_size), nn.ReLU(), nn.Linear(config.intermediate_size, width)
        )
        self.norm3 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.image_to_token = TapDecoderAttention(config, config.attention_downsample_rate)
        self.norm4 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        positions: Tensor,
        image_positions: Tensor,
        token_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if self.is_first:  # tokens still are their positions: no addition, no residual
            tokens = self.norm1(self.self_attention(tokens, tokens, tokens, token_mask))
        else:
            placed = tokens + positions
            tokens = self.norm1(tokens + self.dropout(self.self_attention(placed, placed, tokens, token_mask)))
        placed_image = image + image_positions
        tokens = self.norm2(tokens + self.dropout(self.token_to_image(tokens + positions, placed_image, image)))
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))
        image = self.norm4(image + self.image_to_token(placed_image, tokens + positions, tokens, token_mask))
        return tokens, image


class TapDecoderAttention(nn.Module):
    """Multi-head attention whose inner width is `hidden_size // downsample_rate`."""

    def __init__(self, config: TapImageDecoderConfig, downsample_rate: int = 1) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size // downsample_rate
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)
        self.output = nn.Linear(width, config.hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        split = "r t (h d) -> r h t d"
        heads = self.config.num_attention_heads
        hidden = attend(
            rearrange(self.query(query), split, h=heads),
            rearrange(self.key(key), split, h=heads),
            rearrange(self.value(value), split, h=heads),
            mask=mask,
            implementation=self.config._attn_implementation,
        )
        return self.output(rearrange(hidden, "r h t d -> r t (h d)"))


class TapMaskUpscaler(nn.Module):
    """The image as the transformer leaves it (R, D, G, G) → mask features (R, D/8, 4G, 4G)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width // 4, 2, 2)
        self.norm = nn.LayerNorm(width // 4)
        self.conv2 = nn.ConvTranspose2d(width // 4, width // 8, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = rearrange(self.conv1(image), "r d y x -> r y x d")
        hidden = nn.functional.gelu(rearrange(self.norm(hidden), "r y x d -> r d y x"))
        return nn.functional.gelu(self.conv2(hidden))


def _mlp(width: int, hidden: int, output: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, output)
    )
