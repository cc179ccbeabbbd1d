"""What language models answer to the benchmark's questions, in the views that they are given of the regions.

In the view "full" a bridge is shown what a user would show it. The other views are controls: what is left of a score
without that says what the model owes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from llm_bridge import (
    DescribedRegionProcessor,
    RegionChat,
    describe_regions,
    generate_text,
    region_features,
    replace_regions,
)

from .questions import Question
from .regions import SeenScenes, place_in_benchmark
from .scenes import GlyphScene

MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """A question as a bridge is asked it.

    scene: number of its scene among those seen; objects: those that it names, in the order of their numbers; turns: what
    the user and the assistant say in alternation, the question last; features (R, slots, F) of the regions and context
    (slots, F) of the picture that are shown; size (height, width) of the picture.
    """

    scene: int
    question: Question
    objects: list[int]
    turns: list[str]
    features: Tensor
    context: Tensor | None
    size: tuple[int, int]


# --- the views --------------------------------------------------------------------------------------------------------


View: TypeAlias = Callable[[RegionChat, SeenScenes, Sequence[Asked]], list[Asked]]
"""Questions → the same with what the view shows; those that the view cannot be had of are left out."""


def _full(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    return list(asked)


def _shuffled(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """As many regions of another scene, and its picture."""
    found = []
    for i, one in enumerate(asked):
        others = [o for o in asked if len(o.features) == len(one.features) and o.scene != one.scene]
        if others:
            other = others[(7 * i) % len(others)]
            found.append(replace(one, features=other.features, context=other.context, size=other.size))
    return found


def _question_only(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    return [
        replace(one, turns=[_without_markers(text) for text in one.turns], features=one.features[:0], context=None)
        for one in asked
    ]


def _objects_given(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """The true objects as picture context, instead of those that are found; of bridges without found ones, nothing."""
    if not chat.processor.context.regions:
        return []
    contexts = [chat.processor.context.of_regions(seen.tokens.of_image(n)) for n in range(len(seen.scenes))]
    return [replace(one, context=contexts[one.scene]) for one in asked]


def _follow_up(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """After the question's regions, and then another, were described in earlier turns, in the model's own words."""
    shown: list[list[int]] = []
    described: dict[tuple[int, int], Asked] = {}
    for one in asked:
        others = [i for i in seen.scenes[one.scene].picture.visible if i not in one.objects]
        shown.append([*one.objects, *others[one.question.objects[0] % max(len(others), 1) :][:1]])
        for i in shown[-1]:
            if (one.scene, i) not in described:
                alone = _features(chat, seen, one.scene, [i])
                described[one.scene, i] = replace(one, objects=[i], turns=["Describe <region1>."], features=alone)
    words = dict(zip(described, _answers(chat, list(described.values()))))
    found = []
    for one, own in zip(asked, shown):
        before = [(f"Describe <region{n}>.", words[one.scene, i]) for n, i in enumerate(own, start=1)]
        turns = [*(text for turn in before for text in turn), *one.turns]
        found.append(replace(one, turns=turns, features=_features(chat, seen, one.scene, own)))
    return found


NO_POSITION = "no position"

VIEWS: dict[str, View] = {
    "full": _full,
    "shuffled": _shuffled,
    "question only": _question_only,
    NO_POSITION: _full,  # boxes, areas and the order of the objects around are hidden in the finished batch
    "objects given": _objects_given,
    "follow-up": _follow_up,
}
DESCRIBED = "described"
"""The view of a plain language model that is told in words what TAP sees of the regions."""
CONTROLS = tuple(VIEWS)[1:]


# --- a bridge ---------------------------------------------------------------------------------------------------------


def bridge_lines(
    chat: RegionChat,
    seen: SeenScenes,
    families: Collection[str],
    controls: Sequence[str],
    regions: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """A line for the answer to each question of some families, and then for each in each of the controls.

    regions: lines of `region_lines`, from which a line takes what TAP says alone where the question allows.
    """
    asked = _asked(chat, seen, families)
    native = {(line["scene"], line["object"]): line for line in regions}
    for view in ("full", *controls):
        shown = VIEWS[view](chat, seen, asked)
        for one, answer in zip(shown, _answers(chat, shown, hide_position=view == NO_POSITION)):
            scene, question = seen.scenes[one.scene].scene, one.question
            line = _line(scene, question, view, answer)
            if question.family in ("kind", "colour", "size", "caption"):
                line["tap"] = native[scene.index, one.objects[0]][question.family][0]
            line["boxes"] = seen.boxes_of(one.scene, one.objects)
            yield line


def _line(scene: GlyphScene, question: Question, view: str, answer: str) -> dict[str, Any]:
    return {
        "task": "question",
        "view": view,
        **place_in_benchmark(scene),
        "family": question.family,
        "question": question.text,
        "truth": question.answer,
        "answer": answer,
        "choices": len(question.choices),
    }


def _asked(chat: RegionChat, seen: SeenScenes, families: Collection[str]) -> list[Asked]:
    """The questions of some families as a user would ask them."""
    contexts: list[Any] = [None] * len(seen.scenes)
    if chat.processor.context.slots:
        contexts = chat.processor.context.encode(chat.region_tokenizer, seen.features)
    found = []
    for number, (scene, context) in enumerate(zip(seen.scenes, contexts)):
        height, width = scene.picture.image.shape[:2]
        for question in scene.questions:
            if question.family in families:
                order: list[int] = []
                text, _ = question.numbered(order)
                features = _features(chat, seen, number, order)
                found.append(Asked(number, question, order, [text], features, context, (height, width)))
    return found


def _features(chat: RegionChat, seen: SeenScenes, scene: int, objects: Sequence[int]) -> Tensor:
    return region_features(seen.tokens_of(scene, objects), chat.processor.experts)


def _answers(chat: RegionChat, asked: Sequence[Asked], *, hide_position: bool = False) -> list[str]:
    """What the bridge says to each question, all in one batch."""
    if not asked:
        return []
    conversations = [
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(one.turns)] for one in asked
    ]
    inputs = chat.processor.chat_batch(
        conversations, [one.features for one in asked], [one.context for one in asked], [one.size for one in asked]
    )
    if hide_position and "region_features" in inputs:
        inputs["region_features"] = _without_position(chat, inputs["region_features"])
    return _continue(chat, inputs)


def _without_position(chat: RegionChat, features: Tensor) -> Tensor:
    """Features (B, S, F) with boxes and areas at zero, and the objects of each picture's context in an order of chance."""
    layout = chat.model.config.feature_layout
    blind = features.clone()
    blind[..., layout.box] = blind[..., layout.area] = 0
    for row in blind:
        context = (row[:, layout.context] == 1).nonzero()[:, 0]
        order = np.random.RandomState([223, len(context)]).permutation(len(context))
        row[context] = row[context[torch.from_numpy(order)]]
    return blind


@torch.no_grad()
def _continue(chat: RegionChat, inputs: BatchFeature) -> list[str]:
    return generate_text(chat.model, chat.processor, inputs.to(chat.model.device), max_new_tokens=MAX_NEW_TOKENS)


# --- a plain language model -------------------------------------------------------------------------------------------


def described_lines(chat: RegionChat, seen: SeenScenes) -> Iterator[dict[str, Any]]:
    """A line for the answer to each question by a language model that reads what TAP says of the regions in words."""
    turns = [[{"role": "user", "content": text}] for text in described_questions(chat, seen)]
    inputs = chat.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=False
    )
    asked = [(one.scene, question) for one in seen.scenes for question in one.questions]
    for (scene, question), answer in zip(asked, _continue(chat, inputs)):
        yield _line(scene, question, DESCRIBED, answer)


def described_questions(chat: RegionChat, seen: SeenScenes) -> Iterator[str]:
    """Each question below descriptions of its regions, as `RegionChat.ask` would write it; a scene is described once."""
    assert isinstance(chat.processor, DescribedRegionProcessor)
    for number, one in enumerate(seen.scenes):
        described = chat.processor.describe_tokens(seen.tokens.of_image(number))
        by_object = dict(zip(one.picture.visible, described))
        height, width = one.picture.image.shape[:2]
        for question in one.questions:
            order: list[int] = []
            text, _ = question.numbered(order)
            regions = [replace(by_object[i], name=f"region{n}") for n, i in enumerate(order, start=1)]
            yield f"{describe_regions(regions, (height, width))}\n{_without_markers(text)}"


def _without_markers(text: str) -> str:
    """`<region1>` → region1."""
    return replace_regions(text, lambda number, is_shown: f"region{number}")
