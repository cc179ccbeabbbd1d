"""Cost as work grows: regions of a picture, pictures, words of captions, and the language model; and memory.

    python benchmarks/growth.py                        # two minutes, on the bundled models and TAP-B's decoder
    python benchmarks/growth.py --most 1024

Every axis is doubled or quadrupled; what counts is the cost of one more, which may fall but not rise, and that memory stays
where it is when regions are answered in batches: what a call takes beyond what the process held before it. The last column
is time beside work, 1 where cost is linear.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import describe_machine, seconds_of
from region_tokens import peak_bytes
from side_by_side import arguments_of, make_tap
from transformers import LlamaConfig, LlamaForCausalLM

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor
from tap_tokenizer import TapModel, TapRegionTokenizer

Make = Callable[[int], tuple[float, Callable[[], Any]]]
"""Gives the work of a number as (amount, call)."""


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    arguments = arguments_of(__doc__, most={"type": int, "default": 4096, "help": "regions of one picture"})
    most = 8 if arguments.quick else arguments.most
    model = make_tap(arguments)
    small = TapRegionTokenizer.from_pretrained("tap-tiny", device=arguments.device)
    quick = arguments.quick
    axes: dict[str, tuple[Make, list[int]]] = {
        "regions of a picture": (regions(model), [n for n in (1, 4, 16, 64, 256, 1024, 4096) if n <= most]),
        "pictures, 4 regions each, tap-tiny": (pictures(small), [1, 2] if quick else [1, 4, 16, 64]),
        "words of 64 captions": (words(model), [2, 4, 8] if quick else [4, 8, 16, 32]),
        "language model, M parameters; 256 regions of 16 pictures in one call": (
            bridge(small), [64, 128] if quick else [256, 512, 1024],
        ),
    }  # fmt: skip
    print(describe_machine(), flush=True)
    found = [row for axis, (make, numbers) in axes.items() for row in grow(axis, make, numbers, arguments.device)]
    lines = ["| | number | seconds | of one | memory beside the model, MiB | time / work |", "|---" * 6 + "|"]
    for row in found:
        lines.append(
            f"| {row['axis']} | {row['number']:.4g} | {row['seconds']:.3g} | {row['seconds'] / row['number']:.3g} | "
            f"{row['bytes'] / 2**20:.0f} | {row['growth']:.2f} |"
        )
    text = (
        f"{describe_machine()}; TAP-{arguments.size}, {arguments.dtype} on {arguments.device}\n\n"
        + "\n".join(lines)
        + "\n"
    )
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "growth.md").write_text(text)
    (arguments.output / "growth.json").write_text(json.dumps({"machine": describe_machine(), "rows": found}, indent=1))


def grow(axis: str, make: Make, numbers: list[int], device: str) -> list[dict[str, Any]]:
    """A row for each number, with the height of the device's memory."""
    found: list[dict[str, Any]] = []
    before: dict[str, Any] | None = None
    for number in numbers:
        amount, way = make(number)
        if before is None or before["seconds"] < 1:
            way()  # warm up, where that is no waste
        times: list[float] = []
        height = peak_bytes(device, lambda way=way, times=times: times.append(seconds_of(way)))  # type: ignore[misc]
        seconds = min([*times, *(seconds_of(way) for _ in range(2))]) if times[0] < 1 else times[0]
        row = {"axis": axis, "number": amount, "seconds": seconds, "bytes": height, "growth": 1.0}
        if before is not None:
            row["growth"] = (seconds / before["seconds"]) / (amount / before["number"])
        print(f"  {axis}: {amount:.4g} in {seconds:.3g} s", flush=True)
        found.append(row)
        before = row
    return found


def regions(model: TapModel) -> Make:
    """Region tokens of boxes of one encoded picture."""
    tokenizer = TapRegionTokenizer(model)
    features = tokenizer.embed_image(np.zeros((96, 128, 3), dtype=np.uint8))
    corners = np.random.RandomState(0).randint(0, 60, (4096, 2)).tolist()
    boxes = [[x, y, x + 30, y + 30] for x, y in corners]
    return lambda number: (number, lambda: tokenizer.encode(features=features, boxes=boxes[:number]))


def pictures(tokenizer: TapRegionTokenizer) -> Make:
    """Pictures with regions, from bytes to tokens."""
    seen = list(np.random.RandomState(0).randint(0, 255, (64, 96, 128, 3), dtype=np.uint8))
    boxes = [[[8, 8, 60, 60], [30, 20, 90, 80], [2, 4, 20, 40], [64, 8, 120, 90]]] * 64
    return lambda number: (number, lambda: tokenizer.encode(seen[:number], boxes=boxes[:number]))


def words(model: TapModel) -> Make:
    """Captions of 64 regions, up to so many words."""
    tokens = torch.randn(64, model.config.text_decoder_config.region_size, device=model.device, dtype=model.dtype)
    return lambda number: (number, lambda: model.greedy_captions(tokens, number + 1))


def bridge(tokenizer: TapRegionTokenizer) -> Make:
    """One `generate` for 16 pictures with 16 regions each, on language models of growing width."""
    text = RegionBridgeProcessor.from_pretrained("region-chat-tiny").tokenizer
    seen = list(np.random.RandomState(0).randint(0, 255, (16, 96, 128, 3), dtype=np.uint8))
    corners = np.random.RandomState(1).randint(0, 60, (16, 16, 2)).tolist()
    boxes = [[[x, y, x + 30, y + 30] for x, y in own] for own in corners]

    def make(width: int) -> tuple[float, Callable[[], Any]]:
        config = LlamaConfig(
            vocab_size=len(text), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=4,
            num_attention_heads=width // 64,
        )  # fmt: skip
        model = RegionBridgeForConditionalGeneration.from_language_model(
            LlamaForCausalLM(config), region_tokenizer=tokenizer, text_tokenizer=text
        )
        model = model.eval().to(device=tokenizer.device)
        processor = RegionBridgeProcessor.for_bridge(model.config, text, tokenizer)
        inputs = processor(["<region>" * 16] * 16, seen, boxes=boxes).to(tokenizer.device)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        return millions, lambda: model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    return make


if __name__ == "__main__":
    main()
