"""Ways of doing the same thing, side by side in one process: checked, then timed in turns, then written down.

Each row has a floor: the operations of its fast way at this machine's measured rate of matrix products, or the bytes that it
cannot but move at its measured rate of copying, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import copy_rate, describe_machine, interleaved, matrix_rate
from matplotlib.ticker import LogLocator
from torch.utils.flop_counter import FlopCounterMode

from finetune.figure_style import GREY, PALE, new_figure, region_ink, save_figure, styled
from tap_tokenizer import TapConfig, TapModel

TINY = {
    "image_encoder_config": {
        "image_size": 64, "patch_size": 8, "window_size": 4, "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 64, "output_size": 32,
    },
    "image_decoder_config": {
        "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "semantic_embed_size": 16,
    },
    "text_decoder_config": {
        "region_size": 32, "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 24, "pad_token_id": 199,
    },
}  # fmt: skip
TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}
"""How far the fast way may be from the plain one, as a share of the largest value: rounding, and in half precision the
rounding of two formulations of which neither is exact."""
TOLERANCE_OF_INT8 = 0.2
"""The same for int8: rounding of rows and weights to 7 or 8 bits in every layer. Its tokens were evaluated (README.md)."""


@dataclass
class Row:
    """One thing done in several ways; "plain" and "fast" are ours, and must agree, as must `others` that are among the ways.

    ways: no arguments, one result; values of a result that is a mapping are compared one by one, any others are compared
    as they are. bytes: what has to be moved at least, weights and results. rounds: None, or how often at most.
    """

    name: str
    ways: Mapping[str, Callable[[], Any]]
    bytes: float
    rounds: int = 15
    others: Sequence[str] = ()


def arguments_of(description: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """The options that all scripts share, and `more` of a script's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b", choices=("b", "l", "h", "tiny"), help="TAP's shape; random weights")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument(
        "--seconds", type=float, default=20, help="for the rounds of each row, of which there is always one"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "runs/benchmarks",
        help="folder of tables and figures",
    )
    parser.add_argument("--original", type=Path, help="the original's repository, to be timed beside")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it run?")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.seconds = "tiny", 0.0
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def make_tap(arguments: argparse.Namespace) -> TapModel:
    """A TAP of the size asked for, with random weights: what they hold costs nothing."""
    config = TapConfig(**TINY) if arguments.size == "tiny" else getattr(TapConfig, f"tap_vit_{arguments.size}")()
    model = TapModel(config).eval().requires_grad_(False)
    return model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))


def ours(model: TapModel, way: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """A thing that the model does, in its plain and in its fast way."""

    def run(is_plain: bool) -> Any:
        model.is_plain = is_plain
        return way()

    return {"plain": lambda: run(True), "fast": lambda: run(False)}


@torch.no_grad()
def compare(title: str, rows: Sequence[Row], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Check, time, print and write `rows`; gives what was found, seconds for each way."""
    dtype = getattr(torch, arguments.dtype)
    rates = {
        "matrix": matrix_rate(arguments.device, dtype, quick=arguments.quick),
        "copy": copy_rate(arguments.device, quick=arguments.quick),
    }
    head = (
        f"{describe_machine()}; TAP-{arguments.size}, {arguments.dtype} on {arguments.device}; "
        f"{rates['matrix'] / 1e9:.0f} · 10⁹ operations and {rates['copy'] / 1e9:.1f} GB of copying a second"
    )
    print(head, flush=True)
    found = []
    for row in rows:
        operations, off, once = check(row, dtype)
        rounds = max(1, min(row.rounds, int(arguments.seconds / once)))
        seconds = interleaved(row.ways, rounds)
        floor = max(operations["fast"] / rates["matrix"], row.bytes / rates["copy"])
        bound = "operations" if operations["fast"] / rates["matrix"] >= row.bytes / rates["copy"] else "bytes"
        found.append(
            {"row": row.name, "seconds": seconds, "rounds": rounds, "operations": operations, "off": off,
             "bytes": row.bytes, "floor": floor, "bound": bound}
        )  # fmt: skip
        print(f"  {row.name}: " + ", ".join(f"{name} {value:.4g} s" for name, value in seconds.items()), flush=True)
    write(title, head, found, arguments.output)
    return found


def check(row: Row, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, float], float]:
    """All of our ways give the same as the plain one: tensors up to rounding, ids exactly. Stops the benchmark if they do not.

    Every way runs once before it is timed, because what is computed once for the weights is not the row's. Gives the operations
    of plain and fast, how far each of the others is from plain (as `TOLERANCES`), and about how many seconds all ways take.
    """
    for name, way in row.ways.items():
        if name != "plain":
            way()
    begun = time.perf_counter()
    (plain, slow_count), (fast, count) = (operations_of(row.ways[name]) for name in ("plain", "fast"))
    seconds = (time.perf_counter() - begun) * len(row.ways) / 2
    off = {"fast": difference(row.name, "fast", plain, fast, dtype)}
    for name in row.others:
        if name in row.ways:
            off[name] = difference(row.name, name, plain, row.ways[name](), dtype)
    return {"plain": slow_count, "fast": count}, off, seconds


def difference(row: str, way: str, plain: Any, other: Any, dtype: torch.dtype) -> float:
    """How far the result of a way is from the plain one, at most; stops the benchmark if that is too far."""
    largest = 0.0
    for name in plain.keys() if isinstance(plain, Mapping) else [None]:
        one, two = (value if name is None else value[name] for value in (plain, other))
        if one is None and two is None:
            continue
        if not one.is_floating_point():  # ids: in half precision, near ties may fall either way
            share = float((one != two).float().mean())
            if share > (0 if dtype == torch.float32 else 0.2):
                raise SystemExit(f"{row}: {share:.1%} of the ids differ between plain and {way}")
            continue
        error = float((one.float() - two.float()).abs().max() / one.float().abs().max().clamp(min=1))
        if not error <= (TOLERANCE_OF_INT8 if way == "int8" else TOLERANCES[dtype]):
            raise SystemExit(f"{row}: {name or 'the result'} differs by {error:.2g} between plain and {way}")
        largest = max(largest, error)
    return largest


def operations_of(way: Callable[[], Any]) -> tuple[Any, int]:
    """A result, and the operations of its products of matrices, convolutions and attentions: multiplications and additions."""
    result, counts = operations_by_operator(way)
    return result, sum(counts.values())


def operations_by_operator(way: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """The same, for each of PyTorch's operators by its name, such as "bmm"."""
    aten = torch.ops.aten

    def in_place(own: Any, one: Any, other: Any, **_: Any) -> int:
        return 2 * one[0] * one[1] * one[2] * other[2]

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[2] * (width + value[3])

    def packed(hidden: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(hidden) * weight[0]

    mapping: dict[Any, Callable[..., int]] = {
        aten.baddbmm_: in_place,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        mapping[torch.ops.mkldnn._linear_pointwise] = packed
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = way()
    counts = counter.get_flop_counts().get("Global", {})
    return result, {str(operator).split(".")[-1]: count for operator, count in counts.items()}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: milliseconds of each way, the ratio plain / fast, the floor and the share of it that is reached.

    Others of our ways have their own ratio, and how far they are from plain. The floor is one of the weights' dtype, so it is
    compared with the fast way alone.
    """
    ways = list(dict.fromkeys(name for row in found for name in row["seconds"]))
    others = list(dict.fromkeys(name for row in found for name in row["off"] if name != "fast"))
    columns = [*(f"{name}, ms" for name in ways), "plain / fast"]
    columns += [column for name in others for column in (f"plain / {name}", f"{name} is off by")]
    columns += ["10⁹ operations plain → fast", "floor, ms", "reached by fast" if others else "reached"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in found:
        seconds, operations = row["seconds"], row["operations"]
        cells = [f"{1e3 * seconds[name]:.4g}" if name in seconds else "" for name in ways]
        for name in ("fast", *others):
            cells.append(f"**{seconds['plain'] / seconds[name]:.2f}**" if name in seconds else "")
            if name != "fast":
                cells.append(f"{row['off'][name]:.2g}" if name in row["off"] else "")
        cells.append(f"{operations['plain'] / 1e9:.4g} → {operations['fast'] / 1e9:.4g}")
        cells += [f"{1e3 * row['floor']:.4g} ({row['bound']})", f"{row['floor'] / seconds['fast']:.0%}"]
        lines.append(f"| {row['row']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(title: str, head: str, found: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The table on the screen and in a file, the numbers as JSON, and a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    words = f"{head}\n\n{table(found)}\n"
    print(f"\n{words}", flush=True)
    (folder / f"{title}.md").write_text(words)
    (folder / f"{title}.json").write_text(json.dumps({"machine": head, "rows": list(found)}, indent=1))
    draw(found, folder / f"{title}.png")


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Milliseconds of each way as a dot, a line for each row, with the row's floor on it."""
    ways = list(dict.fromkeys(name for row in found for name in row["seconds"]))
    with styled():
        figure = new_figure(1.0 + 0.3 * len(found))
        axes = figure.subplots()
        for place, row in enumerate(found):
            ends = [1e3 * row["floor"], *(1e3 * seconds for seconds in row["seconds"].values())]
            axes.plot([min(ends), max(ends)], [place, place], color=PALE, linewidth=3, zorder=1)
            axes.plot(1e3 * row["floor"], place, "|", color=GREY, markersize=11, markeredgewidth=1.6,
                      label=None if place else "floor")  # fmt: skip
        for number, name in enumerate(ways):
            places = [place for place, row in enumerate(found) if name in row["seconds"]]
            values = [1e3 * found[place]["seconds"][name] for place in places]
            axes.plot(values, places, "o", color=region_ink(number), markersize=8, label=name)
        axes.set_yticks(range(len(found)), [row["row"] for row in found])
        axes.set(
            ylim=(len(found) - 0.4, -0.6), xscale="log", xlabel="milliseconds, logarithmic (further left is better)"
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(axis="x")
        figure.legend(loc="outside upper right", ncols=len(ways) + 1)
        save_figure(figure, path)
