"""A region tokenizer → a folder that a browser runs: two ONNX graphs in the layout of SAM, which transformers.js loads.

transformers.js knows SAM by its input and output names. TAP speaks the same, and its graphs have further outputs: the semantic
tokens and embeddings of each region, and which expert answers it.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .configuration_tap import TapConfig
from .image_encoder import relative_position_index
from .image_processing_tap import TapImageProcessor
from .modeling_tap import TapModel
from .output_files import only_writer, write_whole
from .pretrained_files import CONCEPTS_FILE
from .prompt_encoder import PointLabel
from .region_tokenizer import TapRegionTokenizer

INSTALL = 'pip install "tap-bridge[onnx]"'
GRAPHS = ("vision_encoder", "prompt_encoder_mask_decoder")
"""The names by which transformers.js looks for the graphs of a SAM, in the folder `onnx`."""


class _Precision(NamedTuple):
    """What transformers.js calls a precision, and how the names of its files end."""

    dtype: str
    suffix: str


PRECISIONS = {"float32": _Precision("fp32", ""), "int8": _Precision("q8", "_quantized")}

OPSET = 18
"""Version of the operators: onnxruntime in browsers and WebGPU knows all of them."""

MAX_BYTES = 2**31 - 1
"""Largest file that protobuf writes; browsers mount no second file with the weights."""


def export_onnx(tokenizer: TapRegionTokenizer, folder: str | Path, *, precision: str = "float32") -> dict[str, int]:
    """Write a folder that `SamModel` and `SamProcessor` of transformers.js load; returns its files with their sizes in bytes.

    precision: `"float32"` gives PyTorch's numbers; `"int8"` stores the weights of matrix products in bytes, and multiplies
    bytes. The folder gets `config.json`, `preprocessor_config.json`, `onnx/vision_encoder.onnx` and
    `onnx/prompt_encoder_mask_decoder.onnx` (for int8, their names end in `_quantized.onnx`), and the concept bank, if there
    is one, as `concepts.safetensors`. It is written completely or not at all.

    The encoder reads pixel_values (B, 3, S, S) in the order red, green, blue, and gives image_embeddings and
    image_positional_embeddings, both (B, D, G, G). The decoder reads both, input_points (B, R, P, 2), in pixels of the model
    frame, and input_labels (B, R, P): 1 on the region, 0 off it, 2 and 3 for the corners of its box; a point with any other
    label is absent. It gives iou_scores (B, R, K), pred_masks (B, R, K, 4G, 4G), semantic_tokens (B, R, K, D),
    semantic_embeds (B, R, K, E) and expert (B, R): which of the K answers the prompt.

    Raises `ValueError` for an unknown precision, a folder that exists, or weights that no ONNX file holds, and
    `ImportError` without the extra `onnx`.
    """
    folder = Path(folder)
    check_export(folder, precision)
    parts = _Encoder(tokenizer.model, tokenizer.processor.image_processor), _Decoder(tokenizer.model)
    if (size := max(4 * sum(weight.numel() for weight in part.state_dict().values()) for part in parts)) > MAX_BYTES:
        raise ValueError(
            f"The weights of the largest graph take {size / 1e9:.1f} GB in float32, but an ONNX file holds at most "
            f"{MAX_BYTES / 1e9:.1f} GB: export a smaller model, such as TAP-B or TAP-L."
        )
    with only_writer(folder):
        check_export(folder, precision)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a process left that was killed
        try:
            (partial / "onnx").mkdir(parents=True)
            with _plain_float32(tokenizer.model):
                for name, part in tqdm(zip(GRAPHS, parts), "graphs", total=len(parts), unit="graph"):
                    path = partial / "onnx" / f"{name}{PRECISIONS[precision].suffix}.onnx"
                    _write_graph(path, part, tokenizer.model.config, precision)
            _write_configs(partial, tokenizer, precision)
            if tokenizer.concepts is not None:
                tokenizer.concepts.save(partial / CONCEPTS_FILE)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def check_export(folder: Path, precision: str) -> None:
    """Refuse what `export_onnx` cannot do, before a model is loaded."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected {' or '.join(PRECISIONS)}.")
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder.")
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ImportError(
            f"Writing ONNX graphs needs packages that are not installed ({', '.join(missing)}): {INSTALL}"
        )


class _Encoder(nn.Module):
    """Pixels as SAM's processor makes them → what SAM's encoder gives."""

    padding: Tensor

    def __init__(self, model: TapModel, processor: TapImageProcessor) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder = model.image_encoder, model.prompt_encoder
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        self.register_buffer("padding", ((mean.trunc() - mean) / std)[:, None, None], persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        # SAM pads with zeros, TAP with the mean colour in whole bytes. No pixel of a picture is exactly the mean.
        is_padding = (pixel_values == 0).all(dim=1, keepdim=True)
        embeddings = self.image_encoder(torch.where(is_padding, self.padding, pixel_values.flip(1)))
        positions = self.prompt_encoder.encode_grid(embeddings.shape[-1]).mT.unflatten(1, embeddings.shape[-2:])
        return embeddings, positions.expand_as(embeddings)


class _Decoder(nn.Module):
    """Embeddings and SAM's prompts → what `TapModel.forward` gives, for B pictures with R regions each."""

    def __init__(self, model: TapModel) -> None:
        super().__init__()
        self.prompt_encoder, self.image_decoder = model.prompt_encoder, model.image_decoder

    def forward(
        self, image_embeddings: Tensor, image_positional_embeddings: Tensor, input_points: Tensor, input_labels: Tensor
    ) -> tuple[Tensor, ...]:
        pictures, regions = input_labels.shape[:2]
        points, labels = input_points.flatten(0, 1), input_labels.flatten(0, 1)
        is_present = (labels >= PointLabel.BACKGROUND) & (labels < PointLabel.PADDING)
        has_box = (labels == PointLabel.TOP_LEFT).any(dim=1, keepdim=True)
        # As SAM's own graph does, add the padding point with which a prompt without a box ends.
        padding = torch.full_like(labels[:, :1], PointLabel.PADDING)
        labels = torch.cat([labels.where(is_present, PointLabel.PADDING), padding], dim=1)
        points = torch.cat([points, torch.zeros_like(points[:, :1])], dim=1)
        each_region = [
            part.unsqueeze(1).expand(-1, regions, -1, -1, -1).flatten(0, 1)
            for part in (image_embeddings, image_positional_embeddings)
        ]
        decoded = self.image_decoder(
            image_embeddings=each_region[0],
            image_positions=each_region[1].flatten(2).mT,
            prompt_embeddings=self.prompt_encoder(points, labels),
            prompt_mask=torch.cat([is_present, ~has_box], dim=1),
        )
        first_labels = torch.where(has_box, PointLabel.TOP_LEFT, PointLabel.FOREGROUND)
        outputs = (
            decoded.iou_scores,
            decoded.pred_masks,
            decoded.semantic_tokens,
            decoded.semantic_embeds,
            TapModel.route(decoded.iou_scores, first_labels),
        )
        return tuple(output.unflatten(0, (pictures, regions)) for output in outputs)


@contextmanager
def _plain_float32(model: TapModel) -> Iterator[None]:
    """The model on the CPU, in evaluation mode and float32, as graphs are traced; afterwards as it was."""
    device, dtype, was_training = model.device, model.dtype, model.training
    try:
        model.float().cpu().eval()
        relative_position_index(model.config.image_encoder_config.window_size, model.device)  # keep no traced one
        yield
    finally:
        model.to(device=device, dtype=dtype).train(was_training)


def _write_graph(path: Path, part: _Encoder | _Decoder, config: TapConfig, precision: str) -> None:
    """Trace one of the two graphs and write it; of example inputs, only those axes are fixed that `shapes` does not name."""
    size, side, width = (
        config.image_size,
        config.image_encoder_config.grid_size,
        config.image_decoder_config.hidden_size,
    )
    pictures, regions, points = (torch.export.Dim(name, min=1) for name in ("pictures", "regions", "points"))
    prompt = {0: pictures, 1: regions, 2: points}
    if isinstance(part, _Encoder):
        inputs = {"pixel_values": (torch.zeros(2, 3, size, size), {0: pictures})}
        outputs = ["image_embeddings", "image_positional_embeddings"]
    else:
        inputs = {
            "image_embeddings": (torch.zeros(2, width, side, side), {0: pictures}),
            "image_positional_embeddings": (torch.zeros(2, width, side, side), {0: pictures}),
            "input_points": (torch.zeros(2, 3, 4, 2), prompt),
            "input_labels": (torch.ones(2, 3, 4, dtype=torch.long), prompt),
        }
        outputs = ["iou_scores", "pred_masks", "semantic_tokens", "semantic_embeds", "expert"]
    examples, shapes = zip(*inputs.values())
    traced = path.with_name("float32.partial") if precision == "int8" else path
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            part, examples, traced, input_names=list(inputs), output_names=outputs, dynamic_shapes=shapes,
            opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        if precision == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # Convolutions stay: browsers have no fast ones for bytes. With weights of 7 bits, sums of products fit into the
            # 16 bits that processors without instructions for bytes have for them.
            quantize_dynamic(
                traced, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
            traced.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter and the quantizer tell their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_configs(folder: Path, tokenizer: TapRegionTokenizer, precision: str) -> None:
    """What transformers.js reads before the graphs: which model this is, and how its processor prepares a picture."""
    processor = tokenizer.processor.image_processor
    config = {
        "model_type": "sam",
        "architectures": ["SamModel"],
        "transformers.js_config": {"dtype": PRECISIONS[precision].dtype},
        "fingerprint": tokenizer.fingerprint,
        "limitation": tokenizer.limitation,
    }
    preparation = {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": processor.image_size},
        "resample": 1,  # Lanczos: in Node, "bilinear" reads single pixels, half a pixel off; browsers have a way of their own
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in reversed(processor.image_mean)],
        "image_std": [value / 255 for value in reversed(processor.image_std)],
        "do_pad": True,
        "pad_size": {"height": processor.image_size, "width": processor.image_size},
    }
    for name, values in (("config.json", config), ("preprocessor_config.json", preparation)):
        write_whole(folder / name, json.dumps(values, indent=2) + "\n")
