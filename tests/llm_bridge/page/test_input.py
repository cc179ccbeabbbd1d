"""What comes from a browser: pictures of many kinds, bombs, damaged files, and marks that become prompts."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_bridge.page.input import PageLimits, read_picture, read_regions
from llm_bridge.page.scene import data_address


def decoded(address: str) -> bytes:
    return base64.b64decode(address.split(",", 1)[1])


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_pictures_of_many_kinds(picture: Image.Image, kind: str) -> None:
    got = read_picture(data_address(picture, kind), PageLimits())
    assert got.shape == (60, 90, 3)
    assert np.abs(got.astype(float) - np.asarray(picture)).mean() < 30


def test_a_turned_picture_is_upright(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    assert read_picture(address, PageLimits()).shape == (90, 60, 3)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "Got no picture"),
        ({"path": "/etc/passwd"}, "Got no picture"),
        ("/etc/passwd", "Got no picture"),
        ("http://127.0.0.1/picture.png", "Got no picture"),
        ("data:image/png;base64,@@@@", "arrived damaged"),
        (
            "data:image/png;base64," + base64.b64encode(b"words, not a picture").decode(),
            "not a picture that can be read",
        ),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "not a picture that can be read"),
    ],
)
def test_files_that_are_not_pictures_are_refused(address: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_picture(address, PageLimits())


def test_a_picture_that_was_cut_short_is_refused(picture: Image.Image) -> None:
    cut = decoded(data_address(picture, "PNG"))[:-200]
    with pytest.raises(ValueError, match="damaged or incomplete"):
        read_picture("data:image/png;base64," + base64.b64encode(cut).decode(), PageLimits())


def test_large_files_and_large_pictures_are_refused(picture: Image.Image) -> None:
    address = data_address(picture, "BMP")
    size = len(decoded(address))
    assert read_picture(address, PageLimits(file_bytes=size, pixels=5400)).shape == (60, 90, 3)
    with pytest.raises(ValueError, match="MB, expected at most"):
        read_picture(address, PageLimits(file_bytes=size - 3))
    with pytest.raises(ValueError, match="90 × 60 pixels, expected at most"):
        read_picture(address, PageLimits(pixels=5399))


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side in (9000, 60000):  # Pillow itself refuses the second
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match=f"{side} × {side} pixels|damaged"):
            read_picture("data:image/png;base64," + base64.b64encode(file).decode(), PageLimits())


# --- regions ----------------------------------------------------------------------------------------------------------


def test_marks_become_prompts() -> None:
    drawn = [
        {"box": [40, 30, 5, 6]},
        {"points": [[3, 4], [50, 20]], "point_labels": [1, 0]},
        {"box": [1, 2, 30, 40], "points": [[9, 9]], "point_labels": [1]},
    ]
    box, points, both = read_regions(drawn, (60, 90), PageLimits())
    assert box.as_dict() == {"box": (5, 6, 40, 30)}
    for value in (10**400, "3", None, [3], float("inf")):
        with pytest.raises(ValueError, match=r"expected numbers|leaves the picture"):
            read_regions([{"box": [1, 2, value, 40]}], (60, 90), PageLimits())
    assert points.as_dict() == {"points": ((3, 4), (50, 20)), "point_labels": (1, 0)}
    assert both.as_dict() == {"box": (1, 2, 30, 40), "points": ((9, 9),), "point_labels": (1,)}


def brushed(**marks: Any) -> dict[int, list[tuple[float, float]]]:
    """Points on (1) and off (0) a region that was painted from (10, 10) to (50, 10) and at (50, 40); -1: its box's corners."""
    strokes = [[[10, 10], [50, 10]], [[50, 40]], *marks.pop("strokes", [])]
    [prompt] = read_regions([{"strokes": strokes, "brush": 6, **marks}], (60, 90), PageLimits())
    assert prompt.box is not None
    assert prompt.points is not None
    found: dict[int, list[tuple[float, float]]] = {1: [], 0: [], -1: [prompt.box[:2], prompt.box[2:]]}
    for point, label in zip(prompt.points, prompt.point_labels or ()):
        found[label].append(point)
    return found


def test_what_was_painted_becomes_its_box_and_points_on_it() -> None:
    found = brushed()
    assert np.abs(np.array(found[-1]) - [[7, 7], [54, 44]]).max() <= 1
    assert all(8 <= y <= 12 or 38 <= y <= 42 for _, y in found[1])
    assert found[0] == []


def test_the_brush_takes_away() -> None:
    """The last stroke over a place counts: what was erased leaves the box, and TAP is told that it lies off the region."""
    found = brushed(strokes=[[[50, 40]]], stroke_labels=[1, 1, 0])
    assert found[-1][1][1] <= 15
    assert all(y <= 12 for _, y in found[1])
    assert np.abs(np.array(found[0]) - [50, 40]).max() <= 3
    beside = brushed(strokes=[[[80, 50]]], stroke_labels=[1, 1, 0])  # where nothing was painted
    assert beside[-1] == brushed()[-1]
    assert np.abs(np.array(beside[0]) - [80, 50]).max() <= 3
    again = brushed(strokes=[[[50, 40]], [[50, 40]]], stroke_labels=[1, 1, 0, 1])
    assert again == brushed()


def test_clicks_correct_what_was_painted() -> None:
    found = brushed(points=[[70, 50], [20, 30]], point_labels=[1, 0])
    assert found[-1] == [brushed()[-1][0], (70, 50)]  # the box holds what was added
    assert found[1][-1] == (70, 50)
    assert found[0] == [(20, 30)]


def test_a_region_of_which_nothing_is_left_is_named() -> None:
    with pytest.raises(ValueError, match=r"^Nothing of region1 is left: undo the last stroke"):
        brushed(strokes=[[[10, 10], [50, 10]], [[50, 40]]], stroke_labels=[1, 1, 0, 0])


@pytest.mark.parametrize(
    "drawn",
    [
        "all",
        [None],
        [{}],
        [{"box": [1, 2, 3]}],
        [{"box": [1, 2, 3, float("inf")]}],
        [{"box": "1234"}],
        [{"points": [["a", "b"]]}],
        [{"strokes": [[[1, 2]]], "brush": 1e9}],
        [{"strokes": [[[1, None]]], "brush": 3}],
        [{"points": 5}],
        [{"points": [5]}],
        [{"points": [[1, 2]], "point_labels": 5}],
        [{"points": [[1, 2]], "point_labels": [1, 0]}],
        [{"points": [[1, 2], [3, 4, 5]]}],
        [{"points": []}],
        [{"points": [[1, 2]] * 65}],
        [{"points": {"0": [1, 2]}}],
        [{"box": 5}],
        [{"box": {"x": 1}}],
        [{"box": [1, 2, 3, 10**400]}],
        [{"box": [1, 2, 3, float("nan")]}],
        [{"box": [True, 2, 3, 4]}],
        [{"box": [1, 2, 500, 4]}],
        [{"strokes": 5}],
        [{"strokes": [5]}],
        [{"strokes": [[5]]}],
        [{"strokes": []}],
        [{"strokes": [[[1, 2]] * 5001], "brush": 3}],
        [{"strokes": [[[1, 2]]] * 5001, "brush": 3}],
        [{"strokes": [[[1, 2]]], "brush": "3"}],
        [{"strokes": [[[1, 2]]], "brush": True}],
        [{"strokes": [[[1, 2]]], "brush": float("nan")}],
        [{"strokes": [[[1, 2]]], "stroke_labels": [1, 0]}],
        [{"strokes": [[[1, 2]]], "stroke_labels": 5}],
        [{"strokes": [[[1, 2]]], "stroke_labels": [0]}],
        [{"box": [1, 2, 30, 40]}] * 25,
    ],
)
def test_broken_marks_are_refused(drawn: Any) -> None:
    with pytest.raises(ValueError, match=r"region"):
        read_regions(drawn, (60, 90), PageLimits())


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="queue is 0, expected 1 or more"):
        PageLimits(queue=0)


def test_errors_name_a_region_as_the_page_does() -> None:
    with pytest.raises(ValueError, match=r"^region4: its box .* is thinner than a pixel"):
        read_regions([{"box": [1, 2, 30, 40]}, {"box": [0.1, 0.2, 0.3, 0.4]}], (60, 90), PageLimits(), known=2)
