"""What the region tokenizer alone makes of the benchmark's scenes, and what language models answer in different views.

In the view "full", a bridge is shown what a user would show it. The other views are controls, which leave something out: what
is lost of the score shows how much the model needs it.
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
    RegionDescription,
    describe_regions,
    generate_text,
    region_features,
    replace_regions,
)
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer

from ..answerers import other_pictures
from ..choices import Likelihoods
from ..examples import after_examples, as_text, lines_after
from ..metrics import mask_iou, next_click
from .free_questions import KNOWLEDGE_FAMILIES, KNOWLEDGE_OPEN, KNOWLEDGE_WHICH, FreeQuestion
from .language import caption, concept_banks
from .questions import FAMILIES, Question
from .records import BenchmarkScene
from .scenes import GlyphPicture, GlyphScene

# --- the region tokenizer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenScenes:
    """Some scenes of the benchmark, encoded.

    tokens: those of all visible objects, scene by scene, from their tight boxes.
    """

    scenes: Sequence[BenchmarkScene]
    features: ImageFeatures
    tokens: RegionTokens

    @classmethod
    def encode(cls, tokenizer: TapRegionTokenizer, scenes: Sequence[BenchmarkScene]) -> SeenScenes:
        features = tokenizer.embed_image([one.picture.image for one in scenes])
        boxes = [one.picture.boxes[one.picture.visible].tolist() for one in scenes]
        return cls(scenes, features, tokenizer.encode(features=features, boxes=boxes, with_masks=True))

    def tokens_of(self, number: int, objects: Sequence[int]) -> RegionTokens:
        """Tokens of some objects of the scene with this number."""
        visible = self.scenes[number].picture.visible
        return self.tokens.of_image(number)[[visible.index(i) for i in objects]]

    def boxes_of(self, number: int, objects: Sequence[int]) -> list[list[float]]:
        """True boxes, in pixels, of some objects of the scene with this number."""
        return self.scenes[number].picture.boxes[list(objects)].tolist()


def region_lines(tokenizer: TapRegionTokenizer, seen: SeenScenes) -> Iterator[dict[str, Any]]:
    """A line for each visible object: IoU of its mask from a box and from two points, concepts, and native caption.

    One point is the mask's innermost pixel, as in the single-point evaluation of Segment Anything, the other a random one.
    """
    by_centre, by_point = (
        tokenizer.encode(
            features=seen.features,
            points=points,
            point_labels=[[[1]] * len(own) for own in points],
            with_masks=True,
        )
        for points in (
            [_centres(one.picture) for one in seen.scenes],
            [_random_points(one.scene, one.picture) for one in seen.scenes],
        )
    )
    captions = tokenizer.caption(seen.tokens)
    kinds, colours, sizes = (
        [top[0][0] for top in tokenizer.classify(seen.tokens, 1, concepts=bank)] for bank in concept_banks()
    )
    objects = [(one, i) for one in seen.scenes for i in one.picture.visible]
    for row, (one, i) in enumerate(objects):
        glyph, mask = one.scene.objects[i], one.picture.masks[i]
        yield {
            "task": "region",
            **place_in_benchmark(one.scene),
            "object": i,
            "iou_box": _iou(seen.tokens.mask_parts[row], mask),
            "iou_centre": _iou(by_centre.mask_parts[row], mask),
            "iou_point": _iou(by_point.mask_parts[row], mask),
            "kind": [kinds[row], glyph.kind],
            "colour": [colours[row], glyph.colour],
            "size": [sizes[row], glyph.size],
            "caption": [captions[row], caption(glyph)],
        }


def place_in_benchmark(scene: GlyphScene) -> dict[str, Any]:
    """What every line says of its scene."""
    return {"split": scene.split, "seed": scene.seed, "scene": scene.index}


def _centres(picture: GlyphPicture) -> list[list[list[float]]]:
    return [[next_click(None, picture.masks[i])[0]] for i in picture.visible]


def _random_points(scene: GlyphScene, picture: GlyphPicture) -> list[list[list[float]]]:
    random = np.random.RandomState([211, scene.seed, scene.index])
    pixels = [np.argwhere(picture.masks[i]) for i in picture.visible]
    return [[own[random.randint(len(own))][::-1].tolist()] for own in pixels]


def _iou(predicted: Any, truth: np.ndarray) -> float:
    """IoU of a region's mask, wherever it lies, and the true one (H, W)."""
    return mask_iou(predicted.cpu().numpy(), truth)


# --- the views --------------------------------------------------------------------------------------------------------

MAX_NEW_TOKENS, MAX_NEW_TOKENS_FREE = 24, 48
"""Longest answer to a question of the benchmark, and to one that is answered freely."""


@dataclass(frozen=True)
class Asked:
    """A question in the form in which a bridge is asked.

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
        for one, answer in zip(shown, _answers(chat, shown, hide_position=view == NO_POSITION)):
            scene, question = seen.scenes[one.scene].scene, one.question
            line = _line(scene, question, view, answer)
            if question.family in ("kind", "colour", "size", "caption"):
                line["tap"] = native[scene.index, one.objects[0]][question.family][0]
            line["boxes"] = seen.boxes_of(one.scene, one.objects)
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
    contexts: list[Any] = [None] * len(seen.scenes)
    if chat.processor.context.slots:
        contexts = chat.processor.context.encode(chat.region_tokenizer, seen.features)
    found = []
    for number, (scene, context) in enumerate(zip(seen.scenes, contexts)):
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
    return _continue(chat, inputs, asked[0].question)


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
    if not asked:
        return
    turns = [[{"role": "user", "content": text}] for text in described_questions(chat, seen, families, view)]
    inputs = chat.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=False
    )
    for (scene, question), answer in zip(asked, _continue(chat, inputs, asked[0][1])):
        yield _line(scene, question, view, answer)


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
