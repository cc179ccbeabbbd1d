"""The outlines of masks: polygons as annotation tools draw them."""

from __future__ import annotations

import numpy as np
from contourpy import contour_generator

LEAST_AREA = 1 / 50
"""Parts of a mask smaller than this share of its largest are left out: nobody wants to correct specks."""


def outlines_of(mask: np.ndarray, epsilon: float) -> list[np.ndarray]:
    """Outer outlines (N, 2) of a boolean mask (H, W), x and y in pixels, the largest first; holes are filled.

    epsilon: how far a simplified outline may lie from the mask's, as a share of its length. No outline has fewer than three
    points or repeats its first at the end.
    """
    if not mask.any():
        return []
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(np.float32)  # outlines at the picture's edge are closed, too
    lines: list[np.ndarray] = contour_generator(z=padded, line_type="Separate").lines(0.5)  # type: ignore[assignment]
    found = sorted(((abs(_area(line)), line[:-1] - 0.5) for line in lines), key=lambda pair: -pair[0])
    outer: list[np.ndarray] = []
    for area, line in found:
        if area < LEAST_AREA * found[0][0] or any(_holds(other, line[0]) for other in outer):
            continue
        outer.append(line)
    return [np.clip(simplified(line, epsilon * _length(line)), 0, [width, height]) for line in outer]


def simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed outline (N, 2) with fewer points, none of those left out farther than `tolerance` from it (Douglas, Peucker).

    It begins at the same point and keeps at least three.
    """
    far = int(np.linalg.norm(outline - outline[0], axis=1).argmax())
    closed = np.concatenate([outline, outline[:1]])
    kept = {0, far}
    parts = [(0, far), (far, len(outline))]
    while parts:
        begin, end = parts.pop()
        if end - begin < 2:
            continue
        away = _distances(closed[begin + 1 : end], closed[begin], closed[end])
        middle = begin + 1 + int(away.argmax())
        if away.max() > tolerance or (len(kept) < 3 and away.max() > 0):
            kept.add(middle)
            parts += [(begin, middle), (middle, end)]
    return outline[sorted(kept)] if len(kept) > 2 else outline


def _distances(points: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points (N, 2) from the stretch between two others, (N,)."""
    along = end - begin
    length = float(along @ along)
    share = np.clip((points - begin) @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - begin - share[:, None] * along, axis=1)


def _area(line: np.ndarray) -> float:
    x, y = line.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def _length(outline: np.ndarray) -> float:
    return float(np.linalg.norm(outline - np.roll(outline, 1, axis=0), axis=1).sum())


def _holds(outline: np.ndarray, point: np.ndarray) -> bool:
    """Whether a point lies inside an outline: a ray from it crosses the outline an odd number of times."""
    (x, y), (xs, ys) = point, outline.T
    nx, ny = np.roll(xs, -1), np.roll(ys, -1)
    crosses = (ys > y) != (ny > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        where = xs + (y - ys) / (ny - ys) * (nx - xs)
    return bool((crosses & (x < where)).sum() % 2)
