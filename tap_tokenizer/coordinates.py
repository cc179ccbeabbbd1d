"""Checks boxes and points in pixels of a picture, and says what is wrong with them. The same rule holds everywhere."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

SLACK = 1.0
"""How far, in pixels, a coordinate may lie outside the picture because of rounding; it is clipped to the edge."""

LEAST_SIDE = 0.999
"""The shortest side of a box, in pixels: one, with a margin for rounding."""

CORNER = 16
"""In a picture whose sides are at most this many pixels, coordinates from 0 to 1 may really be pixels."""


class CoordinateProblem(NamedTuple):
    """What is wrong with a box or a point: a kind to count it by, and a sentence."""

    kind: Literal["empty box", "thin box", "box outside", "point outside", "point in the corner"]
    words: str


def box_problems(
    boxes: np.ndarray, size: tuple[int, int] | None, *, may_overshoot: bool = False
) -> dict[int, CoordinateProblem]:
    """Find what is wrong with boxes (N, 4), xyxy, of a picture of (height, width) `size`: {row: problem}, {} if nothing is.
    If the size is not known (None), only boxes that no picture can have are refused.

    A box may reach up to a pixel (`SLACK`) outside, or any distance if it `may_overshoot`, as those of detectors do; then it is
    refused only if it lies entirely outside. What `clip_boxes` leaves of it must be at least a pixel wide and high, or
    touch two pixels. Boxes that all lie in 0 … 1 are refused, unless the picture is only a few pixels large. Give all boxes
    of a picture at once: only together do they show whether they are in pixels.
    """
    limits, picture = _limits(size)
    inside = np.clip(boxes, 0.0, np.tile(limits, 2))
    empty = _any(boxes[:, 2:] <= boxes[:, :2])
    if may_overshoot:
        outside = _any(boxes[:, 2:] <= 0) | _any(boxes[:, :2] >= limits)
    else:
        outside = _any(boxes[:, :2] < -SLACK) | _any(boxes[:, 2:] > limits + SLACK)
    within_one = np.ceil(inside[:, 2:]) - np.floor(inside[:, :2]) <= 1
    thin = _any((inside[:, 2:] - inside[:, :2] < LEAST_SIDE) & within_one)
    are_shares = len(boxes) > 0 and _are_shares(inside if may_overshoot else boxes)
    problems = {}
    for row in np.flatnonzero(empty | outside | thin | (are_shares and limits.max() > CORNER)).tolist():
        kind: Literal["empty box", "thin box", "box outside"] = "thin box"
        if empty[row]:
            kind = "empty box"
            words = f"is empty or inverted, expected x1 < x2 and y1 < y2 (corners, not width and height) in {picture}."
        elif outside[row]:
            kind = "box outside"
            words = f"leaves {picture}: clip it, and make sure that it belongs to this picture."
            if may_overshoot:
                words = f"lies outside {picture}: make sure that it belongs to this picture."
        elif thin[row]:
            words = f"is thinner than a pixel of {picture}."
        else:
            words = f"covers only the one pixel in the corner of {picture}."
        hint = _hint(boxes, size, may_be_thousandths=bool(outside[row]))
        problems[row] = CoordinateProblem(kind, f"box {_listed(boxes[row])} {words}{hint}")
    return problems


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4), xyxy, without what lies outside their picture of (height, width) `size`."""
    height, width = size
    return np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64))


def point_problems(points: np.ndarray, size: tuple[int, int] | None) -> dict[int, CoordinateProblem]:
    """Find what is wrong with points (N, 2) of a picture of (height, width) `size`: {row: problem}, {} if nothing is.

    A point may lie up to a pixel (`SLACK`) outside; see `clip_points`. Points that all lie in 0 … 1 and are not all whole
    numbers are refused, unless the picture is only a few pixels large: hardly anybody means the one pixel in the corner.
    Give all points of a picture at once.
    """
    limits, picture = _limits(size)
    outside = _any((points < -SLACK) | (points > limits + SLACK))
    are_shares = len(points) > 0 and _are_shares(points) and bool((points % 1 != 0).any())
    in_corner = np.full(len(points), are_shares and limits.max() > CORNER)
    problems = {}
    for row in np.flatnonzero(outside | in_corner).tolist():
        kind: Literal["point outside", "point in the corner"] = "point in the corner"
        words = f"lies in the one pixel in the corner of {picture}."
        if outside[row]:
            kind, words = "point outside", f"lies outside {picture}."
        hint = _hint(points, size, may_be_thousandths=bool(outside[row]))
        problems[row] = CoordinateProblem(kind, f"point {_listed(points[row])} {words}{hint}")
    return problems


def clip_points(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points (N, 2), moved onto the edge of their picture of (height, width) `size` where they lie outside."""
    return np.clip(points, 0.0, np.array([size[1], size[0]], dtype=np.float64))


def as_numbers(value: Any, dimensions: int) -> np.ndarray:
    """An array, a tensor, or nested lists of numbers → float64 numbers of at most so many dimensions.

    `ValueError` for whatever else: lists that are ragged, deeper or contain themselves, numbers beyond a float, tensors
    without data.
    """
    try:
        return _as_numbers(value, dimensions)
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0].rstrip(".!") if str(error) else type(error).__name__
        raise ValueError(f"expected numbers: {reason}") from None


def shown(value: Any) -> str:
    """The beginning of any value, for a message: short, however long, deep or large it is."""
    writer = reprlib.Repr()
    writer.maxlevel = 3
    try:
        words = writer.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} of very large numbers"
    return words if len(words) <= 80 else words[:79] + "…"


def _as_numbers(value: Any, dimensions: int) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.is_meta:
            raise TypeError("a tensor without data")
        value = value.detach().cpu()
        value = (value if value.is_complex() else value.double()).numpy()
    if getattr(value, "dtype", None) is not None and np.iscomplexobj(value):
        raise TypeError("complex numbers")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        # Looked into here, and no deeper than wanted: NumPy would follow a list that contains itself without end.
        if not dimensions:
            raise ValueError("lists too deep")
        if all(isinstance(entry, (int, float)) for entry in value):
            return np.array(value, dtype=np.float64)
        return np.array([_as_numbers(entry, dimensions - 1) for entry in value], dtype=np.float64)
    return np.asarray(value, dtype=np.float64)


def _limits(size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """The largest x and y of a picture of (height, width) `size`, and what to call it."""
    if size is None:
        return np.array([np.inf, np.inf]), "the picture, whose size cannot be read"
    height, width = size
    return np.array([width, height], dtype=np.float64), f"the picture of {width} × {height} pixels"


def _any(flags: np.ndarray) -> np.ndarray:
    """Which rows of (N, M) have one that is true."""
    return np.asarray(flags.any(axis=1))


def _listed(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.10g}' for value in values)}]"


def _are_shares(values: np.ndarray) -> bool:
    return bool(((values >= -0.01) & (values <= 1.01)).all())


def _hint(values: np.ndarray, size: tuple[int, int] | None, may_be_thousandths: bool) -> str:
    """What the coordinates of a picture seem to count, if not pixels, and how to convert them; nothing if unclear."""
    height, width = size or (0, 0)
    if _are_shares(values):
        by = f"x by {width} and y by {height}" if size else "by them"
        return f" All coordinates lie in 0 … 1: if they are shares of the picture's width and height, multiply {by}."
    if may_be_thousandths and size and values.min() >= 0 and values.max() <= 1000:
        return (
            " All coordinates lie in 0 … 1000: if they are thousandths of the picture, as some language models write, "
            f"multiply x by {width / 1000:g} and y by {height / 1000:g}."
        )
    return ""
