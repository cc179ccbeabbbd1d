"""What the bundled models are worth on GlyphScenes: masks, concepts, captions and answers, with controls beside them.

    python -m finetune.evaluate_glyphs --scenes 200 --output runs/evaluation
    python -m finetune.evaluate_glyphs --splits test,test-compositional,test-crowded --seeds 0,1,2 --scenes 700

Pictures have 512 pixels on their long side; masks are compared at that size. Every family's questions are balanced over
their answers. Writes predictions.jsonl (one line per region and per question), metrics.json and table.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llm_bridge import RegionChat, grid_points, region_features
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer

from .arguments import knob, parse_arguments, run_command
from .data.glyph_language import caption, concept_banks
from .data.glyph_questions import (
    ATTRIBUTE_FAMILIES,
    CAPTION_FAMILIES,
    CONTEXT_FAMILIES,
    FAMILIES,
    PAIR_FAMILIES,
    draw_question,
)
from .data.glyph_records import number_regions
from .data.glyph_scenes import VERSION, GlyphPicture, GlyphScene, draw_scene, make_scene
from .metrics import accuracy, chance, is_exact, majority

LONG_SIDE = 512
GROUPS = {
    "attributes and position": ATTRIBUTE_FAMILIES,
    "captions": CAPTION_FAMILIES,
    "two regions compared": PAIR_FAMILIES,
    "nearest, farthest, counting": CONTEXT_FAMILIES,
}
"""Families as the tables group them."""

VIEWS = ("full", "shuffled", "question only", "no position")
"""What the language model is given: the regions; regions of other questions in their place; none; all but position."""


@dataclass
class GlyphEvaluationArguments:
    """Measure a region tokenizer, and a bridge that reads it, on GlyphScenes."""

    region_tokenizer: str = knob(default="tap-tiny", help="name or folder of the region tokenizer")
    model: str | None = knob(default="region-chat-tiny", help="name or folder of the bridge; 'none' to leave it out")
    splits: str = knob(default="test", help="splits, separated by commas")
    seeds: str = knob(default="0", help="seeds of the scenes, separated by commas; results are averaged over them")
    scenes: int = knob(default=200, help="scenes of each split and seed")
    views: str = knob(default="full,shuffled", help=f"what the bridge is given, of: {', '.join(VIEWS)}")
    batch_size: int = knob(default=8, help="scenes at a time")
    output: str | None = knob(default=None, help="folder for predictions.jsonl, metrics.json and table.md")


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


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, measure, print the table."""
    arguments = parse_arguments(GlyphEvaluationArguments, argv, description=__doc__)
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer)
    model = None if arguments.model in (None, "none") else str(arguments.model)
    chat = RegionChat.from_pretrained(model, region_tokenizer=tokenizer) if model else None
    lines = list(evaluate(tokenizer, chat, arguments))
    metrics = summarise(lines)
    metrics["of"] = {
        "region_tokenizer": arguments.region_tokenizer,
        "fingerprint": tokenizer.fingerprint,
        "model": model,
        "world": f"GlyphScenes {VERSION}",
        "seeds": arguments.seeds,
        "scenes": arguments.scenes,
    }
    table = as_table(metrics)
    if arguments.output:
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (folder / "table.md").write_text(table)
    print(table)


def evaluate(
    tokenizer: TapRegionTokenizer, chat: RegionChat | None, arguments: GlyphEvaluationArguments
) -> Iterator[dict[str, Any]]:
    """A line for every region and for every question."""
    views = arguments.views.split(",")
    if unknown := [view for view in views if view not in VIEWS]:
        raise ValueError(f"views has {', '.join(unknown)}, expected some of {', '.join(VIEWS)}.")
    runs = [(split, int(seed)) for split in arguments.splits.split(",") for seed in arguments.seeds.split(",")]
    with tqdm(total=len(runs) * arguments.scenes, unit="scene", desc="evaluating") as progress:
        for split, seed in runs:
            for start in range(0, arguments.scenes, arguments.batch_size):
                indices = range(start, min(start + arguments.batch_size, arguments.scenes))
                batch = _encode(tokenizer, [make_scene(index, split, seed) for index in indices])
                yield from _regions(tokenizer, batch)
                if chat is not None:
                    for view in views:
                        yield from _answers(chat, batch, view)
                progress.update(len(indices))


def _encode(tokenizer: TapRegionTokenizer, scenes: list[GlyphScene]) -> _Batch:
    pictures = [draw_scene(scene, LONG_SIDE) for scene in scenes]
    visible = [np.flatnonzero(picture.masks.any(axis=(1, 2))).tolist() for picture in pictures]
    features = tokenizer.embed_image([picture.image for picture in pictures])
    boxes = [picture.boxes[seen].tolist() for picture, seen in zip(pictures, visible)]
    return _Batch(
        scenes, pictures, features, visible, tokenizer.encode(features=features, boxes=boxes, with_masks=True)
    )


def _regions(tokenizer: TapRegionTokenizer, batch: _Batch) -> Iterator[dict[str, Any]]:
    """Masks from a box and from a point, concepts and native captions of all visible objects."""
    points, labels = [], []
    for scene, picture, seen in zip(batch.scenes, batch.pictures, batch.visible):
        random = np.random.RandomState([211, scene.seed, scene.index])
        chosen = [np.argwhere(picture.masks[i]) for i in seen]
        points.append([[p[random.randint(len(p))][::-1].tolist()] for p in chosen])
        labels.append([[1]] * len(seen))
    by_point = tokenizer.encode(features=batch.features, points=points, point_labels=labels, with_masks=True)
    captions = tokenizer.caption(batch.by_box)
    banks = concept_banks()
    concepts = [[top[0][0] for top in tokenizer.classify(batch.by_box, 1, concepts=bank)] for bank in banks]
    row = 0
    for scene, picture, seen in zip(batch.scenes, batch.pictures, batch.visible):
        for i in seen:
            glyph = scene.objects[i]
            yield {
                "task": "region",
                "split": scene.split,
                "seed": scene.seed,
                "scene": scene.index,
                "object": i,
                "iou_box": _iou(batch.by_box.mask_parts[row], picture.masks[i]),
                "iou_point": _iou(by_point.mask_parts[row], picture.masks[i]),
                "kind": [concepts[0][row], glyph.kind],
                "colour": [concepts[1][row], glyph.colour],
                "size": [concepts[2][row], glyph.size],
                "caption": [captions[row], caption(glyph)],
            }
            row += 1


def _iou(predicted: Any, truth: np.ndarray) -> float:
    mask = predicted.cpu().numpy()
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))


def _answers(chat: RegionChat, batch: _Batch, view: str) -> Iterator[dict[str, Any]]:
    """One question of every family about each scene that has one, answered in one batch."""
    asked = []
    for number, scene in enumerate(batch.scenes):
        for k, family in enumerate(FAMILIES):
            question = draw_question(scene, family, np.random.RandomState([223, scene.seed, scene.index, k]))
            if question is not None and set(question.objects) <= set(batch.visible[number]):
                asked.append((number, question))
    if not asked:
        return
    processor = chat.processor
    grids = _grids(chat, batch) if processor.image_grid else [None] * len(batch.scenes)
    rows, texts, contexts = [], [], []
    for number, question in asked:
        order: list[int] = []
        text, _ = number_regions(question, order)
        chosen = batch.rows(number, order)
        rows.append(region_features(batch.by_box[chosen], processor.experts))
        texts.append(text.replace("<", "").replace(">", "") if view == "question only" else text)
        contexts.append(grids[number])
    if view == "shuffled":  # the regions, and the picture, of a question of another scene
        rows, contexts = _shuffled([n for n, _ in asked], rows, contexts)
    if view == "question only":
        rows, contexts = [row[:0] for row in rows], [None] * len(rows)
    if view == "no position":
        rows = [_without_position(chat, row) for row in rows]
    with_image = processor.image_grid and view != "question only"
    said = _generate(chat, [f"<image>\n{text}" if with_image else text for text in texts], rows, contexts)
    for (number, question), answer in zip(asked, said):
        scene = batch.scenes[number]
        yield {
            "task": "question",
            "view": view,
            "split": scene.split,
            "seed": scene.seed,
            "scene": scene.index,
            "family": question.family,
            "question": question.text,
            "truth": question.answer,
            "answer": answer,
            "choices": len(question.choices),
        }


def _grids(chat: RegionChat, batch: _Batch) -> list[Tensor | None]:
    side = chat.processor.image_grid
    grids = [grid_points(side, (p.image.shape[0], p.image.shape[1])) for p in batch.pictures]
    regions = chat.region_tokenizer.encode(
        features=batch.features, points=[points for points, _ in grids], point_labels=[labels for _, labels in grids]
    )
    return list(region_features(regions, "routed", is_context=True).flatten(0, 1).split(side * side))


def _shuffled(
    scene_of: list[int], rows: list[Tensor], contexts: list[Tensor | None]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Give each question the regions of another that has as many, of another scene where there is one."""
    new_rows, new_contexts = list(rows), list(contexts)
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if len(rows[j]) == len(row) and scene_of[j] != scene_of[i]]
        j = others[(7 * i) % len(others)] if others else i
        new_rows[i], new_contexts[i] = rows[j], contexts[j]
    return new_rows, new_contexts


def _without_position(chat: RegionChat, row: Tensor) -> Tensor:
    config = chat.model.config
    start = config.token_size + config.embed_size
    return torch.cat([row[..., :start], torch.zeros_like(row[..., start : start + 5]), row[..., start + 5 :]], dim=-1)


@torch.no_grad()
def _generate(chat: RegionChat, texts: list[str], rows: list[Tensor], contexts: list[Tensor | None]) -> list[str]:
    conversations = [[{"role": "user", "content": text}] for text in texts]
    inputs = chat.processor.chat_batch(conversations, rows, contexts).to(chat.model.device)
    ids = chat.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    words = chat.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in words]


# --- numbers ----------------------------------------------------------------------------------------------------------


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over regions and questions of each split and seed, then over seeds."""
    metrics: dict[str, Any] = {}
    for split in dict.fromkeys(line["split"] for line in lines):
        seeds = dict.fromkeys(line["seed"] for line in lines if line["split"] == split)
        per_seed = [_summarise_one([x for x in lines if x["split"] == split and x["seed"] == seed]) for seed in seeds]
        names = dict.fromkeys(name for one in per_seed for name in one)
        metrics[split] = {name: float(np.mean([one[name] for one in per_seed if name in one])) for name in names}
        if len(per_seed) > 1:
            metrics[split]["spread"] = {
                name: float(np.ptp([one[name] for one in per_seed if name in one])) for name in names
            }
    return metrics


def _summarise_one(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    regions = [line for line in lines if line["task"] == "region"]
    result = {
        "regions": float(len(regions)),
        "mask mIoU from a box": float(np.mean([r["iou_box"] for r in regions])),
        "mask mIoU from a point": float(np.mean([r["iou_point"] for r in regions])),
        **{f"concept top-1 ({name})": _share(regions, name) for name in ("kind", "colour", "size")},
        "native caption exact": _share(regions, "caption"),
    }
    questions = [line for line in lines if line["task"] == "question"]
    for view in dict.fromkeys(q["view"] for q in questions):
        seen = [q for q in questions if q["view"] == view]
        for family in dict.fromkeys(q["family"] for q in seen):
            own = [q for q in seen if q["family"] == family]
            truths = [q["truth"] for q in own]
            result[f"{view}: {family}"] = accuracy([q["answer"] for q in own], truths)
            if view == "full":
                result[f"chance: {family}"] = chance([q["choices"] for q in own])
                result[f"majority: {family}"] = majority(truths)
                result[f"questions: {family}"] = float(len(own))
        for group, families in GROUPS.items():
            scores = [result[f"{view}: {family}"] for family in families if f"{view}: {family}" in result]
            if scores:
                result[f"{view}: {group}"] = float(np.mean(scores))
    return result


def _share(regions: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([is_exact(*region[name]) for region in regions]))


def as_table(metrics: dict[str, Any]) -> str:
    """The metrics as Markdown: a column per split."""
    splits = [name for name in metrics if name != "of"]
    lines = [
        f"GlyphScenes {VERSION}, {metrics['of']['scenes']} scenes for each of the seeds {metrics['of']['seeds']}",
        "",
    ]
    lines += ["| | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for name in metrics[splits[0]]:
        if name == "spread":
            continue
        values = [metrics[split].get(name) for split in splits]
        shown = [
            "" if v is None else f"{v:.0f}" if name.startswith(("regions", "questions")) else f"{v:.3f}" for v in values
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(main))
