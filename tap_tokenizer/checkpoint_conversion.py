"""Converts the original's checkpoints: a safe reader, sizes from the shapes, one table of new names, and a strict load.

It reads the files that baaivision/tokenize-anything publishes. Once a model is converted, this module is not needed.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .concept_projector import ConceptBank
from .configuration_tap import TapConfig
from .image_processing_tap import PIXEL_MEAN_BGR, PIXEL_STD_BGR
from .modeling_tap import TapModel
from .restricted_pickle import read_pickle

# Original name → ours, applied in this order. What no line touches is called the same.
RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed."),
    (r"^image_encoder\.pos_embed\.weight$", "image_encoder.position_embed"),
    (r"^image_encoder\.cross_conv\.", "image_encoder.cross_window_layers."),
    (r"^image_encoder\.neck\.(lateral|output)_conv\.0\.0\.", r"image_encoder.neck.\1_conv."),
    (r"^image_encoder\.neck\.(lateral|output)_conv\.0\.1\.", r"image_encoder.neck.\1_norm."),
    (r"\.rel_pos_embed\.weight$", ".relative_position_bias"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.label_embed."),
    (r"^image_decoder\.sem_tokens\.weight$", "image_decoder.semantic_tokens"),
    (r"^image_decoder\.(iou_token|mask_tokens)\.weight$", r"image_decoder.\1"),
    (r"^image_decoder\.output_conv\.0\.", "image_decoder.mask_upscaler.conv1."),
    (r"^image_decoder\.output_conv\.1\.", "image_decoder.mask_upscaler.norm."),
    (r"^image_decoder\.output_conv\.3\.", "image_decoder.mask_upscaler.conv2."),
    (r"^image_decoder\.mask_pred\.", "image_decoder.mask_heads."),
    (r"^image_decoder\.iou_pred\.", "image_decoder.iou_head."),
    (r"^image_decoder\.sem_pred\.", "image_decoder.semantic_head."),
    (r"(_heads\.\d+|_head)\.layers\.0\.", r"\1.0."),
    (r"(_heads\.\d+|_head)\.layers\.1\.", r"\1.2."),
    (r"(_heads\.\d+|_head)\.layers\.2\.", r"\1.4."),
    (r"\.final_attn_token_to_image\.", ".final_attention."),
    (r"\.cross_attn_(token_to_image|image_to_token)\.", r".\1."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.([qkv])_proj\.", lambda m: {"q": ".query.", "k": ".key.", "v": ".value."}[m[1]]),
    (r"^(image_decoder\.transformer\..*(?:attention|token_to_image|image_to_token))\.proj\.", r"\1.output."),
    (r"^text_decoder\.encoder\.", "text_decoder.region_proj."),
    (r"^text_decoder\.transformer\.tok_embeddings\.", "text_decoder.token_embed."),
    (r"^text_decoder\.transformer\.text_proj\.", "text_decoder.lm_head."),
    (r"^text_decoder\.transformer\.", "text_decoder."),
    (r"\.blocks\.", ".layers."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)
DERIVED = re.compile(r"\.rel_pos_embed\.index$|\.num_batches_tracked$")  # follow from the rest, or mean nothing here
PIXEL_STATISTICS = ("pixel_mean", "pixel_rsig")


def load_original(path: str | Path, dtype: torch.dtype = torch.float32) -> TapModel:
    """A `TapModel` in evaluation mode from one of the original's `.pkl` checkpoints.

    Raises `pickle.UnpicklingError` if the file is not a pickle of arrays, and `ValueError` if its names, shapes or values
    are not those of a TAP; the message lists them.
    """
    arrays = _read_arrays(path)
    _check_pixel_statistics(arrays, path)
    weights = {}
    for name, value in arrays.items():
        if name not in PIXEL_STATISTICS and not DERIVED.search(name):
            weights[rename(name)] = value
    config = config_from_shapes({name: tuple(value.shape) for name, value in weights.items()}, path)
    with torch.device("meta"):
        model = TapModel(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in expected:
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.long)
    _check_names_and_shapes(expected, weights, path)
    model.load_state_dict(weights, assign=True)
    model.config.fingerprint = model.compute_fingerprint()
    return model.to(dtype).eval()


def load_original_concepts(path: str | Path) -> ConceptBank:
    """A `ConceptBank` from one of the original's concept files: a pickle of [weights (E, N), N names]."""
    content = read_pickle(path)
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected [weights, names]: give a concept file.")
    weights, names = content
    if not isinstance(weights, (np.ndarray, Tensor)):
        raise ValueError(f"{path} starts with a {type(weights).__name__}, expected the weights (E, N).")
    if not isinstance(names, (list, tuple, np.ndarray)) or any(not isinstance(name, str) for name in names):
        raise ValueError(f"{path} has names that are not all text, expected [weights, names]: give a concept file.")
    return ConceptBank(tuple(map(str, names)), torch.as_tensor(weights))


def rename(name: str) -> str:
    """Our name for one of the original's weights."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str | Path = "weights") -> TapConfig:
    """The sizes of a TAP, read from the shapes of its weights (our names).

    Shapes do not show the original's constants, so they are fixed here: 32 channels per head in the image decoder, 64 in the
    caption decoder, 40 text positions, bos 1, eos 2, and the last id of the vocabulary for padding.
    """

    def count(pattern: str) -> int:
        return len({m[0] for m in (re.match(pattern, name) for name in shapes) if m})

    try:
        width, _, patch, _ = shapes["image_encoder.patch_embed.weight"]
        heads, offsets = shapes["image_encoder.layers.0.attention.relative_position_bias"]
        tokens = shapes["image_encoder.position_embed"][0]
        region = shapes["image_encoder.neck.output_conv.weight"][0]
        vocabulary, text = shapes["text_decoder.token_embed.weight"]
        return TapConfig(
            image_encoder_config={
                "image_size": patch * round(tokens**0.5),
                "patch_size": patch,
                "window_size": (round(offsets**0.5) + 1) // 2,
                "hidden_size": width,
                "num_hidden_layers": count(r"image_encoder\.layers\.\d+"),
                "num_attention_heads": heads,
                "intermediate_size": shapes["image_encoder.layers.0.mlp.0.weight"][0],
                "output_size": region,
                "num_cross_window_layers": count(r"image_encoder\.cross_window_layers\.\d+"),
            },
            image_decoder_config={
                "hidden_size": region,
                "num_hidden_layers": count(r"image_decoder\.transformer\.layers\.\d+"),
                "num_attention_heads": region // 32,
                "intermediate_size": shapes["image_decoder.transformer.layers.0.mlp.0.weight"][0],
                "attention_downsample_rate": region
                // shapes["image_decoder.transformer.final_attention.query.weight"][0],
                "num_experts": shapes["image_decoder.semantic_tokens"][0],
                "semantic_embed_size": shapes["image_decoder.semantic_head.4.weight"][0],
            },
            text_decoder_config={
                "region_size": region,
                "vocab_size": vocabulary,
                "hidden_size": text,
                "num_hidden_layers": count(r"text_decoder\.layers\.\d+"),
                "num_attention_heads": text // 64,
                "intermediate_size": shapes["text_decoder.layers.0.mlp.0.weight"][0],
                "pad_token_id": vocabulary - 1,
            },
        )
    except KeyError as error:
        raise ValueError(
            f"{source} lacks {error.args[0]}: expected a complete TAP checkpoint, download it again."
        ) from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{source} has weights whose shapes are not those of a TAP: {error}") from None


def _read_arrays(path: str | Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected {{name: array}}: give a TAP checkpoint.")
    arrays, wrong, broken = {}, [], []
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (np.ndarray, np.generic, Tensor)):
            wrong.append(f"{name!r}: {type(value).__name__}")
            continue
        tensor = torch.as_tensor(np.asarray(value).astype(np.asarray(value).dtype.newbyteorder("="))
                                 if not isinstance(value, Tensor) else value)  # fmt: skip
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                broken.append(name)
        arrays[name] = tensor
    if wrong:
        raise ValueError(f"{path} holds entries that are not arrays: {_some(wrong)}. Expected {{name: array}}.")
    if broken:
        raise ValueError(
            f"{path} holds NaN or infinite values in {_some(broken)}: the file is damaged, download it again."
        )
    return arrays


def _check_pixel_statistics(arrays: Mapping[str, Tensor], path: str | Path) -> None:
    for name, want in zip(PIXEL_STATISTICS, (PIXEL_MEAN_BGR, [1 / x for x in PIXEL_STD_BGR])):
        got = arrays.get(name)
        if got is not None and not torch.allclose(got.flatten(), torch.tensor(want), rtol=1e-3):
            raise ValueError(
                f"{path} was trained with {name} {got.tolist()}, expected {list(want)}, as in every published TAP."
            )


def _check_names_and_shapes(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, Tensor], path: str | Path
) -> None:
    missing, surplus = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    shapes = [
        f"{name}: {tuple(got[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in got and tuple(got[name].shape) != shape
    ]
    problems = [
        f"{len(found)} {what} ({_some(found)})"
        for what, found in (("missing weights", missing), ("surplus weights", surplus), ("wrong shapes", shapes))
        if found
    ]
    if problems:
        raise ValueError(
            f"{path} is not a complete TAP checkpoint: {'; '.join(problems)}. Names are given after renaming."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


if __name__ == "__main__":  # the name under which `tap-tokenizer convert` began
    sys.argv[:1] = ["tap-tokenizer", "convert"]
    runpy.run_module(__package__, run_name="__main__")
