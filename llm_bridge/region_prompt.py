"""Prompts of regions by kind, as `TapRegionTokenizer.encode` takes them, and one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def prompt_columns(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Prompts of regions → the lists that `TapRegionTokenizer.encode` takes: None where a region lacks that kind."""
    kinds = {"boxes": "box", "points": "points", "point_labels": "point_labels", "masks": "mask"}
    return {
        plural: [prompt.get(kind) for prompt in prompts]
        for plural, kind in kinds.items()
        if any(prompt.get(kind) is not None for prompt in prompts)
    }


def prompts_by_region(boxes: Any, points: Any, point_labels: Any, masks: Any) -> list[dict[str, Any]]:
    """Prompts by kind, as `TapRegionTokenizer.encode` takes them for one picture, → one prompt per region."""
    given = {"box": boxes, "points": points, "point_labels": point_labels, "mask": masks}
    for value, (name, nesting) in zip(given.values(), _NESTING.items()):
        if value is not None:
            _check_nesting(name, value, nesting)
    lists = {key: value for key, value in given.items() if value is not None}
    counts = {key: len(value) for key, value in lists.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n} × {key}" for key, n in counts.items())
        raise ValueError(
            f"Got {found}: prompts at one place of these lists are of one region; give the same number of each, None where a "
            "region lacks one."
        )
    return [
        {key: value[i] for key, value in lists.items() if value[i] is not None}
        for i in range(next(iter(counts.values()), 0))
    ]


_NESTING = {"boxes": (2, "[[x1, y1, x2, y2]]"), "points": (3, "[[[x, y]]]"), "point_labels": (2, "[[1]]"),
            "masks": (3, "[mask]")}  # fmt: skip
"""How deep the lists of each kind go for one picture, and what one region looks like."""


def _check_nesting(name: str, value: Any, nesting: tuple[int, str]) -> None:
    """Refuse one region where a list of regions is expected."""
    depth, example = nesting
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        raise ValueError(
            f"{name} is a {type(value).__name__}, expected a list with an entry for each region: {example}."
        )
    if isinstance(value, dict):
        raise ValueError(f"{name} is a dictionary, expected a list with an entry for each region: {example}.")
    first = next((entry for entry in value if entry is not None), None)
    if isinstance(first, (dict, str, os.PathLike)):  # an RLE or a mask's path, which are one region's
        if name == "masks":
            return
        raise ValueError(
            f"{name} holds a {type(first).__name__}, expected a list with an entry for each region: {example}."
        )
    found = 1
    while first is not None and not isinstance(first, (str, int, float)) and found < depth:
        shape = getattr(first, "shape", None)
        if shape is not None:
            found += len(shape)
            break
        if getattr(first, "size", None) is not None and not hasattr(first, "__len__"):  # a PIL mask is two-dimensional
            found += 2
            break
        found += 1
        first = first[0] if hasattr(first, "__len__") and len(first) else None
        if first is None:
            return
    if first is not None and found < depth:
        raise ValueError(f"{name} is one region's, expected a list with an entry for each region: {example}.")
