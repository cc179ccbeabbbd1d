"""Work ends between two of its steps, and what was begun leaves nothing behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from PIL import Image

from tap_tokenizer import TapRegionTokenizer, before_step, interruptible


class EnoughError(Exception):
    """Nobody waits any more."""


def after(count: int) -> Any:
    """A check that lets so many steps begin."""
    left = [count]

    def check() -> None:
        if not left[0]:
            raise EnoughError
        left[0] -= 1

    return check


def test_a_search_ends_between_two_batches_and_can_be_done_again(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "region_batch_size", 8)
    options = {"points_per_crop": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    expected = tiny_tokenizer.encode_everything(picture, **options)
    steps: list[int] = []
    with interruptible(lambda: steps.append(1)):
        tiny_tokenizer.encode_everything(picture, **options)
    assert len(steps) == 1 + 64 // 8  # the picture, and its points
    for count in range(len(steps)):
        with interruptible(after(count)), pytest.raises(EnoughError):
            tiny_tokenizer.encode_everything(picture, **options)
    torch.testing.assert_close(tiny_tokenizer.encode_everything(picture, **options).boxes, expected.boxes)


def test_pictures_regions_masks_and_captions_are_steps(
    tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "region_batch_size", 2)
    monkeypatch.setattr(tiny_tokenizer, "image_batch_size", 1)
    steps: list[int] = []

    def taken() -> int:
        count = len(steps)
        steps.clear()
        return count

    with interruptible(lambda: steps.append(1)):
        features = tiny_tokenizer.embed_image([picture] * 3)
        assert taken() == 3
        regions = tiny_tokenizer.encode(features=features, boxes=[[[1, 1, 40, 40]]] * 3)
        assert taken() == 2
        assert len(regions.coco_rle()) == 3
        assert taken() == 2
        tiny_tokenizer.caption(regions, return_ids=True)
        assert taken() == 1


def test_it_concerns_its_own_thread_alone_and_ends_with_it() -> None:
    before_step()
    with interruptible(after(0)):
        other = threading.Thread(target=before_step)
        other.start()
        other.join()
        with pytest.raises(EnoughError):
            before_step()
    before_step()
