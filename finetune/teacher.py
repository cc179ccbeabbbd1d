"""A language model's own lessons: questions about regions, and what it answers when it is told in words what they are.

Pictures and regions → records whose questions have `told`, what the teacher read, and whose answers are its own. An answer
that is of no use is left out and counted.
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
    DescribedRegionProcessor,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionDescription,
    adapter_off,
    describe_regions,
    generate_text,
    replace_regions,
)
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer, pictures_of

from .batches import ConversationCollator
from .cache import encode_regions
from .config import knob
from .data.validation import UNREADABLE
from .instructions import SHIPPED, UNSEEN, Instruction, draw_instruction, load_instructions
from .records import GLYPH_SCHEME, Record, Region, Turn, cut_turns, load_records, open_image

MIN_SIDE = 4
"""Boxes with a shorter side, in pixels, are not asked about."""

KNOWN, NEW, OWN = "known instruction", "new instruction", "own question"
"""`type` of a lesson's question: an instruction that is asked in training, one that is not, one the model thought of."""


@dataclass(kw_only=True)
class LessonArguments:
    """What lessons are made of."""

    data: str | None = knob(
        default=None, help="records whose regions are asked about: JSONL, or parquet beside pictures"
    )
    pictures: str | None = knob(default=None, help="folder of pictures, in which everything mode finds the regions")
    regions: int = knob(default=8, help="pictures: regions of each, the most confident that are found")
    points_per_crop: int = knob(default=32, help="pictures: points along each side of the grid that searches them")
    true_words: bool = knob(
        default=True, help="data: tell the teacher a region's own caption and label, where it has them, not TAP's"
    )
    questions: int = knob(default=4, help="questions asked about each picture")
    instructions: list[str] = knob(
        default_factory=lambda: [SHIPPED], help="YAML files of what is asked; shipped is the pool that comes with this"
    )
    own_questions: float = knob(
        default=0.1, help="share of the questions that the language model thinks of itself, when told of a region"
    )
    held_out: float = knob(default=0.05, help="share of the pictures that are kept for evaluation")
    answer_tokens: int = knob(default=48, help="longest answer of the teacher, in tokens")
    teacher_batch_size: int = knob(default=32, help="questions that the teacher answers at once")
    lesson_chunk: int = knob(default=16, help="pictures that are put on disk together")


@dataclass(eq=False)
class SeenPicture:
    """A picture: its record, what is known of each region, and why how many lessons about it were left out."""

    row: int
    record: Record
    described: list[RegionDescription]
    left_out: Counter[str]


@dataclass(eq=False)
class Lesson:
    """A question about some regions of a picture, in the student's words and in the teacher's, with the teacher's answer."""

    seen: SeenPicture
    kind: str
    type: str
    asked: str
    told: str
    regions: list[int]
    """By their numbers in the record, from 1."""
    answer: str = ""


class Teacher:
    """A language model that answers questions about regions by what it is told of them."""

    def __init__(
        self,
        bridge: RegionBridgeForConditionalGeneration,
        processor: RegionBridgeProcessor,
        arguments: LessonArguments,
        seed: int,
    ) -> None:
        self.bridge, self.processor, self.arguments, self.seed = bridge.eval(), processor, arguments, seed
        self.collator = ConversationCollator(processor)
        self.tokenizer: TapRegionTokenizer = processor.encoder.tokenizer
        self.describer = DescribedRegionProcessor(processor.tokenizer, self.tokenizer)
        self.pool = load_instructions(arguments.instructions)
        if arguments.pictures is not None:
            self.pictures = pictures_of(Path(arguments.pictures))
        else:
            self.records, data = load_records(str(arguments.data)), Path(str(arguments.data))
            self.root = data if data.is_dir() else data.parent

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.pictures if self.arguments.pictures is not None else self.records)

    @property
    def chunks(self) -> int:
        return -(-len(self) // self.arguments.lesson_chunk)

    def is_held_out(self, row: int) -> bool:
        """Whether a picture is kept for evaluation: those are spread evenly over all."""
        share = self.arguments.held_out
        return int((row + 1) * share) > int(row * share)

    @torch.no_grad()
    def work(self, chunk: int, folder: Path) -> Iterator[dict[str, Any]]:
        """A line for each picture of a chunk: its record, None without a lesson, and why how many lessons were left out.

        folder: where the records will lie; their paths start from there.
        """
        size = self.arguments.lesson_chunk
        rows = range(chunk * size, min((chunk + 1) * size, len(self)))
        seen = self._see(rows, folder)
        lessons = [lesson for one in seen for lesson in self._draw(one)]
        torch.manual_seed(self.seed * 1_000_003 + chunk)
        lessons = list(self._with_own_questions(lessons))
        for lesson, answer in zip(lessons, self.answers([lesson.told for lesson in lessons])):
            answer = _whole_sentences(answer, self._is_cut(answer))
            lesson.answer = re.sub(r"\b([Rr]egion) (\d)", r"\1\2", answer)  # as records and cut_turns write names
        for one in seen:
            kept = []
            for lesson in (lesson for lesson in lessons if lesson.seen is one):
                problem = problem_of(lesson.answer, lesson.kind, lesson.regions)
                if problem is None:
                    kept.append(lesson)
                else:
                    one.left_out[problem] += 1
            record = _record_of(one.record, kept).to_dict() if kept else None
            counts = {"kept": len(kept), **one.left_out}
            yield {"row": one.row, "held_out": self.is_held_out(one.row), "record": record, "lessons": counts}

    def answers(self, told: Sequence[str], **options: Any) -> list[str]:
        """What the language model says, with its adapter off, when it is told and asked."""
        prompts = [Record(conversations=[Turn("user", words)]) for words in told]
        order = sorted(range(len(told)), key=lambda i: len(told[i]))
        said = [""] * len(told)
        options = {"max_new_tokens": self.arguments.answer_tokens, **options}
        for start in range(0, len(order), self.arguments.teacher_batch_size):
            part = order[start : start + self.arguments.teacher_batch_size]
            inputs = self.collator.prompts([prompts[i] for i in part]).to(self.bridge.device)
            with adapter_off(self.bridge):
                for i, words in zip(part, generate_text(self.bridge, self.processor, inputs, **options)):
                    said[i] = words
        return said

    def _is_cut(self, answer: str) -> bool:
        ids = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return len(ids) >= self.arguments.answer_tokens - 1

    # --- what is seen ---------------------------------------------------------------------------------------------

    def _see(self, rows: range, folder: Path) -> list[SeenPicture]:
        """Some pictures, with what is known of each of their regions. One that does not open has no regions."""
        seen, pictures = [], []
        for row in rows:
            record, root = self._record(row)
            one = SeenPicture(row, record, [], Counter())
            seen.append(one)
            try:
                picture = open_image(record, root)
            except UNREADABLE:
                one.record, one.left_out["picture does not open"] = replace(record, regions=[]), 1
                continue
            if not str(record.image).startswith(GLYPH_SCHEME):
                path = Path(os.path.relpath(root / record.image, folder)).as_posix()
                one.record = replace(record, image=path, width=picture.shape[1], height=picture.shape[0])
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

    def _record(self, row: int) -> tuple[Record, Path]:
        """The record of a picture, and the folder that its path starts from."""
        if self.arguments.pictures is not None:
            name = Path(self.arguments.pictures).resolve().name
            return Record(str(self.pictures[row].path.resolve()), source=name), Path()
        record = self.records[row]
        if not isinstance(record.image, str):
            raise ValueError(f"{record.name} lies inside a parquet file: give records of pictures by their paths.")
        return record, self.root

    def _search(self, features: ImageFeatures) -> list[Region]:
        """The boxes that everything mode finds in a picture, the most confident first."""
        found = self.tokenizer.encode_everything(features=features, points_per_crop=self.arguments.points_per_crop)
        boxes = [box for box in found.boxes.tolist() if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE]
        return [Region(box=box) for box in boxes[: self.arguments.regions]]

    # --- what is asked --------------------------------------------------------------------------------------------

    def _draw(self, seen: SeenPicture) -> Iterator[Lesson]:
        """The questions about a picture; half of those about one that is kept for evaluation are in new words."""
        random = np.random.RandomState([self.seed, 11, seen.row])
        held_out, count = self.is_held_out(seen.row), len(seen.record.regions)
        for i in range(self.arguments.questions if count else 0):
            if not held_out and random.random_sample() < self.arguments.own_questions:
                drawn, kind = _OWN_QUESTION, OWN
            else:
                kind = NEW if held_out and i % 2 else KNOWN
                found = draw_instruction(self.pool, count, random, held_out=kind == NEW)
                if found is None:
                    continue
                drawn = found
            yield _lesson(seen, drawn, [int(n) + 1 for n in random.permutation(count)[: drawn.regions]], kind)

    def _with_own_questions(self, lessons: Sequence[Lesson]) -> Iterator[Lesson]:
        """The lessons, with the language model's questions where it is to ask; those that are no question are left out."""
        said = iter(self.answers([one.told for one in lessons if one.type == OWN], do_sample=True))
        for lesson in lessons:
            if lesson.type != OWN:
                yield lesson
                continue
            (region,) = lesson.regions
            question = _own_question(next(said), region, lesson.seen.described[region - 1])
            if question is None:
                lesson.seen.left_out["no question"] += 1
            else:
                yield _lesson(lesson.seen, Instruction(OWN, question), [region], OWN)


_OWN_QUESTION = Instruction(
    OWN, "Ask one short question about <region1> that a curious person would ask. Write the question alone."
)


def _lesson(seen: SeenPicture, instruction: Instruction, regions: list[int], type_: str) -> Lesson:
    """An instruction whose `<region1>`, … are some regions of a picture."""
    asked = replace_regions(instruction.text, lambda n, _: f"<region{regions[n - 1]}>")
    own = [replace(seen.described[n - 1], name=f"region{n}") for n in regions]
    words = replace_regions(asked, lambda n, _: f"region{n}")
    told = f"{describe_regions(own, seen.record.size)}\n{words} {instruction.hint}".strip()
    return Lesson(seen, instruction.kind, type_, asked, told, regions)


def _in_true_words(description: RegionDescription, region: Region) -> RegionDescription:
    """What TAP says of a region, and in its place what the record says."""
    if not region.captions and not region.label:
        return description
    return replace(
        description,
        caption=region.captions[0] if region.captions else None,
        concepts=[(region.label, 1.0)] if region.label else [],
    )


def _own_question(said: str, region: int, description: RegionDescription) -> str | None:
    """The first question of an answer, about `<region1>`; None if there is none, or if it gives away what the region is."""
    found = re.search(r"[^.!?\n]+\?", said)
    if found is None:
        return None
    question = found[0].strip().strip("\"'“”*- ")
    names = [name for name in (_ARTICLE.sub("", description.caption or ""), description.kind) if name]
    for name in names:
        known = rf"\b(?:the|an?|this|that) {re.escape(name)}\b(?: \(region\d+\))?"
        question = re.sub(known, f"region{region}", question, flags=re.IGNORECASE)
    question = replace_regions(question, lambda number, _: "<region1>" if number == region else None)
    if re.search(r"(?<!<)\bregion ?\d", question) or any(name.lower() in question.lower() for name in names):
        return None
    return question if "<region1>" in question else f"<region1>: {question}"


_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)


# --- what is of use ---------------------------------------------------------------------------------------------------

_DODGE = re.compile(
    r"\bas an ai\b|\bi'?m sorry\b|\bi (?:cannot|can ?not|can't|am unable|am not able)\b|\bi don'?t (?:have|know)\b"
    r"|\b(?:could|can|would) you (?:please )?(?:provide|clarify|give|share|tell)\b|\bplease (?:provide|share|give)\b"
    r"|\bno (?:information|context)\b",
    re.IGNORECASE,
)


def problem_of(answer: str, kind: str, regions: Sequence[int]) -> str | None:
    """Why an answer about regions (by their numbers) is not worth learning; None if it is."""
    if not re.search(r"\w", answer):
        return "empty"
    if repeats(answer):
        return "repeats"
    if kind != UNSEEN and _DODGE.search(answer):
        return "dodges"
    if any(int(number[:9]) not in regions for number in re.findall(r"\bregion ?(\d+)\b", answer, re.IGNORECASE)):
        return "speaks of other regions"
    return None


def repeats(text: str) -> bool:
    """Whether a text says a sentence twice, or four words in a row three times."""
    sentences = [words for part in re.split(r"[.!?\n]+", text.lower()) if len(words := part.split()) > 2]
    if len({" ".join(words) for words in sentences}) < len(sentences):
        return True
    words = re.findall(r"\w+", text.lower())
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(runs.values(), default=0) > 2


def _whole_sentences(answer: str, is_cut: bool) -> str:
    """An answer that was cut off, without its unfinished end; nothing if no sentence is whole."""
    if not is_cut:
        return answer
    if answer.startswith(("{", "[", "`")):
        return ""  # half of a JSON is none
    found = re.match(r"(?s).*[.!?}\]]", answer)
    return found[0] if found else ""


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
