"""Prompts for training TAP: a box or one point first, then points where the first answer was wrong.

TAP's two-stage scheme (arXiv 2312.09128, section 3.2; numbers as in the authors' released prompter). Works on whole
batches of regions in the model frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tap_tokenizer import PointLabel

BOX_JITTER = 0.1
"""Standard deviation of a box corner's shift, outwards only, in units of the box's side."""
MAX_JITTER = 20 / 1024
"""No corner moves farther than this share of the frame."""


@dataclass
class TrainingPrompts:
    """Prompts of R regions: points (R, P, 2) in pixels of the model frame, labels (R, P), and which began as boxes (R,)."""

    points: Tensor
    labels: Tensor
    is_box: Tensor

    def select(self, regions: Tensor) -> TrainingPrompts:
        """The prompts of these regions (N,) alone."""
        return TrainingPrompts(self.points[regions], self.labels[regions], self.is_box[regions])


class PromptSampler:
    """Draws prompts from masks (R, M, M) and boxes (R, 4) with a generator of its own, so that a run can be repeated."""

    def __init__(self, image_size: int, box_probability: float = 0.5, max_points: int = 9, seed: int = 0) -> None:
        self.image_size = image_size
        self.box_probability = box_probability
        self.max_points = max_points
        self.generator = torch.Generator().manual_seed(seed)

    def reseed(self, seed: int) -> None:
        """Start the draws of one step, which then depend on nothing before it."""
        self.generator.manual_seed(seed)

    def some(self, count: int, number: int) -> Tensor:
        """`number` indices of `count` regions, in order, each region at most once; all of them where `count` is less."""
        return torch.randperm(count, generator=self.generator)[:number].sort().values

    def first(self, masks: Tensor, boxes: Tensor) -> TrainingPrompts:
        """Stage 1: a jittered box with `box_probability`, else one point on the mask. Both take two slots."""
        count = len(boxes)
        is_box = self._uniform(count) < self.box_probability
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2).cpu()
        draws = torch.randn(count, 4, generator=self.generator) * BOX_JITTER * sides
        shift = draws.clamp(min=0, max=MAX_JITTER * self.image_size)  # a draw that points inwards moves nothing
        outward = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        box = boxes.cpu() + shift * outward
        point = self._points_on(masks, 1).cpu()
        padding = torch.zeros(count, 1, 2)
        as_box = box.view(count, 2, 2)
        as_point = torch.cat([point, padding], dim=1)
        points = torch.where(is_box[:, None, None], as_box, as_point)
        box_labels = torch.tensor([PointLabel.TOP_LEFT, PointLabel.BOTTOM_RIGHT])
        point_labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING])
        labels = torch.where(is_box[:, None], box_labels, point_labels)
        device = masks.device
        return TrainingPrompts(points.to(device), labels.to(device), is_box.to(device))

    def refine(self, first: TrainingPrompts, masks: Tensor, predicted: Tensor) -> TrainingPrompts:
        """Stage 2: one to eight more points for all, from where prediction (R, M, M) and mask, both boolean, differ.

        A region without any error gets points on its mask. The padding point of a prompt without a box stays last.
        """
        number = int(torch.randint(1, self.max_points, (1,), generator=self.generator))
        error = predicted ^ masks
        flawless = ~error.flatten(1).any(dim=1)
        error[flawless] = masks[flawless]
        points = self._points_on(error, number)
        cells = ((points + 0.5) * masks.shape[-1] / self.image_size).long()  # a pixel's coordinates name its centre
        rows = torch.arange(len(masks), device=masks.device)[:, None]
        labels = masks[rows, cells[..., 1], cells[..., 0]].long()  # BACKGROUND is 0, FOREGROUND 1
        head, tail = first.is_box[:, None, None], first.is_box[:, None]
        begin, end = first.points[:, :1], first.points[:, 1:]
        with_box = torch.cat([begin, end, points], dim=1)
        with_point = torch.cat([begin, points, end], dim=1)
        box_labels = torch.cat([first.labels[:, :1], first.labels[:, 1:], labels], dim=1)
        point_labels = torch.cat([first.labels[:, :1], labels, first.labels[:, 1:]], dim=1)
        return TrainingPrompts(
            torch.where(head, with_box, with_point), torch.where(tail, box_labels, point_labels), first.is_box
        )

    def _points_on(self, masks: Tensor, number: int) -> Tensor:
        """`number` random points (R, number, 2) on each mask (R, M, M), anywhere inside the drawn cells."""
        weights = masks.flatten(1).float().cpu() + 1e-12
        cells = torch.multinomial(weights, number, replacement=True, generator=self.generator)
        side = masks.shape[-1]
        xy = torch.stack([cells % side, cells // side], dim=-1).float()
        inside = (xy + self._uniform(*xy.shape)).minimum(xy + 1 - 2**-10)  # a sum near the next cell rounds into it
        return (inside * self.image_size / side - 0.5).clamp(min=0).to(masks.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)
