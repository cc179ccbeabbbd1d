"""Encoding a picture: plain, fast, and the image encoder of transformers' SAM of the same size.

    python benchmarks/encode_picture.py --size b
    python benchmarks/encode_picture.py --size l --device cuda --dtype bfloat16 --compile

SAM's encoder has global attention in four blocks, TAP's none; otherwise they are alike in depth and width.
"""

from __future__ import annotations

import torch
from original import Original
from side_by_side import Row, arguments_of, compare, make_tap, ours
from torch import Tensor
from transformers import SamConfig, SamModel, SamVisionConfig

from tap_tokenizer import TapModel


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(__doc__, compile={"action": "store_true", "help": "with torch.compile, beside the others"})
    model = make_tap(arguments)
    side = model.config.image_size
    sam = make_sam(model)
    original = arguments.original and Original(arguments.original, arguments.size, arguments.device, arguments.dtype)
    weights = sum(p.numel() * p.element_size() for p in model.image_encoder.parameters())
    rows = []
    for pictures in (1,) if arguments.device == "cpu" else (1, 8):
        pixels = torch.randn(pictures, 3, side, side, device=arguments.device, dtype=model.dtype)
        ways = ours(model, lambda pixels=pixels: model.get_image_embeddings(pixels))
        if arguments.device == "cpu" and arguments.dtype == "float32":
            ways["int8"] = lambda pixels=pixels: in_int8(model, pixels)
        if arguments.compile:
            ways["compiled"] = lambda pixels=pixels: compiled(model, pixels)
        ways["SAM"] = lambda pixels=pixels: sam.get_image_embeddings(pixels)
        if original and pictures == 1:
            ways["original"] = original.encode(side)
        rows.append(
            Row(
                f"encode {pictures} picture{'s' * (pictures > 1)}",
                ways,
                weights + 2 * pixels.nbytes,
                rounds=5,
                others=("int8", "compiled"),
            )
        )
    compare("encode_picture", rows, arguments)


def in_int8(model: TapModel, pixels: Tensor) -> Tensor:
    """Pictures encoded with `encoder_precision="int8"`; weights are rounded at the first call."""
    model.is_plain, model.encoder_precision = False, "int8"
    try:
        return model.get_image_embeddings(pixels)
    finally:
        model.encoder_precision = "float32"


@torch.no_grad()
def compiled(model: TapModel, pixels: Tensor) -> Tensor:
    """Pictures encoded after `compile_encoder`; it compiles at the first call."""
    model.is_plain = False
    model.compile_encoder()
    try:
        return model.get_image_embeddings(pixels)
    finally:
        model._fast_encoder.is_compiled = False


def make_sam(model: TapModel) -> SamModel:
    """transformers' SAM with an encoder of the same picture, depth and width; random weights."""
    encoder = model.config.image_encoder_config
    depth = encoder.num_hidden_layers
    vision = SamVisionConfig(
        image_size=encoder.image_size, patch_size=encoder.patch_size, hidden_size=encoder.hidden_size,
        num_hidden_layers=depth, num_attention_heads=encoder.num_attention_heads, mlp_dim=encoder.intermediate_size,
        window_size=14, global_attn_indexes=[(i + 1) * depth // 4 - 1 for i in range(4)],
    )  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config={
        "image_size": encoder.image_size, "patch_size": encoder.patch_size,
        "image_embedding_size": encoder.grid_size, "mask_input_channels": 16,
    })  # fmt: skip
    return SamModel(config).eval().to(device=model.device, dtype=model.dtype)


if __name__ == "__main__":
    main()
