"""Pictures → pixel values in the model frame, and masks back to the pictures' own size.

The model frame is a square of `image_size` pixels: the picture is scaled until its long side fills it, and padded on the
right and at the bottom. This needs Pillow, but not torchvision.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.nn import functional as F
from transformers import BaseImageProcessor, BatchFeature
from transformers.utils import logging

from .foreign_files import check_regular_file
from .mask_boxes import boxes_of_logits

logger = logging.get_logger(__name__)

# Of pixel values 0 … 255 in the order blue, green, red, as every published TAP was trained with.
PIXEL_MEAN_BGR = (103.53, 116.28, 123.675)
PIXEL_STD_BGR = (57.375, 57.12, 58.395)

MAX_IMAGE_SIZE = 1 << 12
"""Largest side of the model frame, in pixels."""

if limit := os.environ.get("TAP_MAX_PIXELS"):
    Image.MAX_IMAGE_PIXELS = int(limit)
"""Pictures with more pixels than Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS` (89,478,485), are refused by their headers,
before anything is decoded. To open larger ones, raise it in Python, or set this environment variable for the commands."""

ImageInput: TypeAlias = "Image.Image | np.ndarray | Tensor | str | Path"


class TapImageProcessor(BaseImageProcessor):
    """Resize (bilinear on bytes, long side to `image_size`), pad with the mean colour, RGB → BGR, normalise.

    Pictures may be PIL images, paths, or arrays and tensors of bytes (H, W), (H, W, 3) or (H, W, 4) in RGB order.
    Grey, palette and transparent pictures become RGB (transparency over white). 16-bit greys and uint16 arrays are scaled
    to bytes by the fewest of 8, 10, 12, 14 or 16 bits that hold the picture's largest number. A picture with an EXIF
    orientation is turned upright first, and its pixels are counted as you see them.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 1024,
        image_mean: Sequence[float] = PIXEL_MEAN_BGR,
        image_std: Sequence[float] = PIXEL_STD_BGR,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if type(image_size) is not int or not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {image_size!r:.20}, expected 1 to {MAX_IMAGE_SIZE}.")
        for name, three in (("image_mean", image_mean), ("image_std", image_std)):
            if len(three) != 3 or not all(isinstance(x, (int, float)) and 0 <= x <= 255 for x in three):
                raise ValueError(f"{name} is {three!r:.80}, expected three numbers from 0 to 255.")
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: ImageInput | Sequence[ImageInput], **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One picture or a list → what `TapModel` reads, and the sizes that `post_process_masks` needs.

        pixel_values (B, 3, S, S) float32; original_sizes (B, 2) and reshaped_input_sizes (B, 2): height and width of
        each picture before and after scaling, without padding.
        """
        if kwargs:
            raise TypeError(f"preprocess got {sorted(kwargs)}, which TapImageProcessor does not know.")
        pictures = [load_rgb(image) for image in as_image_list(images)]
        resized = [self._resize(picture) for picture in pictures]
        data = {
            "pixel_values": np.stack([self._pad_and_normalize(picture) for picture in resized]),
            "original_sizes": np.array([picture.shape[:2] for picture in pictures], dtype=np.int64),
            "reshaped_input_sizes": np.array([picture.shape[:2] for picture in resized], dtype=np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def post_process_masks(
        self,
        masks: Sequence[Tensor],
        original_sizes: Tensor,
        reshaped_input_sizes: Tensor,
        mask_threshold: float = 0.0,
        binarize: bool = True,
    ) -> list[Tensor]:
        """Mask logits over the model frame, (R, K, h, w) for each picture → (R, K, H, W) over the picture itself.

        Bilinear to the frame, padding cut away, bilinear to the picture's size; then, unless `binarize` is False,
        booleans: logit > `mask_threshold`.
        """
        results = []
        for logits, original, reshaped in zip(masks, original_sizes.tolist(), reshaped_input_sizes.tolist()):
            rows = []
            for row in logits.float().split(8):  # a frame of floats per mask: a few at a time keep memory flat
                frame = F.interpolate(row, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
                frame = frame[..., : reshaped[0], : reshaped[1]]
                full = F.interpolate(frame, tuple(original), mode="bilinear", align_corners=False)
                rows.append(full > mask_threshold if binarize else full)
            empty = torch.zeros(0, logits.shape[1], *original, dtype=torch.bool if binarize else torch.float32)
            results.append(torch.cat(rows) if rows else empty.to(logits.device))
        return results

    def boxes_of_masks(self, logits: Tensor, original_size: Tensor, reshaped_input_size: Tensor) -> Tensor:
        """Boxes (R, 4) around the masks that `post_process_masks` makes of logits (R, h, w) of one picture.

        xyxy in whole pixels of the picture, zeros where a mask is empty; the same as read off the masks, for less work.
        """

        def masks_of(some: Tensor) -> Tensor:
            return self.post_process_masks([some[:, None]], original_size[None], reshaped_input_size[None])[0][:, 0]

        (height, width), (rows, columns) = original_size.tolist(), reshaped_input_size.tolist()
        return boxes_of_logits(logits, self.image_size, (rows, columns), (height, width), masks_of)

    def _resize(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = self.image_size / max(height, width)
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))

    def _pad_and_normalize(self, picture: np.ndarray) -> np.ndarray:
        frame = np.empty((self.image_size, self.image_size, 3), dtype=np.uint8)
        frame[:] = np.array(self.image_mean).astype(np.uint8)  # truncated, as in training
        frame[: picture.shape[0], : picture.shape[1]] = picture[..., ::-1]
        mean, std = np.array(self.image_mean, dtype=np.float32), np.array(self.image_std, dtype=np.float32)
        return np.ascontiguousarray(((frame - mean) * (1 / std)).transpose(2, 0, 1))


def as_image_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    """One picture or a list of them → a list."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("Got an empty list of images: give at least one.")
        return list(images)
    return [images]  # type: ignore[list-item]


def load_rgb(image: ImageInput) -> np.ndarray:
    """A picture as bytes (H, W, 3) in RGB order, upright, opaque."""
    name = ""
    if isinstance(image, (str, Path)):
        name = f" {image}"
        image = open_image(image)
    elif isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = _array_to_pil(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"Got an image of type {type(image).__name__}, expected a PIL image, a path, an array or a tensor."
        )
    _check_pixels(image, name.strip() or "The image")
    try:
        is_deep = any(";16" in str(part) for part in getattr(image, "tile", [])) and not image.mode.startswith("I")
        pixels = np.asarray(_opaque(upright(image)))
    except Exception as error:  # decoders raise whatever damaged bytes make them stumble over
        raise ValueError(f"The image{name} cannot be decoded ({error}): the file may be incomplete.") from None
    if is_deep and pixels.max() < 64:
        logger.warning(
            f"The image{name} has 16-bit colours but uses at most 14 bits. Pillow keeps the upper 8, so the image is dark: "
            "give it as a uint16 array, which is scaled by the bits that it uses."
        )
    return pixels


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an open picture as `load_rgb` gives it, turned as its EXIF says; its pixels are not read.

    Pillow turns a TIFF itself when it reads the pixels, and newer versions say so in its size from the beginning: of a TIFF
    that is still to be turned, the size is taken from its tags.
    """
    _check_pixels(picture, str(getattr(picture, "filename", "")) or "The image")
    width, height = picture.size
    if picture.getexif().get(ExifTags.Base.Orientation) not in (5, 6, 7, 8):
        return width, height
    if isinstance(picture, TiffImageFile):
        width, height = picture.tag_v2[ExifTags.Base.ImageWidth], picture.tag_v2[ExifTags.Base.ImageLength]
    return height, width


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says.

    Of a TIFF whose pixels are not compressed Pillow maps the file into memory, and takes them for turned already, which
    scrambles them; a picture that has no file name is read instead.
    """
    if not isinstance(picture, TiffImageFile):
        return ImageOps.exif_transpose(picture)
    name, picture.filename = picture.filename, ""
    try:
        return ImageOps.exif_transpose(picture)
    finally:
        picture.filename = name


def open_image(source: str | Path | bytes) -> Image.Image:
    """Open the picture in a file, or in a file's bytes. Only its header is read and its size checked; nothing is decoded.

    Raises `ValueError` if it is not a file (a folder, a pipe), not a picture, or has too many pixels.
    """
    name = "The image" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        if not os.path.lexists(source):
            raise ValueError(f"Found no image file at {source}.")
        check_regular_file(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse what Pillow warns of
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError:
        raise _too_large(name, "too many") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{name} is not an image that Pillow can read: {error}") from None
    _check_pixels(picture, name)
    return picture


def _too_large(name: str, size: str) -> ValueError:
    return ValueError(
        f"{name} is too large to open: {size} pixels, expected at most {Image.MAX_IMAGE_PIXELS:,}. Make it smaller, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS (for a command, the environment variable TAP_MAX_PIXELS)."
    )


def _check_pixels(picture: Image.Image, name: str) -> None:
    """Refuse a picture without pixels, or with more than `PIL.Image.MAX_IMAGE_PIXELS`, before it is decoded."""
    width, height = picture.size
    if not width or not height:
        raise ValueError(f"{name} is an empty image of {width} × {height} pixels: give one that has pixels.")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name, f"{width} × {height}")


def _array_to_pil(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0:
        raise ValueError(f"Got an empty image of shape {array.shape}: give one with content.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"Got an image of shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4): channels last."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = _to_bytes(array)
    if array.dtype != np.uint8:
        raise ValueError(
            f"Got an image of {array.dtype}, expected bytes (uint8) from 0 to 255, or uint16: scale and cast it first."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _opaque(image: Image.Image) -> Image.Image:
    """Any mode → RGB.

    Transparent pixels become white, and deep greys become bytes (`_to_bytes`). Nothing else is guessed.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() >= 1 << 16:
            raise ValueError(
                f"Got a picture of {pixels.dtype} from {pixels.min()} to {pixels.max()}, expected bytes (0 to 255) or 16 bits: "
                "scale and cast it first."
            )
        image = Image.fromarray(_to_bytes(pixels))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Numbers of up to 16 bits → bytes. Cameras use 8, 10, 12 or 14 of them: the fewest that hold the largest number count."""
    largest = int(pixels.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)
    return (pixels >> (bits - 8)).astype(np.uint8)
