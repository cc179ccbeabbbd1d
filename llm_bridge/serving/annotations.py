"""What annotation tools get of a region: its mask, a label, a caption and how sure TAP is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event

import numpy as np

from tap_tokenizer import RegionPrompt, RegionTokens, TapRegionTokenizer

from ..chat import RegionChat
from ..chat_markup import user_content
from ..grounding import Candidates, find_among
from .answers import AnswerOptions, answer_text

QUESTION = "What is <region>?"
"""What the language model is asked about a region if TAP writes no captions."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """One region. mask: booleans (H, W). box: xyxy, pixels. concept: TAP's best. score: 0 to 1."""

    mask: np.ndarray
    box: tuple[float, float, float, float]
    concept: str
    caption: str
    score: float


def annotate(
    chat: RegionChat,
    picture: np.ndarray,
    prompts: Sequence[RegionPrompt],
    question: str | None,
    gone: Event,
    limit: int,
) -> list[Annotation]:
    """Annotations of regions of a picture (H, W, 3), which is encoded only once, whoever asks.

    question: asked of each region instead of TAP's own caption, with `<region>` for it, or else about it. limit: tokens of an
    answer.
    """
    with chat.processor.encoder.lock:
        regions = chat.region_tokenizer.encode(
            features=chat.processor.embed_image(picture), prompts=list(prompts), with_masks=True
        )
        found = _told(chat.region_tokenizer, regions, regions.quality.tolist())
    if question is None and chat.region_tokenizer.text_tokenizer is not None:
        return found
    asked = question or QUESTION
    answers = [_asked(chat, picture, prompt, asked, gone, limit) for prompt in prompts]
    return [replace(one, caption=answer) for one, answer in zip(found, answers)]


def find_annotations(chat: RegionChat, picture: np.ndarray, phrase: str, gone: Event) -> list[Annotation]:
    """Annotations of what a phrase means among everything that TAP finds in a picture (H, W, 3), the most probable first.

    Their scores are the language model's probabilities. gone: ends an answer of the language model once it is set.
    `ValueError` if it was not taught to find.
    """
    if chat.finding_limitation is not None:
        raise ValueError("This model was not taught to find regions by words: mark a point or a rectangle instead.")
    tokenizer, lock = chat.region_tokenizer, chat.processor.encoder.lock
    with lock:
        everything = tokenizer.encode_everything(features=chat.processor.embed_image(picture))
    speaker = chat.another().speaker
    candidates = Candidates.of(chat.processor, picture, regions=everything)
    found = find_among(speaker, chat.processor, picture, phrase, candidates, gone=gone)
    with lock:
        return _told(tokenizer, found, found.probabilities.tolist()) if len(found) else []


def _told(tokenizer: TapRegionTokenizer, regions: RegionTokens, scores: Sequence[float]) -> list[Annotation]:
    """What TAP itself says of regions."""
    concepts = tokenizer.classify(regions, 1) if tokenizer.concepts is not None else [[] for _ in scores]
    captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [""] * len(scores)
    return [
        Annotation(mask.numpy(), tuple(box), best[0][0] if best else "region", caption, score)
        for mask, box, best, caption, score in zip(
            regions.masks.cpu(), regions.boxes.tolist(), concepts, captions, scores
        )
    ]


def _asked(chat: RegionChat, picture: np.ndarray, prompt: RegionPrompt, question: str, gone: Event, limit: int) -> str:
    content = [{"type": "image", "image": picture}, *user_content(question, [prompt])]
    return answer_text(chat, [{"role": "user", "content": content}], AnswerOptions(limit), gone)
