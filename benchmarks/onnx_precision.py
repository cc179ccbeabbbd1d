"""What an export in int8 changes: masks, concepts, file sizes and seconds beside float32, in onnxruntime, in one run.

    python benchmarks/onnx_precision.py
    python benchmarks/onnx_precision.py --scenes 8 --threads 2

Every visible object of the first scenes of GlyphScenes' test split is asked about by its box. Its concept is the most probable
one in the tokenizer's own bank.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine, interleaved
from onnxruntime import InferenceSession, SessionOptions
from tqdm import tqdm

from finetune.glyphs.scenes import draw_scene, make_scene
from tap_tokenizer import TapRegionTokenizer, export_onnx

PRECISIONS = {"float32": "", "int8": "_quantized"}


class Graphs:
    """The two graphs of an exported folder."""

    def __init__(self, folder: Path, suffix: str, threads: int) -> None:
        options = SessionOptions()
        options.intra_op_num_threads = threads
        self.encoder, self.decoder = (
            InferenceSession(folder / "onnx" / f"{name}{suffix}.onnx", options)
            for name in ("vision_encoder", "prompt_encoder_mask_decoder")
        )

    def encode(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Pixel values (1, 3, S, S) in the order RGB → what the decoder reads."""
        embeddings, positions = self.encoder.run(None, {"pixel_values": pixel_values})
        return {"image_embeddings": embeddings, "image_positional_embeddings": positions}

    def decode(self, seen: dict[str, np.ndarray], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (R, 2, 2) in the model frame → mask logits (R, 4G, 4G) and semantic embeddings (R, E) of their expert."""
        labels = np.tile(np.int64([2, 3]), (1, len(points), 1))
        names = ["pred_masks", "semantic_embeds"]
        masks, embeds = self.decoder.run(names, {**seen, "input_points": points[None], "input_labels": labels})
        return masks[0, :, 0], embeds[0, :, 0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tap-tiny", help="a region tokenizer with concepts (default: tap-tiny)")
    parser.add_argument("--scenes", type=int, default=100, help="how many pictures (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime (default: 1)")
    arguments = parser.parse_args()
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.model)
    if tokenizer.concepts is None:
        raise SystemExit(f"{arguments.model} has no concepts, expected a region tokenizer that names what it sees.")
    graphs: dict[str, Graphs] = {}
    megabytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for precision, suffix in PRECISIONS.items():
            sizes = export_onnx(tokenizer, Path(name) / precision, precision=precision)
            megabytes[precision] = sum(size for file, size in sizes.items() if file.endswith(".onnx")) / 1e6
            graphs[precision] = Graphs(Path(name) / precision, suffix, arguments.threads)
    ious, concepts = compare(tokenizer, graphs, arguments.scenes)
    print(
        f"{describe_machine()}; {arguments.model}, onnxruntime with {arguments.threads} threads, {len(ious)} objects\n"
    )
    print("| | float32 | int8 | |\n|---|---|---|---|")
    print("| masks, mean IoU with the truth | {:.4f} | {:.4f} | with each other {:.4f} |".format(*ious.mean(axis=0)))
    print("| concepts, share that is right | {:.4f} | {:.4f} | the same {:.4f} |".format(*concepts.mean(axis=0)))
    rows = {
        "both graphs, MB": (megabytes, 1),
        **{f"{name}, ms": (times, 1e3) for name, times in seconds(graphs).items()},
    }
    for name, (values, unit) in rows.items():
        ratio = values["float32"] / values["int8"]
        print(f"| {name} | {unit * values['float32']:.1f} | {unit * values['int8']:.1f} | ÷ {ratio:.2f} |")


def compare(tokenizer: TapRegionTokenizer, graphs: dict[str, Graphs], scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """IoUs (R, 3): float32 with the truth, int8 with the truth, and both; whether concepts are right, and the same (R, 3)."""
    assert tokenizer.concepts is not None
    processor = tokenizer.processor.image_processor
    ious, concepts = [], []
    for index in tqdm(range(scenes), "scenes", unit="scene"):
        scene = make_scene(index, "test")
        picture = draw_scene(scene)
        inputs = tokenizer.processor(picture.image, boxes=picture.boxes[picture.visible].tolist())
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        masks, names = [picture.masks[picture.visible]], [[scene.objects[i].kind for i in picture.visible]]
        for graph in graphs.values():
            seen = graph.encode(np.ascontiguousarray(inputs["pixel_values"].numpy()[:, ::-1]))
            logits, embeds = graph.decode(seen, inputs["input_points"].numpy())
            (full,) = processor.post_process_masks([torch.from_numpy(logits)[:, None]], *sizes)
            masks.append(full[:, 0].numpy())
            names.append([best[0][0] for best in tokenizer.concepts.top(torch.from_numpy(embeds), 1)])
        for first, second, third in zip(*masks):
            ious.append([iou(first, second), iou(first, third), iou(second, third)])
        for right, exact, rounded in zip(*names):
            concepts.append([right == exact, right == rounded, exact == rounded])
    return np.array(ious), np.array(concepts)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Of two masks; 1 if both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def seconds(graphs: dict[str, Graphs]) -> dict[str, dict[str, float]]:
    """How long each precision takes, taking turns. The values of pixels and prompts do not matter for it."""
    shape = graphs["float32"].encoder.get_inputs()[0].shape
    pixels = np.random.default_rng(0).normal(size=(1, *shape[1:])).astype(np.float32)
    boxes = np.sort(np.random.default_rng(1).uniform(0, shape[2], (16, 2, 2)), axis=1).astype(np.float32)
    seen = graphs["float32"].encode(pixels)
    ways = {
        "encode a picture": {name: partial(graph.encode, pixels) for name, graph in graphs.items()},
        "16 boxes": {name: partial(graph.decode, seen, boxes) for name, graph in graphs.items()},
    }
    return {name: interleaved(way, 15) for name, way in ways.items()}


if __name__ == "__main__":
    main()
