"""Numbers from predictions: plain functions of lists, with their definition in the docstring.

Knows no model and no file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def normalise_answer(text: str) -> str:
    """Lower case, no article or preposition at the start, no full stop, single spaces: for comparing short answers.

    "At the top left." → "top left"; "an umbrella" → "umbrella".
    """
    words = re.sub(r"[.!]", " ", text.lower()).split()
    while words and words[0] in ("a", "an", "the", "at", "in", "on", "it", "is"):
        words.pop(0)
    return " ".join(words)


def is_exact(prediction: str, truth: str) -> bool:
    """Whether two short answers are the same after `normalise_answer`."""
    return normalise_answer(prediction) == normalise_answer(truth)


def accuracy(predictions: Sequence[str], truths: Sequence[str]) -> float:
    """Share of exact answers."""
    if len(predictions) != len(truths):
        raise ValueError(f"Got {len(predictions)} predictions for {len(truths)} truths: give one for each.")
    return sum(is_exact(a, b) for a, b in zip(predictions, truths)) / max(len(truths), 1)


def majority(truths: Sequence[str]) -> float:
    """Accuracy of always giving the commonest true answer."""
    return Counter(truths).most_common(1)[0][1] / len(truths) if truths else 0.0


def chance(choices: Sequence[int]) -> float:
    """Accuracy of guessing evenly among each question's possible answers, of which there are `choices`."""
    return sum(1 / n for n in choices) / max(len(choices), 1)
