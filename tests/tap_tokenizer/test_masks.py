"""Masks as people have them: every form is the same region, and what is no mask of one region is refused in a sentence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_forms import BOX, SIZE, box_of, ellipse, palette, rgba, sharp_forms, soft_forms, written
from PIL import ExifTags, Image, ImageFile, ImageFilter

from tap_tokenizer import as_mask, load_rgb

DEMO = Path(__file__).parents[2] / "tap_tokenizer" / "pretrained" / "tap-tiny" / "example.png"
ELLIPSE = np.asarray(ellipse()) > 0


def test_every_sharp_form_is_the_ellipse_to_the_pixel(tmp_path: Path) -> None:
    wrong = [name for name, form in sharp_forms(tmp_path) if not np.array_equal(as_mask(form, SIZE), ELLIPSE)]
    assert not wrong


def test_every_soft_form_has_the_ellipses_box_within_a_pixel() -> None:
    for name, form in soft_forms():
        assert box_of(as_mask(form, SIZE)) == pytest.approx(BOX, abs=1), name


@pytest.mark.parametrize("resample", ["BILINEAR", "BICUBIC", "LANCZOS"])
@pytest.mark.parametrize("side", [64, 128, 300])
def test_enlarged_masks_are_cut_where_they_are_half(side: int, resample: str) -> None:
    way = Image.Resampling[resample]
    small = ellipse().resize((side, side), Image.Resampling.BOX).resize((512, 512), way)
    found = box_of(as_mask(small, SIZE))
    assert found == box_of(np.asarray(small) >= 128)
    assert found == pytest.approx(BOX, abs=512 / side / 2)


@pytest.mark.parametrize("corners", [(60, 60, 450, 450), (101, 103, 300, 332), (3, 3, 20, 500)])
def test_soft_edges_are_not_taken_for_labels(corners: tuple[int, int, int, int]) -> None:
    mask = ellipse(corners)
    box = Image.new("L", mask.size)
    box.paste(255, corners)
    for sharp in (mask, box):
        true = np.asarray(sharp) > 0
        softened = [sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 2, 3)]
        softened += [written(sharp, "JPEG", quality=quality) for quality in (10, 60, 98)]
        softened += [written(written(sharp, "JPEG", quality=50).resize((500, 500)), "JPEG").resize((512, 512))]
        for number, soft in enumerate(softened):
            for form in (soft, soft.convert("RGB"), np.asarray(soft) / 255):
                found = as_mask(form, SIZE)
                assert (found & true).sum() / (found | true).sum() > 0.85, number


def test_half_of_the_largest_value_is_the_threshold() -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    for scale in (1.0, 0.3, 255.0):
        assert np.array_equal(as_mask(ramp * np.float32(scale), (8, 64)), ramp > 0.5)
    assert as_mask(np.full((4, 6), 7), (4, 6)).all()


def test_a_picture_is_turned_as_its_file_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    mask = Image.new("L", (90, 60))
    mask.paste(255, (0, 0, 45, 20))
    mask.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    assert box_of(as_mask(tmp_path / "turned.jpg", (90, 60))) == pytest.approx([40, 0, 60, 45], abs=1)
    with pytest.raises(ValueError, match=r"turned\.jpg is 60 × 90 pixels, expected the picture's 90 × 60"):
        as_mask(tmp_path / "turned.jpg", (60, 90))


# --- what is no mask --------------------------------------------------------------------------------------------------

OTHER = np.zeros(SIZE, bool)
OTHER[50:110, 60:170] = True


def labels(first: int, second: int) -> np.ndarray:
    return np.where(ELLIPSE, first, np.where(OTHER, second, 0)).astype(np.uint8)


def coloured(first: tuple[int, int, int], second: tuple[int, int, int], rest: tuple[int, int, int]) -> np.ndarray:
    chosen = np.where(ELLIPSE[..., None], first, np.where(OTHER[..., None], second, rest))
    return chosen.astype(np.uint8)


def label_maps() -> Iterator[tuple[str, Any, str]]:
    """(name, label map, what must be said of it)."""
    red, green, blue, white, black = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
    ring = np.asarray(ellipse().filter(ImageFilter.MaxFilter(9))) > 0
    void = np.where(ELLIPSE, 1, np.where(ring, 255, 0)).astype(np.uint8)
    thin = np.where(ELLIPSE, 1, np.where(np.asarray(ellipse().filter(ImageFilter.MaxFilter(3))) > 0, 255, 0))
    narrow = np.where(ELLIPSE, 1, np.where(np.asarray(ellipse().filter(ImageFilter.MaxFilter(5))) > 0, 255, 0))
    for pair in ((1, 2), (2, 1), (1, 200), (127, 255), (200, 255), (254, 255), (100, 101)):
        yield f"labels {pair}", labels(*pair), f"labels {min(pair)}, {max(pair)}"
        yield f"picture of labels {pair}", Image.fromarray(labels(*pair)), f"labels {min(pair)}, {max(pair)}"
    yield "int64", labels(1, 2).astype(np.int64), "labels 1, 2"
    yield "float tensor", torch.from_numpy(labels(1, 2)).float(), "labels 1, 2"
    yield "a void margin", void, "labels 1, 255, expected one region. 255 often marks"
    yield "a void margin of one pixel", thin, "labels 1, 255"
    yield "a void margin in a palette", palette(void, black, red, *[white] * 254), "labels 1, 255"
    yield (
        "a narrow void margin in a palette",
        palette(narrow, black, (192, 128, 128), *[(224, 224, 192)] * 254),
        "labels 1, 255",
    )
    yield "large numbers", labels(1, 2).astype(np.int64) * 1_234_567, "labels 1234567, 2469134"
    yield "ids of training and void", np.where(OTHER, 18, void), "labels 1, 18, 255"
    yield "three large labels, none of them 0", np.where(ELLIPSE, 7, np.where(OTHER, 8, 11)), "labels 7, 8, 11"
    yield "colours of equal brightness", coloured((128, 0, 0), green, black), "(0, 128, 0), (128, 0, 0)"
    yield "red and blue", coloured(red, red, blue), "(0, 0, 255), (255, 0, 0)"
    yield "red on white", coloured(red, red, white), "(255, 0, 0), (255, 255, 255)"
    yield "two colours on transparent", rgba(coloured(red, blue, black), (ELLIPSE | OTHER) * 255), "(255, 0, 0, 255)"
    yield "a palette", palette(labels(1, 2), black, (128, 0, 0), green), "labels 1, 2"
    yield (
        "a tiny second object",
        np.where(ELLIPSE, 255, OTHER & np.eye(512, dtype=bool).cumsum(0).astype(bool)) * 1,
        "1",
    )
    yield "JPEG", written(Image.fromarray(labels(127, 255)), "JPEG", quality=85), "label map"
    small = Image.fromarray(labels(127, 255)).resize((300, 300), Image.Resampling.BILINEAR)
    yield "resized", small.resize((512, 512), Image.Resampling.BILINEAR), "127"
    cells = np.arange(512) // 16
    yield "a thousand cells", (cells[:, None] * 32 + cells).astype(np.uint16), "labels 1, 2, 3"


def test_label_maps_are_refused_naming_their_labels() -> None:
    for name, form, words in label_maps():
        with pytest.raises(ValueError, match="is a label map") as refusal:
            as_mask(form, SIZE)
        assert words in str(refusal.value), name


def test_one_label_of_a_map_is_a_mask() -> None:
    assert np.array_equal(as_mask(labels(1, 2) == 1, SIZE), ELLIPSE)
    assert np.array_equal(as_mask(labels(7, 0), SIZE), ELLIPSE)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_photograph_is_refused_as_a_mask(mode: str) -> None:
    with Image.open(DEMO) as picture, pytest.raises(ValueError, match=r"neither black nor white|label map"):
        as_mask(picture.convert("RGB").convert(mode), (picture.height, picture.width))


NESTED: list[Any] = []
for _ in range(100_000):
    NESTED = [NESTED]
RUNS = {"size": list(SIZE), "counts": [0, 512 * 512]}
SELF: list[Any] = []
SELF.append(SELF)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "is of type NoneType"), (3, "is of type int"), (b"png", "is of type bytes"), (object(), "type object"),
        (np.zeros(SIZE, bool), "is empty"), (Image.new("RGBA", SIZE), "is empty"), (rgba(255, 0), "is empty"),
        (np.zeros((512, 300), bool), r"has shape \(512, 300\), expected the picture's \(height, width\) \(512, 512\)"),
        (np.zeros((2, 512, 512), bool), "has shape"), (np.zeros(()), "has shape"),
        (Image.new("L", (300, 512)), "is 300 × 512 pixels, expected the picture's 512 × 512"),
        (np.where(ELLIPSE, 3.0, -2.0), r"numbers below 0, down to -2\. If they are logits, give mask > 0"),
        (np.where(ELLIPSE, 1, -1), "numbers below 0"), (np.where(ELLIPSE, 1, np.nan), "holds NaN or infinity"),
        (ELLIPSE.astype(complex), "holds complex128"), (ELLIPSE.astype(str), "holds <U"),
        (torch.zeros(SIZE, device="meta"), "without plain numbers"), (torch.zeros(SIZE).to_sparse(), "without plain numbers"),
        ("none.png", "Found no image file at none.png"),
        ({}, "expected an RLE"), ({"segmentation": RUNS}, "is a dictionary of segmentation, expected an RLE"),
        ({**RUNS, "size": [512, 300]}, "RLE of size"), ({**RUNS, "size": None}, "RLE of size"),
        ({**RUNS, "counts": [-1, 512 * 512 + 1]}, "counts from -1"), ({**RUNS, "counts": [5, 5]}, "add up to 10"),
        ({**RUNS, "counts": [10**30]}, "expected whole numbers"), ({**RUNS, "counts": [0.5]}, "expected whole numbers"),
        ({**RUNS, "counts": "zz"}, "COCO's compressed text"),
        ({**RUNS, "counts": "P" * 99}, "COCO's compressed text"), ({**RUNS, "counts": "é"}, "COCO's compressed text"),
        ({**RUNS, "counts": None}, "has the counts None"), ({**RUNS, "counts": [True, 512 * 512]}, "add up|whole numbers"),
        ([], "is an empty list"), ([1, 2, 3, 4, 5, 6], "has the polygon 1, expected"), ([[1, 2, 3, 4]], "has the polygon"),
        ([[1, 2], [3, 4]], "has the polygon"), ([[1, 2, 3, 4, 5, 6, 7]], "has the polygon"), (SELF, "has the polygon"),
        (NESTED, "has the polygon"), ({"size": NESTED, "counts": NESTED}, "is an RLE of size"),
        ("0" * 10_000, "is a string of 10,000 characters"),
        ([["a", "b"] * 3], "has the polygon"), ([[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]], "within 0 … 1, expected pixels"),
        ([[1, 2, 3, float("nan"), 4, 5]], "expected finite numbers"), ([[1, 2, 3, 1e12, 4, 5]], "in or near its picture"),
        ([[-900, -900, -800, -900, -800, -800]], "is empty"), ([[0, 0, 5000, 5000] * 3000], "outlines are longer"),
    ],
)  # fmt: skip
def test_values_that_are_not_masks_give_a_one_sentence_error(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        as_mask(given, SIZE)
    assert len(str(refusal.value)) < 400


def test_arrays_with_rules_of_their_own_are_read() -> None:
    hidden = np.ma.masked_array(np.ones(SIZE, np.uint8), mask=~ELLIPSE)
    runs = {"size": [512.0, 512.0], "counts": [0.0, 512.0 * 512]}
    assert np.array_equal(as_mask(hidden, SIZE), ELLIPSE)
    assert as_mask(runs, SIZE).all()
    corners = [[50, 60], [200, 60], [200, 260], [50, 260]]
    assert np.array_equal(as_mask(np.array(corners)[:, None], SIZE), as_mask(corners, SIZE))


def test_a_palette_of_one_colour_is_read_by_it() -> None:
    white = Image.new("RGB", (40, 30), "white").quantize(2)
    assert as_mask(white, (30, 40)).all()
    assert not as_mask(palette(np.zeros((30, 40), np.uint8), (0, 0, 0)), (30, 40), may_be_empty=True).any()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_tiff_that_pillow_maps_into_memory_is_turned(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    mask = Image.new("L", (90, 60))
    mask.paste(255, (0, 0, 45, 20))
    for name in ("turned.tif", "turned.png"):
        mask.save(tmp_path / name, exif=exif)
    tiff, png = (as_mask(tmp_path / name, (90, 60)) for name in ("turned.tif", "turned.png"))
    assert np.array_equal(tiff, png)
    assert np.array_equal(load_rgb(tmp_path / "turned.tif"), load_rgb(tmp_path / "turned.png"))


def test_an_empty_mask_is_allowed_on_request() -> None:
    assert not as_mask({"size": [4, 6], "counts": [24]}, (4, 6), may_be_empty=True).any()


def test_a_mask_of_60000_squared_pixels_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (60000, 9000):
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        body = chunk(b"IDAT", zlib.compress(bytes(side)))
        (tmp_path / f"{side}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing may be decoded
    with pytest.raises(ValueError, match="too large to open"):
        as_mask(tmp_path / "60000.png", SIZE)
    with pytest.raises(ValueError, match=r"9000\.png is 9000 × 9000 pixels, expected the picture's 512 × 512"):
        as_mask(tmp_path / "9000.png", SIZE)
    with Image.open(tmp_path / "9000.png") as picture, pytest.raises(ValueError, match="9000 × 9000 pixels"):
        as_mask(picture, SIZE)
