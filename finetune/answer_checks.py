"""Which answers of a language model are worth learning, and where one that was cut off ends."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .instructions import UNSEEN

_DODGE = re.compile(
    r"\bas an ai\b|\bi'?m sorry\b|\bi (?:cannot|can ?not|can't|am unable|am not able)\b|\bi don'?t (?:have|know)\b"
    r"|\b(?:could|can|would) you (?:please )?(?:provide|clarify|give|share|tell)\b|\bplease (?:provide|share|give)\b"
    r"|\bno (?:information|context)\b",
    re.IGNORECASE,
)


_RECITAL = re.compile(r"\bpicture\w* and (?:takes|is taking|taking) up\b", re.IGNORECASE)
"""A whole sentence of a description, as `describe_regions` writes it, and as nobody would."""


def problem_of(answer: str, kind: str, regions: Sequence[int]) -> str | None:
    """Why the answer to an instruction of a kind, about these regions, is not worth learning; None if it is."""
    if not re.search(r"\w", answer):
        return "empty"
    if repeats(answer):
        return "repeats"
    if kind != UNSEEN and _DODGE.search(answer):
        return "dodges"
    if _RECITAL.search(answer):
        return "recites"
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


def echoes(answer: str, question: str) -> bool:
    """Whether an answer says nothing that the question has not said; of a question with "or", an answer may say a part."""
    if re.search(r"\bor\b", question):
        return False
    return _stems(answer) <= _stems(question)


def mixes_up(answer: str, things: Mapping[int, str]) -> bool:
    """Whether an answer calls a region what another one is: "region1 is a hat", where region1 is a cat and region2 the hat.

    things: by region, without articles.
    """
    for number, words in _CALLED.findall(answer.lower()):
        said = {n for n, thing in things.items() if re.search(rf"\b{re.escape(thing.lower())}\b", words)}
        if said and things.get(int(number)) not in {things[n] for n in said}:
            return True
    return False


_CALLED = re.compile(
    r"\bregion ?(\d{1,9}) (?:is|shows|looks like) an? ((?:(?!\b(?:and|while|but|whereas|than)\b)[^.,;:!?\n])*)"
)

_LITTLE = re.compile(
    r"a|an|and|are|as|at|be|by|can|do|for|from|he|her|his|in|is|it|its|of|on|one|she|so|that|the|their|them|there|they|this|to"
    r"|used?|when|where|with|you|your"
)


def _stems(text: str) -> set[str]:
    """The words of a text that mean something, without the endings of plurals and verbs."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {re.sub(r"(?<=\w{3})(?:es|s|ing|ed|e)$", "", word) for word in words if not _LITTLE.fullmatch(word)}


def whole_sentences(answer: str, is_cut: bool) -> str:
    """An answer that was cut off, without its unfinished end; nothing if no sentence is whole."""
    if not is_cut:
        return answer
    if answer.startswith(("{", "[", "`")):
        return ""  # half of a JSON is none
    found = re.match(r"(?s).*[.!?}\]]", answer)
    return found[0] if found else ""
