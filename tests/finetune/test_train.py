"""The whole path in miniature: a language model, records, a cache, projector, LoRA; stopped and refused on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

import finetune.train as train
from finetune import cache_regions, pretrain_lm
from finetune.data.converting import convert
from finetune.data.glyph_records import GlyphScenesSource
from finetune.region_cache import RegionCache
from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat

LM = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
      "num_attention_heads": 2, "tie_word_embeddings": True}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """A folder with a language model, a region tokenizer, records and their cache."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "lm.json").write_text(json.dumps(LM))
    pretrain_lm.main(["--output_dir", str(folder / "lm"), "--model_config", str(folder / "lm.json"), "--steps", "2",
                      "--batch_size", "2", "--turns", "2", "--workers", "0", "--eval_texts", "2"])  # fmt: skip
    for seed in (0, 1):
        make_tokenizer(seed).save_pretrained(folder / f"tap{seed}")
    convert(GlyphScenesSource(output=str(folder / "records.jsonl"), scenes=6, long_side=96, workers=1))
    cache(folder, "tap0", "cache")
    return folder


def cache(folder: Path, tokenizer: str, output: str, *flags: str) -> None:
    cache_regions.main(["--data", str(folder / "records.jsonl"), "--region_tokenizer", str(folder / tokenizer),
                        "--output", str(folder / output), "--variants", "exact,jitter,points", "--shard_size", "2",
                        "--workers", "0", "--image_grid", "2", *flags])  # fmt: skip


def run(folder: Path, output: Path, mode: str, *flags: str, cache: str = "cache") -> list[dict[str, float]]:
    train.main(["--output_dir", str(output), "--mode", mode, "--data", str(folder / "records.jsonl"),
                "--caches", str(folder / cache), "--region_tokenizer", str(folder / "tap0"), "--steps", "4",
                "--batch_size", "2", "--log_steps", "1", "--save_steps", "2", "--warmup_steps", "1", *flags])  # fmt: skip
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_projector_then_lora(stage: Path, tmp_path: Path) -> None:
    language_model = stage / "lm" / "model"
    evaluation = ["--eval_data", str(stage / "records.jsonl"), "--eval_cache", str(stage / "cache"),
                  "--eval_records", "2", "--eval_steps", "4"]  # fmt: skip
    first = run(stage, tmp_path / "one", "projector", "--language_model", str(language_model), "--image_grid", "2",
                *evaluation)  # fmt: skip
    assert {"val_loss", "val_answer"} <= set(first[-1])
    one = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "one" / "model")
    from transformers import AutoModelForCausalLM

    untouched = AutoModelForCausalLM.from_pretrained(language_model).state_dict()
    for name, weight in one.language_model.state_dict().items():  # the projector alone has learned
        assert torch.equal(weight[: len(untouched[name])], untouched[name]), name
    run(stage, tmp_path / "two", "lora", "--init_from", str(tmp_path / "one" / "model"), "--merge", "true")
    two = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "two" / "model")
    moved = [name for name, weight in two.language_model.state_dict().items()
             if not torch.equal(weight, one.language_model.state_dict()[name])]  # fmt: skip
    assert moved
    assert not any("embed" in name or "norm" in name for name in moved)
    assert not any("lora" in name for name in two.state_dict())
    chat = RegionChat.from_pretrained(tmp_path / "two" / "model")
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()
    assert isinstance(chat.ask("What is <region>?", image=picture, boxes=[[2, 3, 30, 20]], max_new_tokens=4), str)


def test_resumed_equals_uninterrupted(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--language_model", str(stage / "lm" / "model"), "--image_grid", "2", "--merge", "true"]
    whole = run(stage, tmp_path / "whole", "lora", *flags)
    plain = train.save_state

    def save_then_die(*arguments: Any) -> None:
        plain(*arguments)
        raise InterruptedError

    monkeypatch.setattr(train, "save_state", save_then_die)
    with pytest.raises(InterruptedError):
        run(stage, tmp_path / "cut", "lora", *flags)
    monkeypatch.setattr(train, "save_state", plain)
    resumed = run(stage, tmp_path / "cut", "lora", *flags)
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in whole], abs=1e-6)
    one, other = (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "cut")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=name)


def test_what_does_not_fit_is_refused(stage: Path, tmp_path: Path) -> None:
    flags = ["--language_model", str(stage / "lm" / "model"), "--image_grid", "2"]
    cache(stage, "tap1", "cache of another")
    with pytest.raises(ValueError, match="make the cache with the bridge's tokenizer"):
        run(stage, tmp_path / "a", "projector", *flags, cache="cache of another")
    with pytest.raises(ValueError, match="--image_grid 3"):
        run(stage, tmp_path / "b", "projector", *flags[:2], "--image_grid", "3")
    with pytest.raises(ValueError, match="another output"):
        cache(stage, "tap1", "cache")


def test_a_stopped_cache_goes_on_and_damage_is_found(stage: Path) -> None:
    cache(stage, "tap0", "again")
    shards = sorted((stage / "again").glob("*.safetensors"))
    assert len(shards) == 3
    before = {path.name: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    cache(stage, "tap0", "again")
    after = {path.name: path.stat().st_mtime_ns for path in sorted((stage / "again").glob("*.safetensors"))}
    assert [name for name in before if before[name] != after[name]] == [shards[1].name]
    for row in range(6):
        one, other = RegionCache(stage / "cache").regions(row), RegionCache(stage / "again").regions(row)
        assert torch.equal(one.semantic_tokens, other.semantic_tokens)
    data = bytearray(shards[2].read_bytes())
    data[-1] ^= 1
    shards[2].write_bytes(bytes(data))
    with pytest.raises(ValueError, match=shards[2].name):
        RegionCache(stage / "again").regions(5)
