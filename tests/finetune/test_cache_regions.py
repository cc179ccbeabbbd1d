"""The cache refuses what would be encoded in the wrong place, and names the record."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from small_files import write_picture

from finetune import cache_regions
from finetune.cache import RegionCache, encode_regions
from finetune.records import WrongSizeError, load_records, open_image
from tap_tokenizer import TapRegionTokenizer

TALK = [{"role": "user", "content": "What is <region1>?"}, {"role": "assistant", "content": "a dog"}]


@pytest.fixture(scope="module")
def tap(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., TapRegionTokenizer]) -> Path:
    folder = tmp_path_factory.mktemp("tap")
    make_tokenizer(0).save_pretrained(folder)
    return folder


def records(folder: Path, *changes: dict[str, Any]) -> Path:
    """Records of one box in a picture of 60 × 40, changed."""
    plain = {"image": "a.jpg", "width": 60, "height": 40, "regions": [{"box": [1, 2, 30, 20]}], "conversations": TALK}
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps({**plain, "source": None, "license": None, **one}) + "\n" for one in changes))
    write_picture(folder / "a.jpg")
    return path


def cache(data: Path, tap: Path, *more: str) -> Path:
    output = data.parent / "cache"
    cache_regions.main(
        ["--data", str(data), "--region_tokenizer", str(tap), "--output", str(output), "--workers", "0", *more]
    )
    return output


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_of_another_size_is_refused_in_one_line(tmp_path: Path, tap: Path, workers: str) -> None:
    data = records(tmp_path, {}, {"image": "half.jpg"})
    write_picture(tmp_path / "half.jpg", 30, 20)
    words = r"^Record 1: The record of half\.jpg says that its picture has 60 × 40 pixels, but it has 30 × 20: [^\n]*$"
    with pytest.raises(ValueError, match=words):
        cache(data, tap, "--workers", workers)
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path, tap: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("turned.jpg", "turned.tif"):
        Image.new("RGB", (40, 60)).save(tmp_path / name, exif=exif)
    data = records(tmp_path, {"image": "turned.jpg"}, {"image": "turned.tif"})
    cached = RegionCache(cache(data, tap))
    assert [cached.regions(i).image_sizes.tolist() for i in range(2)] == [[[40, 60]]] * 2
    lying = records(tmp_path, {"image": "turned.tif", "width": 40, "height": 60, "regions": [{"box": [1, 2, 30, 50]}]})
    with pytest.raises(WrongSizeError, match=r"turned\.tif says .* 40 × 60 pixels, but it has 60 × 40"):
        open_image(load_records(lying)[0], tmp_path)


def test_every_command_checks_the_size_of_a_records_picture(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The picture as a file, inside a parquet, drawn, and as features."""
    (record,) = load_records(records(tmp_path, {"width": 61}))
    content = io.BytesIO()
    Image.new("RGB", (60, 40)).save(content, "PNG")
    inside = {"bytes": content.getvalue(), "path": "b.png"}
    for image in ("a.jpg", inside, {"bytes": None, "path": "a.jpg"}, "glyph-scene:test/0/0/64"):
        with pytest.raises(WrongSizeError, match=r"says that its picture has 61 × 40 pixels"):
            open_image(replace(record, image=image), tmp_path)
    features = tiny_tokenizer.embed_image([Image.new("RGB", (60, 40))])
    with pytest.raises(WrongSizeError, match=r"The record of a\.jpg says"):
        encode_regions(tiny_tokenizer, features, [record])


def test_a_refused_region_is_named_with_its_record(tmp_path: Path, tap: Path) -> None:
    data = records(tmp_path, {}, {"image": "b.jpg", "regions": [{"box": [0.1, 0.1, 0.5, 0.5]}]})
    write_picture(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"^The record of b\.jpg: Region 0: box .* thinner than a pixel.* 0 … 1"):
        cache(data, tap)
