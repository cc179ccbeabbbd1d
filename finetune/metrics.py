"""Scores of short answers and of masks, and the points that a patient user would click."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from tap_tokenizer import box_of_mask


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


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's) of a share of which `right` of `count` were seen."""
    z = 1.96
    share, widened = right / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / widened
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5 / widened
    return middle - half, middle + half


def mask_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two boolean masks (H, W); 0 if both are empty."""
    return float((predicted & truth).sum() / max(int((predicted | truth).sum()), 1))


def sample_points(mask: np.ndarray, count: int, seed: int, name: str) -> list[list[float]]:
    """`count` points (x, y) in pixels on a mask (H, W), drawn evenly with replacement; equal for equal seed and name."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError(f"The mask of {name} is empty: no point lies on it.")
    random = np.random.RandomState(int(sha256(f"{seed}/{name}".encode()).hexdigest()[:8], 16))
    chosen = random.randint(len(rows), size=count)
    return [[float(columns[i]), float(rows[i])] for i in chosen]


def next_click(predicted: np.ndarray | None, truth: np.ndarray) -> tuple[list[float], int]:
    """The next click on a prediction (H, W; None before there is one): the innermost pixel of its larger error.

    Gives the point (x, y) and its label: 1 where the prediction misses the mask, 0 where it goes beyond. RITM's protocol
    (Sofiiuk et al., 2021) for interactive segmentation. A prediction without error gets one more click on the mask.
    """
    seen = np.zeros_like(truth) if predicted is None else predicted
    missed, beyond = _depth(truth & ~seen), _depth(seen & ~truth)
    label = int(missed.max() >= beyond.max())
    depth = missed if label else beyond
    if not depth.max():
        depth = _depth(truth)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return [float(x), float(y)], label


def _depth(error: np.ndarray) -> np.ndarray:
    """How far each pixel of an error lies from its border; the picture's edge is a border, too."""
    from scipy.ndimage import distance_transform_edt

    depth = np.zeros(error.shape)
    if error.any():  # no border is nearer outside the box around the error than one beside it
        x1, y1, x2, y2 = box_of_mask(error)
        box = slice(y1, y2), slice(x1, x2)
        depth[box] = distance_transform_edt(np.pad(error[box], 1))[1:-1, 1:-1]
    return depth
