"""Which answers of a language model are worth learning, and where one that was cut off ends."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .instructions import JSON, UNSEEN

_DODGE = re.compile(
    r"\bas an ai\b|\bi'?m sorry\b|\bi (?:cannot|can ?not|can't|am unable|am not able)\b|\bi don'?t (?:have|know)\b"
    r"|\b(?:could|can|would) you (?:please )?(?:provide|clarify|give|share|tell)\b|\bplease (?:provide|share|give)\b"
    r"|\bno (?:information|context)\b",
    re.IGNORECASE,
)

_REFUSAL = re.compile(
    r"\b(?:can['’]?t|(?:can|could|do|does|did|is|are|was)(?: ?not|n['’]?t)|unable to|impossible to|no way to|hard to|nothing)\b"
    r"(?: \w+){0,2}? (?:see|seen|visible|tell|told|know|known|say|said|determined?|read|legible|answer|identify|find|guess"
    r"|judge|shown?|mention(?:ed)?|stated?|given?|specify|specified|describe[ds]?|included?|provided?|clear|possible)\b"
    r"|\bunknown\b|\bunclear\b|\bno information\b|\bi (?:do not|don['’]?t) have\b",
    re.IGNORECASE,
)
"""That something cannot be seen, is not known, or that nobody says it."""

_FENCE = re.compile(r"(?s)```\w*\s*(.*?)\s*```")

_RECITAL = re.compile(r"\bpicture\w* and (?:takes|is taking|taking) up\b", re.IGNORECASE)
"""A whole sentence of a description, as `describe_regions` writes it, and as nobody would."""


def problem_of(answer: str, kind: str, regions: Sequence[int]) -> str | None:
    """Why the answer to an instruction of a kind, about these regions, is not worth learning; None if it is."""
    if not re.search(r"\w", answer):
        return "empty"
    if repeats(answer):
        return "repeats"
    if kind == UNSEEN and not _REFUSAL.search(answer):
        return "invents"
    if kind != UNSEEN and _DODGE.search(answer):
        return "dodges"
    if kind == JSON and not is_json(answer):
        return "is no JSON"
    if _RECITAL.search(answer):
        return "recites"
    if any(int(number[:9]) not in regions for number in re.findall(r"\bregion ?(\d+)\b", answer, re.IGNORECASE)):
        return "speaks of other regions"
    return None


def is_json(answer: str) -> bool:
    """Whether an answer is a JSON object or list and nothing else, but for the fence of Markdown around it."""
    fenced = _FENCE.fullmatch(answer.strip())
    try:
        return isinstance(json.loads(fenced[1] if fenced else answer), (dict, list))
    except ValueError:
        return False


def repeats(text: str) -> bool:
    """Whether a text says a sentence twice, or four words in a row three times."""
    sentences = [words for part in re.split(r"[.!?\n]+", text.lower()) if len(words := part.split()) > 2]
    if len({" ".join(words) for words in sentences}) < len(sentences):
        return True
    words = re.findall(r"\w+", text.lower())
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    return max(runs.values(), default=0) > 2


def echoes(answer: str, question: str) -> bool:
    """Whether an answer says nothing that the question has not said; if it has "or", the answer may repeat a part of it."""
    if re.search(r"\bor\b", question):
        return False
    return _stems(answer) <= _stems(question)


def mixes_up(answer: str, things: Mapping[int, str]) -> bool:
    """Whether an answer calls a region what another one is: "region1 is a hat", where region1 is a cat and region2 the hat.

    things: what each region is, by number, without articles.
    """
    for number, words in _CALLED.findall(answer.lower()):
        said = {n for n, thing in things.items() if re.search(rf"\b{re.escape(thing.lower())}\b", words)}
        if said and things.get(int(number)) not in {things[n] for n in said}:
            return True
    return False


def misplaces(answer: str, place: str) -> bool:
    """Whether an answer says that a region is at a side of the picture where it is not, or in the middle and it is not there.

    place: where it is, "top left" or "center". What an answer with "not" says is left alone.
    """
    if re.search(r"\bnot\b|n['’]t\b", answer.lower()):
        return False
    for words in _PLACED.findall(answer.lower()):
        said = {_SIDES.get(word, word) for word in re.findall(r"\w+", words)}
        sides = said & {"top", "bottom", "left", "right"}
        if not sides <= set(place.split()) or (not sides and place != "center"):
            return True
    return False


_SIDES = {"upper": "top", "lower": "bottom"}
_PLACED = re.compile(
    r"\b(?:at|on|in|near|to) the ((?:(?:very|far|upper|lower|top|bottom|left|right|center|middle)[ -]?(?:hand )?\b)+)"
)
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
        return ""  # half a JSON text is useless
    found = re.match(r"(?s).*[.!?}\]](?!\w)", answer)  # not in the middle of a number
    return found[0] if found else ""
