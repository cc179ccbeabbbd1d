"""`TapModel`: picture and prompts in the model frame → masks, IoU scores, semantic tokens and embeddings.

`TapModel.forward` reads like the figure of the paper (arXiv 2312.09128, figure 2). All coordinates are in the model frame; the
processor converts the user's pictures and pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_tap import TapConfig
from .counts import counted
from .fast_captions import FastCaptions
from .fast_inference import FastImageDecoder, FastImageEncoder
from .image_decoder import TapImageDecoder, TapImageDecoderOutput
from .image_encoder import TapImageEncoder, TapWindowAttention
from .int8_linear import check_int8
from .prompt_encoder import PointLabel, TapPromptEncoder
from .text_decoder import TapTextDecoder


@dataclass
class TapOutput(TapImageDecoderOutput):
    """What TAP says about R regions, with K experts; see `TapImageDecoderOutput`.

    expert (R,): the expert that answers the prompt, as `route` decides.
    image_embeddings (B, D, G, G): pass them to `forward` to ask about the same pictures again.
    """

    expert: Tensor | None = None
    image_embeddings: Tensor | None = None


class TapPreTrainedModel(PreTrainedModel):
    """Tells transformers how to initialise the weights of a TAP model, and what it may split or cast."""

    config_class = TapConfig
    base_model_prefix = "tap"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _no_split_modules = ["TapImageEncoderLayer", "TapTwoWayLayer", "TapTextDecoderLayer"]
    _keep_in_fp32_modules_strict = ["coord_matrix"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, TapWindowAttention):
            init.zeros_(module.relative_position_bias)
        elif isinstance(module, TapImageEncoder):
            init.normal_(module.position_embed, std=std)
        elif isinstance(module, TapPromptEncoder):
            init.normal_(module.coord_matrix)
        elif isinstance(module, TapImageDecoder):
            for token in (module.semantic_tokens, module.iou_token, module.mask_tokens):
                init.normal_(token, std=1.0)  # PyTorch's default for an embedding, which the original keeps


class TapModel(TapPreTrainedModel):
    """Tokenize Anything via Prompting: the image encoder, the prompt encoder, the image decoder and the caption decoder."""

    def __init__(self, config: TapConfig) -> None:
        super().__init__(config)
        self.image_encoder = TapImageEncoder(config.image_encoder_config)
        self.prompt_encoder = TapPromptEncoder(config)
        self.image_decoder = TapImageDecoder(config.image_decoder_config)
        self.text_decoder = TapTextDecoder(config.text_decoder_config)
        self.is_plain = False
        """Always use the plain formulation, even where `fast_inference` gives the same numbers faster."""
        self._fast_encoder = FastImageEncoder(self.image_encoder)
        self._fast_decoder = FastImageDecoder(self.image_decoder, self.prompt_encoder)
        self._fast_captions = FastCaptions(self.text_decoder)
        self.post_init()

    def train(self, mode: bool = True) -> TapModel:
        """Switch the mode. Training may change weights unnoticed, so fast inference prepares them again afterwards."""
        if mode:
            for fast in (self._fast_encoder, self._fast_decoder, self._fast_captions):
                fast.forget()
        return super().train(mode)

    @property
    def encoder_precision(self) -> str:
        """In what the linear layers of the image encoder compute: "float32", which stands for the dtype of the weights, or
        "int8", from weights in float32 on a CPU, and wherever inference is fast. The weights stay what they are.

        If they are moved elsewhere or cast, it is "float32" until they are back. Raises `ValueError` for weights or an
        `attn_implementation` that have no int8.
        """
        return self._fast_encoder.precision_in_use

    @encoder_precision.setter
    def encoder_precision(self, precision: str) -> None:
        if precision not in ("float32", "int8"):
            raise ValueError(f"encoder_precision is {precision!r}, expected 'float32' or 'int8'.")
        if precision == "int8":
            check_int8(self.image_encoder)
            _check_attention(self.config._attn_implementation)
            _check_compilation(self._fast_encoder.is_compiled)
        self._fast_encoder.precision = precision

    def compile_encoder(self) -> None:
        """Have `torch.compile` fuse the operations of the image encoder wherever inference is fast, up to rounding.

        The first picture then waits for the compiler, as does the first batch of another size. On a CPU this takes a C++
        compiler, on a GPU Triton; torch says so if it is missing. Raises `ValueError` for an encoder in int8.
        """
        _check_compilation(self._fast_encoder.precision == "int8")
        self._fast_encoder.is_compiled = True

    @property
    def is_fast(self) -> bool:
        """Whether a call would use `fast_inference` now: in evaluation mode, without gradients, autocast or "eager"."""
        asks_for_formula = self.is_plain or self.config._attn_implementation == "eager"
        kind = self.device.type
        is_mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return not (self.training or torch.is_grad_enabled() or is_mixed or asks_for_formula)

    def get_image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Pixel values (B, 3, S, S) from `TapImageProcessor` → image embeddings (B, D, G, G)."""
        encode = self._fast_encoder if self.is_fast else self.image_encoder
        return encode(pixel_values.to(self.image_encoder.patch_embed.weight.dtype))

    def greedy_captions(self, region_tokens: Tensor, max_length: int) -> Tensor:
        """Region tokens (R, D) → ids (R, max_length) of their greedy captions: bos first, padded after eos."""
        if self.is_fast:
            return self._fast_captions(region_tokens, max_length)
        return self.text_decoder.caption(region_tokens, max_length, do_sample=False)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        *,
        input_points: Tensor,
        input_labels: Tensor,
        prompt_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        output_masks: bool = True,
        mask_iou_thresh: float | None = None,
    ) -> TapOutput:
        """Ask about R regions of B pictures.

        pixel_values (B, 3, S, S), or image_embeddings (B, D, G, G) of an earlier call.
        input_points (R, P, 2): x, y in pixels of the model frame; input_labels (R, P): see `PointLabel`.
        prompt_mask (R, P): False where a prompt has fewer than P points; None if all have P.
        image_index (R,): the picture of each region; None if there is one picture.
        mask_iou_thresh: make the masks of answering experts alone, and those only whose IoU score is at least this:
        pred_masks are then (M, 4G, 4G), in the order of the regions.
        """
        if (pixel_values is None) == (image_embeddings is None):
            raise ValueError("Got both or neither of pixel_values and image_embeddings: give one of them.")
        if pixel_values is not None:
            image_embeddings = self.get_image_embeddings(pixel_values)
        assert image_embeddings is not None
        if image_index is None:
            if len(image_embeddings) != 1:
                raise ValueError(
                    f"Got {counted(len(image_embeddings), 'picture')} but no image_index: say which picture shows each region."
                )
            image_index = torch.zeros(len(input_points), dtype=torch.long, device=image_embeddings.device)
        prompts = self.prompt_encoder(input_points, input_labels)

        wanted = None
        if mask_iou_thresh is not None:
            wanted = partial(self._answers, input_labels, mask_iou_thresh)
        if self.is_fast and len(prompts):
            decoded = self._fast_decoder(image_embeddings, image_index, prompts, prompt_mask, output_masks, wanted)
        else:
            decoded = self.image_decoder(
                image_embeddings=image_embeddings[image_index],
                image_positions=self.prompt_encoder.encode_grid(image_embeddings.shape[-1]),
                prompt_embeddings=prompts,
                prompt_mask=prompt_mask,
                output_masks=output_masks,
            )
            if wanted is not None and decoded.pred_masks is not None and decoded.iou_scores is not None:
                everyone = torch.arange(len(prompts), device=prompts.device)
                decoded["pred_masks"] = decoded.pred_masks[wanted(everyone, decoded.iou_scores)]
        assert decoded.iou_scores is not None
        expert = self.route(decoded.iou_scores, input_labels)
        return TapOutput(**decoded, expert=expert, image_embeddings=image_embeddings)

    @classmethod
    def _answers(cls, input_labels: Tensor, threshold: float, rows: Tensor, iou_scores: Tensor) -> Tensor:
        """Which experts (N, K) of regions answer with at least so high an IoU score (N, K)."""
        expert = cls.route(iou_scores, input_labels[rows])
        return nn.functional.one_hot(expert, iou_scores.shape[1]).bool() & (iou_scores >= threshold)

    @staticmethod
    def route(iou_scores: Tensor, input_labels: Tensor) -> Tensor:
        """The expert that answers each region: 0 for a box, otherwise the one of the others with the highest IoU score."""
        is_box = input_labels[:, 0] == PointLabel.TOP_LEFT
        return torch.where(is_box, 0, iou_scores[:, 1:].argmax(dim=1) + 1)

    @property
    def fingerprint(self) -> str:
        """Digest of the weights that decide region tokens: from the config, or computed if the config has none."""
        return self.config.fingerprint or self.compute_fingerprint()

    def compute_fingerprint(self) -> str:
        """SHA-256, 16 hex digits, over names, shapes and values of all weights but the caption decoder's.

        Values are compared as float32, so loading weights in a wider dtype than they were saved in changes nothing.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith("text_decoder."):
                digest.update(f"{name} {tuple(tensor.shape)};".encode())
                values = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
                digest.update(values.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def set_attn_implementation(self, attn_implementation: str, **kwargs: Any) -> None:
        """Switch every part between "sdpa" and "eager"."""
        if attn_implementation not in ("sdpa", "eager"):
            raise ValueError(f'attn_implementation is {attn_implementation!r}, expected "sdpa" or "eager".')
        if self._fast_encoder.precision == "int8":
            _check_attention(attn_implementation)
        self.config._attn_implementation = attn_implementation  # reaches the configs of the parts

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as every transformers model does. The config records the fingerprint of the saved weights."""
        self.config.fingerprint = self.compute_fingerprint()
        super().save_pretrained(save_directory, **kwargs)


def _check_attention(attn_implementation: str) -> None:
    """Refuse an encoder in int8 together with "eager", which computes by the formula as it is written."""
    if attn_implementation == "eager":
        raise ValueError(
            "Got encoder_precision 'int8' and attn_implementation 'eager', which computes in float32, expected 'sdpa' with it: "
            "leave out one of them."
        )


def _check_compilation(is_other: bool) -> None:
    """Refuse compilation together with int8, whose products of whole numbers it does not speed up."""
    if is_other:
        raise ValueError(
            "Got encoder_precision 'int8' and compile_encoder(), expected one of them: leave out the other."
        )
