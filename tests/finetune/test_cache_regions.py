"""The cache refuses what would be encoded in the wrong place, and names the record; on Ray it is the same cache."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


# --- on Ray -----------------------------------------------------------------------------------------------------------


def test_flags_of_ray_that_make_no_sense_are_refused(
    tmp_path: Path, tap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = records(tmp_path, {})
    with pytest.raises(ValueError, match="Got --ray_address auto without --ray: say how many"):
        cache(data, tap, "--ray_address", "auto")
    with pytest.raises(ValueError, match="Got ray -1: expected at least 0"):
        cache(data, tap, "--ray", "-1")
    with monkeypatch.context() as patch:
        patch.setattr("tap_tokenizer.cluster.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"Got --ray, which needs Ray: pip install 'tap-bridge\[ray\]'"):
            cache(data, tap, "--ray", "2")
    monkeypatch.setattr("tap_tokenizer.cluster.find_spec", lambda name: True)
    with pytest.raises(ValueError, match="Got --device cuda:1 with --ray, expected cpu or cuda"):
        cache(data, tap, "--ray", "2", "--device", "cuda:1")
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two workers, on this machine."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tap-bridge[ray]'")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Records of 40 scenes, and their cache as one process makes it."""
    from finetune.data.source import convert
    from finetune.glyphs.records import GlyphScenesSource

    folder = tmp_path_factory.mktemp("scenes")
    convert(GlyphScenesSource(output=str(folder / "records.jsonl"), scenes=40, long_side=96, workers=1))
    cache_regions.main(flags(folder / "records.jsonl", folder / "one"))
    return folder / "records.jsonl", folder / "one"


def flags(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--region_tokenizer", "tap-tiny", "--output", str(output), "--workers", "0",
            "--shard_size", "2", "--variants", "exact,jitter,points", "--device", "cpu", *more]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_shards(folder: Path, count: int) -> None:
    end = time.monotonic() + 240
    while len(list(folder.glob("*.sha256"))) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_two_actors_write_the_bytes_of_one_process_although_one_is_killed(
    cluster: str, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    data, one = scenes
    killed: list[int] = []

    def kill_one() -> None:
        wait_for_shards(tmp_path / "two", 3)
        for process in psutil.Process().children(recursive=True):
            if "_Actor" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    cache_regions.main(flags(data, tmp_path / "two", "--ray", "2"))
    killer.join()
    assert len(killed) == 1
    assert contents(tmp_path / "two") == contents(one)


@pytest.mark.slow
def test_a_run_on_ray_whose_driver_was_killed_goes_on(cluster: str, scenes: tuple[Path, Path], tmp_path: Path) -> None:
    """The cluster outlives the driver; shards that were complete are not made again."""
    data, one = scenes
    output = tmp_path / "cut"
    command = [
        sys.executable,
        "-m",
        "finetune.cache_regions",
        *flags(data, output, "--ray", "2", "--ray_address", cluster),
    ]
    driver = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RAY_AUTH_MODE": "token"},
        stderr=subprocess.DEVNULL,
    )
    wait_for_shards(output, 3)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not (output / "manifest.json").exists()
    kept = {
        path: path.stat().st_mtime_ns
        for path in map(Path, output.glob("*.safetensors"))
        if path.with_suffix(".sha256").exists()
    }
    assert 3 <= len(kept) < 20
    cache_regions.main(flags(data, output, "--ray", "2"))
    assert contents(output) == contents(one)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_is_named_on_ray_too(cluster: str, tmp_path: Path, tap: Path) -> None:
    data = records(tmp_path, {}, {"image": "half.jpg"})
    write_picture(tmp_path / "half.jpg", 30, 20)
    with pytest.raises(
        ValueError, match=r"^Record 1: The record of half\.jpg says that its picture has 60 × 40 pixels"
    ):
        cache(data, tap, "--ray", "1", "--shard_size", "1")
    assert not (tmp_path / "cache" / "manifest.json").exists()
    with pytest.raises(ValueError, match="Got --ray 3, but there are 2 CPUs here: give at most 2"):
        cache(data, tap, "--ray", "3", "--shard_size", "1")
