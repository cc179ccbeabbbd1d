"""One ellipse as people keep masks: pictures of every mode and format, arrays, run lengths, polygons, files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from tap_tokenizer import mask_to_rle

SIZE = (512, 512)
BOX = [181, 396, 268, 467]
"""The box of `ellipse()`, xyxy in pixels."""


def ellipse(corners: tuple[int, int, int, int] = (181, 396, 267, 466), enlarged: int = 1) -> Image.Image:
    """White on black, mode L; with soft edges if it is drawn `enlarged` and averaged."""
    picture = Image.new("L", (SIZE[1] * enlarged, SIZE[0] * enlarged))
    ImageDraw.Draw(picture).ellipse([enlarged * x for x in corners], fill=255)
    return picture.resize((SIZE[1], SIZE[0]), Image.Resampling.BOX)


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def written(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The picture as it comes out of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def rgba(colour: Any, alpha: np.ndarray | int) -> Image.Image:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = alpha
    return Image.fromarray(pixels)


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def sharp_forms(folder: Path) -> Iterator[tuple[str, Any]]:
    """(name, mask) of forms that hold the ellipse to the pixel."""
    grey = ellipse()
    values = np.asarray(grey)
    inside = values > 0
    red_on_black = np.where(inside[..., None], (255, 0, 0), (0, 0, 0)).astype(np.uint8)
    white_on_black = np.asarray(grey.convert("RGB"))
    white, black = Image.new("L", grey.size, 255), Image.new("L", grey.size)
    for mode in ("1", "L", "P", "RGB", "CMYK", "I", "F"):
        yield f"mode {mode}", grey.convert(mode)
    yield "mode I;16", Image.fromarray(inside.astype(np.uint16) * 65535)
    yield "mode I;16 of 0 and 1", Image.fromarray(inside.astype(np.uint16))
    yield "white, alpha is the mask", rgba(255, values)
    yield "black on transparent", rgba(0, values)
    yield "red on transparent", rgba((255, 0, 0), values)
    yield "nearly black on transparent", rgba((3, 2, 9), values)
    yield "black on transparent white", rgba(np.where(inside[..., None], 0, 255), values)
    yield "half transparent green", rgba((0, 255, 0), inside * 120)
    yield "white on black, opaque", rgba(white_on_black, 255)
    yield "white on black, half transparent", rgba(white_on_black, 128)
    yield "white on black with an alpha of 0", rgba(white_on_black, 0)
    margin = np.pad(np.full((412, 480), 255, np.uint8), ((80, 20), (16, 16)))
    yield "white on black in a transparent margin", rgba(white_on_black, margin)
    yield "cut out of a photograph", rgba(np.random.default_rng(0).integers(0, 256, (*SIZE, 3)), values)
    yield "mode LA, white", Image.merge("LA", (white, grey))
    yield "mode LA, black", Image.merge("LA", (black, grey))
    yield "mode LA, opaque", Image.merge("LA", (grey, white))
    yield "mode PA", rgba(0, values).convert("PA")
    yield "quantize(2)", grey.convert("RGB").quantize(2)
    yield "quantize(2) with alpha", written(rgba(255, values).quantize(2), "PNG")
    yield "palette whose index 0 is white", palette(~inside, (255, 255, 255), (0, 0, 0))
    yield "palette of a label map", palette(inside, (0, 0, 0), (128, 0, 0))
    yield "palette of a colour map", palette(inside, (68, 1, 84), (253, 231, 37))
    yield "palette of one colour", Image.frombytes("P", grey.size, inside.astype(np.uint8).tobytes())
    plain = palette(inside, (255, 255, 255), (255, 255, 255))
    yield "palette with transparency", written(plain, "PNG", transparency=bytes([0, 255]))
    yield "grey PNG whose white is transparent", written(Image.fromarray(255 - values), "PNG", transparency=255)
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        yield f"{kind} file", written(grey, kind)
    yield "GIF, black on transparent", written(rgba(0, values), "GIF")
    yield "red on black", Image.fromarray(red_on_black)
    yield "blue on black", Image.fromarray(red_on_black[..., ::-1])
    for name in ("bool", "uint8", "int16", "int64", "uint16", "float16", "float32", "float64"):
        yield f"{name} of 0 and 1", inside.astype(name)
        if name != "bool":
            yield f"{name} of 0 and 255", inside.astype(name) * 255
            yield f"tensor, {name}", torch.from_numpy(inside.astype(name))
    yield "tensor, bfloat16", torch.from_numpy(inside).bfloat16()
    yield "(H, W, 1)", values[..., None]
    yield "(1, H, W)", torch.from_numpy(inside)[None]
    yield "(H, W, 3)", red_on_black
    yield "(3, H, W) of 0 to 1", torch.from_numpy(red_on_black / np.float32(255)).permute(2, 0, 1)
    yield "(H, W, 4)", np.asarray(rgba(0, values))
    yield "lists of 0 and 1", inside.astype(int).tolist()
    runs = mask_to_rle(inside)
    yield "RLE", runs
    yield "RLE of arrays", {"size": np.array(SIZE), "counts": np.array(runs["counts"], np.uint64)}
    packed = packed_rle(inside)
    yield "RLE, compressed bytes", packed
    yield "RLE, compressed text", {**packed, "counts": packed["counts"].decode()}
    grey.save(folder / "mask.png")
    yield "path", folder / "mask.png"
    yield "path as text", str(folder / "mask.png")


def soft_forms() -> Iterator[tuple[str, Any]]:
    """(name, mask) of forms with soft edges, whose box may lie a pixel off."""
    hard, soft = ellipse(), ellipse(enlarged=4)
    colour = Image.fromarray(np.where(np.asarray(hard)[..., None] > 0, (255, 0, 0), (0, 0, 0)).astype(np.uint8))
    for quality in (20, 50, 75, 95, 100):
        yield f"grey JPEG, quality {quality}", written(hard, "JPEG", quality=quality)
        yield f"RGB JPEG, quality {quality}", written(hard.convert("RGB"), "JPEG", quality=quality)
    yield "red JPEG", written(colour, "JPEG", quality=75)
    yield "WebP", written(hard.convert("RGB"), "WEBP", quality=75)
    yield "WebP, black on transparent", written(rgba(0, np.asarray(hard)), "WEBP", quality=75)
    yield "uint8", np.asarray(soft)
    yield "0 to 1", np.asarray(soft) / 255
    yield "probabilities up to 0.9", torch.from_numpy(np.asarray(soft) * np.float32(0.9 / 255))
    yield "blurred", hard.filter(ImageFilter.GaussianBlur(2))
    yield "alpha, white", rgba(255, np.asarray(soft))
    yield "alpha, black", rgba(0, np.asarray(soft))
    yield "palette of eight greys", soft.convert("RGB").quantize(8)
    yield "JPEG enlarged", written(hard.resize((1024, 1024)), "JPEG").resize(hard.size, Image.Resampling.BILINEAR)
    middle, radii = np.array([224.5, 431.5]), np.array([43.5, 35.5])
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = middle + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    yield "polygon", [points.ravel().tolist()]
    yield (
        "polygon in halves",
        [half.ravel().tolist() for half in (points[:101], np.concatenate([points[100:], points[:1]]))],
    )
    yield "polygon of pairs", points.tolist()
    yield "polygon as an array", points
    yield "polygon of OpenCV", [points.round().astype(np.int32)[:, None]]


def packed_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of a mask."""
    from pycocotools import mask as coco_mask

    packed: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return packed
