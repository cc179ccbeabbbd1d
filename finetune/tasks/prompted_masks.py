"""Intersection over union of masks, and the points that a patient user would click.

Points are drawn on the mask by a seed of the region's own, so that they depend on nothing else. Knows masks, not models.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec

import numpy as np


def missing_for_clicks() -> str | None:
    """What keeps clicks from being placed here, in one line; None if nothing does."""
    return None if find_spec("scipy") else "Clicks need scipy (pip install 'tap-bridge[train]')"


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
        rows, columns = (np.flatnonzero(error.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        depth[box] = distance_transform_edt(np.pad(error[box], 1))[1:-1, 1:-1]
    return depth
