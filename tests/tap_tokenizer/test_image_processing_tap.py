"""Pictures in, whatever their form; masks back out at their size."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tap_tokenizer import TapImageProcessor, load_rgb, open_image, upright_size


def test_layout_of_the_model_frame() -> None:
    processor = TapImageProcessor(image_size=64)
    red = np.zeros((20, 40, 3), np.uint8)
    red[..., 0] = 255
    out = processor(red)
    assert out["original_sizes"].tolist() == [[20, 40]]
    assert out["reshaped_input_sizes"].tolist() == [[32, 64]]
    blue, green, last = out["pixel_values"][0]  # blue, green, red
    torch.testing.assert_close(last[0, 0], torch.tensor((255 - 123.675) / 58.395))
    torch.testing.assert_close(blue[0, 0], torch.tensor((0 - 103.53) / 57.375))
    torch.testing.assert_close(green[40, 0], torch.tensor((116 - 116.28) / 57.12))  # padding: the truncated mean


@pytest.mark.parametrize(
    ("height", "width", "want"), [(300, 420, (731, 1024)), (7, 3000, (2, 1024)), (1, 5000, (1, 1024))]
)
def test_long_side_is_filled_and_the_other_rounded(height: int, width: int, want: tuple[int, int]) -> None:
    out = TapImageProcessor()(np.zeros((height, width, 3), np.uint8))
    assert tuple(out["reshaped_input_sizes"][0].tolist()) == want


def test_many_forms_of_one_picture_are_the_same(tmp_path: Path, picture: Image.Image) -> None:
    array = np.asarray(picture)
    path = tmp_path / "picture.png"
    picture.save(path)
    forms = [picture, array, torch.from_numpy(array.copy()), path, str(path), picture.convert("RGBA")]
    want = TapImageProcessor(image_size=64)(picture)["pixel_values"]
    for form in forms:
        assert torch.equal(TapImageProcessor(image_size=64)(form)["pixel_values"], want)


def test_grey_palette_and_sixteen_bit(picture: Image.Image) -> None:
    grey = np.asarray(picture.convert("L"))
    for form in (grey, grey[..., None], picture.convert("L")):
        assert np.array_equal(load_rgb(form), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(load_rgb(picture.convert("P")), np.asarray(picture.convert("P").convert("RGB")))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(load_rgb(deep)[..., 0], grey)


def test_greys_of_32_bits(picture: Image.Image) -> None:
    bytes_, wide = (
        picture.convert("L").convert("I"),
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.int32) << 8),
    )
    want = np.asarray(load_rgb(picture.convert("L")))
    assert np.array_equal(load_rgb(bytes_), want)
    assert np.array_equal(load_rgb(wide), want)
    for numbers in (np.full((4, 5), 70_000, np.int32), np.full((4, 5), -1, np.int32), np.full((4, 5), 0.5, np.float32)):
        with pytest.raises(ValueError, match="expected bytes"):
            load_rgb(Image.fromarray(numbers))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_the_bits_that_a_deep_grey_uses_become_a_byte(tmp_path: Path, mode: str, bits: int) -> None:
    """Whatever holds the numbers: PIL's three modes, a PNG, a TIFF, an array, a tensor."""
    numbers = np.linspace(0, (1 << bits) - 1, 600).astype(np.uint16).reshape(20, 30)
    want = np.repeat((numbers >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
    bytes_ = numbers.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    deep = Image.frombytes(mode, (30, 20), bytes_.tobytes())
    assert np.array_equal(load_rgb(deep), want)
    deep.save(tmp_path / "deep.tif")
    assert np.array_equal(load_rgb(tmp_path / "deep.tif"), want)
    Image.fromarray(numbers).save(tmp_path / "deep.png")
    assert np.array_equal(load_rgb(tmp_path / "deep.png"), want)
    for array in (numbers, numbers.astype(">u2"), numbers[..., None]):
        assert np.array_equal(load_rgb(array), want)
    assert np.array_equal(load_rgb(np.repeat(numbers[..., None], 3, axis=2)), want)
    assert np.array_equal(load_rgb(torch.from_numpy(numbers)), want)


def test_dark_16_bit_colours_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow keeps the upper byte of a colour, which is nothing if 8 bits are used."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)), (b"IEND", b"")]
    chunks.insert(1, (b"IDAT", zlib.compress(b"".join(b"\0" + struct.pack(">9H", *range(9)) for _ in range(2)))))
    png = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        png += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    (tmp_path / "colours.png").write_bytes(png)
    assert load_rgb(tmp_path / "colours.png").max() == 0
    assert "colours.png has 16-bit colours but uses at most 14 bits" in caplog.text


def test_transparency_is_shown_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (200, 10, 10, 0))
    assert load_rgb(clear).tolist() == [[[255] * 3] * 2] * 2


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path, picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    path = tmp_path / "turned.png"
    picture.save(path, exif=exif)
    assert np.array_equal(load_rgb(path), np.asarray(picture.rotate(-90, expand=True)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "png", "jpg", "webp"])
def test_the_upright_size_is_the_size_of_what_is_read(
    tmp_path: Path, picture: Image.Image, ending: str, orientation: int
) -> None:
    """Before the pixels are read, and after: of a TIFF, Pillow says it turned, and turns it when it reads it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{ending}"
    picture.save(path, exif=exif)
    height, width = load_rgb(path).shape[:2]
    assert (width < height) == (orientation > 4)
    with Image.open(path) as opened:
        assert upright_size(opened) == (width, height)
        opened.load()
        assert upright_size(opened) == (width, height)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty image"),
        (np.zeros((3, 10, 12), np.uint8), "channels last"),
        (np.zeros((4, 4, 3), np.float32), "expected bytes"),
        ("nowhere.png", "Found no image file at nowhere.png"),
        (object(), "Got an image of type object"),
        ([], "empty list of images"),
    ],
)
def test_bad_pictures_are_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TapImageProcessor()(image)


def test_files_that_are_not_images_are_refused(tmp_path: Path, picture: Image.Image) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ValueError, match="is not an image that Pillow can read"):
        load_rgb(text)
    whole = tmp_path / "whole.jpg"
    picture.resize((400, 300)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated"):
        load_rgb(cut)


def test_masks_come_back_in_place() -> None:
    processor = TapImageProcessor(image_size=64)
    inputs = processor(np.zeros((32, 64, 3), np.uint8))
    logits = torch.full((1, 1, 16, 16), -4.0)
    logits[..., 2:4, 8:12] = 4.0  # cells of 4 pixels: rows 8–16, columns 32–48
    (mask,) = processor.post_process_masks([logits], inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert mask.shape == (1, 1, 32, 64)
    assert mask.dtype == torch.bool
    rows, columns = mask[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 15, 32, 47)
    (soft,) = processor.post_process_masks(
        [logits], inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    assert torch.equal(soft > 0, mask)
    (none,) = processor.post_process_masks([logits[:0]], inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert none.shape == (0, 1, 32, 64)


def test_saving_and_auto_class(tmp_path: Path) -> None:
    TapImageProcessor(image_size=96).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, TapImageProcessor)
    assert loaded.image_size == 96


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="do_flip"):
        TapImageProcessor()(np.zeros((4, 4, 3), np.uint8), do_flip=True)


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off anywhere, or with bytes that are wrong, in each format; and pictures larger than Pillow opens."""
    random = np.random.RandomState(0)
    picture = Image.fromarray(random.randint(0, 255, (60, 80, 3), np.uint8))
    for ending in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        path = tmp_path / f"torn.{ending}"
        picture.save(path)
        whole = path.read_bytes()
        for keep in (0, 1, 30, len(whole) // 3):
            wrong = bytearray(whole)
            wrong[len(whole) // 4 : len(whole) // 2] = random.bytes(len(whole) // 2 - len(whole) // 4)
            for content in (whole[:keep], bytes(wrong[: keep + len(whole) // 2])):
                path.write_bytes(content)
                if words := refusal(path):  # some formats bear some damage
                    assert path.name in words
    picture.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png is too large to open"):
        load_rgb(tmp_path / "large.png")


def refusal(path: Path) -> str:
    """What is said of a file that cannot be read; nothing if it can."""
    try:
        load_rgb(path)
    except ValueError as error:
        return str(error)
    return ""


def png_header(width: int, height: int) -> bytes:
    """A PNG of which there is the header alone: all that is needed to tell its size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(("width", "height"), [(13_300, 13_300), (60_000, 60_000), (100_000_000, 1), (9_460, 9_460)])
def test_pictures_of_too_many_pixels_are_refused_by_their_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_header(width, height))
    said = r"too large to open: .* pixels, expected at most 89,478,485\. Make it smaller, or raise .*TAP_MAX_PIXELS"
    for door in (load_rgb, open_image, TapImageProcessor()):
        with pytest.raises(ValueError, match=rf"large\.png is {said}"):
            door(path)
    with pytest.raises(ValueError, match=rf"The image is {said}"):
        open_image(path.read_bytes())
    if width * height < 2 * 89_478_485:
        with Image.open(path) as picture, pytest.raises(ValueError, match=said):
            upright_size(picture)
        with Image.open(path) as picture, pytest.raises(ValueError, match=said):
            load_rgb(picture)


def test_a_larger_bound_is_set_as_everywhere_in_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    for bound, opens in ((1200, True), (1199, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", bound)
        assert (refusal(tmp_path / "small.png") == "") == opens


def test_the_environment_raises_the_bound_of_a_command() -> None:
    code = "import tap_tokenizer, PIL.Image; tap_tokenizer.load_rgb; print(PIL.Image.MAX_IMAGE_PIXELS)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TAP_MAX_PIXELS": "400000000"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["400000000"]


def test_only_files_are_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ValueError, match=f"is {kind}, expected a file"):
            load_rgb(path)
