"""The sizes of a TAP model: `TapConfig` and the configs of its parts. This module does not import torch."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TapImageEncoderConfig(PreTrainedConfig):
    """Sizes of the windowed ViT, which turns a square picture of `image_size` pixels into `grid_size`² embeddings."""

    model_type = "tap_image_encoder"
    base_config_key = "image_encoder_config"

    image_size: int = 1024
    """Side of the padded square picture, in pixels: the model frame."""
    patch_size: int = 16
    """Side of one patch, in pixels; `image_size` is a multiple of `patch_size * window_size`."""
    window_size: int = 16
    """Side of one attention window, in patches."""
    hidden_size: int = 768
    num_hidden_layers: int = 12
    """A multiple of `num_cross_window_layers`: each group of blocks ends with one cross-window bottleneck."""
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    output_size: int = 256
    """Width of the neck, and therefore of everything after the encoder."""
    num_cross_window_layers: int = 4
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    drop_path_rate: float | int = 0.1
    """Probability that a residual branch is skipped; only in training."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_sizes(
            self, image_size=1 << 12, patch_size=1 << 10, window_size=1 << 8, hidden_size=1 << 14, num_hidden_layers=1000,
            num_attention_heads=1 << 10, intermediate_size=1 << 17, output_size=1 << 14, num_cross_window_layers=1000,
        )  # fmt: skip
        span = self.patch_size * self.window_size
        if self.image_size % span:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of patch_size * window_size = {span}: "
                "windows must tile the picture."
            )
        if self.num_hidden_layers % self.num_cross_window_layers:
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers}, expected a multiple of "
                f"num_cross_window_layers = {self.num_cross_window_layers}."
            )
        _check_heads(self.hidden_size, self.num_attention_heads)

    @property
    def grid_size(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size


@strict
class TapImageDecoderConfig(PreTrainedConfig):
    """Sizes of the two-way transformer: prompts × image embedding → masks, IoU scores, semantic tokens and embeddings."""

    model_type = "tap_image_decoder"
    base_config_key = "image_decoder_config"

    hidden_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    attention_downsample_rate: int = 2
    """Cross-attentions have the width `hidden_size // attention_downsample_rate`."""
    num_experts: int = 4
    """Semantic and mask tokens per region. Expert 0 answers boxes, the others points and sketches."""
    semantic_embed_size: int = 1024
    """Width of the semantic embedding, which lives in the space of the concept bank."""
    layer_norm_eps: float = 1e-5
    dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_sizes(
            self, hidden_size=1 << 14, num_hidden_layers=1000, num_attention_heads=1 << 10, intermediate_size=1 << 17,
            attention_downsample_rate=1 << 10, num_experts=1 << 8, semantic_embed_size=1 << 16,
        )  # fmt: skip
        _check_heads(self.hidden_size, self.num_attention_heads)
        _check_heads(self.hidden_size // self.attention_downsample_rate, self.num_attention_heads)
        if self.hidden_size % 8:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of 8: masks use hidden_size / 8.")


@strict
class TapTextDecoderConfig(PreTrainedConfig):
    """Sizes of TAP's own caption decoder: one semantic token → one caption."""

    model_type = "tap_text_decoder"
    base_config_key = "text_decoder_config"

    region_size: int = 256
    """Width of the semantic token that starts the caption."""
    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 40
    """Counts the region, bos and the generated ids, so a caption has one id fewer than this."""
    rope_theta: float | int = 10000.0
    layer_norm_eps: float = 1e-5
    dropout: float | int = 0.1
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 31999

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_sizes(
            self, region_size=1 << 14, vocab_size=1 << 22, hidden_size=1 << 14, num_hidden_layers=1000,
            num_attention_heads=1 << 10, intermediate_size=1 << 17, max_position_embeddings=1 << 16,
        )  # fmt: skip
        _check_heads(self.hidden_size, self.num_attention_heads)
        if not 0 <= self.bos_token_id < self.vocab_size:
            raise ValueError(f"bos_token_id is {self.bos_token_id!r:.20}, expected 0 to {self.vocab_size - 1}.")

    @property
    def head_size(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_attention_heads


@strict
class TapConfig(PreTrainedConfig):
    """All sizes of a TAP model (arXiv 2312.09128, section 3).

    The default is the TAP-B of the paper, like `TapConfig.tap_vit_b()`. `tap_vit_l` and `tap_vit_h` differ only in the
    image encoder.
    """

    model_type = "tap"
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "image_encoder_config": TapImageEncoderConfig,
        "image_decoder_config": TapImageDecoderConfig,
        "text_decoder_config": TapTextDecoderConfig,
    }

    image_encoder_config: Any = None
    """A `TapImageEncoderConfig`, or a dictionary of its values. The same goes for the other two configs."""
    image_decoder_config: Any = None
    text_decoder_config: Any = None
    fingerprint: str | None = None
    """Digest of the weights that decide region tokens; written when a model is saved or converted."""
    limitation: str | None = None
    """A sentence about what these weights cannot do, which users see beside the answers; None if there is no warning."""
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if not isinstance(value, PreTrainedConfig):
                setattr(self, name, config_class(**(value or {})))
        super().__post_init__(**kwargs)
        width = self.image_encoder_config.output_size
        for name, got in (
            ("image_decoder_config.hidden_size", self.image_decoder_config.hidden_size),
            ("text_decoder_config.region_size", self.text_decoder_config.region_size),
        ):
            if got != width:
                raise ValueError(f"{name} is {got}, expected image_encoder_config.output_size = {width}.")

    @property
    def image_size(self) -> int:
        """Side of the model frame, in pixels."""
        return self.image_encoder_config.image_size

    @classmethod
    def tap_vit_b(cls) -> "TapConfig":
        """The shape of `tap_vit_b_v1_0` and `tap_vit_b_v1_1`."""
        return cls._with_encoder(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)

    @classmethod
    def tap_vit_l(cls) -> "TapConfig":
        """The shape of `tap_vit_l_v1_0` and `tap_vit_l_v1_1`."""
        return cls._with_encoder(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)

    @classmethod
    def tap_vit_h(cls) -> "TapConfig":
        """The shape of `tap_vit_h_v1_1`."""
        return cls._with_encoder(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16)

    @classmethod
    def _with_encoder(cls, **sizes: int) -> "TapConfig":
        return cls(image_encoder_config={**sizes, "intermediate_size": 4 * sizes["hidden_size"]})


def _check_sizes(config: PreTrainedConfig, **limits: int) -> None:
    """Refuse sizes below 1 or far above any TAP's: such a file is damaged, or made to fill the memory."""
    for name, limit in limits.items():
        value = getattr(config, name)
        if not 1 <= value <= limit:
            raise ValueError(f"{name} is {value!r:.20}, expected 1 to {limit}.")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{heads} attention heads cannot share a width of {width}: expected a multiple of the heads.")
