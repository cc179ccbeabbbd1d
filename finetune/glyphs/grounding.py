"""The benchmark's expressions: what a bridge finds among true candidates and everything mode's, its tables and its figure.

Each scene has one expression of each type that it offers, and a second of none. What is found is right if its masks match those
of the objects that are meant one to one, with an IoU of .5 or more. Beside the bridge stand TAP's concept head alone, which
takes the candidate whose embedding is most like the words, and the bridge with shuffled candidates, a control: it is shown the
candidates in another order than the one in which its answer is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from llm_bridge import Candidates, RegionChat, find_among
from tap_tokenizer import RegionPrompt, RegionTokens

from ..data.grounding import LEAST_IOU, Expression, candidate_order
from ..metrics import mask_iou
from ..records import decode_mask, encode_mask
from .expressions import NONE, TYPES, draw_expression
from .language import phrase_cosines
from .records import LONG_SIDE
from .scenes import GlyphScene, draw_scene, make_scene
from .seen_scenes import SeenScenes, place_in_benchmark

TRUE, EVERYTHING = "true candidates", "everything mode"
HEAD, FINDS, SHUFFLED = "TAP's concept head", "LLM", "LLM, shuffled candidates"
SYSTEMS = (HEAD, FINDS, SHUFFLED)
COMPARED = ("relation", "comparison")
ONE = tuple(name for name in TYPES if name not in ("several", NONE))
"""Types of expressions that mean one object."""


def benchmark_expressions(scene: GlyphScene, visible: Sequence[int]) -> list[Expression]:
    """The expressions that the benchmark asks about a scene; `meant` are numbers of its objects."""
    names = [*TYPES, NONE]
    drawn = [
        draw_expression(scene, visible, name, np.random.RandomState([251, scene.seed, scene.index, number]))
        for number, name in enumerate(names)
    ]
    return [one for one in drawn if one is not None]


def find_lines(chat: RegionChat, seen: SeenScenes, count: int | None = None) -> Iterator[dict[str, Any]]:
    """A line for what each system finds of each expression about the first `count` scenes, among candidates of either kind."""
    chats = {FINDS: chat, SHUFFLED: chat.another()}  # what one has read of candidates in their order stays in memory
    for number, one in enumerate(seen.scenes[:count]):
        picture, visible = one.picture.image, one.picture.visible
        order = [visible[i] for i in candidate_order(one.scene.name, len(visible))]
        prompts = [RegionPrompt.read({"box": box}, "An object") for box in seen.boxes_of(number, order)]
        expressions = benchmark_expressions(one.scene, visible)
        for kind, given in ((TRUE, prompts), (EVERYTHING, None)):
            candidates = Candidates.of(chat.processor, picture, given)
            masks = candidates.regions.masks.cpu().numpy()
            covers = [[mask_iou(mask, one.picture.masks[i]) >= LEAST_IOU for i in range(len(one.scene.objects))]
                      for mask in masks]  # fmt: skip
            for expression in expressions:
                for system, rows in _found(chats, picture, expression.phrase, candidates):
                    yield {
                        "task": "find",
                        "view": system,
                        **place_in_benchmark(one.scene),
                        "candidates": kind,
                        "type": expression.type,
                        "phrase": expression.phrase,
                        "meant": list(expression.meant),
                        "found": rows,
                        "right": rows is not None and _is_right([covers[row] for row in rows], expression.meant),
                        "chance": chance_of_one(covers, expression.meant),
                    } | ({"masks": [encode_mask(masks[row]) for row in rows or ()]} if system == FINDS else {})


def _found(
    chats: Mapping[str, RegionChat], picture: np.ndarray, phrase: str, candidates: Candidates
) -> Iterator[tuple[str, list[int] | None]]:
    """Which candidates each system finds; None if it cannot say anything."""
    yield HEAD, _most_alike(candidates.regions, phrase)
    order = candidate_order("shuffled", len(candidates.prompts))
    shuffled = Candidates(candidates.regions, [candidates.prompts[i] for i in order])
    for system, shown in ((FINDS, candidates), (SHUFFLED, shuffled)):
        own = chats[system]
        yield system, find_among(own.speaker, own.processor, picture, phrase, shown).rows


def _most_alike(regions: RegionTokens, phrase: str) -> list[int] | None:
    if not len(regions):
        return []
    try:
        return [int(phrase_cosines(regions, phrase).argmax())]
    except ValueError:  # it says no kind, colour or size
        return None


def _is_right(covers: Sequence[Sequence[bool]], meant: Sequence[int]) -> bool:
    """Whether what was found covers each object that is meant once, and nothing else; covers: objects that each covers."""
    covered = [number for own in covers for number, is_covered in enumerate(own) if is_covered]
    return len(covers) == len(meant) and sorted(covered) == sorted(meant)


def chance_of_one(covers: Sequence[Sequence[bool]], meant: Sequence[int]) -> float:
    """How probable it is that one candidate, drawn by lot, is right; 0 without candidates. covers: as for `_is_right`."""
    return sum(_is_right([own], meant) for own in covers) / max(len(covers), 1)


# --- numbers and tables -----------------------------------------------------------------------------------------------


MEASURES = ("one answer", "relation or comparison", "several, exactly", "none where there is none", "none said wrongly")


def find_scores(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The numbers of one split and seed."""
    scores: dict[str, float] = {}
    for kind in (TRUE, EVERYTHING):
        for system in SYSTEMS:
            own = [line for line in lines if (line["candidates"], line["view"]) == (kind, system)]
            for measure, values in _measured(own).items():
                if values:
                    scores[f"{kind}, {system}: {measure}"] = float(np.mean(values))
        one = [line for line in lines if (line["candidates"], line["view"]) == (kind, FINDS) and line["type"] in ONE]
        if one:
            scores[f"{kind}, chance: one answer"] = float(np.mean([line["chance"] for line in one]))
            scores[f"n: {kind}"] = float(
                len([line for line in lines if (line["candidates"], line["view"]) == (kind, FINDS)])
            )
    return scores


def _measured(lines: Sequence[dict[str, Any]]) -> dict[str, list[bool]]:
    return {
        "one answer": [line["right"] for line in lines if line["type"] in ONE],
        "relation or comparison": [line["right"] for line in lines if line["type"] in COMPARED],
        "several, exactly": [line["right"] for line in lines if line["type"] == "several"],
        "none where there is none": [line["found"] == [] for line in lines if line["type"] == NONE],
        "none said wrongly": [line["found"] == [] for line in lines if line["type"] != NONE],
    }


def find_tables(split: str, numbers: dict[str, float]) -> list[str]:
    """A table of a split for each kind of candidates, if there are numbers: TAP alone, the bridge, the control, and chance."""
    tables = []
    for kind in (TRUE, EVERYTHING):
        if f"n: {kind}" not in numbers:
            continue
        head = f"| {split}: expressions, {kind} ({numbers[f'n: {kind}']:.0f}) | " + " | ".join(MEASURES) + " |"
        lines = [head, "|---" * (len(MEASURES) + 1) + "|"]
        for system in (*SYSTEMS, "chance"):
            values = [numbers.get(f"{kind}, {system}: {measure}") for measure in MEASURES]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return tables


# --- a figure ---------------------------------------------------------------------------------------------------------


SHOWN, COLUMNS = 20, 4
"""Answers of the figure, and how many stand side by side."""


def chosen_lines(lines: Sequence[dict[str, Any]], count: int = SHOWN) -> list[dict[str, Any]]:
    """So many lines of the bridge, which a fixed seed chooses: types in turns, and in turns from true candidates and not."""
    random, own = np.random.RandomState(20), [line for line in lines if line["view"] == FINDS]
    left = [own[i] for i in random.permutation(len(own))]
    chosen: list[dict[str, Any]] = []
    while left and len(chosen) < count:
        turn = len(chosen)
        wanted = list(TYPES)[turn % len(TYPES)], (TRUE, EVERYTHING)[(turn + turn // len(TYPES)) % 2]
        best = max(left, key=lambda line: 2 * (line["type"] == wanted[0]) + (line["candidates"] == wanted[1]))
        left = [line for line in left if line is not best]
        chosen.append(best)
    return chosen


def draw_found(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Pictures with what the bridge finds in them outlined, green if it is meant and red if not; dots mark what is meant."""
    from ..figure_style import GREY, INK, RIGHT, SMALL, WRONG, new_figure, save_figure, styled

    chosen = chosen_lines(lines)
    rows = -(-len(chosen) // COLUMNS)
    with styled():
        figure = new_figure(0.4 + 2.35 * rows)
        figure.suptitle(
            "Outlined: what the language model finds; green is meant, red is not. A dot: what is meant.",
            fontsize=9, color=INK,
        )  # fmt: skip
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for line, axes in zip(chosen, grid):
            picture = draw_scene(make_scene(line["scene"], line["split"], line["seed"]), LONG_SIDE)
            height, width = picture.image.shape[:2]
            axes.imshow(picture.image)
            for mask in (decode_mask(mask, (height, width)) for mask in line["masks"]):
                is_meant = any(mask_iou(mask, picture.masks[i]) >= LEAST_IOU for i in line["meant"])
                for colour, wide in (("white", 4.2), (RIGHT if is_meant else WRONG, 2.2)):
                    axes.contour(np.pad(mask, 1), [0.5], colors=[colour], linewidths=wide,
                                 extent=(-1.5, width + 0.5, -1.5, height + 0.5))  # fmt: skip
            for i in line["meant"]:
                y, x = np.argwhere(picture.masks[i]).mean(axis=0)
                axes.plot(x, y, "o", markersize=6, color="white", markeredgecolor=INK, markeredgewidth=1.4)
            colour, sign = (RIGHT, "✓") if line["right"] else (WRONG, "✗")
            letters = 24 * min(width / height, 1)  # as wide as the picture
            axes.set_title(fill(f"{sign} {line['phrase']}", int(letters)), color=colour, fontsize=SMALL)
            said = f"{len(line['found'])} found" if line["found"] else "none found"
            axes.set_xlabel(f"{said}, {line['candidates']}", fontsize=SMALL, color=GREY)
            axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=2.5)
        for axes in list(grid):  # the last row may not be full
            axes.set_axis_off()
        save_figure(figure, path)
