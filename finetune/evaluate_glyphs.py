"""Measures a region tokenizer and a bridge on the GlyphScenes benchmark, with controls for every score.

    python -m finetune.evaluate_glyphs --output runs/evaluation                 # the bundled models, 20 minutes on 2 cores
    python -m finetune.evaluate_glyphs --model none --splits test --seeds 0     # the region tokenizer alone

It measures masks, concepts and native captions of every visible object, how well others of its kind and colour are found in
other pictures (`glyphs/retrieval.py`), and the bridge's answers to the benchmark's questions (`glyphs/records.py`), each in a
conversation of its own. On the first scenes of each seed of the first split, or of the splits in `--control_splits`, it also
measures these controls:

- the regions and the picture of another scene;
- no regions at all;
- regions without their position, with the objects of the context in random order;
- the true objects as picture context, for questions about them, if the bridge otherwise reads the objects that are found;
- the question as the second to sixth of a conversation, after others about the same scene and the bridge's answers to them;
- a plain language model, by default SmolLM2, which is told in words what TAP sees.

On these scenes, it also asks questions with free answers (`glyphs/free_questions.py`): the benchmark's, in words that no
recipe contains, and, on split test, questions that need knowledge about the objects. An answer is right if it contains the
truth (`glyphs/containment.py`). The plain language model is also told the truth, not only what TAP sees. It is also asked
the knowledge questions in the form that best brings out what it knows: that is the reference of the row. What the
bridge's adapter costs the language model is measured by its perplexity on plain text (`glyphs/plain_text.py`).

A bridge that was taught to find regions by words is also asked what expressions mean on these scenes
(`glyphs/grounding.py`); `found.png` shows twenty of its answers, chosen by a fixed seed.

`output` then holds `parts/*.jsonl`, with a line for each region, question and expression, `metrics.json`, `table.md` and
figures. There is a part for each split and seed, written completely or not at all. If a run was stopped, run it again: it does
what is left.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

import llm_bridge
import tap_tokenizer
from llm_bridge import DEFAULT_BRIDGE, SMOLLM2, RegionChat
from tap_tokenizer import TapRegionTokenizer, damage_told, only_writer, write_whole

from .answerers import fingerprint
from .config import knob, parse_arguments, run_command
from .glyphs.free_questions import (
    FREE_FAMILIES,
    KNOWLEDGE_SPLIT,
    words_fingerprint,
)
from .glyphs.grounding import find_lines
from .glyphs.plain_text import text_lines
from .glyphs.questions import FAMILIES
from .glyphs.records import EVALUATION_SEEDS, EVALUATION_SPLITS, TITLE, benchmark_scenes
from .glyphs.report import as_tables, draw_curves, draw_figures, summarise
from .glyphs.retrieval import Retrieval
from .glyphs.scenes import SPLITS
from .glyphs.seen_scenes import SeenScenes, region_lines
from .glyphs.views import (
    CONTROLS,
    DESCRIBED,
    FREE_CONTROLS,
    TOLD_TRUTH,
    bridge_lines,
    described_lines,
    known_lines,
)
from .worker_pool import worker_pool


@dataclass
class GlyphEvaluationArguments:
    """Measure a region tokenizer, and a bridge that reads it, on the GlyphScenes benchmark."""

    region_tokenizer: str = knob(default="tap-tiny", help="name or folder of the region tokenizer")
    model: str = knob(default=DEFAULT_BRIDGE, help="name or folder of the bridge, or 'none'")
    described_model: str | None = knob(
        default=None,
        help="name or folder of a plain language model for the control 'described', or 'none'; default: smollm2-135m "
        "beside a bridge",
    )
    splits: str = knob(default=",".join(EVALUATION_SPLITS), help="splits, separated by commas")
    seeds: str = knob(
        default=",".join(map(str, EVALUATION_SEEDS)), help="seeds of the scenes; results are averaged over them"
    )
    scenes: int = knob(
        default=104,
        help="how many scenes of each split and seed, counted from the first, to measure the region tokenizer on",
    )
    question_scenes: int = knob(
        default=8, help="about how many of these scenes to ask the bridge about, rounded up to whole batches"
    )
    control_splits: str | None = knob(
        default=None,
        help="which of the splits to measure controls, 'described', free answers and finding on, separated by commas; "
        "default: the first",
    )
    control_scenes: int = knob(
        default=4, help="how many scenes of control_splits to measure controls on, rounded up to whole batches"
    )
    shuffled_scenes: int = knob(
        default=8,
        help="how many of them to measure the control with another scene's regions on, rounded up to whole batches",
    )
    free_scenes: int = knob(
        default=8,
        help="how many scenes of control_splits to ask about in other words, and for knowledge, rounded up to whole batches",
    )
    find_scenes: int = knob(
        default=4,
        help="how many scenes of control_splits to search by words, if the bridge was taught to find regions",
    )
    batch_size: int = knob(default=4, help="scenes at a time")
    workers: int = knob(
        default=0,
        help="processes that share the splits and seeds; 0: one for each CPU core, at most four, or one on a GPU",
    )
    device: str = knob(default="cpu", help="where to run: cpu, cuda, mps")
    encoder_precision: str = knob(default="float32", help="precision of the image encoder: float32, or int8 on a CPU")
    output: str | None = knob(default=None, help="folder for the results; default: they are only printed")

    @property
    def controlled(self) -> list[str]:
        """The splits with controls."""
        return (self.control_splits or self.splits.split(",")[0]).split(",")


@dataclass
class _Models:
    """What is measured: a region tokenizer, a bridge, and the plain language model of the control 'described'."""

    tokenizer: TapRegionTokenizer
    chat: RegionChat | None
    described: RegionChat | None

    @classmethod
    def load(cls, arguments: GlyphEvaluationArguments) -> _Models:
        torch.set_flush_denormal(True)  # as in training
        tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer, device=arguments.device)
        tokenizer.model.encoder_precision = arguments.encoder_precision

        def chat(name: str | None, mode: Literal["tokens", "described"] = "tokens") -> RegionChat | None:
            if name in (None, "none"):
                return None
            return RegionChat.from_pretrained(name, mode=mode, region_tokenizer=tokenizer, device=arguments.device)

        return cls(tokenizer, chat(arguments.model), chat(arguments.described_model, "described"))


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, measure, print the tables."""
    arguments = parse_arguments(GlyphEvaluationArguments, argv, description=__doc__)
    _check(arguments)
    if arguments.described_model is None:
        arguments.described_model = "none" if arguments.model == "none" else SMOLLM2
    arguments.control_splits = ",".join(arguments.controlled)
    models = _Models.load(arguments)
    if arguments.output is None:
        with TemporaryDirectory() as folder:
            print(_measure(models, arguments, Path(folder)))
    else:
        with only_writer(arguments.output):
            print(_measure(models, arguments, Path(arguments.output)))


def _check(arguments: GlyphEvaluationArguments) -> None:
    splits = arguments.splits.split(",")
    if unknown := [name for name in splits if name not in SPLITS]:
        raise ValueError(f"splits has {', '.join(unknown)}, expected some of {', '.join(SPLITS)}.")
    if unknown := [name for name in arguments.controlled if name not in splits]:
        raise ValueError(f"control_splits has {', '.join(unknown)}, expected some of splits: {', '.join(splits)}.")
    if not all(seed.isdigit() for seed in arguments.seeds.split(",")):
        raise ValueError(f"seeds is {arguments.seeds}, expected whole numbers separated by commas.")
    if arguments.scenes < 1 or arguments.batch_size < 1:
        raise ValueError(f"Got {arguments.scenes} scenes, {arguments.batch_size} at a time: expected at least one.")
    if arguments.workers < 0:
        raise ValueError(f"Got {arguments.workers} workers, expected 0 (as many as there are cores) or more.")


def _measure(models: _Models, arguments: GlyphEvaluationArguments, output: Path) -> str:
    """Evaluate all splits and seeds, write what is found, and give the tables."""
    about = _about(models, arguments)
    parts = [
        _Part(split, int(seed), output / "parts")
        for split in arguments.splits.split(",")
        for seed in arguments.seeds.split(",")
    ]
    (output / "parts").mkdir(parents=True, exist_ok=True)
    _refuse_others(output / "about.json", about)
    missing = [part for part in parts if not part.path.is_file()]
    with tqdm(total=len(parts) * arguments.scenes, unit="scene", desc="evaluating") as progress:
        progress.update((len(parts) - len(missing)) * arguments.scenes)
        _write_parts(models, arguments, missing, progress)
    lines = [line for part in parts for line in part.read()]
    metrics = {"of": about, **summarise(lines)}
    tables = as_tables(metrics)
    write_whole(output / "metrics.json", json.dumps(metrics, indent=1))
    write_whole(output / "table.md", tables)
    draw_figures(lines, output)
    if logs := _training_logs(arguments):
        draw_curves(logs, output / "curves.png")
    return tables


def _about(models: _Models, arguments: GlyphEvaluationArguments) -> dict[str, Any]:
    """What the results are of: two evaluations that differ in nothing of this give the same."""
    chats = {"model": models.chat, "described": models.described}
    unsaid = ["output", "device", "workers"]
    if arguments.encoder_precision == "float32":  # as it was before there was a choice
        unsaid.append("encoder_precision")
    return {
        "benchmark": TITLE,
        "free_questions": words_fingerprint(),
        "decoding": "greedy",
        "region_tokenizer_fingerprint": models.tokenizer.fingerprint,
        **{f"{name}_fingerprint": fingerprint(chat.model) for name, chat in chats.items() if chat is not None},
        **{key: value for key, value in asdict(arguments).items() if key not in unsaid},
    }


def _refuse_others(note: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds results of something else."""
    with damage_told(note):
        old = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else about
    if old != about:
        changed = ", ".join(key for key in about if old.get(key) != about[key])
        raise ValueError(f"{note.parent} holds results with other {changed}: choose another output, or delete it.")
    write_whole(note, json.dumps(about, indent=1))


def _training_logs(arguments: GlyphEvaluationArguments) -> list[Path]:
    """The logs of the region tokenizer and the bridge, if both come with one, as bundled models do."""
    folders = [(tap_tokenizer, arguments.region_tokenizer), (llm_bridge, arguments.model)]
    logs = [Path(str(p.__file__)).parent / "pretrained" / str(name) / "training" / "log.jsonl" for p, name in folders]
    return logs if all(log.is_file() for log in logs) else []


# --- the parts, one or several at a time ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The lines of one split and seed, in a file that is there only when it is whole."""

    split: str
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.split}-{self.seed}.jsonl"

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def write(self, models: _Models, arguments: GlyphEvaluationArguments, count: Callable[[int], Any]) -> None:
        """Evaluate; `count` is told of scenes that are done."""
        lines = list(_lines(models, arguments, self.split, self.seed, count))
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_parts(models: _Models, arguments: GlyphEvaluationArguments, parts: list[_Part], progress: tqdm) -> None:
    """Evaluate some parts, in this process or shared among workers that load the models for themselves."""
    workers = min(arguments.workers or _idle_cores(models), len(parts))
    if workers < 2:
        for part in parts:
            part.write(models, arguments, progress.update)
        return
    counts = get_context("spawn").SimpleQueue()
    with worker_pool(workers, _start_worker, arguments, workers, counts) as pool:
        controlled = arguments.controlled
        parts = sorted(parts, key=lambda part: (part.split not in controlled, -sum(SPLITS[part.split].counts)))
        waiting = {pool.submit(_work, part, arguments) for part in parts}  # the longest first: no core waits at the end
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5)
                while not counts.empty():
                    progress.update(counts.get())
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _idle_cores(models: _Models) -> int:
    """Workers that a machine has room for: a batch of such small models fills one core at most. Each loads its own."""
    return min(os.cpu_count() or 1, 4) if models.tokenizer.device.type == "cpu" else 1


_worker: dict[str, Any] = {}
"""The models of a process that is a worker, and where it says how far it is."""


def _start_worker(arguments: GlyphEvaluationArguments, workers: int, counts: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker.update(models=_Models.load(arguments), count=counts.put)


def _work(part: _Part, arguments: GlyphEvaluationArguments) -> None:
    part.write(_worker["models"], arguments, _worker["count"])


def _lines(
    models: _Models, arguments: GlyphEvaluationArguments, split: str, seed: int, count: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """A line for every region and for every question of one split and seed."""
    scenes = benchmark_scenes(split, seed, arguments.scenes)
    start, retrieval = 0, Retrieval()
    while some := list(islice(scenes, arguments.batch_size)):
        seen = SeenScenes.encode(models.tokenizer, some)
        regions = list(region_lines(models.tokenizer, seen))
        yield from regions
        retrieval.add(seen, regions)
        yield from _answer_lines(models, arguments, seen, regions, start)
        count(len(some))
        start += len(some)
    yield from ({"split": split, "seed": seed, **line} for line in retrieval.lines())
    if models.chat is not None and split == KNOWLEDGE_SPLIT:
        yield from text_lines(models.chat, split, seed)


def _answer_lines(
    models: _Models,
    arguments: GlyphEvaluationArguments,
    seen: SeenScenes,
    regions: list[dict[str, Any]],
    start: int,
) -> Iterator[dict[str, Any]]:
    """A line for every question about scenes that are seen, from number `start` on, in every view."""
    is_controlled = seen.scenes[0].scene.split in arguments.controlled
    controls = [
        view
        for view in CONTROLS
        if is_controlled and start < (arguments.shuffled_scenes if view == "shuffled" else arguments.control_scenes)
    ]
    if models.chat is not None and start < arguments.question_scenes:
        yield from bridge_lines(models.chat, seen, tuple(FAMILIES), controls, regions)
    if not is_controlled:
        return
    if models.described is not None and start < arguments.control_scenes:
        yield from described_lines(models.described, seen)
    if start < arguments.free_scenes:
        yield from _free_lines(models, arguments, seen, start)
    if models.chat is not None and models.chat.finding_limitation is None and start < arguments.find_scenes:
        yield from find_lines(models.chat, seen, arguments.find_scenes - start)


def _free_lines(
    models: _Models, arguments: GlyphEvaluationArguments, seen: SeenScenes, start: int
) -> Iterator[dict[str, Any]]:
    """A line for every question that is answered freely, about scenes that are seen, from number `start` on."""
    has_controls = start < arguments.control_scenes
    controls = FREE_CONTROLS if has_controls else ()
    if models.chat is not None:
        yield from bridge_lines(models.chat, seen, FREE_FAMILIES, controls, [])
    if models.described is not None:
        yield from known_lines(models.described, seen)
    if models.described is not None and has_controls:
        for view in (DESCRIBED, TOLD_TRUTH):
            yield from described_lines(models.described, seen, FREE_FAMILIES, view)


if __name__ == "__main__":
    sys.exit(run_command(main))
