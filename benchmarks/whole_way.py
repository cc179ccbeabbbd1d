"""From a picture's file to the last word of an answer, stage by stage, each walk in a process of its own (`walk.py`).

    python benchmarks/whole_way.py                                  # the bundled bridges, and a fresh one on SmolLM2
    python benchmarks/whole_way.py --shapes b l --language 0.6b     # random TAP-B and TAP-L; a few GB of memory
    python benchmarks/whole_way.py --shapes b --rivals              # beside what one would take instead, in the same run
    python benchmarks/whole_way.py --original ../tokenize-anything  # beside TAP-B's own code, for whoever has it

Stages: *start* of Python, *import*, *load*, *picture* (opened and encoded), *context* (what is shown of the whole picture:
region-chat-smollm2 looks for objects, once a picture, which its first answer waits for), *tokens* (of a region, in a prompt
that is ready for the language model), *prefill* (to the first word), *words* (the others). Bridges that are not bundled have a
fresh projector, which costs what a trained one does, no adapter and no context.

The floor of a stage is the least that it could take: an empty process; `import torch, transformers`; copying the weights once;
the operations at the measured rate of matrix products, or, for words, the language model's weights copied for each.

Rivals: the region's crop through a vision encoder of SigLIP-B's shape, whose 256 tokens the last bridge's language model
reads; and transformers' SAM (ViT-B), whose masked crop a captioner of BLIP's shape describes. Neither loads TAP. The original's
words are those of its caption decoder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import copy_rate, describe_machine, matrix_rate
from walk import STAGES

ROOT = Path(__file__).parents[1]
WALK = Path(__file__).with_name("walk.py")


def main() -> None:
    """Measure and print."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        ways = ways_of(arguments, folder)
        rounds: dict[str, list[Any]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                rounds[name].append(run("walk", {**way, "begun": time.time()}, arguments.threads))
        start = seconds_of_python("pass", arguments.rounds)
        imports = seconds_of_python("import torch, transformers", arguments.rounds) - start
        floors = {name: {"start": start, "import": imports, **floors_of(way, arguments)} for name, way in ways.items()}
    found = {name: {stage: middle(walks, stage) for stage in STAGES} for name, walks in rounds.items()}
    head = f"{describe_machine()}; an answer of {arguments.words} words, medians of {arguments.rounds}"
    text = f"{head}\n\n{table(found, floors)}\n"
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "whole_way.md").write_text(text)
    rows = [{"way": name, "stages": found[name], "floors": floors[name]} for name in found]
    (arguments.output / "whole_way.json").write_text(json.dumps({"machine": head, "rows": rows}, indent=1))


def read_arguments() -> argparse.Namespace:
    """The flags. Other scripts compare formulations on a device; this one compares whole programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=[], choices=("b", "l", "h"), help="TAP's shapes; random weights")
    parser.add_argument(
        "--language", default="smollm2-135m", help="their language model, or 0.6b for Qwen3-0.6B's shape"
    )
    parser.add_argument("--rivals", action="store_true", help="also the ways that one would take instead")
    parser.add_argument("--original", type=Path, help="the original's repository, to be timed beside")
    parser.add_argument("--words", type=int, default=16, help="words of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="walks of each way")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/benchmarks", help="folder of the table")
    parser.add_argument("--quick", action="store_true", help="one walk of region-chat-tiny: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.words = 1, 2
    return arguments


def ways_of(arguments: argparse.Namespace, folder: str) -> dict[str, dict[str, Any]]:
    """The ways by name, as options of `walk`; bridges that are made for them are written to `folder`."""
    ways = {"tap-tiny, region-chat-tiny": {"way": "bridge", "source": "region-chat-tiny"}}
    made: list[tuple[str, str | None, str]] = []
    if not arguments.quick:
        ways["tap-tiny, region-chat-smollm2"] = {"way": "bridge", "source": "region-chat-smollm2"}
        made = [("tap-tiny, SmolLM2-135M with a fresh projector", None, "smollm2-135m")]
        made += [
            (f"TAP-{shape.upper()}, {arguments.language}", shape, arguments.language) for shape in arguments.shapes
        ]
    for name, shape, language in made:
        source = f"{folder}/{len(ways)}"
        run("make", {"folder": source, "shape": shape, "language": language}, arguments.threads)
        ways[name] = {"way": "bridge", "source": source}
    if arguments.rivals:
        reader = list(ways.values())[-1]["source"]
        ways["crop of 256 tokens, the same language model"] = {"way": "crop", "source": reader}
        ways["SAM-B and a captioner"] = {"way": "captioner", "source": ""}
    if arguments.original is not None and (arguments.original / "tokenize_anything").is_dir():
        ways["TAP-B's own code, its captions"] = {"way": "original", "source": str(arguments.original)}
    elif arguments.original is not None:
        print(
            f"--original is {arguments.original}, which holds no tokenize_anything, so it is left out: give the folder of the "
            "original's repository.",
            file=sys.stderr,
        )
    return {name: {**way, "words": arguments.words} for name, way in ways.items()}


def run(task: str, options: Mapping[str, Any], threads: int) -> Any:
    """What `walk.py` prints in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(WALK), task, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) if task == "walk" else None


def middle(walks: list[Any], stage: str) -> dict[str, float]:
    """The medians of a stage: seconds, and CPU seconds, which other work on the machine disturbs less."""
    return {kind: statistics.median(walk[stage][kind] for walk in walks) for kind in ("seconds", "cpu")}


def floors_of(way: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """The least seconds of each stage of a way, from loading on."""
    counted = run("walk", {**way, "begun": time.time(), "counts": True}, arguments.threads)
    rate, copied = matrix_rate("cpu", torch.float32, quick=arguments.quick), copy_rate("cpu", quick=arguments.quick)
    moved = {"load": 2 * counted["bytes"]["load"], "words": (arguments.words - 1) * counted["bytes"]["words"]}
    floors = {"load": moved["load"] / copied, **{stage: counted[stage] / rate for stage in STAGES[3:]}}
    return floors | {"words": max(floors["words"], moved["words"] / copied)}


def seconds_of_python(code: str, rounds: int) -> float:
    """The least of some processes."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - begun)
    return min(times)


def table(found: Mapping[str, Any], floors: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: seconds of each stage and way, and below them the floor."""
    lines = ["| seconds | " + " | ".join(STAGES) + " | all |", "|---" * (len(STAGES) + 2) + "|"]
    for name, stages in found.items():
        for label, values in (
            (name, [stages[stage]["seconds"] for stage in STAGES]),
            ("*CPU seconds*", [stages[stage]["cpu"] for stage in STAGES]),
            ("*floor*", [floors[name][stage] for stage in STAGES]),
        ):
            lines.append(f"| {label} | " + " | ".join(f"{value:.3f}" for value in [*values, sum(values)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
