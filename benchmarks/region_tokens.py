"""Region tokens of boxes on an encoded picture, without and with masks: plain, fast, and transformers' SAM, which makes masks.

    python benchmarks/region_tokens.py --size b
    python benchmarks/region_tokens.py --size l --device cuda --dtype bfloat16 --boxes 1 64 256 1024

The decoder is the same in every size of TAP. "Plain" has all regions in one batch, as the original has; all start from image
embeddings. The last table is the memory that the largest number of boxes takes, each way in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from encode_picture import make_sam
from original import Original
from side_by_side import Row, arguments_of, compare, make_tap, operations_by_operator, ours
from torch.profiler import ProfilerActivity, profile

from tap_tokenizer import PointLabel, TapModel

KINDS = {
    "products, one for each region and head": ("bmm", "baddbmm", "baddbmm_"),
    "products of all rows with weights": ("addmm", "mm"),
    "softmax": ("_softmax",),
    "additions, products and sums by element": (
        "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "sum", "rsqrt", "clamp", "clamp_min", "relu", "gelu", "pow",
    ),
    "copies": ("copy_", "cat", "clone", "index", "_index_put_impl_", "fill_", "constant_pad_nd"),
}  # fmt: skip
"""PyTorch's operators by what they do here."""


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__,
        boxes={"type": int, "nargs": "+", "default": [1, 16, 64, 256], "help": "how many at once"},
        profile={
            "action": "store_true",
            "help": "print what the tokens of the last number of boxes take their time for",
        },
        peak={"choices": ("plain", "fast"), "help": "print the bytes that one way takes, and nothing else"},
    )
    counts = [1, 3] if arguments.quick else arguments.boxes
    model = make_tap(arguments)
    if arguments.peak:
        way = ours(model, asking(model, boxes_of(model, counts[-1]), False))[arguments.peak]
        print(json.dumps(peak_bytes(arguments.device, way)))
        return
    if arguments.profile:
        model.is_plain = False
        print(profile_of(asking(model, boxes_of(model, counts[-1]), False)))
        return
    sam = make_sam(model)
    original = arguments.original and Original(arguments.original, arguments.size, arguments.device, arguments.dtype)
    weights = sum(p.numel() * p.element_size() for p in model.image_decoder.parameters())
    grid = model.config.image_encoder_config.grid_size
    embeddings = torch.randn(1, 256, grid, grid, device=model.device, dtype=model.dtype)  # SAM's
    rows = []
    for masks in (False, True):
        for count in counts:
            boxes = boxes_of(model, count)
            ways = ours(model, asking(model, boxes, masks))
            if masks and count <= 64:
                corners = boxes.flatten(1)[None]
                ways["SAM"] = lambda corners=corners: sam(image_embeddings=embeddings, input_boxes=corners)
            if original and masks:
                ways["original"] = original.regions(boxes, model.config.image_size)
            results = count * (4 * 1280 + 4 * 16 * grid**2 * masks) * torch.finfo(model.dtype).bits // 8
            name = f"{count} box{'es' * (count > 1)}, {'with' if masks else 'no'} masks"
            rows.append(Row(name, ways, weights + embeddings.nbytes + results, rounds=1 if count > 64 else 7))
    compare("region_tokens", rows, arguments)
    compare_memory(arguments.output, counts[-1])


@torch.no_grad()
def profile_of(way: Callable[[], Any]) -> str:
    """A table of kinds of operators: their share of the time of a way, and their operations."""
    way()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        way()
    kinds = (*KINDS, "other")
    times, counts = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
    for operator in seen.key_averages():
        times[kind_of(operator.key.removeprefix("aten::"))] += operator.self_cpu_time_total
    for operator, count in operations_by_operator(way)[1].items():
        counts[kind_of(operator)] += count
    whole = sum(times.values())
    rows = [f"| {kind} | {times[kind] / whole:.0%} | {counts[kind] / 1e9:.1f} |" for kind in kinds]
    return "\n".join(["| operators | share of the time | 10⁹ operations |", "|---|---|---|", *rows])


def kind_of(operator: str) -> str:
    """The kind of an operator."""
    return next((kind for kind, names in KINDS.items() if operator in names), "other")


def boxes_of(model: TapModel, count: int) -> torch.Tensor:
    """Random boxes (R, 2, 2): corners in pixels of the model frame."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(1)) * model.config.image_size
    return corners.sort(dim=1).values.to(model.device)


def asking(model: TapModel, boxes: torch.Tensor, masks: bool) -> Callable[[], dict[str, Any]]:
    """A way of asking about boxes of one picture."""
    config = model.config.image_encoder_config
    generator = torch.Generator().manual_seed(2)
    picture = torch.randn(1, config.output_size, config.grid_size, config.grid_size, generator=generator)
    picture = picture.to(model.device, model.dtype)
    corners = torch.tensor([PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT], device=model.device)
    labels = corners.expand(len(boxes), -1)

    def ask() -> dict[str, Any]:
        output = model(image_embeddings=picture, input_points=boxes, input_labels=labels, output_masks=masks)
        return {name: output.get(name) for name in ("semantic_tokens", "semantic_embeds", "iou_scores", "pred_masks")}

    return ask


def compare_memory(folder: Path, count: int) -> None:
    """Each way in a process of its own: the bytes beyond those of the model; added to the script's table."""
    found = {}
    for name in ("plain", "fast"):
        command = [sys.executable, *sys.argv, "--peak", name]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    words = (
        f"\n| memory beside the model, {count} boxes, no masks | MiB |\n|---|---|\n"
        + "".join(f"| {name} | {value / 2**20:.0f} |\n" for name, value in found.items())
        + f"| plain / fast | **{found['plain'] / max(found['fast'], 1):.1f}** |\n"
    )
    print(words)
    with (folder / "region_tokens.md").open("a") as file:
        file.write(words)


@torch.no_grad()
def peak_bytes(device: str, way: Callable[[], Any]) -> int:
    """What a call takes at its height beyond what was taken before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the height so far
    before = resident("VmRSS")
    way()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


if __name__ == "__main__":
    main()
