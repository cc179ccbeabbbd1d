"""What annotation tools get of a region: its mask, a label, a caption and how sure TAP is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np

from tap_tokenizer import RegionPrompt

from ..chat import RegionChat
from ..chat_markup import user_content
from .answers import AnswerOptions, answer_text

QUESTION = "What is <region>?"
"""What the language model is asked about a region if TAP writes no captions."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """One region. mask: booleans (H, W). box: xyxy, pixels. label: TAP's best concept. score: 0 to 1."""

    mask: np.ndarray
    box: tuple[float, float, float, float]
    label: str
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
    tokenizer = chat.region_tokenizer
    regions = tokenizer.encode(features=chat.processor.embed_image(picture), prompts=list(prompts), with_masks=True)
    concepts = tokenizer.classify(regions, 1) if tokenizer.concepts is not None else [[] for _ in prompts]
    if question is None and tokenizer.text_tokenizer is not None:
        captions = tokenizer.caption(regions)
    else:
        asked = question or QUESTION
        captions = [_asked(chat, picture, prompt, asked, gone, limit) for prompt in prompts]
    return [
        Annotation(mask.numpy(), tuple(box), best[0][0] if best else "region", caption, score)
        for mask, box, best, caption, score in zip(
            regions.masks.cpu(), regions.boxes.tolist(), concepts, captions, regions.quality.tolist()
        )
    ]


def _asked(chat: RegionChat, picture: np.ndarray, prompt: RegionPrompt, question: str, gone: Event, limit: int) -> str:
    content = [{"type": "image", "image": picture}, *user_content(question, [prompt])]
    return answer_text(chat, [{"role": "user", "content": content}], AnswerOptions(limit), gone)
