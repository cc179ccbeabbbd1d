"""Questions of GlyphScenes in the words of people: those that only measure, and those that training records may use.

The benchmark asks two kinds beside its own questions. One puts a question of the benchmark in words that no recipe contains
(`phrasings.yaml`). The other asks what a picture cannot say (`knowledge.yaml`). Answers to both are free, and are scored by
`containment`. Training records put their questions, and their answers, in the words of `training_phrasings.yaml`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .language import ATTRIBUTES
from .questions import FAMILIES, YES_NO, Question, with_articles
from .scenes import KINDS, GlyphScene

PHRASING = "phrasing "
"""A family's name begins with this if it is one of the benchmark's own, asked in other words."""
KNOWLEDGE_OPEN, KNOWLEDGE_YES_NO, KNOWLEDGE_WHICH = (
    "knowledge, open",
    "knowledge, yes or no",
    "knowledge, which of three",
)
KNOWLEDGE_FAMILIES = (KNOWLEDGE_OPEN, KNOWLEDGE_YES_NO, KNOWLEDGE_WHICH)
PHRASING_FAMILIES = tuple(PHRASING + family for family in FAMILIES)
FREE_FAMILIES = (*PHRASING_FAMILIES, *KNOWLEDGE_FAMILIES)

KNOWLEDGE_SPLIT = "test"
"""The only split that asks for knowledge."""

OR = " | "
"""Stands between the accepted answers of an open question in its `answer`."""


@dataclass(frozen=True)
class FreeQuestion(Question):
    """A question that is answered freely.

    written: the question as the file has it; its questions about different scenes count as one. reject: words that make an
    answer wrong.
    """

    written: str = ""
    reject: tuple[str, ...] = ()


@cache
def load_words(name: str) -> Any:
    """The content of `phrasings.yaml`, `knowledge.yaml`, `training_phrasings.yaml` or `plain_text.yaml`."""
    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))


def words_fingerprint() -> str:
    """A checksum of the benchmark's free questions."""
    words = json.dumps([load_words("phrasings"), load_words("knowledge")], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class FreeQuestions:
    """Draws the free questions of one split and seed; scenes are to be given in order, from the first on.

    What is written for a form of question, or about a kind, is asked in turn. Each seed begins at another place.
    """

    def __init__(self, split: str, seed: int) -> None:
        self.asks_knowledge = split == KNOWLEDGE_SPLIT
        self.seed = seed
        self._asked: Counter[str] = Counter()

    def about(self, scene: GlyphScene, visible: Sequence[int], questions: Sequence[Question]) -> list[Question]:
        """A scene's benchmark `questions` in other words, and one question about what is known of each object's kind."""
        found: list[Question] = list(self._in_other_words(questions))
        if self.asks_knowledge:
            random = np.random.RandomState([227, scene.seed, scene.index])
            found += [one for i in visible if (one := self._knowledge(scene, i, visible, random)) is not None]
        return found

    def _in_other_words(self, questions: Sequence[Question]) -> Iterator[FreeQuestion]:
        for question in questions:
            form, said = form_of(question)
            if written := self._next(form, load_words("phrasings").get(form, ())):
                text, family = fill(written, said), PHRASING + question.family
                yield FreeQuestion(family, text, question.answer, question.objects, question.choices, written)

    def _knowledge(
        self, scene: GlyphScene, number: int, visible: Sequence[int], random: np.random.RandomState
    ) -> FreeQuestion | None:
        kind = scene.objects[number].kind
        entry = self._next(kind, _about_kinds()[kind])
        if entry is None:
            return None
        ask, written = entry["ask"], f"{kind}: {entry['ask']}"
        if "accept" in entry:
            answer, reject = OR.join(entry["accept"]), tuple(entry.get("reject", ()))
            return FreeQuestion(KNOWLEDGE_OPEN, ask, answer, (number,), (), written, reject)
        if "among" not in entry:
            answer = "yes" if kind in entry["yes"] else "no"
            return FreeQuestion(KNOWLEDGE_YES_NO, ask, answer, (number,), YES_NO, written)
        objects = _three(scene, number, visible, entry.get("not_beside", ()), random)
        if objects is None:
            return None
        text = f"{ask.removesuffix('?')}: <region1>, <region2> or <region3>?"
        names = ("region1", "region2", "region3")
        return FreeQuestion(KNOWLEDGE_WHICH, text, names[objects.index(number)], objects, names, written)

    def _next(self, name: str, written: Sequence[Any]) -> Any | None:
        """What is asked next of what is written under a name."""
        if not written:
            return None
        place = self.seed * len(written) // 3 + self._asked[name]
        self._asked[name] += 1
        return written[place % len(written)]


@cache
def _about_kinds() -> dict[str, list[dict[str, Any]]]:
    """The entries of `knowledge.yaml` about each kind."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for entry in load_words("knowledge"):
        for kind in [entry["kind"]] if "kind" in entry else [*entry["yes"], *entry["no"]]:
            found[kind].append(entry)
    return found


def _three(
    scene: GlyphScene, number: int, visible: Sequence[int], without: Collection[str], random: np.random.RandomState
) -> tuple[int, ...] | None:
    """An object and two others of other kinds, which are not in `without`, in an order of chance; None if there are none."""
    kinds = {scene.objects[number].kind, *without}
    others = []
    for i in random.permutation(len(scene.objects)).tolist():
        if i in visible and scene.objects[i].kind not in kinds:
            kinds.add(scene.objects[i].kind)
            others.append(i)
    if len(others) < 2:
        return None
    three = [number, *others[:2]]
    return tuple(three[i] for i in random.permutation(3))


# --- other words ------------------------------------------------------------------------------------------------------


def form_of(question: Question) -> tuple[str, dict[str, str]]:
    """Under which name `phrasings.yaml` has other words for a question of the benchmark, and what fills their braces."""
    if question.family == "statement":
        words = re.findall(r"\w+", question.text)
        said = {name: word for name, known in ATTRIBUTES.items() for word in words if word in known}
        return " ".join(("statement", *sorted(said))), said
    if question.family == "side":
        side = next(side for side in ("left", "right", "above", "below") if side in question.text)
        return f"side {side}", {}
    return question.family, {}


def fill(text: str, said: dict[str, str]) -> str:
    """A text with what is said in its braces, and "an" before vowels."""
    for name, word in said.items():
        text = text.replace(f"{{{name}}}", word)
    return with_articles(text)


def reword(question: Question, phrasings: float, sentences: float, random: np.random.RandomState) -> Question:
    """A question of a training record that is asked in the words of the training pool, and answered in a sentence, each with
    the given probability.
    """
    pool = load_words("training_phrasings")
    form, said = form_of(question)
    text, answer = question.text, question.answer
    if random.rand() < phrasings:
        text = fill(_pick(random, pool["questions"][form]), said)
    if random.rand() < sentences:
        templates = pool["answers"][question.family]
        if isinstance(templates, dict):
            templates = templates[answer]
        words = f"a {said['colour']} {said['kind']}" if form == "statement colour kind" else " ".join(said.values())
        words = f"a {words}" if form == "statement kind" else words
        filled = {"answer": answer, "Answer": answer[:1].upper() + answer[1:], "said": words}
        answer = fill(_pick(random, templates), filled)
    return replace(question, text=text, answer=answer)


def _pick(random: np.random.RandomState, items: Sequence[str]) -> str:
    return items[random.randint(len(items))]
