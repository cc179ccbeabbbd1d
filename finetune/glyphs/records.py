"""GlyphScenes as records: regions of a scene with questions about them, drawn at random or chosen by the benchmark.

The benchmark's questions are always the same, and balanced. It goes through the scenes of a split and seed in order. Each
family asks at most one question about a scene: the one whose answer has come up least so far, or none if all answers that the
scene offers are already ahead of the rarest one. So each answer is right about equally often, and the score of guessing is
known. The first n scenes have the same questions no matter how many are evaluated. `finetune.evaluate` and
`finetune.evaluate_glyphs` ask these questions. The data set's card is `GLYPH_SCENES.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np

from ..config import knob
from ..data.grounding import grounding_record
from ..data.source import Source
from ..records import GLYPH_SCHEME, Record, Region, Turn, encode_mask
from .expressions import draw_expressions
from .free_questions import FreeQuestions, reword
from .language import caption
from .questions import FAMILIES, Family, Question, draw_question
from .scenes import SPLITS, VERSION, GlyphPicture, GlyphScene, draw_scene, make_scene

LICENSE = "Apache-2.0"


@dataclass(kw_only=True)
class GlyphScenesSource(Source):
    """GlyphScenes, the procedural world: scenes 0, 1, … of a seed with questions about them."""

    split: str = knob(
        default="train", help=f"one of {', '.join(SPLITS)}, or several, separated by commas, whose scenes take turns"
    )
    seed: int = knob(default=0, help="seed for the scenes and the questions")
    scenes: int = knob(default=1000, help="how many scenes to ask about, counted from the first; each gives a record")
    turns: int = knob(default=6, help="questions in a record, at most")
    families: str = knob(
        default=",".join(FAMILIES),
        help="question families, separated by commas; one that is named twice is asked twice as often",
    )
    long_side: int = knob(default=512, help="longer side of the pictures, in pixels")
    all_regions: bool = knob(
        default=False,
        help="keep objects that no question is about, as picture context (see cache_regions --context_from)",
    )
    phrasings: float = knob(
        default=0.0, help="share of the questions that are asked in one of many phrasings, not in the benchmark's words"
    )
    sentences: float = knob(default=0.0, help='share of the answers that are sentences, such as "It\'s red."')
    ends_with: str = knob(
        default="",
        help="families, separated by commas, of each record's last question; such a record has one to `turns` questions, half "
        "of the others about the same regions. For questions that need picture context, which comes with the last question "
        "only. A scene without such a question gives a record without a conversation, which training passes over",
    )
    expressions: float = knob(
        default=0.0,
        help="share of the records that ask which objects an expression means instead of the questions: `turns` expressions, "
        "with all objects of the scene as candidates",
    )
    shown_once: bool = knob(
        default=False,
        help="expressions: only a record's first question shows the candidates, so that many expressions are learned from few "
        "tokens; such records are learned whole (a source's turns: 0)",
    )
    lookups: float = knob(
        default=0.0,
        help='expressions: share of plain ones, such as "the red things" or "the things in the left half", which a bridge '
        "learns first; they mean one object, several, or none",
    )
    workers: int = knob(default=2, help="processes that draw scenes")

    def records(self) -> Iterator[Record]:
        return self.limited()

    def limited(self, start: int = 0) -> Iterator[Record]:
        families = self._families("families")
        draw = partial(
            _drawn_record,
            splits=self.split.split(","),
            seed=self.seed,
            turns=self.turns,
            families=families,
            long_side=self.long_side,
            all_regions=self.all_regions,
            phrasings=self.phrasings,
            sentences=self.sentences,
            ends_with=self._families("ends_with"),
            expressions=self.expressions,
            shown_once=self.shown_once,
            lookups=self.lookups,
        )
        numbers = islice(range(self.scenes), start, self.limit)
        if self.workers < 2:
            yield from map(draw, numbers)
            return
        with get_context("spawn").Pool(self.workers) as pool:
            yield from pool.imap(draw, numbers, chunksize=8)

    def _families(self, option: str) -> tuple[str, ...]:
        value = getattr(self, option)
        families = () if option == "ends_with" and not value else tuple(value.split(","))
        if unknown := [name for name in families if name not in FAMILIES]:
            raise ValueError(f"{option} has {', '.join(map(repr, unknown))}, expected some of {', '.join(FAMILIES)}.")
        if unknown := [name for name in self.split.split(",") if name not in SPLITS]:
            raise ValueError(f"split is {', '.join(unknown)}, expected one of {', '.join(SPLITS)}.")
        for name in ("phrasings", "sentences", "expressions", "lookups"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {share:g}, expected a share from 0 to 1.")
        if not self.expressions and (self.lookups or self.shown_once):
            unread = "lookups" if self.lookups else "shown_once"
            raise ValueError(f"{unread} is set, but no record asks for expressions. Set expressions, too.")
        return families


def _place(number: int, splits: Sequence[str]) -> tuple[int, str]:
    """Which scene of which split a record is about: of several splits, every one has its turn."""
    return number // len(splits), splits[number % len(splits)]


def _drawn_record(
    number: int,
    splits: Sequence[str],
    seed: int,
    *,
    expressions: float,
    shown_once: bool,
    lookups: float,
    **options: Any,
) -> Record:
    """The record of a scene, which is one of expressions with the probability `expressions`, and else one of questions."""
    index, split = _place(number, splits)
    if np.random.RandomState([233, seed, number]).random_sample() < expressions:
        sizes = {name: options[name] for name in ("turns", "long_side")}
        return expression_record(index, split, seed, **sizes, shown_once=shown_once, lookups=lookups)
    return glyph_record(index, split, seed, **options)


def glyph_record(
    index: int,
    split: str,
    seed: int,
    *,
    turns: int = 6,
    families: Sequence[str] = tuple(FAMILIES),
    long_side: int = 512,
    all_regions: bool = False,
    phrasings: float = 0.0,
    sentences: float = 0.0,
    ends_with: Sequence[str] = (),
) -> Record:
    """The record of a scene: up to `turns` questions of random families. With `all_regions`, objects that no question is
    about come last. `phrasings` and `sentences`: see `free_questions.reword`. `ends_with`: see `draw_talk`.

    The same for the same arguments. A scene with nothing to ask about has an empty conversation.
    """
    scene = make_scene(index, split, seed)
    picture = draw_scene(scene, long_side)
    random = np.random.RandomState([97, seed, index])
    draw = partial(draw_talk, ends_with=ends_with) if ends_with else draw_questions
    questions = draw(scene, picture, families, turns, random)
    if phrasings or sentences:
        random = np.random.RandomState([229, seed, index])
        questions = [reword(question, phrasings, sentences, random) for question in questions]
    return record_of(scene, picture, questions, shown=picture.visible if all_regions else ())


def expression_record(
    index: int, split: str, seed: int, *, turns: int = 6, long_side: int = 512, shown_once: bool = False,
    lookups: float = 0.0,
) -> Record:  # fmt: skip
    """A scene as a record that asks which of its visible objects up to `turns` expressions mean; a turn's type is that of its
    expression. shown_once: see `grounding_record`; lookups: see `draw_expressions`. The same for the same arguments.
    """
    scene = make_scene(index, split, seed)
    picture = draw_scene(scene, long_side)
    drawn = draw_expressions(scene, picture.visible, turns, np.random.RandomState([239, seed, index]), lookups)
    place = {number: i for i, number in enumerate(picture.visible)}
    asked = [replace(one, meant=tuple(place[i] for i in one.meant)) for one in drawn]
    regions = [_region(scene, picture, i) for i in picture.visible]
    height, width = picture.image.shape[:2]
    return grounding_record(
        _address(scene, picture), (height, width), regions, asked, "GlyphScenes", LICENSE, shown_once=shown_once
    )


def draw_questions(
    scene: GlyphScene, picture: GlyphPicture, families: Sequence[str], count: int, random: np.random.RandomState
) -> list[Question]:
    """Up to `count` different questions, each of a family drawn at random, about objects that can be seen."""
    visible = set(picture.visible)
    questions: list[Question] = []
    for _ in range(8 * count):
        question = draw_question(scene, families[random.randint(len(families))], random)
        if question is None or question in questions or not set(question.objects) <= visible:
            continue
        questions.append(question)
        if len(questions) == count:
            break
    return questions


def draw_talk(
    scene: GlyphScene,
    picture: GlyphPicture,
    families: Sequence[str],
    count: int,
    random: np.random.RandomState,
    *,
    ends_with: Sequence[str],
) -> list[Question]:
    """One to `count` different questions, of which the last is of a family in `ends_with`; about half of the others name one
    of its objects. Empty if the scene has no such last question.
    """
    last = draw_questions(scene, picture, ends_with, 1, random)
    if not last or count < 2:
        return last
    others: list[Question] = []
    wanted = random.randint(count)
    for question in draw_questions(scene, picture, families, _CANDIDATES * count, random):
        is_about = not set(question.objects).isdisjoint(last[0].objects)
        if len(others) < wanted and question != last[0] and (is_about or random.rand() < _ELSEWHERE):
            others.append(question)
    return [*others, *last]


_CANDIDATES = 10
"""How many questions are drawn for each that a talk may have."""
_ELSEWHERE = 0.1
"""The probability of taking one about other objects. About a tenth of those that are drawn name the same object."""


def record_of(
    scene: GlyphScene, picture: GlyphPicture, questions: Iterable[Question], *, shown: Iterable[int] = ()
) -> Record:
    """A scene as a record: the questions as one conversation, regions numbered as they are first named; the objects in
    `shown` that no question is about come after them.
    """
    order: list[int] = []
    turns: list[Turn] = []
    for question in questions:
        text, answer = question.numbered(order)
        turns += [Turn("user", text, type=question.family), Turn("assistant", answer)]
    order += [number for number in shown if number not in order]
    height, width = picture.image.shape[:2]
    regions = [_region(scene, picture, i) for i in order]
    return Record(_address(scene, picture), width, height, regions, turns, "GlyphScenes", LICENSE)


def _region(scene: GlyphScene, picture: GlyphPicture, number: int) -> Region:
    """An object as a region: its tight box, its visible mask, and what it is."""
    glyph = scene.objects[number]
    mask = encode_mask(picture.masks[number])
    return Region(box=picture.boxes[number].tolist(), mask=mask, label=glyph.kind, captions=[caption(glyph)])


def _address(scene: GlyphScene, picture: GlyphPicture) -> str:
    """What a record has in place of a picture's path."""
    return f"{GLYPH_SCHEME}{scene.split}/{scene.seed}/{scene.index}/{max(picture.image.shape[:2])}"


# --- the benchmark ----------------------------------------------------------------------------------------------------


BENCHMARK_VERSION = "1"
TITLE = f"GlyphScenes {VERSION}, questions {BENCHMARK_VERSION}"
LONG_SIDE = 512
"""Pictures are drawn, and masks compared, with this many pixels on the long side."""

EVALUATION_SPLITS = ("test", "test-compositional", "test-crowded")
EVALUATION_SEEDS = (0, 1, 2)
EVALUATION_SCENES = 234
"""Scenes of each split and seed, the first ones, of the protocol `glyph_scenes` of `finetune.evaluate`."""

_OPEN_TRIES = 12
"""How often an open family is drawn until it has a question about what can be seen, and any other until its first."""
_TRIES_PER_CHOICE = 6
"""How often another is drawn for each of its answers: enough to meet most of those that the scene offers."""
_LEAD = 1
"""By how many questions an answer may lead a family's rarest."""


@dataclass(frozen=True)
class BenchmarkScene:
    """A scene of the benchmark, drawn, with the questions that are asked about it, and those that are answered freely."""

    scene: GlyphScene
    picture: GlyphPicture
    questions: list[Question]
    free: list[Question]


def benchmark_scenes(split: str = "test", seed: int = 0, count: int = EVALUATION_SCENES) -> Iterator[BenchmarkScene]:
    """The first `count` scenes of a split and seed."""
    balance, free = QuestionBalance(), FreeQuestions(split, seed)
    for index in range(count):
        scene = make_scene(index, split, seed)
        picture = draw_scene(scene, LONG_SIDE)
        questions = balance.questions(scene, picture.visible)
        yield BenchmarkScene(scene, picture, questions, free.about(scene, picture.visible, questions))


def benchmark_records(split: str = "test", seed: int = 0, count: int = EVALUATION_SCENES) -> Iterator[Record]:
    """`benchmark_scenes` as records with only those regions that are asked about; a question's type is its family.

    Every question is to be asked in a conversation of its own.
    """
    for one in benchmark_scenes(split, seed, count):
        record = record_of(one.scene, one.picture, one.questions)
        record.image_id = one.scene.index
        objects = dict.fromkeys(i for question in one.questions for i in question.objects)
        for region, i in zip(record.regions, objects, strict=True):
            region.id = f"{one.scene.index}/{i}"
        for turn, question in zip(record.conversations[::2], one.questions, strict=True):
            turn.options = list(question.choices)
        yield record


class QuestionBalance:
    """Draws the questions of one split and seed; scenes are to be given in order, from the first on."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}

    def questions(self, scene: GlyphScene, visible: Collection[int]) -> list[Question]:
        """The scene's questions, at most one of each family, about objects that can be seen (`visible`)."""
        drawn = (
            self._question(scene, family, np.random.RandomState([223, scene.seed, scene.index, number]), set(visible))
            for number, family in enumerate(FAMILIES.values())
        )
        return [question for question in drawn if question is not None]

    def _question(
        self, scene: GlyphScene, family: Family, random: np.random.RandomState, visible: set[int]
    ) -> Question | None:
        offered = _offered(scene, family, random, visible)
        if family.is_open or not offered:
            return next(iter(offered.values()), None)
        counts = self._counts[family.name]
        counts.update(dict.fromkeys(offered, 0))  # answers that some scene has offered: a split may lack others
        answer = min(offered, key=lambda answer: counts[answer])
        if counts[answer] > min(counts.values()) + _LEAD:
            return None
        counts[answer] += 1
        return offered[answer]


def _offered(
    scene: GlyphScene, family: Family, random: np.random.RandomState, visible: set[int]
) -> dict[str, Question]:
    """The answers that the scene offers, in the order in which they were drawn, each with its first question. An open family
    offers only one.
    """
    offered: dict[str, Question] = {}
    tries = _OPEN_TRIES
    while tries:
        tries -= 1
        question = family.draw(scene, random)
        if question is None or not set(question.objects) <= visible:
            continue
        if not offered:
            tries = 0 if family.is_open else _TRIES_PER_CHOICE * len(question.choices)
        offered.setdefault(question.answer, question)
    return offered
