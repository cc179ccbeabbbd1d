"""What a full evaluation costs: runs of `finetune.evaluate` on a few pictures, then on paper for a whole benchmark.

    python benchmarks/evaluation_cost.py                  # five minutes, TAP-B; the whole is Visual Genome's test set
    python benchmarks/evaluation_cost.py --threads 1 --clock processor               # on a machine that others use, too
    python benchmarks/evaluation_cost.py --size l --runs 1x8 4x8 4x47

Every run is a process of its own, as a user starts it: random weights in TAP's shape, pictures of GlyphScenes with random
boxes in the layout of `vg_full`, the rows caption decoder and concept head. Seconds are fitted as start + pictures · a +
regions · b; memory is the most that a run held. Random weights hardly ever end a caption before its last word, so captions
cost here what they can cost at most. Scoring is by the plain protocol: Java's scorers come on top, once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from side_by_side import arguments_of, make_tap
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from finetune.glyphs.scenes import draw_scene, make_scene
from tap_tokenizer import ConceptBank, TapModel, TapRegionTokenizer

RUNS = ("1x8", "4x8", "1x40", "4x47", "16x8")
"""Pictures x regions of each; the last is a whole batch of `finetune.evaluate`, which is what it holds at most."""
CONCEPTS = 2560
ROWS = "caption decoder;concept head"


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__,
        runs={"nargs": "+", "default": list(RUNS), "help": "pictures x regions of each"},
        pictures={"type": int, "default": 5000, "help": "of the whole"},
        regions={"type": int, "default": 47, "help": "of each picture of the whole, on average"},
        clock={"choices": ("wall", "processor"), "default": "wall", "help": "which seconds count"},
        long_side={"type": int, "default": 800, "help": "pixels of a picture"},
    )
    runs = ["1x2", "2x2", "1x4"] if arguments.quick else arguments.runs
    sizes = [tuple(int(n) for n in run.split("x")) for run in runs]
    long_side = 64 if arguments.quick else arguments.long_side
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(make_tap(arguments), folder / "tap")
        write_pictures(folder / "images", max(pictures for pictures, _ in sizes), long_side)
        for run, (pictures, regions) in zip(runs, sizes):
            write_annotations(folder, pictures, regions)
            measured = evaluate(folder, run, arguments.threads, arguments.device)
            found.append({"run": run, "pictures": pictures, "regions": regions, **measured})
            print(f"  {run}: {measured['wall']:.1f} s, {measured['peak'] / 2**30:.2f} GiB", flush=True)
    cost = fit(found, arguments.clock)
    whole = {"pictures": arguments.pictures, "regions": arguments.regions}
    whole["seconds"] = sum(cost[k] * v for k, v in zip(cost, work_of(whole)))
    head = f"{describe_machine()}; TAP-{arguments.size} on {arguments.device}; {arguments.clock} seconds count"
    text = report(found, cost, whole, head)
    print(f"\n{text}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "evaluation_cost.md").write_text(text)
    content = {"machine": describe_machine(), "rows": found, "cost": cost, "whole": whole}
    (arguments.output / "evaluation_cost.json").write_text(json.dumps(content, indent=1))


def save_tokenizer(model: TapModel, folder: Path) -> None:
    """A region tokenizer's folder: the model, a vocabulary of as many words as it has, and random concepts."""
    config = model.config
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"w{i}": i for i in range(3, config.text_decoder_config.vocab_size)}
    text = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>")
    vectors = torch.randn(CONCEPTS, config.image_decoder_config.semantic_embed_size)
    bank = ConceptBank.from_vectors([f"concept {i}" for i in range(CONCEPTS)], vectors, 10.0)
    TapRegionTokenizer(model, text_tokenizer=text, concepts=bank).save_pretrained(folder)


def write_pictures(folder: Path, count: int, long_side: int) -> None:
    """Scenes as JPEG files."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(draw_scene(make_scene(i, "test"), long_side).image).save(folder / f"{i}.jpg")


def write_annotations(folder: Path, pictures: int, regions: int) -> None:
    """A file in the layout of `vg_full`: random boxes with captions of a few words."""
    random = np.random.RandomState(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(pictures):
        with Image.open(folder / "images" / f"{i}.jpg") as picture:
            width, height = picture.size
        images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for _ in range(regions):
            x, y = random.uniform(0, 0.7, 2)
            w, h = random.uniform(0.05, 0.3, 2)
            box = [round(float(v), 1) for v in (x * width, y * height, w * width, h * height)]
            words = " ".join(f"w{n}" for n in random.randint(3, 200, 5))
            annotations.append({"id": len(annotations), "image_id": i, "bbox": box, "caption": words})
    (folder / "test.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def evaluate(folder: Path, run: str, threads: int, device: str) -> dict[str, float]:
    """Seconds of a run from its start to its end, by the clock on the wall and by the processor's; the most bytes it held."""
    root = Path(__file__).parents[1]
    command = [
        sys.executable, "-m", "finetune.evaluate", "--benchmark", "vg_full", "--model", "none", "--rows", ROWS,
        "--region_tokenizer", str(folder / "tap"), "--annotations", str(folder / "test.json"),
        "--images", str(folder / "images"), "--caption_scorer", "plain", "--output", str(folder / run),
        "--device", device,
    ]  # fmt: skip
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
    begun = time.perf_counter()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # getrusage would give the most of all runs so far
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"The run {run} failed:\n{log.read()[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"wall": seconds, "processor": usage.ru_utime + usage.ru_stime, "peak": peak}


def work_of(run: dict[str, Any]) -> tuple[int, int, int]:
    """What a run consists of: one start, its pictures, and their regions."""
    return 1, run["pictures"], run["pictures"] * run["regions"]


def fit(found: list[dict[str, Any]], clock: str) -> dict[str, float]:
    """Seconds of a start, of a picture and of a region that explain the runs best, by least squares of relative errors."""
    seconds = np.array([run[clock] for run in found])
    work = np.array([work_of(run) for run in found], dtype=float)
    values = np.linalg.lstsq(work / seconds[:, None], np.ones(len(found)), rcond=None)[0]
    return dict(zip(("start", "picture", "region"), values.tolist()))


def report(found: list[dict[str, Any]], cost: dict[str, float], whole: dict[str, Any], head: str) -> str:
    """Markdown: the runs beside what the fit says of them, and the whole on paper."""
    lines = [
        head,
        "",
        "| pictures × regions | wall, s | processor, s | by the fit, s | most memory, GiB |",
        "|---" * 5 + "|",
    ]
    for run in found:
        fitted = sum(cost[k] * v for k, v in zip(cost, work_of(run)))
        name = f"{run['pictures']} × {run['regions']}"
        seconds = f"{run['wall']:.1f} | {run['processor']:.1f} | {fitted:.1f}"
        lines.append(f"| {name} | {seconds} | {run['peak'] / 2**30:.2f} |")
    each = f"Start {cost['start']:.1f} s, a picture {cost['picture']:.2f} s, a region {1e3 * cost['region']:.1f} ms"
    hours = f"{whole['pictures']:,} × {whole['regions']}: {whole['seconds'] / 3600:.1f} hours"
    lines += ["", f"{each}; {hours} on paper."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
