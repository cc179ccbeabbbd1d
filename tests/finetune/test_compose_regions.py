"""Caches of pictures that were never encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")

from finetune import cache_regions, compose_regions
from finetune.cache import RegionCache
from finetune.compose_regions import TokenBank, words_of
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.records import load_records
from llm_bridge import PictureContext

SCENES = {"bank": ("train-packed", 30), "wanted": ("train", 10)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """Records of packed scenes with their cache, and of others to be composed; the caption of a region is its kind alone."""
    folder = tmp_path_factory.mktemp("composed")
    for name, (split, scenes) in SCENES.items():
        path = folder / f"{name}.jsonl"
        convert(
            GlyphScenesSource(output=str(path), split=split, scenes=scenes, long_side=96, all_regions=True, workers=1)
        )
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        for region in (region for sample in samples for region in sample["regions"]):
            region["captions"], region["label"] = [f"a {region['label']}", region["captions"][0]], "thing"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    make_tokenizer(0).save_pretrained(folder / "tap")
    cache_regions.main(["--data", str(folder / "bank.jsonl"), "--region_tokenizer", str(folder / "tap"), "--output",
                        str(folder / "bank"), "--image_regions", "6", "--context_from", "annotated", "--variants",
                        "exact,jitter", "--workers", "0"])  # fmt: skip
    return folder


def flags(folder: Path, output: str, data: str = "wanted.jsonl") -> list[str]:
    return ["--data", str(folder / data), "--from_data", str(folder / "bank.jsonl"), "--from_caches", str(folder / "bank"),
            "--output", str(folder / output), "--shard_size", "4"]  # fmt: skip


def test_regions_borrow_tokens_of_the_same_caption_and_keep_their_boxes(folder: Path) -> None:
    compose_regions.main(flags(folder, "composed"))
    records, cache, bank = (
        load_records(folder / "wanted.jsonl"),
        RegionCache(folder / "composed"),
        RegionCache(folder / "bank"),
    )
    cache.check(folder / "wanted.jsonl", bank.plan.fingerprint, PictureContext(regions=6))
    lent = load_records(folder / "bank.jsonl")
    own = [(words_of(region), token) for row in range(len(lent)) for variant in (0, 1)
           for region, token in zip(lent[row].regions, bank.regions(row, variant).semantic_tokens)]  # fmt: skip
    for row, record in enumerate(records):
        regions = cache.regions(row)
        assert len(regions) == len(record.regions)
        for region, token, box in zip(record.regions, regions.semantic_tokens, regions.boxes):
            lenders = {words for words, other in own if torch.equal(token, other)}
            assert lenders == {words_of(region)}
            sides = torch.tensor(region.box[2:]) - torch.tensor(region.box[:2])
            assert (box - torch.tensor(region.box)).abs().max() < 0.3 * sides.max()
        torch.testing.assert_close(
            cache.context(row), PictureContext(regions=6).of_regions(regions), atol=2e-3, rtol=1e-2
        )


def test_a_stopped_run_ends_like_an_uninterrupted_one(folder: Path) -> None:
    for name in ("whole", "stopped"):
        compose_regions.main(flags(folder, name))
    (folder / "stopped" / "manifest.json").unlink()
    (folder / "stopped" / "shard-00001.safetensors").unlink()
    compose_regions.main(flags(folder, "stopped"))
    for path in sorted((folder / "whole").glob("*.safetensors")):
        assert path.read_bytes() == (folder / "stopped" / path.name).read_bytes()
    with pytest.raises(ValueError, match="other seed"):
        compose_regions.main([*flags(folder, "whole"), "--seed", "1"])


def test_regions_that_cannot_borrow_tokens_are_named_before_anything_is_written(folder: Path) -> None:
    sample = json.loads((folder / "wanted.jsonl").read_text().splitlines()[0])
    for change, words in (
        ({"captions": ["a zebra"]}, "'a zebra'"),
        ({"captions": None, "label": ""}, "captions or a label"),
        ({"box": None, "points": [[5.0, 5.0]]}, "has no box"),
    ):
        sample["regions"][0] |= change
        (folder / "strange.jsonl").write_text(json.dumps(sample) + "\n")
        with pytest.raises(ValueError, match=words):
            compose_regions.main(flags(folder, "strange", "strange.jsonl"))
    assert not (folder / "strange").exists()


def test_a_cache_for_each_record_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="a cache for each"):
        TokenBank([str(folder / "bank.jsonl")], [])
    with pytest.raises(ValueError, match="other records"):
        TokenBank([str(folder / "wanted.jsonl")], [str(folder / "bank")])
