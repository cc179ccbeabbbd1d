"""Drawing: everything asked for can be seen, on light and on dark, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tap_tokenizer import TapRegionTokenizer, draw_regions
from tap_tokenizer.visualization import region_colour


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_marks_are_visible_on_any_background(shade: int) -> None:
    plain = np.full((200, 300, 3), shade, np.uint8)
    mask = np.zeros((1, 200, 300), bool)
    mask[0, 120:160, 40:90] = True
    drawn = np.asarray(
        draw_regions(plain, masks=mask, boxes=[[150, 60, 280, 190]], points=[[[20, 30]]], labels=["a dog"])
    ).astype(int)
    changed = np.abs(drawn - shade).max(axis=2) > 30
    assert changed[125:155, 45:85].mean() > 0.9  # the tint of the mask
    assert changed[100, 149:153].any()  # the box's left side
    assert changed[30, 20]  # the point
    assert not changed[195:, 100:140].any()  # and the rest is as it was


def test_words_have_contrast_everywhere() -> None:
    for shade in (0, 255):
        drawn = np.asarray(
            draw_regions(np.full((100, 300, 3), shade, np.uint8), boxes=[[10, 60, 90, 95]], labels=["words"])
        )
        plate = drawn[46:58, 20:60].astype(int).sum(axis=2)
        assert plate.min() < 150
        assert plate.max() > 600


def test_regions_are_drawn_from_their_tokens(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=[[5, 5, 40, 30]])
    drawn = draw_regions(picture, regions)
    assert drawn.size == picture.size
    assert drawn.mode == "RGB"
    assert np.asarray(drawn).tolist() != np.asarray(picture).tolist()


def test_nothing_is_drawn_unless_given(picture: Image.Image) -> None:
    assert np.array_equal(np.asarray(draw_regions(picture)), np.asarray(picture))


def test_labels_do_not_cover_each_other() -> None:
    boxes = [[50, 50, 100, 100]] * 3
    drawn = np.asarray(draw_regions(np.full((200, 200, 3), 255, np.uint8), boxes=boxes, labels=["one", "two", "three"]))
    for i in range(3):
        assert (np.abs(drawn.astype(int) - region_colour(i)).max(axis=2) < 3).any()


def test_regions_at_the_edge_stay_inside() -> None:
    draw_regions(
        np.zeros((20, 20, 3), np.uint8), boxes=[[-5, -5, 25, 25], [19, 19, 20, 20]], labels=["long words", "x"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opacity": 2.0}, "opacity is 2.0, expected 0 to 1"),
        ({"boxes": [[0, 0, 1, 1]], "labels": []}, "Got 0 labels, expected 1"),
        ({"masks": np.zeros((1, 3, 3))}, r"expected \(R, 60, 90\)"),
    ],
)
def test_bad_input_is_refused(picture: Image.Image, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_regions(picture, **arguments)  # type: ignore[arg-type]
