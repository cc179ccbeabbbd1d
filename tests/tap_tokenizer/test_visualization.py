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
    changed = np.abs(drawn - shade).max(axis=2) > 40
    assert changed[118:123, 50:80].any(axis=0).all()  # the upper side of the mask's outline
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


def coloured(drawn: Image.Image, index: int) -> np.ndarray:
    """Where a picture has exactly the colour of a region, as rows of (y, x)."""
    return np.argwhere(np.abs(np.asarray(drawn).astype(int) - region_colour(index)).max(axis=2) < 3)


def test_an_object_keeps_its_own_colour_under_the_veil() -> None:
    mask = np.zeros((1, 200, 300), bool)
    mask[0, 50:150, 60:240] = True
    for shade in ((214, 32, 38), (247, 247, 244), (38, 78, 206), (0, 0, 0)):
        drawn = np.asarray(draw_regions(np.full((200, 300, 3), shade, np.uint8), masks=mask, names=False)).astype(int)
        assert 0 < np.abs(drawn[100, 150] - shade).max() < 14  # of 255, which nobody sees as another colour
        assert len(coloured(Image.fromarray(drawn.astype(np.uint8)), 0)) > 400  # the outline has the region's colour


@pytest.mark.parametrize("side", [300, 1000, 3000])
def test_lines_and_words_grow_with_the_picture(side: int) -> None:
    mask = np.zeros((1, side, side), bool)
    mask[0, side // 2 : side // 2 + side // 4, side // 4 : side // 2] = True
    drawn = draw_regions(np.full((side, side, 3), 90, np.uint8), masks=mask, labels=["a red umbrella"])
    bright = np.argwhere(np.asarray(drawn).min(axis=2) > 180)  # the words alone are white
    assert max(8, 0.015 * side) <= np.ptp(bright[:, 0]) <= max(16, 0.03 * side)
    outline = coloured(drawn, 0)
    row = np.sort(outline[outline[:, 0] == side // 2 + side // 8][:, 1])
    assert max(1, side / 500) <= (row < side // 3).sum() <= max(2, side / 200)  # the left side of the outline
    dark = np.asarray(drawn).max(axis=2)[side // 2 + side // 8, : side // 3] < 70  # its rim outside and inside
    assert max(1, side / 2000) <= dark.sum() <= max(4, side / 300)


@pytest.mark.parametrize("side", [300, 1000, 3000])
def test_a_box_has_a_rim_on_both_sides_and_a_line_that_grows_with_the_picture(side: int) -> None:
    box = [side // 4, side // 4, side // 2, side // 2]
    drawn = draw_regions(np.full((side, side, 3), 200, np.uint8), boxes=[box], names=False)
    row = np.asarray(drawn).astype(int)[3 * side // 8, : 3 * side // 8]  # across the left side
    line = np.flatnonzero(np.abs(row - region_colour(0)).max(axis=1) < 3)
    rim = np.flatnonzero(row.max(axis=1) < 100)
    assert max(2, side / 400) <= len(line) <= max(2, side / 300)
    assert line[0] == side // 4
    assert {line[0] - 1, line[-1] + 1} <= set(rim)
    assert len(rim) <= len(line)


def plates(drawn: Image.Image) -> list[tuple[slice, slice]]:
    """Where the plates of labels are, as (rows, columns); plates that touch count as one."""
    from scipy.ndimage import binary_fill_holes, find_objects, label

    dark = np.abs(np.asarray(drawn).astype(int) - (18, 18, 22)).max(axis=2) < 3
    parts = find_objects(label(binary_fill_holes(dark))[0])
    return [part for part in parts if dark[part].sum() > 120]


@pytest.mark.parametrize(("side", "count"), [(300, 5), (1000, 12), (3000, 12)])
def test_labels_do_not_overlap_where_there_is_room(side: int, count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(4 if side < 3000 else 1):
        corners = rng.uniform(0, 0.8 * side, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.08 * side, 0.2 * side, (count, 2))], axis=1)
        drawn = draw_regions(np.full((side, side, 3), 230, np.uint8), boxes=boxes, labels=["a pen"] * count)
        found = plates(drawn)
        assert len(found) == count
        sizes = {(rows.stop - rows.start) // 4 for rows, _ in found}
        assert max(sizes) - min(sizes) <= 1  # none covers a part of another, and none is cut off by the edge


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_labels_stay_inside_the_picture(corner: tuple[int, int]) -> None:
    x, y = (260 * c for c in corner)
    drawn = draw_regions(np.full((300, 300, 3), 230, np.uint8), boxes=[[x, y, x + 39, y + 39]], labels=["a long label"])
    ((rows, columns),) = plates(drawn)
    whole = draw_regions(np.full((300, 300, 3), 230, np.uint8), boxes=[[120, 120, 160, 160]], labels=["a long label"])
    ((other_rows, other_columns),) = plates(whole)
    assert columns.stop - columns.start == other_columns.stop - other_columns.start
    assert rows.stop - rows.start == other_rows.stop - other_rows.start


def test_labels_stand_off_each_other_and_off_other_regions() -> None:
    boxes = [[20 + 45 * i, 100, 60 + 45 * i, 140] for i in range(6)]
    words = ["a small yellow face", "a medium blue diamond", "a shamrock", "a large wheel", "a pen", "an envelope"]
    drawn = draw_regions(np.full((240, 320, 3), 255, np.uint8), boxes=boxes, labels=words)
    found = plates(drawn)
    assert len(found) == 6  # none touches another
    for rows, _ in found:
        assert rows.stop <= 100 or rows.start >= 140  # and none lies on a region


def test_long_words_are_broken_and_stay_inside() -> None:
    words = "a very long sentence that says more of a region than the picture is wide"
    drawn = draw_regions(np.full((300, 300, 3), 90, np.uint8), boxes=[[100, 150, 160, 200]], labels=[words])
    plate = np.argwhere(np.abs(np.asarray(drawn).astype(int) - (18, 18, 22)).max(axis=2) < 3)
    assert np.ptp(plate[:, 1]) < 0.7 * 300
    assert np.ptp(plate[:, 0]) > 30


def test_a_legend_writes_the_words_beneath_the_picture(picture: Image.Image) -> None:
    drawn = draw_regions(picture, boxes=[[5, 5, 40, 30], [50, 20, 80, 50]], labels=["a cat", "two dogs"], legend=True)
    assert drawn.width == picture.width
    assert drawn.height > picture.height + 24
    assert np.asarray(drawn)[picture.height + 1, 2].tolist() == [255, 255, 255]
    for i in range(2):
        assert (coloured(drawn, i)[:, 0] > picture.height).sum() > 20
    with pytest.raises(ValueError, match="legend without labels"):
        draw_regions(picture, boxes=[[5, 5, 40, 30]], legend=True)


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
