"""Records that teach a bridge to find regions by words: candidates, and turns that ask which of them an expression means.

A question shows all candidates, each by its name, and ends with what `llm_bridge.find_question` writes; the answer is what
`llm_bridge.find_answer` writes. So a bridge learns the very words that `RegionChat.find` asks. Every question stands alone and
may be cut out of its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from llm_bridge import find_answer, find_question

from ..records import Record, Region, Turn, decode_mask, encode_mask

LEAST_IOU = 0.5
"""A candidate covers an object if their IoU is at least this."""


@dataclass(frozen=True)
class Expression:
    """Words for some of a record's candidates, which are numbered from 0; for none of them, if `meant` is empty.

    type: what kind of expression it is, by which evaluations group them.
    """

    phrase: str
    meant: tuple[int, ...]
    type: str | None = None


def grounding_record(
    image: str,
    size: tuple[int, int],
    candidates: Sequence[Region],
    expressions: Sequence[Expression],
    source: str,
    terms: str | None,
) -> Record:
    """A record of a picture of (height, width) `size`, whose candidates stand in an order that its name alone decides.

    The regions of an answer are named in the order of their numbers. Raises `ValueError` for an expression that names a region
    by its number.
    """
    order = candidate_order(image, len(candidates))
    number = {candidate: place for place, candidate in enumerate(order, 1)}
    turns = []
    for one in expressions:
        question = find_question(one.phrase, len(candidates))
        turns += [
            Turn("user", question, type=one.type),
            Turn("assistant", find_answer(sorted(number[i] for i in one.meant))),
        ]
    return Record(image, size[1], size[0], [candidates[i] for i in order], turns, source, terms)


def candidate_order(name: str, count: int) -> list[int]:
    """A permutation of 0 … `count` - 1 that looks random and is always the same for a name."""
    seed = int(sha256(name.encode()).hexdigest()[:8], 16)
    return [int(i) for i in np.random.RandomState(seed).permutation(count)]


def overlaps(a: Sequence[Region], b: Sequence[Region], size: tuple[int, int]) -> np.ndarray:
    """IoU (len(a), len(b)) of regions of a picture of (height, width) `size`: of their masks if all have one, else of boxes."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    if all(region.mask for region in (*a, *b)):
        forms: list[list[Any]] = [[encode_mask(decode_mask(region.mask, size)) for region in own] for own in (a, b)]
    else:
        forms = [[_xywh(region.around(size)) for region in own] for own in (a, b)]
        forms = [np.asarray(own, dtype=np.float64) for own in forms]  # type: ignore[misc]
    return np.asarray(coco_mask.iou(forms[0], forms[1], [0] * len(b)))


def _xywh(box: Sequence[float] | None) -> list[float]:
    x1, y1, x2, y2 = box or (0.0, 0.0, 0.0, 0.0)
    return [x1, y1, x2 - x1, y2 - y1]


def covering(objects: Sequence[Region], candidates: Sequence[Region], size: tuple[int, int]) -> list[int | None]:
    """For each object, the candidate that covers it best; None where no IoU is `LEAST_IOU` or more."""
    iou = overlaps(objects, candidates, size)
    return [int(row.argmax()) if len(row) and row.max() >= LEAST_IOU else None for row in iou]
