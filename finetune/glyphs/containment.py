"""Scores free answers to questions of GlyphScenes: one is right if it says what is true, and nothing else in its place.

Whole words count, in capitals or not. What an answer denies ("not red") does not count as said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from .free_questions import KNOWLEDGE_OPEN, OR, PHRASING
from .language import ATTRIBUTES
from .questions import CONTEXT_FAMILIES, PAIR_FAMILIES
from .scenes import KINDS

_SYNONYMS = {
    "plane": "airplane", "aeroplane": "airplane", "phone": "telephone", "dice": "die", "clover": "shamrock",
    "checkmark": "tick", "check": "tick", "violet": "purple", "turquoise": "cyan", "aqua": "cyan", "big": "large",
    "huge": "large", "little": "small", "tiny": "small", "upper": "top", "lower": "bottom", "middle": "center",
    "centre": "center", "central": "center",
}  # fmt: skip
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FIRST_WORDS = {
    "yes": {"yes", "yeah", "yep", "true", "correct", "right"},
    "no": {"no", "nope", "not", "false", "incorrect", "wrong"},
}

_BREAKS = re.compile(r"[.,;:!?\n]|\b(?:but|while|whereas|and)\b")
_DENIALS = re.compile(r"\b(?:not|never|neither|nor|unlike|rather than|instead of)\b|(?<!\bca)n't\b")
_REGION = re.compile(r"<?\bregion\s*#?(\d+)\b>?")


def says_truth(answer: str, truth: str, family: str, kinds: Sequence[str] = (), reject: Collection[str] = ()) -> bool:
    """Whether a free answer to a question says the truth.

    - Attributes: the true word, and no other value of that attribute. Captions: the same of kind, colour and size.
    - Place: its row and its column, and no others; upper, lower, middle and centre are understood.
    - Yes or no: the first word, or a word that means the same. Counting: the true number, in letters or digits, and no other.
    - One of several regions: its name, or if no region is named its kind; and no other, except after "than".
    - Open knowledge: one of the words or phrases of `truth`, which " | " separates, and none of `reject`.

    kinds: those of the question's regions, in order.
    """
    text = answer.lower().replace("’", "'")
    family = family.removeprefix(PHRASING)
    if family == KNOWLEDGE_OPEN:
        affirmed = _affirmed(text)
        accepted = truth.split(OR)  # one may deny something itself: "not able to walk"
        said = any(_holds(text if _DENIALS.search(phrase) else affirmed, phrase) for phrase in accepted)
        return said and not any(_holds(affirmed, phrase) for phrase in reject)
    if truth in _FIRST_WORDS:
        return _begins_with(text, truth)
    if truth.startswith("region"):
        return _regions(text, kinds, is_larger=family in PAIR_FAMILIES) == {int(truth.removeprefix("region"))}
    if family in CONTEXT_FAMILIES and truth in _NUMBERS:
        return _numbers(text) == {truth}
    words = _words(_affirmed(_REGION.sub(" ", text)))
    if family == "place":
        return _is_at(words, truth)
    description, _, place = truth.partition(" at the ")
    values = [(known, set(known) & set(_words(description))) for known in ATTRIBUTES.values()]
    return all(words & set(known) == true for known, true in values if true) and (not place or _is_at(words, place))


def _affirmed(text: str) -> str:
    """A text without the clauses that deny something."""
    return " . ".join(clause for clause in _BREAKS.split(text) if not _DENIALS.search(clause))


def _words(text: str) -> set[str]:
    return {_SYNONYMS.get(word, word) for word in re.findall(r"\w+", text)}


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text) is not None


def _begins_with(text: str, truth: str) -> bool:
    words = re.findall(r"\w+", text)
    return bool(words) and words[0] in _FIRST_WORDS[truth] and words[1:3] not in (["and", "no"], ["or", "no"])


def _numbers(text: str) -> set[str]:
    """The numbers that a text says: "no other" is zero, but "no" alone denies, and "this one" is no number."""
    plain = re.sub(r"\b(this|that|the) one\b|\bno\b(?! [a-z])", " ", _REGION.sub(" ", text))
    found = set()
    for word in re.findall(r"\w+", plain):
        if word in ("none", "no"):
            found.add("zero")
        elif word in _NUMBERS:
            found.add(word)
        elif word.isdecimal():
            found.add(_NUMBERS[int(word)] if int(word) < len(_NUMBERS) else word)
    return found


def _is_at(words: set[str], place: str) -> bool:
    """Whether words say one of the nine places."""
    borders = {"top", "bottom", "left", "right"}
    true = set(place.split())
    return words & borders == true & borders and ("center" not in true or "center" in words)


def _regions(text: str, kinds: Sequence[str], *, is_larger: bool) -> set[int]:
    """Numbers of the regions that an answer chooses."""
    text = re.sub(r"\bthan\b[^.,;:!?\n]*", " ", _affirmed(text))
    if is_larger:  # "region1 is the smaller one" does not choose region1
        text = " . ".join(clause for clause in _BREAKS.split(text) if not re.search(r"\bsmall(?:er|est)?\b", clause))
    if named := {int(number) for number in _REGION.findall(text)}:
        return named
    said = _words(text) & set(KINDS)
    if not said <= set(kinds) or any(kinds.count(kind) > 1 for kind in said):
        return set()
    return {number for number, kind in enumerate(kinds, start=1) if kind in said}
