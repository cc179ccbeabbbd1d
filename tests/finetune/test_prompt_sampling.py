"""Prompts for training: a box or a point, then points where the answer was wrong."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")

from finetune.prompt_sampling import MAX_JITTER, PromptSampler

SIZE, GRID = 64, 16


def masks() -> torch.Tensor:
    result = torch.zeros(40, GRID, GRID, dtype=torch.bool)
    result[:, 4:9, 6:12] = True
    return result


BOXES = torch.tensor([[24.0, 16.0, 48.0, 36.0]]).repeat(40, 1)


def cells(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = ((points + 0.5) * GRID / SIZE).long()  # a pixel's coordinates name its centre
    return index[..., 1], index[..., 0]


def test_first_prompts_are_jittered_boxes_or_points_on_the_mask() -> None:
    sampler = PromptSampler(SIZE, seed=3)
    prompts = sampler.first(masks(), BOXES)
    assert 8 < prompts.is_box.sum() < 32
    box, point = prompts.points[prompts.is_box].flatten(1), prompts.points[~prompts.is_box]
    assert (prompts.labels[prompts.is_box] == torch.tensor([2, 3])).all()
    assert (prompts.labels[~prompts.is_box] == torch.tensor([1, 4])).all()
    grown = (box - BOXES[0]) * torch.tensor([-1, -1, 1, 1])
    assert (grown >= 0).all()  # outwards only
    assert grown.max() <= MAX_JITTER * SIZE
    assert (grown > 0).float().mean() == pytest.approx(0.5, abs=0.2)
    y, x = cells(point[:, 0])
    assert masks()[0][y, x].all()


def test_refining_points_lie_where_the_answer_was_wrong() -> None:
    sampler = PromptSampler(SIZE, seed=1)
    first = sampler.first(masks(), BOXES)
    predicted = masks()
    predicted[:, 4:9, 6:9] = False  # missed
    predicted[:, 12:14, 2:4] = True  # invented
    second = sampler.refine(first, masks(), predicted)
    added = second.points.shape[1] - 2
    assert 1 <= added <= 8
    for i in range(40):
        is_box = bool(first.is_box[i])
        points = second.points[i, 2:] if is_box else second.points[i, 1:-1]
        labels = second.labels[i, 2:] if is_box else second.labels[i, 1:-1]
        y, x = cells(points)
        assert (predicted[i][y, x] != masks()[i][y, x]).all()
        assert torch.equal(labels, masks()[i][y, x].long())
        kept = second.labels[i, [0, 1]] if is_box else second.labels[i, [0, -1]]
        assert torch.equal(kept, first.labels[i])


def test_perfect_answers_get_points_on_the_mask() -> None:
    sampler = PromptSampler(SIZE, seed=2)
    first = sampler.first(masks(), BOXES)
    second = sampler.refine(first, masks(), masks())
    points = second.points[first.is_box][:, 2:]
    y, x = cells(points)
    assert masks()[0][y, x].all()
    assert (second.labels[first.is_box][:, 2:] == 1).all()


def test_draws_depend_only_on_the_seed() -> None:
    one, other = PromptSampler(SIZE, seed=0), PromptSampler(SIZE, seed=99)
    other.first(masks(), BOXES)
    for sampler in (one, other):
        sampler.reseed(7)
    a, b = one.first(masks(), BOXES), other.first(masks(), BOXES)
    assert torch.equal(a.points, b.points)
    assert torch.equal(a.is_box, b.is_box)


def test_box_probability() -> None:
    for chance in (0.0, 1.0):
        assert PromptSampler(SIZE, box_probability=chance).first(masks(), BOXES).is_box.float().mean() == chance
