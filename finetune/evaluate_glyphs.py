"""What a region tokenizer and a bridge are worth on the GlyphScenes benchmark, with controls beside every score.

    python -m finetune.evaluate_glyphs --output runs/evaluation                 # the bundled models, the whole benchmark
    python -m finetune.evaluate_glyphs --model none --splits test --seeds 0     # the region tokenizer alone

Masks, concepts and native captions of every object that can be seen; answers of the bridge to the benchmark's questions
(`glyphs/benchmark.py`), each in a conversation of its own. Controls, on the first scenes of each seed: the regions, and
the picture, of another scene; no regions at all; regions without their position, and objects besides in an order of chance;
the true objects as picture context, if the bridge reads found ones; the question as a follow-up, after each of its regions,
and then another, was described; and a plain language model, by default the one that became the bridge, that is told in words
what TAP sees of the regions.

Writes into `output`, one part for each split and seed, whole or not at all, so that a run that was stopped goes on:
`parts/*.jsonl`, a line for each region and question; `metrics.json`; `table.md`; and figures.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BatchFeature

import llm_bridge
import tap_tokenizer
from llm_bridge import DescribedRegionProcessor, RegionChat, describe_regions, region_features
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer, damage_told, only_writer, write_whole

from .arguments import knob, parse_arguments, run_command
from .evaluation.loading import fingerprint
from .evaluation.mask_metrics import mask_iou, next_click
from .glyphs.benchmark import BENCHMARK_VERSION, EVALUATION_SEEDS, EVALUATION_SPLITS, LONG_SIDE, QuestionBalance
from .glyphs.figures import draw_curves, draw_figures
from .glyphs.language import caption, concept_banks
from .glyphs.questions import CONTEXT_FAMILIES, FAMILIES, Question, number_regions
from .glyphs.report import VIEWS, as_tables, summarise
from .glyphs.scenes import SPLITS, VERSION, GlyphPicture, GlyphScene, draw_scene, make_scene

CONTROLS = tuple(view for view in VIEWS if view not in ("full", "described"))

WORDS_MODEL = "region-words-tiny"
"""The bundled language model that reads descriptions of GlyphScenes."""
CONTEXT_MODELS = {"region-chat-tiny": "region-context-tiny"}
"""The bundled bridge that also sees what else is in the picture, by the one that only sees regions."""


@dataclass
class GlyphEvaluationArguments:
    """Measure a region tokenizer, and a bridge that reads it, on the GlyphScenes benchmark."""

    region_tokenizer: str = knob(default="tap-tiny", help="name or folder of the region tokenizer")
    model: str = knob(default="region-chat-tiny", help="name or folder of the bridge; 'none' to leave it out")
    described_model: str | None = knob(
        default=None,
        help="name or folder of a plain language model for the control 'described', or 'none'; default: region-words-tiny "
        "beside a bridge",
    )
    context_model: str | None = knob(
        default=None,
        help="name or folder of a bridge with picture context, which is then asked what is nearest, farthest, and how "
        "many, or 'none' to ask the model itself; default: region-context-tiny beside region-chat-tiny, else none",
    )
    splits: str = knob(default=",".join(EVALUATION_SPLITS), help="splits, separated by commas")
    seeds: str = knob(
        default=",".join(map(str, EVALUATION_SEEDS)), help="seeds of the scenes; results are averaged over them"
    )
    scenes: int = knob(default=234, help="scenes of each split and seed: the first ones")
    control_scenes: int = knob(
        default=40, help="of these, how many are asked about with each other control, too, rounded up to whole batches"
    )
    shuffled_scenes: int = knob(
        default=120,
        help="of these, how many are asked about with the regions of another scene, rounded up to whole batches: of 40, "
        "where one of two answers is right, a score would lie within .09 of chance only",
    )
    context_scenes: int = knob(
        default=64, help="of these, how many the context_model is asked about, rounded up to whole batches"
    )
    batch_size: int = knob(default=8, help="scenes at a time")
    workers: int = knob(
        default=0,
        help="processes that share the splits and seeds; 0: one for each CPU core, at most four, or one on a GPU",
    )
    device: str = knob(default="cpu", help="where to run: cpu, cuda, mps")
    output: str | None = knob(default=None, help="folder of the results; default: they are only printed")


@dataclass
class _Models:
    """What is measured.

    A region tokenizer, a bridge, the bridge that is asked about surroundings in its place, and the plain language model
    of the control 'described'.
    """

    tokenizer: TapRegionTokenizer
    chat: RegionChat | None = None
    context: RegionChat | None = None
    described: RegionChat | None = None

    @classmethod
    def load(cls, arguments: GlyphEvaluationArguments) -> _Models:
        torch.set_flush_denormal(True)  # as in training
        device = arguments.device
        tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer, device=device)
        models = cls(tokenizer)
        if arguments.model != "none":
            models.chat = RegionChat.from_pretrained(arguments.model, region_tokenizer=tokenizer, device=device)
        if arguments.context_model not in (None, "none"):
            models.context = RegionChat.from_pretrained(
                arguments.context_model, region_tokenizer=tokenizer, device=device
            )
            if not models.context.processor.context.slots:
                raise ValueError(
                    f"context_model {arguments.context_model} has no picture context (image_regions and image_grid are 0): "
                    "give a bridge that was trained with one, or 'none'."
                )
        if arguments.described_model not in (None, "none"):
            models.described = RegionChat.from_pretrained(
                arguments.described_model, mode="described", region_tokenizer=tokenizer, device=device
            )
        return models


@dataclass
class _Batch:
    """Some scenes, drawn and encoded."""

    scenes: list[GlyphScene]
    pictures: list[GlyphPicture]
    features: ImageFeatures
    visible: list[list[int]]
    """Numbers of the objects of each scene that can be seen."""
    by_box: RegionTokens
    """Region tokens of all visible objects, scene by scene, from their tight boxes."""

    def rows(self, scene: int, objects: Sequence[int]) -> list[int]:
        """Where objects of a scene stand in `by_box`."""
        start = sum(len(v) for v in self.visible[:scene])
        return [start + self.visible[scene].index(i) for i in objects]


@dataclass
class _Asked:
    """A question about scene number `scene` of a batch: its words, its regions' features, its picture's context and size."""

    scene: int
    question: Question
    text: str
    objects: list[int]
    features: Tensor
    context: Tensor | None
    size: tuple[int, int]


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, measure, print the tables."""
    arguments = parse_arguments(GlyphEvaluationArguments, argv, description=__doc__)
    _check(arguments)
    if arguments.described_model is None:
        arguments.described_model = "none" if arguments.model == "none" else WORDS_MODEL
    if arguments.context_model is None:
        arguments.context_model = CONTEXT_MODELS.get(arguments.model, "none")
    models = _Models.load(arguments)
    if arguments.output is None:
        with TemporaryDirectory() as folder:
            print(_measure(models, arguments, Path(folder)))
    else:
        with only_writer(arguments.output):
            print(_measure(models, arguments, Path(arguments.output)))


def _check(arguments: GlyphEvaluationArguments) -> None:
    if unknown := [name for name in arguments.splits.split(",") if name not in SPLITS]:
        raise ValueError(f"splits has {', '.join(unknown)}, expected some of {', '.join(SPLITS)}.")
    if not all(seed.isdigit() for seed in arguments.seeds.split(",")):
        raise ValueError(f"seeds is {arguments.seeds}, expected whole numbers separated by commas.")
    if arguments.scenes < 1 or arguments.batch_size < 1:
        raise ValueError(f"Got {arguments.scenes} scenes, {arguments.batch_size} at a time: expected at least one.")
    if arguments.workers < 0:
        raise ValueError(f"Got {arguments.workers} workers, expected 0 (as many as there are cores) or more.")


def _measure(models: _Models, arguments: GlyphEvaluationArguments, output: Path) -> str:
    """Evaluate all splits and seeds, write what is found, and give the tables."""
    about = {
        "benchmark": f"GlyphScenes {VERSION}, questions {BENCHMARK_VERSION}",
        "decoding": "greedy",
        "region_tokenizer_fingerprint": models.tokenizer.fingerprint,
        **{
            f"{name}_fingerprint": fingerprint(chat.model)
            for name, chat in (("model", models.chat), ("context", models.context), ("described", models.described))
            if chat is not None
        },
        **{key: value for key, value in asdict(arguments).items() if key not in ("output", "device", "workers")},
    }
    parts = output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    _refuse_others(output / "about.json", about)
    runs = [(split, int(seed)) for split in arguments.splits.split(",") for seed in arguments.seeds.split(",")]
    paths = [_part(parts, split, seed) for split, seed in runs]
    missing = [run for run, path in zip(runs, paths) if not path.is_file()]
    with tqdm(total=len(runs) * arguments.scenes, unit="scene", desc="evaluating") as progress:
        progress.update((len(runs) - len(missing)) * arguments.scenes)
        _write_parts(models, arguments, missing, parts, progress)
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    metrics = {"of": about, **summarise(lines)}
    tables = as_tables(metrics)
    write_whole(output / "metrics.json", json.dumps(metrics, indent=1))
    write_whole(output / "table.md", tables)
    draw_figures(lines, output)
    trained = [Path(tap_tokenizer.__file__).parent / "pretrained" / arguments.region_tokenizer]
    bridges = [name for name in (arguments.model, arguments.context_model) if name not in (None, "none")]
    trained += [Path(llm_bridge.__file__).parent / "pretrained" / name for name in bridges]
    if bridges and all((folder / "training").is_dir() for folder in trained):  # the bundled models come with their logs
        draw_curves(trained, output / "curves.png")
    return tables


def _refuse_others(note: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds results of something else."""
    with damage_told(note):
        old = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else about
    if old != about:
        changed = ", ".join(key for key in about if old.get(key) != about[key])
        raise ValueError(f"{note.parent} holds results with other {changed}: choose another output, or delete it.")
    write_whole(note, json.dumps(about, indent=1))


# --- the parts, one or several at a time ------------------------------------------------------------------------------


def _write_parts(
    models: _Models, arguments: GlyphEvaluationArguments, runs: list[tuple[str, int]], folder: Path, progress: tqdm
) -> None:
    """Evaluate some splits and seeds, in this process or shared among workers that load the models for themselves."""
    workers = min(arguments.workers or _idle_cores(models), len(runs))
    if workers < 2:
        for split, seed in runs:
            _write_part(models, arguments, split, seed, folder, progress.update)
        return
    context = get_context("spawn")
    counts = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, _start_worker, (arguments, workers, counts)) as pool:
        runs = sorted(runs, key=lambda run: -sum(SPLITS[run[0]].counts))  # the longest first: no core waits at the end
        waiting = {pool.submit(_work, arguments, split, seed, folder) for split, seed in runs}
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
    """Workers that a machine has room for: a batch of these small models does not fill more than one core."""
    return min(os.cpu_count() or 1, 4) if models.tokenizer.device.type == "cpu" else 1


def _start_worker(arguments: GlyphEvaluationArguments, workers: int, counts: Any) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker.update(models=_Models.load(arguments), count=counts.put)


_worker: dict[str, Any] = {}
"""The models of a process that is a worker, and where it says how far it is."""


def _work(arguments: GlyphEvaluationArguments, split: str, seed: int, folder: Path) -> None:
    _write_part(_worker["models"], arguments, split, seed, folder, _worker["count"])


def _write_part(
    models: _Models,
    arguments: GlyphEvaluationArguments,
    split: str,
    seed: int,
    folder: Path,
    count: Callable[[int], Any],
) -> None:
    """The lines of one split and seed into their file, which is there only when it is whole."""
    found = list(_evaluate(models, arguments, split, seed, count))
    write_whole(_part(folder, split, seed), "".join(json.dumps(line) + "\n" for line in found))


def _part(folder: Path, split: str, seed: int) -> Path:
    return folder / f"{split}-{seed}.jsonl"


def _evaluate(
    models: _Models, arguments: GlyphEvaluationArguments, split: str, seed: int, count: Callable[[int], Any]
) -> Iterator[dict[str, Any]]:
    """A line for every region and for every question of one split and seed."""
    tokenizer, chat, described = models.tokenizer, models.chat, models.described
    balance = QuestionBalance()
    for start in range(0, arguments.scenes, arguments.batch_size):
        indices = range(start, min(start + arguments.batch_size, arguments.scenes))
        batch = _encode(tokenizer, [make_scene(index, split, seed) for index in indices])
        regions = list(_regions(tokenizer, batch))
        yield from regions
        questions = [balance.questions(scene, seen) for scene, seen in zip(batch.scenes, batch.visible)]
        views = [
            view
            for view in CONTROLS
            if start < (arguments.shuffled_scenes if view == "shuffled" else arguments.control_scenes)
        ]
        if chat is not None:
            own = (
                questions if models.context is None else _of_families(questions, set(FAMILIES) - set(CONTEXT_FAMILIES))
            )
            yield from _bridge_lines(chat, batch, own, regions, views)
        if models.context is not None and start < arguments.context_scenes:
            own = _of_families(questions, set(CONTEXT_FAMILIES))
            yield from _bridge_lines(models.context, batch, own, regions, views)
        if described is not None and start < arguments.control_scenes:
            yield from _described_answers(described, batch, questions)
        count(len(indices))


# --- what TAP says alone ----------------------------------------------------------------------------------------------


def _encode(tokenizer: TapRegionTokenizer, scenes: list[GlyphScene]) -> _Batch:
    pictures = [draw_scene(scene, LONG_SIDE) for scene in scenes]
    visible = [np.flatnonzero(picture.masks.any(axis=(1, 2))).tolist() for picture in pictures]
    features = tokenizer.embed_image([picture.image for picture in pictures])
    boxes = [picture.boxes[seen].tolist() for picture, seen in zip(pictures, visible)]
    return _Batch(
        scenes, pictures, features, visible, tokenizer.encode(features=features, boxes=boxes, with_masks=True)
    )


def _regions(tokenizer: TapRegionTokenizer, batch: _Batch) -> Iterator[dict[str, Any]]:
    """Masks from a box and from a point, concepts and native captions of all visible objects.

    The point is the mask's innermost pixel, as in the single-point evaluation of Segment Anything, or a random pixel.
    """
    centres, strays = [], []
    for scene, picture, seen in zip(batch.scenes, batch.pictures, batch.visible):
        random = np.random.RandomState([211, scene.seed, scene.index])
        pixels = [np.argwhere(picture.masks[i]) for i in seen]
        strays.append([[p[random.randint(len(p))][::-1].tolist()] for p in pixels])
        centres.append([[next_click(None, picture.masks[i])[0]] for i in seen])
    labels = [[[1]] * len(seen) for seen in batch.visible]
    by_centre, by_stray = (
        tokenizer.encode(features=batch.features, points=points, point_labels=labels, with_masks=True)
        for points in (centres, strays)
    )
    captions = tokenizer.caption(batch.by_box)
    concepts = [[top[0][0] for top in tokenizer.classify(batch.by_box, 1, concepts=bank)] for bank in concept_banks()]
    row = 0
    for scene, picture, seen in zip(batch.scenes, batch.pictures, batch.visible):
        for i in seen:
            glyph = scene.objects[i]
            yield {
                "task": "region",
                **_place(scene),
                "object": i,
                "iou_box": _iou(batch.by_box.mask_parts[row], picture.masks[i]),
                "iou_centre": _iou(by_centre.mask_parts[row], picture.masks[i]),
                "iou_point": _iou(by_stray.mask_parts[row], picture.masks[i]),
                "kind": [concepts[0][row], glyph.kind],
                "colour": [concepts[1][row], glyph.colour],
                "size": [concepts[2][row], glyph.size],
                "caption": [captions[row], caption(glyph)],
            }
            row += 1


def _place(scene: GlyphScene) -> dict[str, Any]:
    return {"split": scene.split, "seed": scene.seed, "scene": scene.index}


def _iou(predicted: Any, truth: np.ndarray) -> float:
    """IoU of a region's mask, wherever it lies, and the true one (H, W)."""
    return mask_iou(predicted.cpu().numpy(), truth)


# --- what the bridge answers ------------------------------------------------------------------------------------------


def _of_families(questions: Sequence[Sequence[Question]], families: set[str]) -> list[list[Question]]:
    return [[question for question in own if question.family in families] for own in questions]


def _bridge_lines(
    chat: RegionChat,
    batch: _Batch,
    questions: Sequence[Sequence[Question]],
    regions: Sequence[dict[str, Any]],
    controls: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A line for the bridge's answer to each question about a batch, and then for each with each of the controls."""
    asked = _asked(chat, batch, questions)
    yield from _answers(chat, batch, asked, "full", regions)
    for view in controls:
        if view != "objects given" or chat.processor.context.regions:
            yield from _answers(chat, batch, asked, view, regions)


def _asked(chat: RegionChat, batch: _Batch, questions: Sequence[Sequence[Question]]) -> list[_Asked]:
    processor = chat.processor
    contexts: list[Any] = [None] * len(batch.scenes)
    if processor.context.slots:
        contexts = processor.context.encode(chat.region_tokenizer, batch.features)
    found = []
    for number, own in enumerate(questions):
        for question in own:
            order: list[int] = []
            text, _ = number_regions(question, order)
            features = region_features(batch.by_box[batch.rows(number, order)], processor.experts)
            height, width = batch.pictures[number].image.shape[:2]
            found.append(_Asked(number, question, text, order, features, contexts[number], (height, width)))
    return found


def _answers(
    chat: RegionChat, batch: _Batch, asked: list[_Asked], view: str, regions: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The bridge's answers, all in one batch, with the model given what `view` says; beside them what TAP alone says."""
    shown = asked
    if view == "shuffled":
        asked, shown = _shuffled(asked)
    if not asked:
        return
    texts, rows = [one.text for one in asked], [one.features for one in shown]
    contexts, sizes = [one.context for one in shown], [one.size for one in shown]
    before: list[list[str]] = [[] for _ in asked]
    if view == "follow-up":
        before, rows = _conversations_before(chat, batch, asked)
    elif view == "question only":
        texts = [text.replace("<", "").replace(">", "") for text in texts]
        rows, contexts = [row[:0] for row in rows], [None] * len(rows)
    elif view == "objects given":
        given = [batch.by_box.of_image(number) for number in range(len(batch.scenes))]
        contexts = [chat.processor.context.of_regions(given[one.scene]) for one in asked]
    native = {(line["scene"], line["object"]): line for line in regions}
    turns = [[*earlier, text] for earlier, text in zip(before, texts)]
    for one, answer in zip(asked, _generate(chat, turns, rows, contexts, sizes, blind=view == "no position")):
        scene, question = batch.scenes[one.scene], one.question
        line = _line(scene, question, view, answer)
        if question.family in ("kind", "colour", "size", "caption"):
            line["tap"] = native[scene.index, one.objects[0]][question.family][0]
        line["boxes"] = batch.pictures[one.scene].boxes[one.objects].tolist()
        yield line


def _line(scene: GlyphScene, question: Question, view: str, answer: str) -> dict[str, Any]:
    return {
        "task": "question",
        "view": view,
        **_place(scene),
        "family": question.family,
        "question": question.text,
        "truth": question.answer,
        "answer": answer,
        "choices": len(question.choices),
    }


def _shuffled(asked: list[_Asked]) -> tuple[list[_Asked], list[_Asked]]:
    """Questions, and for each another one with as many regions, of another scene; those for which a batch has none are out."""
    kept, found = [], []
    for i, one in enumerate(asked):
        others = [o for o in asked if len(o.features) == len(one.features) and o.scene != one.scene]
        if others:
            kept.append(one)
            found.append(others[(7 * i) % len(others)])
    return kept, found


def _without_position(chat: RegionChat, features: Tensor) -> Tensor:
    """Features (B, S, F) with boxes and areas at zero, and the objects of each picture's context in an order of chance."""
    start = chat.model.config.token_size + chat.model.config.embed_size
    blind = features.clone()
    blind[..., start : start + 5] = 0
    for row in blind:
        context = (row[:, -1] == 1).nonzero()[:, 0]
        order = np.random.RandomState([223, len(context)]).permutation(len(context))
        row[context] = row[context[torch.from_numpy(order)]]
    return blind


def _conversations_before(chat: RegionChat, batch: _Batch, asked: list[_Asked]) -> tuple[list[list[str]], list[Tensor]]:
    """What was said before each question, the model's own words on its regions and on one more, and all these regions."""
    wanted = []
    for one in asked:
        others = [i for i in batch.visible[one.scene] if i not in one.objects]
        wanted.append([*one.objects, *others[one.question.objects[0] % max(len(others), 1) :][:1]])
    described = list(dict.fromkeys((one.scene, i) for one, own in zip(asked, wanted) for i in own))
    features = region_features(
        batch.by_box[[row for scene, i in described for row in batch.rows(scene, [i])]], chat.processor.experts
    )
    seen = {one.scene: one for one in asked}
    answers = _generate(
        chat,
        [["Describe <region1>."]] * len(described),
        list(features.split(1)),
        [seen[scene].context for scene, _ in described],
        [seen[scene].size for scene, _ in described],
    )
    words, row_of = dict(zip(described, answers)), {place: row for row, place in enumerate(described)}
    before, rows = [], []
    for one, own in zip(asked, wanted):
        turns = [(f"Describe <region{n}>.", words[one.scene, i]) for n, i in enumerate(own, start=1)]
        before.append([text for turn in turns for text in turn])
        rows.append(features[[row_of[one.scene, i] for i in own]])
    return before, rows


@torch.no_grad()
def _generate(
    chat: RegionChat,
    turns: Sequence[Sequence[str]],
    rows: list[Tensor],
    contexts: list[Tensor | None],
    sizes: list[tuple[int, int]],
    blind: bool = False,
) -> list[str]:
    """Answers to the last of the turns of each conversation, which are the user's and the assistant's in alternation.

    blind: hide where regions and objects are.
    """
    conversations = []
    for texts, context in zip(turns, contexts):
        shown = [f"<image>\n{texts[0]}", *texts[1:]] if context is not None else texts
        conversations.append([{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(shown)])
    inputs = chat.processor.chat_batch(conversations, rows, contexts, sizes)
    if blind and "region_features" in inputs:
        inputs["region_features"] = _without_position(chat, inputs["region_features"])
    return _continue(chat, inputs)


def _continue(chat: RegionChat, inputs: BatchFeature) -> list[str]:
    """What the model says after each prompt of a batch, greedily."""
    inputs = inputs.to(chat.model.device)
    ids = chat.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    words = chat.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in words]


def _described_answers(
    chat: RegionChat, batch: _Batch, questions: Sequence[Sequence[Question]]
) -> Iterator[dict[str, Any]]:
    """Answers of a plain language model that reads what TAP says of the regions in words."""
    asked = [(scene, question) for scene, own in enumerate(questions) for question in own]
    turns = [[{"role": "user", "content": text}] for text in _described_questions(chat, batch, questions)]
    inputs = chat.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=False
    )
    for (scene, question), answer in zip(asked, _continue(chat, inputs)):
        yield _line(batch.scenes[scene], question, "described", answer)


def _described_questions(chat: RegionChat, batch: _Batch, questions: Sequence[Sequence[Question]]) -> Iterator[str]:
    """Each question below descriptions of its regions, as `RegionChat.ask` would write it; a scene is described once."""
    assert isinstance(chat.processor, DescribedRegionProcessor)
    for number, (seen, own) in enumerate(zip(batch.visible, questions)):
        described = chat.processor.describe_tokens(batch.by_box.of_image(number))
        height, width = batch.features.original_sizes[number].tolist()
        for question in own:
            order: list[int] = []
            text, _ = number_regions(question, order)
            regions = [replace(described[seen.index(i)], name=f"region{n}") for n, i in enumerate(order, start=1)]
            words = re.sub(r"<(region[0-9]+)>", r"\1", text)
            yield f"{describe_regions(regions, (height, width))}\n{words}"


if __name__ == "__main__":
    sys.exit(run_command(main))
