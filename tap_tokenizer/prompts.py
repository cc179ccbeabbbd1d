"""`RegionPrompt`: what a person points at, as one value, whatever form it was given in.

Prompts are read in two steps. `RegionPrompt.read` checks their form as soon as they are given. `prompts_in_picture`
checks them against their picture, whose size it needs: it clips coordinates and reads masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from .coordinates import CoordinateProblem, as_numbers, box_problems, clip_boxes, clip_points, point_problems, shown
from .counts import counted
from .masks import as_mask
from .prompt_encoder import PointLabel


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """The prompt of one region, in pixels of its upright picture: a box, points, or both; or a mask alone.

    box: x1, y1, x2, y2. points: x and y of each, never empty. point_labels: 1 (on the region) or 0 (off it) for each point.
    mask: any form that `as_mask` reads, and booleans (H, W) once `prompts_in_picture` has read it.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    point_labels: tuple[int, ...] | None = None
    mask: Any = None

    @classmethod
    def read(cls, values: Mapping[str, Any], name: str = "The region") -> RegionPrompt:
        """Read a mapping with "box", "points", "point_labels" and "mask" as lists, arrays or tensors; None counts as absent.

        Points without labels all lie on the region. Other keys are ignored. `name` is what errors call the region.
        Raises `ValueError` for a region without a prompt, and for anything that is not a box, points, or labels for them.
        """
        given = {field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None}
        if not given:
            raise ValueError(f"{name} has no prompt: give it a box, points or a mask.")
        if "mask" in given and len(given) > 1:
            raise ValueError(f"{name} has a mask and other prompts: a mask stands alone.")
        if "point_labels" in given and "points" not in given:
            raise ValueError(f"{name} has point_labels but no points: give both or neither.")
        if "mask" in given:
            return cls(mask=given["mask"])
        box = _four(_numbers(given["box"], (4,), f"{name}: box")) if "box" in given else None
        points = _numbers(given.get("points", []), (None, 2), f"{name}: points").tolist()
        labels = _labels(given.get("point_labels"), len(points), name)
        if box is None and not points:
            raise ValueError(f"{name} has neither a box nor points: give one of them.")
        return cls(box, tuple((x, y) for x, y in points) or None, labels or None)

    @classmethod
    def read_lists(
        cls, *, boxes: Any = None, points: Any = None, point_labels: Any = None, masks: Any = None, where: str = ""
    ) -> list[RegionPrompt]:
        """Read the prompts of one picture from lists with an entry for each region, None where a region lacks that kind.

        Without any list, the result is []. `where` begins the errors, for example "Image 3: ".
        """
        given = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        lists = {name: _as_region_list(name, value, where) for name, value in given.items() if value is not None}
        if "point_labels" in lists and "points" not in lists:
            raise ValueError(
                f"{where}Got point_labels without points: give both; a label is 1 on the region and 0 off it."
            )
        counts = {name: len(value) for name, value in lists.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{n} {name}" for name, n in counts.items())
            raise ValueError(f"{where}Got {found}: give the same number of each, None where a region lacks one.")
        return [
            cls.read({_SINGULAR[name]: value[i] for name, value in lists.items()}, f"{where}Region {i}")
            for i in range(next(iter(counts.values()), 0))
        ]

    def as_dict(self) -> dict[str, Any]:
        """The prompt as a mapping that `read` reads, without the keys whose value is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


_SINGULAR = {"boxes": "box", "points": "points", "point_labels": "point_labels", "masks": "mask"}


def read_prompts(count: int | None, *, prompts: Any = None, **lists: Any) -> list[list[RegionPrompt]]:
    """The prompts of each of `count` pictures, or, if that is None, of the only one.

    lists: boxes, points, point_labels, masks, as for `RegionPrompt.read_lists`, for several pictures in a list with an entry
    for each picture. Or prompts: what has been read already, in lists of the same form. Raises `ValueError` for neither.
    """
    present = {name: value for name, value in {**lists, "prompts": prompts}.items() if value is not None}
    if not present:
        raise ValueError("Got no prompts: give boxes, points or masks.")
    if prompts is not None and len(present) > 1:
        raise ValueError(f"Got {', '.join(present)}: give prompts alone.")
    if count is not None:
        _check_lists(present, count)
    if prompts is not None:
        return [_checked(own) for own in ([prompts] if count is None else prompts)]
    if count is None:
        return [RegionPrompt.read_lists(**present)]
    return [
        RegionPrompt.read_lists(**{name: value[i] for name, value in present.items()}, where=f"Image {i}: ")
        for i in range(count)
    ]


def _check_lists(given: Mapping[str, Any], count: int) -> None:
    """Refuse what is not a list with an entry for each of `count` pictures."""
    for name, value in given.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_list and not (isinstance(value, (np.ndarray, Tensor)) and value.ndim):
            raise ValueError(
                f"Got {name} of type {type(value).__name__} for {counted(count, 'image')}, expected one list of {name} per "
                "image."
            )
        if len(value) != count:
            raise ValueError(
                f"Got {name} for {counted(len(value), 'image')}, but {counted(count, 'image')}: give one list of {name} per "
                "image, which is empty for an image without regions."
            )


def _checked(prompts: Any) -> list[RegionPrompt]:
    """Prompts of one picture, which must be `RegionPrompt`s."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, (str, bytes)):
        raise ValueError(f"Got prompts of type {type(prompts).__name__}, expected a list of RegionPrompt.")
    for prompt in prompts:
        if not isinstance(prompt, RegionPrompt):
            raise ValueError(
                f"Got a prompt of type {type(prompt).__name__}, expected RegionPrompt: see RegionPrompt.read."
            )
    return list(prompts)


def prompts_in_picture(
    prompts: Sequence[RegionPrompt], size: tuple[int, int], where: str = "", first: int = 0
) -> list[RegionPrompt]:
    """The same prompts, clipped to their picture of (height, width) `size`, with masks read as booleans (H, W).

    Raises `ValueError` for coordinates and masks that do not fit the picture; `where` begins the error, which counts regions
    from `first`. Give all prompts of a picture at once: only together do coordinates show whether they are in pixels.
    """
    boxes = {i: prompt.box for i, prompt in enumerate(prompts, first) if prompt.box is not None}
    points = [(i, point) for i, prompt in enumerate(prompts, first) for point in prompt.points or ()]
    rows = np.array(list(boxes.values()), dtype=np.float64).reshape(-1, 4)
    _check_coordinates(box_problems(rows, size), list(boxes), where)
    rows = np.array([point for _, point in points], dtype=np.float64).reshape(-1, 2)
    _check_coordinates(point_problems(rows, size), [i for i, _ in points], where)
    return [_clipped(prompt, size, f"{where}Region {i}") for i, prompt in enumerate(prompts, first)]


def _check_coordinates(problems: dict[int, CoordinateProblem], regions: Sequence[int], where: str) -> None:
    for row, problem in problems.items():
        raise ValueError(f"{where}Region {regions[row]}: {problem.words}")


def _clipped(prompt: RegionPrompt, size: tuple[int, int], name: str) -> RegionPrompt:
    """A prompt whose coordinates have been checked, within its picture."""
    if prompt.mask is not None:
        try:
            return replace(prompt, mask=as_mask(prompt.mask, size))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    box = None if prompt.box is None else _four(clip_boxes(np.array(prompt.box), size))
    points = prompt.points and tuple((x, y) for x, y in clip_points(np.array(prompt.points), size).tolist())
    return replace(prompt, box=box, points=points)


def _four(values: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2


def _labels(value: Any, count: int, name: str) -> tuple[int, ...]:
    """The labels of a region's points; without any, all lie on the region."""
    if value is None:
        return (int(PointLabel.FOREGROUND),) * count
    numbers = _numbers(value, (None,), f"{name}: point_labels").tolist()
    if len(numbers) != count:
        raise ValueError(
            f"{name} has {counted(count, 'point')} and {counted(len(numbers), 'label')}: give one label per point."
        )
    wrong = sorted({n for n in numbers if n not in (PointLabel.BACKGROUND, PointLabel.FOREGROUND)})
    if wrong:
        raise ValueError(f"{name} has point labels {wrong}, expected 1 (on the region) or 0 (off it).")
    return tuple(int(n) for n in numbers)


def _as_region_list(name: str, value: Any, where: str) -> list[Any]:
    if isinstance(value, (np.ndarray, Tensor)):
        dimensions = {"boxes": 2, "points": 3, "point_labels": 2, "masks": 3}[name]
        has_channel = name == "masks" and value.ndim == 4
        if value.ndim != dimensions and not has_channel:
            raise ValueError(
                f"{where}Got {name} of shape {tuple(value.shape)}, expected {dimensions} dimensions: regions come first, "
                "so give a single region as a list of one."
            )
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"{where}Got {name} of type {type(value).__name__}, expected a list with one entry per region."
        )
    if value and isinstance(value[0], Real):
        one = {"boxes": "[x1, y1, x2, y2]", "points": "[[x, y]]", "point_labels": "[1]", "masks": "mask"}[name]
        write = f"[[{one}], …], a list of regions for every picture" if where else f"[{one}]"
        raise ValueError(
            f"{where}Got {name} as a flat list of numbers, expected one entry per region: write {name}={write}."
        )
    return list(value)


def _numbers(value: Any, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """Finite numbers of a shape, where None stands for any length."""
    try:
        array = as_numbers(value, len(shape))
    except ValueError as error:
        raise ValueError(f"{what} is {shown(value)}, {error}.") from None
    if not array.size and shape[0] is None:
        return array.reshape([0 if n is None else n for n in shape])
    if array.ndim != len(shape) or any(want is not None and want != got for want, got in zip(shape, array.shape)):
        wanted = " × ".join("n" if n is None else str(n) for n in shape)
        raise ValueError(f"{what} has shape {array.shape}, expected {wanted} numbers.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} is {shown(array.tolist())}, expected finite numbers.")
    return array
