"""A language model's own lessons: questions about regions, and what it answers when it is told in words what they are.

Pictures and regions → records whose questions have `told`, what the teacher read, and whose answers are its own. An answer
that is of no use is left out and counted. What is asked is told in the form in which a language model answers best:

- of what regions look like and where they are: their descriptions and the question, as a turn of a chat;
- of what kind of thing they are, and of that alone: a text about the kind, which it goes on with after examples;
- which of several regions something is true of: it is not told, but holds one of the kinds for the likeliest answer;
- whether something is true of a region: after examples, it holds "Yes" for likelier of what it was told than of something else.
  Asked in its chat, a small language model says "No" to both.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_bridge import (
    PLACES,
    DescribedRegionProcessor,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionDescription,
    adapter_off,
    describe_regions,
    generate_text,
    place_in_words,
    place_of_box,
    replace_regions,
)
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer, prompts_in_picture

from .answer_checks import echoes, misplaces, mixes_up, problem_of, whole_sentences
from .batches import ConversationCollator
from .cache import encode_regions
from .choices import Likelihoods
from .data.validation import UNREADABLE
from .examples import (
    THE_THING,
    after_examples,
    after_judgements,
    as_text,
    ask_about,
    ask_which,
    is_text,
    lines_after,
    names_an_example,
    question_about,
)
from .instructions import PLACE, THING, WHICH, Instruction, draw_instruction
from .lesson_arguments import LessonArguments
from .lesson_pictures import LessonPictures
from .records import GLYPH_SCHEME, Record, Region, Turn, WrongSizeError, cut_turns, open_image

MIN_SIDE = 4
"""Boxes with a shorter side, in pixels, are not asked about."""

UNSURE = -5.0
"""Nats: what is said of a kind of thing with less log-probability is not known."""

YES, NO = "Yes.", "No."
"""What is answered if a question asks whether something is true of a region."""

KNOWN, NEW, OWN = "known instruction", "new instruction", "own question"
"""`type` of a lesson's question: an instruction that is asked in training, one that is not, one the model thought of."""


@dataclass(eq=False)
class SeenPicture:
    """A picture: its record, what is known of each region, and why how many lessons about it were left out."""

    row: int
    record: Record
    described: list[RegionDescription]
    left_out: Counter[str]

    def pass_over(self, problem: str) -> None:
        """Ask nothing about it, and count it as one that has the problem."""
        self.record, self.left_out[problem] = replace(self.record, regions=[]), 1


@dataclass(eq=False)
class Lesson:
    """A question about some regions of a picture, in the student's words and in the teacher's, with the teacher's answer.

    told: what the teacher reads, a turn of a chat or a text to go on with. asked: empty while the teacher is to think of it.
    """

    seen: SeenPicture
    kind: str
    type: str
    asked: str
    told: str
    regions: list[int]
    """By their numbers in the record, from 1."""
    answer: str = ""
    is_chosen: bool = False
    """Whether the teacher chose the answer among several, and did not say it in words of its own."""


class Teacher:
    """A language model that answers questions about regions by what it is told of them.

    pictures: what is asked about. pool: what is asked. Raises `ValueError` if nothing would be known of any region.
    """

    def __init__(
        self,
        bridge: RegionBridgeForConditionalGeneration,
        processor: RegionBridgeProcessor,
        pictures: LessonPictures,
        pool: Sequence[Instruction],
        arguments: LessonArguments,
        seed: int,
    ) -> None:
        self.bridge, self.processor, self.arguments, self.seed = bridge.eval(), processor, arguments, seed
        self.collator = ConversationCollator(processor)
        self.tokenizer: TapRegionTokenizer = processor.encoder.tokenizer
        self.describer = DescribedRegionProcessor(processor.tokenizer, self.tokenizer)
        self.likelihoods = Likelihoods(bridge, processor.tokenizer, arguments.teacher_batch_size)
        self.pictures, self.pool = pictures, pool
        if self.tokenizer.text_tokenizer is None and self.tokenizer.concepts is None and not pictures.say_something():
            raise ValueError(
                f"The region tokenizer {self.tokenizer.source.get('source', '')} has neither caption vocabulary nor concept "
                "bank, so nothing would be known of any region: give text_tokenizer or concepts, or data whose regions have "
                "labels or captions."
            )

    @property
    def chunks(self) -> int:
        return -(-len(self.pictures) // self.arguments.lesson_chunk)

    @torch.no_grad()
    def work(self, chunk: int, folder: Path) -> Iterator[dict[str, Any]]:
        """A line for each picture of a chunk: its record, None without a lesson, and why how many lessons were left out.

        folder: where the records will lie; their paths start from there.
        """
        size = self.arguments.lesson_chunk
        rows = range(chunk * size, min((chunk + 1) * size, len(self.pictures)))
        seen = self._see(rows, folder)
        known = [described for one in seen for described in one.described]
        lessons = [lesson for one in seen for lesson in self._draw(one, known)]
        torch.manual_seed(self.seed * 1_000_003 + chunk)
        lessons = list(self._with_own_questions(lessons))
        unanswered = [lesson for lesson in lessons if not lesson.answer]
        for lesson, answer in zip(unanswered, self.answers([lesson.told for lesson in unanswered])):
            answer = whole_sentences(answer, self._is_cut(answer))
            lesson.answer = re.sub(r"\b([Rr]egion) (\d)", r"\1\2", answer)  # as records and cut_turns write names
        problems = {lesson: _problem_of(lesson) for lesson in lessons}
        unsure = self._unsure([lesson for lesson, problem in problems.items() if problem is None])
        problems |= dict.fromkeys(unsure, "unsure")
        for one in seen:
            kept = []
            for lesson in (lesson for lesson in lessons if lesson.seen is one):
                problem = problems[lesson]
                if problem is None:
                    kept.append(lesson)
                else:
                    one.left_out[problem] += 1
            record = _record_of(one.record, kept).to_dict() if kept else None
            counts = {"kept": len(kept), **one.left_out}
            yield {"row": one.row, "held_out": self.pictures.is_held_out(one.row), "record": record, "lessons": counts}

    def _unsure(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Those whose answer the teacher does not know: it went on a text, and holds what it said for unlikely."""
        asked = [lesson for lesson in lessons if is_text(lesson.told) and not lesson.is_chosen]
        with adapter_off(self.bridge):
            likely = self.likelihoods.log_probabilities(
                [(after_examples(lesson.told), f" {lesson.answer}") for lesson in asked]
            )
        return [lesson for lesson, nats in zip(asked, likely) if nats < UNSURE]

    def answers(self, told: Sequence[str]) -> list[str]:
        """What the language model says, with its adapter off, when it is told and asked: in its chat, or going on a text."""
        said = [""] * len(told)
        order = sorted(range(len(told)), key=lambda i: len(told[i]))
        texts = [i for i in order if is_text(told[i])]
        for i, words in zip(texts, self._lines_after([after_examples(told[i]) for i in texts])):
            said[i] = words
        chats = [i for i in order if not is_text(told[i])]
        for start in range(0, len(chats), self.arguments.teacher_batch_size):
            part = chats[start : start + self.arguments.teacher_batch_size]
            prompts = [Record(conversations=[Turn("user", told[i])]) for i in part]
            inputs = self.collator.prompts(prompts).to(self.bridge.device)
            with adapter_off(self.bridge):
                answers = generate_text(
                    self.bridge, self.processor, inputs, max_new_tokens=self.arguments.answer_tokens
                )
            for i, words in zip(part, answers):
                said[i] = words
        return said

    def _lines_after(self, texts: Sequence[str], **options: Any) -> list[str]:
        """How the language model, with its adapter off, goes on with each text up to the end of the line."""
        options = {"max_new_tokens": self.arguments.answer_tokens, **options}
        with adapter_off(self.bridge):
            return lines_after(self.bridge, self.processor, texts, self.arguments.teacher_batch_size, **options)

    def _is_cut(self, answer: str) -> bool:
        ids = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return len(ids) >= self.arguments.answer_tokens - 1

    # --- what is seen ---------------------------------------------------------------------------------------------

    def _see(self, rows: range, folder: Path) -> list[SeenPicture]:
        """Some pictures, with what is known of each of their regions. One that cannot be used has none, and is counted."""
        seen, pictures = [], []
        for row in rows:
            record, root = self.pictures.record(row)
            one = SeenPicture(row, record, [], Counter())
            seen.append(one)
            picture = _opened(one, root, folder)
            if picture is not None:
                pictures.append((one, picture))
        if not pictures:
            return seen
        features = self.tokenizer.embed_image([picture for _, picture in pictures])
        if self.arguments.pictures is not None:
            for i, (one, _) in enumerate(pictures):
                one.record = replace(one.record, regions=self._search(features[i]))
                if not one.record.regions:
                    one.left_out["picture in which no region is found"] = 1
        opened = [one for one, _ in pictures]
        tokens = list(encode_regions(self.tokenizer, features, [one.record for one in opened]))
        words = iter(self.describer.describe_tokens(RegionTokens.concatenate(tokens).to(self.tokenizer.device)))
        for one in opened:
            one.described = [next(words) for _ in one.record.regions]
            if self.arguments.true_words:
                one.described = list(map(_in_true_words, one.described, one.record.regions))
        return seen

    def _search(self, features: ImageFeatures) -> list[Region]:
        """The boxes that everything mode finds in a picture, the most confident first."""
        found = self.tokenizer.encode_everything(features=features, points_per_crop=self.arguments.points_per_crop)
        boxes = [box for box in found.boxes.tolist() if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE]
        return [Region(box=box) for box in boxes[: self.arguments.regions]]

    # --- what is asked --------------------------------------------------------------------------------------------

    def _draw(self, seen: SeenPicture, known: Sequence[RegionDescription]) -> Iterator[Lesson]:
        """The questions about a picture; half of those about one that is kept for evaluation are in new words.

        known: what else there is, of which something may be asked that is not so.
        """
        random = np.random.RandomState([self.seed, 11, seen.row])
        held_out, count = self.pictures.is_held_out(seen.row), len(seen.record.regions)
        for i in range(self.arguments.questions if count else 0):
            order = [int(n) + 1 for n in random.permutation(count)]
            if not held_out and random.random_sample() < self.arguments.own_questions:
                yield from self._to_think_of(seen, order, random)
                continue
            kind = NEW if held_out and i % 2 else KNOWN
            drawn = draw_instruction(self.pool, count, random, held_out=kind == NEW)
            if drawn is None:
                seen.left_out[f"no {kind} about so few regions"] += 1
            elif drawn.is_choice:
                alike = [one.text for one in self.pool if (one.kind, one.is_held_out) == (drawn.kind, kind == NEW)]
                asked = [drawn.text, *random.permutation(alike)[: _TRIES - 1].tolist()]
                yield from self._choice(seen, asked, _apart(seen, order)[: 2 + random.randint(2)], kind)
            elif drawn.is_statement:
                yield from self._statement(seen, drawn, order[0], kind, known, random)
            else:
                yield _lesson(seen, drawn, order[: drawn.regions], kind)

    def _choice(
        self, seen: SeenPicture, questions: Sequence[str], regions: list[int], type_: str, wanted: int | None = None
    ) -> Iterator[Lesson]:
        """Which of some regions that question means of which it is surest, if it is sure, and the one that is `wanted`."""
        things = [str(seen.described[n - 1].thing) for n in regions]
        with adapter_off(self.bridge):
            found = self.likelihoods.surest(questions, things) if len(things) > 1 else None
        if found is None or wanted not in (None, regions[found[1]]):
            seen.left_out["not sure which"] += 1
            return
        question, chosen = found
        *names, last = [f"<region{n}>" for n in regions]
        asked = f"{question.removesuffix('?')}: {', '.join(names)} or {last}?"
        known = " ".join(f"region{n} is {thing}." for n, thing in zip(regions, things))
        answer = f"The {_ARTICLE.sub('', things[chosen])}, region{regions[chosen]}."
        yield Lesson(seen, WHICH, type_, asked, f"{known}\n{as_text(question)}", regions, answer, is_chosen=True)

    def _statement(
        self,
        seen: SeenPicture,
        instruction: Instruction,
        region: int,
        type_: str,
        known: Sequence[RegionDescription],
        random: np.random.RandomState,
    ) -> Iterator[Lesson]:
        """Whether a region is what it is, or what another one is, if it holds the first for truer."""
        own = seen.described[region - 1]
        if PLACE in instruction.text:
            brace, so = PLACE, place_of_box(own.box, seen.record.size)
            elsewhere = [place for place in PLACES if not set(place.split()) & set(so.split())]
            otherwise, so = place_in_words(elsewhere[random.randint(len(elsewhere))]), place_in_words(so)
        else:
            brace, is_kind = THING, bool(random.randint(2))
            so = _thing_or_caption(own, is_kind)
            others = [_thing_or_caption(other, is_kind) for other in known if other.thing != own.thing]
            others = [other for other in others if so and other and not (other in so or so in other)]
            if not others:
                seen.left_out["nothing to ask about that it is not"] += 1
                return
            otherwise = others[random.randint(len(others))]
        is_so = bool(random.randint(2))
        fact = describe_regions([replace(own, name=THE_THING)], seen.record.size)
        told = [
            f"{fact}\n{as_text(replace_regions(instruction.text, lambda *_: 'it').replace(brace, said))}"
            for said in (so, otherwise)
        ]
        with adapter_off(self.bridge):
            nats = self.likelihoods.log_probabilities(
                [(after_judgements(text), f" {answer}") for text in told for answer in (YES, NO)]
            )
        if nats[0] - nats[1] <= nats[2] - nats[3]:
            seen.left_out["not sure whether"] += 1
            return
        asked = instruction.text.replace(brace, so if is_so else otherwise).replace("<region1>", f"<region{region}>")
        read, answer = (told[0], YES) if is_so else (told[1], NO)
        yield Lesson(seen, instruction.kind, type_, asked, read, [region], answer, is_chosen=True)

    def _to_think_of(self, seen: SeenPicture, order: list[int], random: np.random.RandomState) -> Iterator[Lesson]:
        """A question of the language model's own, before it has thought of it: about a region, or whose answer it is."""
        regions = _apart(seen, order)
        if not regions:
            seen.left_out["nothing is known of the region"] += 1
            return
        thing = str(seen.described[regions[0] - 1].thing)
        if len(regions) > 1 and random.randint(2):
            yield Lesson(seen, WHICH, OWN, "", ask_which(thing), regions[: 2 + random.randint(2)])
        else:
            yield Lesson(seen, OWN, OWN, "", ask_about(thing), regions[:1])

    def _with_own_questions(self, lessons: Sequence[Lesson]) -> Iterator[Lesson]:
        """The lessons, with the language model's questions where it is to ask; those that are no question are left out."""
        said = iter(self._lines_after([one.told for one in lessons if not one.asked], **_SAMPLED))
        for lesson in lessons:
            if lesson.asked:
                yield lesson
                continue
            seen, region = lesson.seen, lesson.regions[0]
            words = f"{WHICH} {next(said)}" if lesson.kind == WHICH else next(said)
            described = seen.described[region - 1]
            names = [_ARTICLE.sub("", name) for name in (described.caption, described.thing) if name]
            question = question_about(words, names)
            if question is None or (lesson.kind == WHICH) == ("<region1>" in question):
                seen.left_out["no question"] += 1
            elif lesson.kind == WHICH:
                yield from self._choice(seen, [question], sorted(lesson.regions), OWN, wanted=region)
            else:
                yield _lesson(seen, Instruction(OWN, question, is_of_kinds=True), [region], OWN)


def _opened(seen: SeenPicture, root: Path, folder: Path) -> np.ndarray | None:
    """A picture as RGB bytes (H, W, 3), whose path now starts from the folder of the lessons; None if it is passed over."""
    record = seen.record
    try:
        picture = open_image(record, root)
    except WrongSizeError:
        seen.pass_over("picture of another size than its record says")
        return None
    except UNREADABLE:
        seen.pass_over("picture does not open")
        return None
    if not str(record.image).startswith(GLYPH_SCHEME):
        path = Path(os.path.relpath(root / record.image, folder)).as_posix()
        seen.record = replace(record, image=path, width=picture.shape[1], height=picture.shape[0])
    try:
        prompts_in_picture(seen.record.prompts(), seen.record.size)
    except ValueError:  # of a record that gives no size, nobody could know it before
        seen.pass_over("picture that a region does not fit")
        return None
    return picture


_TRIES = 8
"""Of how many questions of a kind that is asked of which it is surest which region it means."""

_SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
"""How the language model thinks of questions: so that they differ, and most of them can be asked."""


def _lesson(seen: SeenPicture, instruction: Instruction, regions: list[int], type_: str) -> Lesson:
    """An instruction whose `<region1>`, … are some regions of a picture."""
    asked = replace_regions(instruction.text, lambda n, _: f"<region{regions[n - 1]}>")
    own = [replace(seen.described[n - 1], name=f"region{n}") for n in regions]
    if instruction.is_of_kinds and all(one.thing for one in own):
        told = as_text(replace_regions(instruction.text, lambda n, _: own[n - 1].thing))
    else:
        words = replace_regions(f"{instruction.text} {instruction.hint}", lambda n, _: f"region{regions[n - 1]}")
        told = f"{describe_regions(own, seen.record.size)}\n{words}".strip()
    return Lesson(seen, instruction.kind, type_, asked, told, regions)


def _apart(seen: SeenPicture, order: Sequence[int]) -> list[int]:
    """Regions whose kind is known, in an order, and only the first of each kind."""
    first: dict[str, int] = {}
    for number in order:
        if thing := seen.described[number - 1].thing:
            first.setdefault(thing, number)
    return list(first.values())


def _problem_of(lesson: Lesson) -> str | None:
    """Why a lesson is not worth learning; None if it is."""
    if is_text(lesson.told) and not lesson.is_chosen:
        if echoes(lesson.answer, lesson.told):
            return "says nothing new"
        if names_an_example(lesson.answer, lesson.told):
            return "names a thing of the examples"
    things = {n: _ARTICLE.sub("", lesson.seen.described[n - 1].thing or f"region{n}") for n in lesson.regions}
    if mixes_up(lesson.answer, things):
        return "mixes regions up"
    if len(lesson.regions) == 1 and not is_text(lesson.told):
        box, size = lesson.seen.described[lesson.regions[0] - 1].box, lesson.seen.record.size
        if misplaces(lesson.answer, place_of_box(box, size)):
            return "is wrong about the place"
    return problem_of(lesson.answer, lesson.kind, lesson.regions)


def _in_true_words(description: RegionDescription, region: Region) -> RegionDescription:
    """What TAP says of a region, and in its place what the record says."""
    if not region.captions and not region.label:
        return description
    return replace(
        description,
        caption=region.captions[0] if region.captions else None,
        concepts=[(region.label, 1.0)] if region.label else [],
    )


def _thing_or_caption(described: RegionDescription, is_kind: bool) -> str:
    """What a region is in words that follow "is": its kind, or its caption if it has one; empty if neither is known."""
    caption = (described.caption or "").strip().rstrip(".")
    return (described.thing or "") if is_kind or not caption else caption


_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)


def _record_of(record: Record, lessons: Iterable[Lesson]) -> Record:
    """A record of lessons alone, with the regions that they are about, numbered as they come."""
    turns = [
        turn
        for lesson in lessons
        for turn in (
            Turn("user", lesson.asked, type=lesson.type, told=lesson.told),
            Turn("assistant", lesson.answer),
        )
    ]
    taught, _ = cut_turns(replace(record, conversations=turns), 0, len(turns) // 2)
    return taught
