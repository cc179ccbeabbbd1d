"""GlyphScenes as records: regions of a scene with a conversation of several questions about them.

Knows scenes and questions; the record's form is `sample`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np

from ..arguments import knob
from ..data.sample import GLYPH_SCHEME, Sample, encode_mask
from ..data.source import Source
from .language import caption
from .questions import FAMILIES, Question, draw_question
from .scenes import SPLITS, GlyphPicture, GlyphScene, draw_scene, make_scene

LICENSE = "Apache-2.0"


@dataclass(kw_only=True)
class GlyphScenesSource(Source):
    """GlyphScenes, the procedural world: scenes 0, 1, … of a seed with questions about them."""

    split: str = knob(default="train", help=f"one of {', '.join(SPLITS)}")
    seed: int = knob(default=0, help="of the scenes and the questions")
    scenes: int = knob(default=1000, help="scenes to ask about: 0, 1, … of the seed, a record each")
    turns: int = knob(default=6, help="questions of a record, at most")
    families: str = knob(
        default=",".join(FAMILIES),
        help="question families, separated by commas; one that is named twice is asked twice as often",
    )
    long_side: int = knob(default=512, help="of the pictures, in pixels")
    all_regions: bool = knob(
        default=False, help="keep objects that no question is about, as picture context (cache_regions --context_from)"
    )
    offering: str = knob(
        default="",
        help="only scenes that have a question with one of these answers, as FAMILY=ANSWER with commas between, e.g. "
        "count_kind=two, of which there are few; their other questions stay",
    )
    workers: int = knob(default=2, help="processes that draw")

    def records(self) -> Iterator[Sample]:
        return self.limited()

    def limited(self, start: int = 0) -> Iterator[Sample]:
        families = tuple(self.families.split(","))
        if unknown := [name for name in families if name not in FAMILIES]:
            raise ValueError(f"families has {', '.join(map(repr, unknown))}, expected some of {', '.join(FAMILIES)}.")
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split}, expected one of {', '.join(SPLITS)}.")
        wanted = [
            (family, answer) for family, _, answer in (pair.partition("=") for pair in self.offering.split(",") if pair)
        ]
        if strange := [f"{family}={answer}" for family, answer in wanted if family not in families or not answer]:
            known = ", ".join(dict.fromkeys(families))
            raise ValueError(f"offering has {', '.join(strange)}, expected FAMILY=ANSWER, FAMILY one of {known}.")
        draw = partial(
            glyph_record,
            split=self.split,
            seed=self.seed,
            turns=self.turns,
            families=families,
            long_side=self.long_side,
            all_regions=self.all_regions,
        )
        numbers: Iterable[int] = range(self.scenes)
        if wanted:
            numbers = self._offering(wanted)
        numbers = islice(numbers, start, self.limit)
        if self.workers < 2:
            yield from map(draw, numbers)
            return
        with get_context("spawn").Pool(self.workers) as pool:
            yield from pool.imap(draw, numbers, chunksize=8)

    def _offering(self, wanted: Sequence[tuple[str, str]]) -> Iterator[int]:
        """The scenes that have a question with one of the wanted (family, answer)."""
        found = 0
        for index in range(self.scenes):
            if _offers(index, self.split, self.seed, wanted):
                found += 1
                yield index
        if not found:
            raise ValueError(
                f"None of {self.scenes} scenes has a question of offering, {self.offering}: correct its answer."
            )


_TRIES = 24
"""How often each wanted family is drawn from a scene before it is passed over."""


def _offers(index: int, split: str, seed: int, wanted: Sequence[tuple[str, str]]) -> bool:
    """Whether a scene has a question with one of the wanted (family, answer)."""
    scene, random = make_scene(index, split, seed), np.random.RandomState([101, seed, index])
    drawn = (draw_question(scene, family, random) for _ in range(_TRIES) for family, _ in wanted)
    return any(question is not None and (question.family, question.answer) in wanted for question in drawn)


def glyph_record(
    index: int,
    split: str,
    seed: int,
    *,
    turns: int = 6,
    families: Sequence[str] = tuple(FAMILIES),
    long_side: int = 512,
    all_regions: bool = False,
) -> Sample:
    """The record of a scene: up to `turns` questions of random families, regions numbered as they are first named. With
    `all_regions`, objects that no question is about come last.

    The same for the same arguments. A scene with nothing to ask about has an empty conversation.
    """
    scene = make_scene(index, split, seed)
    picture = draw_scene(scene, long_side)
    random = np.random.RandomState([97, seed, index])
    order: list[int] = []
    conversation = []
    for question in draw_questions(scene, picture, families, turns, random):
        text, answer = number_regions(question, order)
        conversation += [
            {"role": "user", "content": text, "type": question.family},
            {"role": "assistant", "content": answer},
        ]
    height, width = picture.image.shape[:2]
    seen = np.flatnonzero(picture.masks.any(axis=(1, 2))).tolist()
    shown = [*order, *(i for i in seen if i not in order)] if all_regions else order
    return {
        "image": f"{GLYPH_SCHEME}{split}/{seed}/{index}/{long_side}",
        "width": width,
        "height": height,
        "regions": [
            {
                "box": picture.boxes[i].tolist(),
                "mask": encode_mask(picture.masks[i]),
                "label": scene.objects[i].kind,
                "captions": [caption(scene.objects[i])],
            }
            for i in shown
        ],
        "conversations": conversation,
        "source": "GlyphScenes",
        "license": LICENSE,
    }


def draw_questions(
    scene: GlyphScene, picture: GlyphPicture, families: Sequence[str], count: int, random: np.random.RandomState
) -> list[Question]:
    """Up to `count` different questions, each of a family drawn at random, about objects that can be seen."""
    visible = np.asarray(picture.masks.any(axis=(1, 2)))
    questions: list[Question] = []
    for _ in range(8 * count):
        question = draw_question(scene, families[random.randint(len(families))], random)
        if question is None or question in questions or not visible[list(question.objects)].all():
            continue
        questions.append(question)
        if len(questions) == count:
            break
    return questions


def number_regions(question: Question, order: list[int]) -> tuple[str, str]:
    """A question's text and answer with its regions numbered by `order`, which grows by those that are new."""
    for number in question.objects:
        if number not in order:
            order.append(number)

    def renumber(match: re.Match[str]) -> str:
        return f"{match[1]}region{order.index(question.objects[int(match[2]) - 1]) + 1}{match[3]}"

    return tuple(re.sub(r"(<?)region(\d)(>?)", renumber, words) for words in (question.text, question.answer))  # type: ignore[return-value]
