"""Outlines drawn again give the mask, holes filled and specks left out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("contourpy", reason="needs the extra serve")

from llm_bridge.serving.outlines import outlines_of, simplified
from tap_tokenizer import as_mask


def drawn(outlines: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return as_mask([outline.ravel().tolist() for outline in outlines], size)


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


def test_a_rectangle_has_its_own_corners() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:25] = True
    (outline,) = outlines_of(mask, 0.02)
    assert np.allclose(sorted(outline.min(axis=0)), [5, 10], atol=0.5)
    assert np.allclose(outline.max(axis=0), [25, 15], atol=0.5)
    assert len(outline) <= 8


@pytest.mark.parametrize(("x", "y"), [(50, 40), (0, 0), (100, 80), (50, 0)])
def test_a_disc_comes_back_even_at_the_edge(x: float, y: float) -> None:
    mask = disc((80, 100), x, y, 30)
    again = drawn(outlines_of(mask, 0.001), mask.shape)
    assert (mask & again).sum() / (mask | again).sum() > 0.97


def test_holes_are_filled_and_specks_left_out() -> None:
    mask = disc((80, 100), 50, 40, 30) & ~disc((80, 100), 50, 40, 10) | disc((80, 100), 50, 40, 4)
    mask[2:4, 2:4] = True
    outlines = outlines_of(mask, 0.001)
    assert len(outlines) == 1
    assert (drawn(outlines, mask.shape) != disc((80, 100), 50, 40, 30)).sum() < 60


def test_parts_come_largest_first() -> None:
    mask = disc((80, 100), 20, 20, 10) | disc((80, 100), 70, 40, 25)
    large, small = outlines_of(mask, 0.001)
    assert np.ptp(large, axis=0).min() > np.ptp(small, axis=0).max()


def test_one_pixel_and_none() -> None:
    mask = np.zeros((8, 8), bool)
    assert outlines_of(mask, 0.001) == []
    mask[3, 4] = True
    (outline,) = outlines_of(mask, 1.0)
    assert len(outline) >= 3
    assert outlines_of(np.ones((4, 4), bool), 0.001)[0].max() == 4


def test_what_is_left_out_lies_near_what_is_kept() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 100 + 50 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for tolerance in (0.1, 1.0, 5.0):
        kept = simplified(circle, tolerance)
        assert 3 <= len(kept) < len(circle)
        radius = np.linalg.norm((kept + np.roll(kept, 1, axis=0)) / 2 - 100, axis=1)
        assert (50 - radius).max() <= tolerance + 0.01
