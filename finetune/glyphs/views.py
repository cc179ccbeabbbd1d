"""What language models answer to the benchmark's questions in different views.

In the view "full", a bridge is shown what a user would show it. The other views are controls, which leave something out: what
is lost of the score shows how much the model needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from llm_bridge import (
    DescribedRegionProcessor,
    RegionChat,
    RegionDescription,
    describe_regions,
    generate_text,
    region_features,
    replace_regions,
)

from ..answerers import other_pictures
from ..choices import Likelihoods
from ..examples import after_examples, as_text, lines_after
from .free_questions import KNOWLEDGE_FAMILIES, KNOWLEDGE_OPEN, KNOWLEDGE_WHICH, FreeQuestion
from .language import caption
from .questions import CONTEXT_FAMILIES, FAMILIES, Question
from .records import BenchmarkScene
from .scenes import GlyphScene
from .seen_scenes import SeenScenes, place_in_benchmark

# --- the views --------------------------------------------------------------------------------------------------------

MAX_NEW_TOKENS, MAX_NEW_TOKENS_FREE = 24, 48
"""Longest answer to a question of the benchmark, and to one that is answered freely."""


@dataclass(frozen=True)
class Asked:
    """A question in the form in which a bridge is asked.

    scene: number of its scene among those seen; objects: those that it names, in the order of their numbers; turns: what
    the user and the assistant say in alternation, the question last; features (R, slots, F) of the regions and context
    (slots, F) of the picture that are shown; size (height, width) of the picture; answer: the bridge's in the view "full".
    """

    scene: int
    question: Question
    objects: list[int]
    turns: list[str]
    features: Tensor
    context: Tensor | None
    size: tuple[int, int]
    answer: str = ""


Item = TypeVar("Item")
View: TypeAlias = Callable[[RegionChat, SeenScenes, Sequence[Asked]], list[Asked]]
"""Questions → the same with what the view shows; those that the view cannot be had of are left out."""


def _full(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    return list(asked)


def _shuffled(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """As many regions of another scene, and its picture."""
    others = other_pictures([one.scene for one in asked], [len(one.features) for one in asked])
    pairs = [(one, asked[other]) for one, other in zip(asked, others) if other is not None]
    return [replace(one, features=o.features, context=o.context, size=o.size) for one, o in pairs]


def _question_only(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    return [
        replace(one, turns=[_without_markers(text) for text in one.turns], features=one.features[:0], context=None)
        for one in asked
    ]


def _objects_given(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """The true objects as picture context, instead of those that are found, for questions about them; of bridges without
    found ones, nothing.
    """
    if not chat.processor.context.regions:
        return []
    contexts = [chat.processor.context.of_regions(seen.tokens.of_image(n)) for n in range(len(seen.scenes))]
    around = [one for one in asked if one.question.family in CONTEXT_FAMILIES]
    return [replace(one, context=contexts[one.scene]) for one in around]


def _follow_up(chat: RegionChat, seen: SeenScenes, asked: Sequence[Asked]) -> list[Asked]:
    """As the second to sixth question of a talk, after others about the same scene and the bridge's own answers to them."""
    found = []
    for place, one in enumerate(asked):
        scene = seen.scenes[one.scene].scene
        others = [other for other in asked if other.scene == one.scene and other is not one]
        random = np.random.RandomState([241, scene.seed, scene.index, place])
        talk = [others[i] for i in random.permutation(len(others))[: 1 + place % MOST_BEFORE]]
        objects: list[int] = []
        turns: list[str] = []
        for turn in (*talk, one):
            text, _ = turn.question.numbered(objects)
            turns += [text, _renumbered(turn.answer, turn.objects, objects)]
        found.append(
            replace(one, objects=objects, turns=turns[:-1], features=_features(chat, seen, one.scene, objects))
        )
    return found


MOST_BEFORE = 5
"""The most questions that stand before another in the view "follow-up"."""


def _renumbered(answer: str, own: Sequence[int], order: Sequence[int]) -> str:
    """An answer that numbers regions as in `own`, with their numbers in `order`; one that is not there is another region."""

    def rename(number: int, is_shown: bool) -> str | None:
        if not 0 < number <= len(own):
            return None
        return f"region{order.index(own[number - 1]) + 1}" if own[number - 1] in order else "another region"

    return answer if list(own) == list(order) else replace_regions(answer, rename)


NO_POSITION = "no position"

VIEWS: dict[str, View] = {
    "full": _full,
    "shuffled": _shuffled,
    "question only": _question_only,
    NO_POSITION: _full,  # boxes, areas and the order of the objects around are hidden in the finished batch
    "objects given": _objects_given,
    "follow-up": _follow_up,
}
DESCRIBED, TOLD_TRUTH = "described", "told the truth"
"""The views of a plain language model that is told in words what TAP sees of the regions, and what they are."""
TOLD_KINDS = f"{TOLD_TRUTH}, in its best form"
"""The view of one that is told the kinds alone, in the form in which it says best what it knows of them."""
CONTROLS = tuple(VIEWS)[1:]
FREE_CONTROLS = ("shuffled", "question only")
"""The controls of questions that are answered freely."""


# --- a bridge ---------------------------------------------------------------------------------------------------------


def bridge_lines(
    chat: RegionChat,
    seen: SeenScenes,
    families: Collection[str],
    controls: Sequence[str],
    regions: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """A line for the answer to each question of some families, and then to each of them in each control.

    regions: lines of `region_lines`, from which a line takes what TAP says alone where the question allows.
    """
    asked = _asked(chat, seen, families)
    native = {(line["scene"], line["object"]): line for line in regions}
    for view in ("full", *controls):
        shown = VIEWS[view](chat, seen, asked)
        answers = _answers(chat, shown, hide_position=view == NO_POSITION)
        if view == "full":
            asked = [replace(one, answer=answer) for one, answer in zip(asked, answers)]
        for one, answer in zip(shown, answers):
            scene, question = seen.scenes[one.scene].scene, one.question
            line = _line(scene, question, view, _renumbered(answer, one.objects, question.objects))
            if question.family in ("kind", "colour", "size", "caption"):
                line["tap"] = native[scene.index, question.objects[0]][question.family][0]
            line["boxes"] = seen.boxes_of(one.scene, question.objects)
            yield line


def _line(scene: GlyphScene, question: Question, view: str, answer: str) -> dict[str, Any]:
    free = {"written": question.written, "reject": question.reject} if isinstance(question, FreeQuestion) else {}
    return {
        "task": "question",
        "view": view,
        **place_in_benchmark(scene),
        "family": question.family,
        "question": question.text,
        "truth": question.answer,
        "answer": answer,
        "choices": len(question.choices),
        "kinds": [scene.objects[i].kind for i in question.objects],
        **free,
    }


def _asked(chat: RegionChat, seen: SeenScenes, families: Collection[str]) -> list[Asked]:
    """The questions of some families as a user would ask them."""
    found = []
    for number, (scene, context) in enumerate(zip(seen.scenes, seen.contexts(chat.processor))):
        height, width = scene.picture.image.shape[:2]
        for question in _questions(scene, families):
            order: list[int] = []
            text, _ = question.numbered(order)
            features = _features(chat, seen, number, order)
            found.append(Asked(number, question, order, [text], features, context, (height, width)))
    return found


def _features(chat: RegionChat, seen: SeenScenes, scene: int, objects: Sequence[int]) -> Tensor:
    return region_features(seen.tokens_of(scene, objects), chat.processor.experts)


def _answers(chat: RegionChat, asked: Sequence[Asked], *, hide_position: bool = False) -> list[str]:
    """What the bridge says to each question."""

    def answer(some: Sequence[Asked]) -> list[str]:
        conversations = [
            [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(one.turns)]
            for one in some
        ]
        inputs = chat.processor.chat_batch(
            conversations, [one.features for one in some], [one.context for one in some], [one.size for one in some]
        )
        if hide_position and "region_features" in inputs:
            inputs["region_features"] = _without_position(chat, inputs["region_features"])
        return _continue(chat, inputs, some[0].question)

    return _in_batches(asked, lambda one: sum(map(len, one.turns)), answer)


AT_ONCE = 32
"""Questions that are answered in one batch. Those that are about as long come together, so that little is padded."""


def _in_batches(
    items: Sequence[Item], length: Callable[[Item], int], answer: Callable[[Sequence[Item]], list[str]]
) -> list[str]:
    """The answers to some questions, in their order."""
    order = sorted(range(len(items)), key=lambda i: length(items[i]))
    said = [""] * len(items)
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        for place, words in zip(places, answer([items[i] for i in places])):
            said[place] = words
    return said


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
def _continue(chat: RegionChat, inputs: BatchFeature, first: Question) -> list[str]:
    """The answers to a batch of questions, which are all free or all not, as is the `first`."""
    limit = MAX_NEW_TOKENS_FREE if isinstance(first, FreeQuestion) else MAX_NEW_TOKENS
    return generate_text(chat.model, chat.processor, inputs.to(chat.model.device), max_new_tokens=limit)


# --- a plain language model -------------------------------------------------------------------------------------------


def described_lines(
    chat: RegionChat, seen: SeenScenes, families: Collection[str] = tuple(FAMILIES), view: str = DESCRIBED
) -> Iterator[dict[str, Any]]:
    """A line for the answer to each question of some families by a language model that reads of the regions in words: in the
    view DESCRIBED what TAP says of them, in TOLD_TRUTH what they are.
    """
    asked = [(one.scene, question) for one in seen.scenes for question in _questions(one, families)]

    def answer(texts: Sequence[str]) -> list[str]:
        inputs = chat.processor.apply_chat_template(
            [[{"role": "user", "content": text}] for text in texts],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return _continue(chat, inputs, asked[0][1])

    written = list(described_questions(chat, seen, families, view))
    for (scene, question), said in zip(asked, _in_batches(written, len, answer)):
        yield _line(scene, question, view, said)


def known_lines(chat: RegionChat, seen: SeenScenes) -> Iterator[dict[str, Any]]:
    """A line for the answer to each question for knowledge by a plain language model, told what kinds the objects are.

    An open question is a text that it goes on with, after examples. Of yes and no, and of several objects, it holds one for the
    likeliest answer.
    """
    likelihoods = Likelihoods(chat.model, chat.processor.tokenizer)
    texts = []
    for one in seen.scenes:
        things = [str(region.thing) for region in _true_words(one)]
        for question in _questions(one, KNOWLEDGE_FAMILIES):
            assert isinstance(question, FreeQuestion)
            own = [things[one.picture.visible.index(i)] for i in question.objects]
            asked = question.written.partition(": ")[2].replace("<region1>", own[0])
            if question.family == KNOWLEDGE_OPEN:
                texts.append((one.scene, question, after_examples(as_text(asked))))
                continue
            choices = own if question.family == KNOWLEDGE_WHICH else ["Yes", "No"]
            yield _line(one.scene, question, TOLD_KINDS, question.choices[likelihoods.choose(asked, choices)])
    limit = {"max_new_tokens": MAX_NEW_TOKENS_FREE}
    said = lines_after(chat.model, chat.processor, [text for *_, text in texts], max(len(texts), 1), **limit)
    for (scene, question, _), answer in zip(texts, said):
        yield _line(scene, question, TOLD_KINDS, answer)


def described_questions(
    chat: RegionChat, seen: SeenScenes, families: Collection[str] = tuple(FAMILIES), view: str = DESCRIBED
) -> Iterator[str]:
    """Each question below descriptions of its regions, as `RegionChat.ask` would write it; a scene is described once."""
    assert isinstance(chat.processor, DescribedRegionProcessor)
    for number, one in enumerate(seen.scenes):
        told_truth = view == TOLD_TRUTH
        described = _true_words(one) if told_truth else chat.processor.describe_tokens(seen.tokens.of_image(number))
        by_object = dict(zip(one.picture.visible, described))
        height, width = one.picture.image.shape[:2]
        for question in _questions(one, families):
            order: list[int] = []
            text, _ = question.numbered(order)
            regions = [replace(by_object[i], name=f"region{n}") for n, i in enumerate(order, start=1)]
            yield f"{describe_regions(regions, (height, width))}\n{_without_markers(text)}"


def _questions(scene: BenchmarkScene, families: Collection[str]) -> list[Question]:
    return [question for question in (*scene.questions, *scene.free) if question.family in families]


def _true_words(one: BenchmarkScene) -> list[RegionDescription]:
    """What is true of a scene's visible objects, as TAP would say it if it were never wrong."""
    boxes = one.picture.boxes.tolist()
    glyphs = one.scene.objects
    return [
        RegionDescription(f"region{n}", caption(glyphs[i]), [(glyphs[i].kind, 1.0)], tuple(boxes[i]))
        for n, i in enumerate(one.picture.visible, start=1)
    ]


def _without_markers(text: str) -> str:
    """`<region1>` → region1."""
    return replace_regions(text, lambda number, is_shown: f"region{number}")
