"""Mean IoU's parts: overlap, drawn points, clicks."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics import interval, mask_iou, next_click, sample_points


def disc(x: int, y: int, r: int) -> np.ndarray:
    rows, columns = np.mgrid[:60, :80]
    return (columns - x) ** 2 + (rows - y) ** 2 <= r * r


def test_iou() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 0
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    assert mask_iou(a, a) == 1


def test_an_interval_is_that_of_wilson() -> None:
    """Whose values for nine of ten and for all of ten are computed by hand."""
    assert interval(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    low, high = interval(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)
    narrow = interval(900, 1000)
    assert 0.87 < narrow[0] < 0.9 < narrow[1] < 0.93


def test_points_lie_on_the_mask_and_depend_on_seed_and_name_alone() -> None:
    mask = disc(20, 30, 8)
    points = sample_points(mask, 9, 0, "a")
    assert all(mask[int(y), int(x)] for x, y in points)
    assert points == sample_points(mask, 9, 0, "a")
    assert sample_points(mask, 3, 0, "a") == points[:3]
    assert points not in (sample_points(mask, 9, 1, "a"), sample_points(mask, 9, 0, "b"))
    with pytest.raises(ValueError, match="mask of a is empty"):
        sample_points(np.zeros((4, 4), bool), 1, 0, "a")


def test_clicks_go_into_the_larger_error() -> None:
    truth = disc(20, 30, 9)
    assert next_click(None, truth) == ([20.0, 30.0], 1)
    assert next_click(truth | disc(60, 30, 12), truth) == ([60.0, 30.0], 0)
    assert next_click(disc(60, 30, 4), truth) == ([20.0, 30.0], 1)
    assert next_click(truth.copy(), truth) == ([20.0, 30.0], 1)  # no error is left: once more on the mask
    edge = np.zeros((10, 10), bool)
    edge[:5, :5] = True
    assert next_click(None, edge) == ([2.0, 2.0], 1)  # the picture's edge is a border


def test_a_click_is_the_innermost_pixel_of_the_whole_picture() -> None:
    """Distances are taken in the box around an error alone, and are those of the picture."""
    from scipy.ndimage import distance_transform_edt

    random = np.random.RandomState(0)
    for _ in range(20):
        truth, seen = (random.rand(9, 12).repeat(6, axis=0).repeat(5, axis=1) < random.rand() for _ in range(2))
        truth[: random.randint(40)] = seen[:, random.randint(40) :] = False
        depths = [distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1] for error in (truth & ~seen, seen & ~truth)]
        (x, y), label = next_click(seen, truth)
        deepest = max(depth.max() for depth in depths)
        if deepest:
            assert depths[1 - label][int(y), int(x)] == deepest
