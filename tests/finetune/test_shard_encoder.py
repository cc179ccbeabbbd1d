"""Another process encodes only what the plan was made for, and a shard is the same whoever writes it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from finetune.cache import PLAN, RegionCache, prepare, shard_path, write_manifest
from finetune.shard_encoder import EncoderElsewhere


@pytest.fixture
def elsewhere(stage: Path, tmp_path: Path) -> EncoderElsewhere:
    """What an actor gets for the cache of the stage, to be written to another folder."""
    plan = RegionCache(stage / "cache").plan
    prepare(tmp_path / "cache", plan)
    return EncoderElsewhere(
        plan, stage / "records.jsonl", tmp_path / "cache", str(stage / "tap0"), None, "cpu", batch_size=8, workers=0
    )


def test_a_shard_made_elsewhere_has_the_same_bytes(elsewhere: EncoderElsewhere, stage: Path) -> None:
    seen: list[int] = []
    elsewhere()(1, seen.append)
    assert shard_path(elsewhere.folder, 1).read_bytes() == shard_path(stage / "cache", 1).read_bytes()
    assert sum(seen) == elsewhere.plan.shard_size


def test_a_shard_that_is_whole_is_kept(elsewhere: EncoderElsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, seen = elsewhere(), []
    encode(1)
    before = shard_path(elsewhere.folder, 1).stat()
    monkeypatch.setattr(encode.tokenizer, "embed_image", None)  # nothing is encoded
    encode(1, seen.append)
    assert shard_path(elsewhere.folder, 1).stat().st_mtime_ns == before.st_mtime_ns
    assert sum(seen) == elsewhere.plan.shard_size


def test_a_machine_with_other_files_is_refused_before_it_encodes(
    elsewhere: EncoderElsewhere, stage: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text((stage / "records.jsonl").read_text() + "\n")
    for data in (other, tmp_path / "none.jsonl"):
        with pytest.raises(
            ValueError, match=r"sees other records at .*, or none: put them on a disk that all machines share"
        ):
            replace(elsewhere, data=data)()
    with pytest.raises(
        ValueError, match=r"has the tokenizer .* under the name .*tap1, expected .*: have all machines read"
    ):
        replace(elsewhere, region_tokenizer=str(stage / "tap1"))()
    (elsewhere.folder / PLAN).unlink()
    with pytest.raises(ValueError, match=r"sees no .*plan\.json: give an output on a disk that all machines share"):
        elsewhere()


def test_what_a_killed_process_left_is_removed_before_and_after(elsewhere: EncoderElsewhere, stage: Path) -> None:
    folder = elsewhere.folder
    torn = folder / "shard-00000.1234.partial"
    torn.write_bytes(b"half a sh")
    prepare(folder, elsewhere.plan)
    assert not torn.exists()
    torn.write_bytes(b"half a sh")
    shutil.copytree(stage / "cache", folder, dirs_exist_ok=True)
    write_manifest(folder, elsewhere.plan)
    assert not torn.exists()
