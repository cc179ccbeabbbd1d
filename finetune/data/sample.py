"""The one record that training, caching and evaluation read: a picture, its regions, and conversations about them.

    {"image": "pictures/0001.jpg", "width": 640, "height": 480,
     "regions": [{"box": [12, 30, 200, 220], "label": "dog"}, {"points": [[5, 9]], "point_labels": [1]}, {"mask": …}],
     "conversations": [{"role": "user", "content": "What is <region1> doing?"}, {"role": "assistant", "content": "…"}],
     "source": "my data", "license": "CC BY 4.0"}

Coordinates are pixels of the picture, boxes xyxy; a mask is COCO's RLE ({"size": [h, w], "counts": …}) or a list of
polygons. A region may have "captions", true descriptions of it for evaluation. `<regionN>` in the text is the N-th region
of the record, from 1. For evaluation, a question may have a "type", by which it is scored, and its possible "options".
Records are kept as JSONL or parquet and read through `datasets`; a picture is a path beside the
file, or lies inside a parquet file. Knows no data set in particular.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, Features, IterableDataset, Json, List, Value, load_dataset
from datasets import Image as Picture
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from pycocotools import mask as coco_mask

from tap_tokenizer import as_mask, check_regular_file, load_rgb
from tap_tokenizer import open_image as picture_from

from ..glyphs.scenes import draw_scene, make_scene

Sample: TypeAlias = dict[str, Any]

FEATURES = Features(
    {
        "image": Value("string"),
        "width": Value("int64"),
        "height": Value("int64"),
        "regions": List(Json()),
        "conversations": List(Json()),
        "source": Value("string"),
        "license": Value("string"),
    }
)
"""Columns of a JSONL file; in parquet, `image` may be a `datasets.Image` instead."""

PROMPT_KEYS = ("box", "points", "mask")
"""What a region may be prompted with, in order of preference; a box may have points beside it."""

GLYPH_SCHEME = "glyph-scene:"
"""`image` of a record from GlyphScenes, which is drawn when it is opened: glyph-scene:SPLIT/SEED/INDEX/LONG_SIDE."""

_GLYPH_ADDRESS = re.compile(rf"{GLYPH_SCHEME}(.{{1,80}})/(\d{{1,18}})/(\d{{1,18}})/(\d{{1,9}})", re.ASCII)


def load_samples(path: str | Path, *, streaming: bool = False) -> Dataset | IterableDataset:
    """The records of a JSONL or parquet file, or of a folder of parquet files."""
    try:
        return _load(Path(path), streaming)
    except (DatasetGenerationError, CastError) as error:
        raise ValueError(
            f"{path} holds something that is not a record: python -m finetune.data validate --data {path} says what and where."
        ) from error


def _load(path: Path, streaming: bool) -> Dataset | IterableDataset:
    if not path.exists():
        raise ValueError(f"Found no records at {path}: give a JSONL or parquet file.")
    if not path.is_dir():
        check_regular_file(path)
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{path} is empty: expected a record on every line.")
    if path.suffix in (".jsonl", ".json"):
        return load_dataset("json", data_files=str(path), features=FEATURES, split="train", streaming=streaming)
    files = sorted(str(p) for p in path.glob("*.parquet")) if path.is_dir() else str(path)
    if not files or (isinstance(files, str) and path.suffix != ".parquet"):
        raise ValueError(f"{path} holds no records: expected .jsonl, .parquet, or a folder of .parquet files.")
    samples = load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    inside = isinstance((samples.features or {}).get("image"), Picture)
    return samples.cast_column("image", Picture(decode=False)) if inside else samples


class WrongSizeError(ValueError):
    """A record's picture, or what was made of it, has another size than the record says."""


def open_image(sample: Sample, root: str | Path) -> np.ndarray:
    """The picture of a record as RGB bytes (H, W, 3), upright; `root` is the folder that its path starts from.

    Raises `WrongSizeError` if it is not as large as the record says: its regions would lie elsewhere.
    """
    image = sample["image"]
    if isinstance(image, str) and image.startswith(GLYPH_SCHEME):
        found = _GLYPH_ADDRESS.fullmatch(image)
        if found is None:
            raise ValueError(f"image is {image[:80]!r}, expected {GLYPH_SCHEME}SPLIT/SEED/INDEX/LONG_SIDE.")
        split, seed, index, long_side = found.groups()
        picture = draw_scene(make_scene(int(index), split, int(seed)), int(long_side)).image
    elif isinstance(image, dict) and image.get("bytes"):  # a datasets.Image that is not decoded
        picture = load_rgb(picture_from(image["bytes"]))
    elif isinstance(image, (str, dict)):
        picture = load_rgb(Path(root) / (image["path"] if isinstance(image, dict) else image))
    else:
        picture = load_rgb(image)
    if "width" in sample:  # records that never were in a file may leave it out
        check_size(sample, (picture.shape[0], picture.shape[1]))
    return picture


def check_size(sample: Sample, size: tuple[int, int], name: str | None = None) -> None:
    """Raise `WrongSizeError` unless a picture of (height, width) `size`, upright, is as large as its record says.

    name: what to call the record; default: `record_name`.
    """
    if size != (sample["height"], sample["width"]):
        raise WrongSizeError(
            f"{name or record_name(sample)} says that its picture has {sample['width']} × {sample['height']} pixels, but "
            f"it has {size[1]} × {size[0]}: give the picture that the regions were drawn on, or correct the record."
        )


def record_name(sample: Sample) -> str:
    """What an error calls a record: after its picture."""
    image = sample.get("image")
    path = image.get("path") if isinstance(image, dict) else image
    return f"The record of {path or 'a picture without a name'}"


def region_prompts(sample: Sample) -> dict[str, list[Any]]:
    """Prompts of a record's regions, as `TapRegionTokenizer.encode` takes them: one kind per region, None elsewhere."""
    size = (sample["height"], sample["width"])
    columns: dict[str, list[Any]] = {"boxes": [], "points": [], "point_labels": [], "masks": []}
    for region in sample["regions"]:
        box, points, mask = (region.get(key) for key in PROMPT_KEYS)
        columns["boxes"].append(box)
        columns["points"].append(points)
        columns["point_labels"].append(None if points is None else region.get("point_labels") or [1] * len(points))
        columns["masks"].append(decode_mask(mask, size) if box is None and points is None else None)
    return {key: values for key, values in columns.items() if any(value is not None for value in values)} or {
        "boxes": []
    }


def decode_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """COCO's RLE, compressed or not, or a list of polygons, → booleans (H, W) of a picture of (height, width) `size`.

    Raises `ValueError` for anything else, and for what does not fit the size; see `tap_tokenizer.as_mask`. May be empty.
    """
    if not isinstance(mask, (dict, list)):
        raise ValueError(f"mask is of type {type(mask).__name__}, expected polygons or COCO's RLE.")
    return as_mask(mask, size, may_be_empty=True)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Booleans (H, W) → COCO's compressed RLE, with text for counts so that it fits JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def mask_box(mask: Any, size: tuple[int, int]) -> list[float] | None:
    """The box xyxy around a mask of a picture of (height, width) `size`; None if the mask is empty."""
    pixels = decode_mask(mask, size)
    rows, columns = np.nonzero(pixels.any(axis=1))[0], np.nonzero(pixels.any(axis=0))[0]
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def iterate(samples: Dataset | IterableDataset, start: int = 0) -> Iterator[Sample]:
    """Records from number `start` on, in order, whether they are in memory or streamed."""
    if isinstance(samples, Dataset):
        for i in range(start, len(samples)):
            yield samples[i]
    else:
        yield from samples.skip(start)


def cut_turns(sample: Sample, start: int, count: int) -> tuple[Sample, list[int]]:
    """A record of `count` questions with their answers, from question number `start` on, and which regions it keeps.

    Regions are numbered anew as the cut first names them; a system message stays in front. Only for conversations whose
    questions stand alone: a question that leans on an earlier answer loses what it leans on.
    """
    turns = sample["conversations"]
    asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    if not 0 <= start < len(asked) or count < 1:
        raise ValueError(f"Got questions {start} to {start + count} of {len(asked)}: cut inside the conversation.")
    stop = asked[start + count] if start + count < len(asked) else len(turns)
    kept = [turn for turn in turns[: asked[0]] if turn["role"] == "system"] + list(turns[asked[start] : stop])
    order: list[int] = []

    def renumber(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        if number > len(sample["regions"]):
            return match[0]
        if number not in order:
            order.append(number)
            return f"<region{len(order)}>"  # shown here, even where the whole conversation had shown it before
        name = f"region{order.index(number) + 1}"
        return f"<{name}>" if match[1] else name

    conversations = [
        {**turn, "content": re.sub(r"<region(\d+)>|\bregion(\d+)\b", renumber, turn["content"])} for turn in kept
    ]
    rows = [number - 1 for number in order]
    return {**sample, "regions": [sample["regions"][i] for i in rows], "conversations": conversations}, rows
