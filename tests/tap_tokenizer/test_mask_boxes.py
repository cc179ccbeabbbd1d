"""Boxes that are read off mask logits are those of the resized masks, to the pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tap_tokenizer import TapImageProcessor
from tap_tokenizer.mask_boxes import box_of_mask, boxes_of_masks


def test_boxes_around_masks() -> None:
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 3:7, 10:12] = True
    masks[1, 19, 0] = masks[1, 2, 29] = True
    assert boxes_of_masks(masks).tolist() == [[10, 3, 12, 7], [0, 2, 30, 20], [0, 0, 0, 0]]
    assert boxes_of_masks(masks[:0]).shape == (0, 4)
    assert [box_of_mask(mask.numpy()) for mask in masks] == [(10, 3, 12, 7), (0, 2, 30, 20), (0, 0, 0, 0)]


def logits_of_blobs(count: int, side: int, seed: int) -> Tensor:
    """Logits (count, side, side): blobs of every size with rough outlines, and specks of one cell around them."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 5, 5, generator=random)
    logits = 6 * F.interpolate(coarse, (side, side), mode="bicubic")[:, 0] - 12 * torch.rand(
        count, 1, 1, generator=random
    )
    logits += torch.randn(logits.shape, generator=random) * 3 * torch.rand(count, 1, 1, generator=random) ** 3
    for mask in logits:
        y, x = torch.randint(0, side, (2, 3), generator=random)
        mask[y, x] = 2 * torch.rand(3, generator=random)
    return logits


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (256, (512, 512)),
        (256, (256, 256)),
        (256, (50, 170)),
        (256, (700, 300)),
        (256, (1, 1)),
        (256, (3, 900)),
        (1024, (480, 640)),
        (1024, (1000, 333)),
    ],
)
def test_boxes_of_logits_are_those_of_their_masks(frame: int, size: tuple[int, int]) -> None:
    processor = TapImageProcessor(image_size=frame)
    reshaped = torch.tensor([[max(1, int(side * frame / max(size) + 0.5)) for side in size]])
    original = torch.tensor([size])
    for seed in range(3):
        logits = logits_of_blobs(12, frame // 4, seed)
        (masks,) = processor.post_process_masks([logits[:, None]], original, reshaped)
        boxes = processor.boxes_of_masks(logits, original[0], reshaped[0])
        assert boxes.tolist() == boxes_of_masks(masks[:, 0]).tolist()


def test_boxes_are_right_if_logits_are_within_rounding_of_the_threshold() -> None:
    """Rows whose highest pixel is zero but for a hair, and masks that are full, empty or all specks."""
    processor = TapImageProcessor(image_size=64)
    edge = torch.full((16, 16), -1.0)
    edge[4:10, 4:10] = 1.0
    edge[3, 4:10] = edge[10, 4:10] = -1.0 + 1e-7
    specks = torch.full((16, 16), -8.0)
    specks[::2, ::2] = 0.1
    logits = torch.stack([edge, torch.ones(16, 16), -torch.ones(16, 16), specks, edge * 1e4, edge * 0])
    for size in ((64, 64), (63, 40), (128, 100), (9, 9)):
        reshaped = torch.tensor([[round(side * 64 / max(size)) for side in size]])
        original = torch.tensor([size])
        (masks,) = processor.post_process_masks([logits[:, None]], original, reshaped)
        boxes = processor.boxes_of_masks(logits, original[0], reshaped[0])
        assert boxes.tolist() == boxes_of_masks(masks[:, 0]).tolist()


def test_only_the_edges_of_a_mask_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = TapImageProcessor(image_size=256)
    logits = torch.full((4, 64, 64), -9.0)
    logits[:, 20:40, 10:50] = 9.0
    monkeypatch.setattr(processor, "post_process_masks", lambda *_: pytest.fail("a whole mask was computed"))
    boxes = processor.boxes_of_masks(logits, torch.tensor([512, 512]), torch.tensor([256, 256]))
    assert (boxes == boxes[0]).all()
