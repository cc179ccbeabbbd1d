"""`Detections` of the package supervision, in and out: what a detector found → prompts, and regions → detections.

Detectors' packages and robots' programs hold their results in this class. It is read by its attributes, so that reading needs
no supervision; only `regions.to_detections()` does, which makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .coordinates import box_problems, clip_boxes
from .counts import counted
from .prompts import RegionPrompt

INSTALL = "pip install supervision"

NAMED = 20
"""How many rows an error lists."""


def detection_prompts(
    detections: Any,
    sizes: Sequence[tuple[int, int]],
    others: Mapping[str, Any] | None = None,
    *,
    is_batch: bool = False,
) -> list[Any]:
    """The prompts of what a detector found in each of the pictures, whose (height, width) are `sizes`, or in the only one.

    Boxes are clipped to their picture. others: what else may mark regions, by name. is_batch: whether detections are a list
    with those of each picture. Raises `ValueError` if any of the others is given, for what is no detections, and for boxes
    that are empty or entirely outside.
    """
    if taken := [name for name, value in (others or {}).items() if value is not None]:
        raise ValueError(f"Got detections and {', '.join(taken)}: give detections alone.")
    if not is_batch:
        return _prompts(detections, sizes[0])
    if not isinstance(detections, (list, tuple)) or len(detections) != len(sizes):
        got = f"a list of {len(detections)}" if isinstance(detections, (list, tuple)) else type(detections).__name__
        raise ValueError(
            f"Got detections as {got} for {counted(len(sizes), 'image')}, expected a list with those of each image."
        )
    return [_prompts(own, size, f"Image {i}: ") for i, (own, size) in enumerate(zip(detections, sizes))]


def _prompts(detections: Any, size: tuple[int, int], where: str = "") -> list[RegionPrompt]:
    """A prompt for each detection of one picture: its mask, or its box, clipped, if it has no mask or an empty one.

    detections: supervision's `Detections`, or anything with `xyxy` (N, 4), in pixels, and perhaps `mask` (N, H, W). size: the
    picture's (height, width). `where` begins the errors. Raises `ValueError` for other objects, and for boxes with nothing in
    the picture.
    """
    boxes, masks = _column(detections, "xyxy", where), getattr(detections, "mask", None)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}detections.xyxy has shape {boxes.shape}, expected (number of detections, 4).")
    if masks is not None and len(masks) != len(boxes):
        raise ValueError(
            f"{where}Got {counted(len(masks), 'mask')} for {counted(len(boxes), 'box', 'boxes')} in detections, expected one "
            "for each."
        )
    own = [None if masks is None else np.asarray(masks[i]) for i in range(len(boxes))]  # one at a time: some are packed
    prompts = [
        RegionPrompt.read({"box": box} if mask is None or not mask.any() else {"mask": mask}, f"{where}Region {i}")
        for i, (box, mask) in enumerate(zip(boxes, own))
    ]
    rows = [i for i, prompt in enumerate(prompts) if prompt.box is not None]
    given = np.array([prompts[i].box for i in rows], dtype=np.float64).reshape(-1, 4)
    problems = {rows[i]: problem.words for i, problem in box_problems(given, size, may_overshoot=True).items()}
    for row, words in problems.items():
        listed = ", ".join(map(str, list(problems)[:NAMED])) + (" …" if len(problems) > NAMED else "")
        raise ValueError(
            f"{where}Region {row}: {words} Rows of detections whose boxes cannot be used: {listed} ({len(problems)} of "
            f"{len(boxes)}). Correct these boxes, or drop the rows before you give the detections."
        )
    for i, box in zip(rows, clip_boxes(given, size).tolist()):
        prompts[i] = replace(prompts[i], box=tuple(box))
    return prompts


def _column(detections: Any, name: str, where: str) -> np.ndarray:
    value = getattr(detections, name, None)
    if value is None:
        raise ValueError(
            f"{where}Got detections of type {type(detections).__name__}, expected supervision's Detections, or an object with "
            f"the attribute {name}. Give other boxes as boxes=…, masks as masks=…."
        )
    return np.asarray(value)


def as_detections(
    columns: dict[str, np.ndarray],
    given: Any = None,
    *,
    concepts: Sequence[Sequence[tuple[str, float]]] | None = None,
    vocabulary: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
) -> Any:
    """R regions as supervision's `Detections`; see `RegionTokens.to_detections`.

    columns: "xyxy" (R, 4), "mask" (R, H, W) or None, "quality" (R,) and "embedding" (R, E).
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise ImportError(f"to_detections makes supervision's Detections: {INSTALL}") from error
    count = len(columns["xyxy"])
    for name, values in (("detections", given), ("concepts", concepts), ("captions", captions)):
        if values is not None and len(values) != count:
            raise ValueError(
                f"Got {len(values)} {name} for {counted(count, 'region')}: give one for each region, in their order."
            )
    confidence, class_id = getattr(given, "confidence", None), getattr(given, "class_id", None)
    data: dict[str, Any] = dict(getattr(given, "data", None) or {})
    data["mask_quality"] = columns["quality"]
    data["region_embedding"] = columns["embedding"]
    if captions is not None:
        data["caption"] = np.array(list(captions), dtype=object)
    if concepts is not None:
        if "class_name" in data:
            data["detector_class_name"] = data["class_name"]
        best = [own[0][0] for own in concepts]
        data["class_name"] = np.array(best, dtype=object)
        data["concepts"] = [list(own) for own in concepts]
        class_id = None if vocabulary is None else _numbers_of(best, vocabulary)  # the detector's are of other names
    return Detections(
        xyxy=columns["xyxy"],
        mask=columns["mask"],
        confidence=columns["quality"] if confidence is None else np.asarray(confidence),
        class_id=class_id,
        tracker_id=getattr(given, "tracker_id", None),
        data=data,
        metadata=dict(getattr(given, "metadata", None) or {}),
    )


def _numbers_of(names: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Where each name stands in the vocabulary."""
    numbers = {name: i for i, name in enumerate(vocabulary)}
    if strangers := sorted(set(names) - set(numbers)):
        raise ValueError(
            f"vocabulary lacks {', '.join(strangers)[:200]}: give the names that the concepts were chosen from."
        )
    return np.array([numbers[name] for name in names], dtype=np.int64)
