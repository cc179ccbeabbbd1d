"""The whole path in miniature: a language model, records, a cache, projector, LoRA; stopped and refused on the way."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from interrupted import interrupt_after_saving
from tiny_stage import make_cache as make

from finetune import train
from finetune.cache import RegionCache
from finetune.loop import bfloat16_time, warn_of_bfloat16
from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat

pytestmark = pytest.mark.slow


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


def test_resumed_equals_uninterrupted(stage: Path, tmp_path: Path) -> None:
    flags = ["--language_model", str(stage / "lm" / "model"), "--image_grid", "2", "--merge", "true"]
    whole = run(stage, tmp_path / "whole", "lora", *flags)
    interrupt_after_saving(lambda: run(stage, tmp_path / "cut", "lora", *flags))
    resumed = run(stage, tmp_path / "cut", "lora", *flags)
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in whole], abs=1e-6)
    one, other = (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "cut")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=name)


def fresh(stage: Path) -> list[str]:
    return ["--language_model", str(stage / "lm" / "model"), "--image_grid", "2", "--tracker", "none"]


def held_out(stage: Path, every: int = 2) -> list[str]:
    return ["--eval_data", str(stage / "records.jsonl"), "--eval_cache", str(stage / "cache"), "--eval_records", "4",
            "--eval_steps", str(every)]  # fmt: skip


def test_a_run_leaves_its_model_log_and_plot(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = fresh(stage)[:4]  # with the default tracker
    run(stage, tmp_path, "projector", *flags, *held_out(stage))
    said = capsys.readouterr().out
    assert "4 steps draw 8 of 6 records: 1.33 passes" in said
    assert f"torch {torch.__version__}" in said
    (line,) = (tmp_path / "environment.jsonl").read_text().splitlines()
    assert json.loads(line)["torch"] == torch.__version__
    assert Image.open(tmp_path / "loss.png").width > 500
    assert list((tmp_path / "tensorboard").rglob("events*"))
    assert (tmp_path / "arguments.yaml").is_file()
    again = run(stage, tmp_path / "again", "projector", "--config", str(tmp_path / "arguments.yaml"))
    assert [line["loss"] for line in again if "loss" in line] == [
        line["loss"] for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "loss" in line
    ]


def test_the_best_weights_are_kept(stage: Path, tmp_path: Path) -> None:
    rates = ["--learning_rate", "3.0", "--decay_fraction", "0.01"]  # so high that it gets worse
    lines = run(stage, tmp_path, "full", *fresh(stage), *held_out(stage, 1), *rates, "--load_best", "true")
    values = [line["val_loss"] for line in lines if "val_loss" in line]
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best["value"] == pytest.approx(min(values), abs=1e-5)
    assert best["step"] == 1 + values.index(min(values)) < 4
    kept = load_file(tmp_path / "best" / "trained.safetensors")
    model = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "model")
    for name, value in kept.items():
        assert torch.equal(model.get_parameter(name), value)


def test_gradient_checkpointing_changes_no_number(stage: Path, tmp_path: Path) -> None:
    plain = run(stage, tmp_path / "a", "lora", *fresh(stage))
    thrifty = run(stage, tmp_path / "b", "lora", *fresh(stage), "--gradient_checkpointing", "true")
    assert [line["loss"] for line in thrifty] == pytest.approx([line["loss"] for line in plain], abs=1e-5)


def test_attn_implementation_is_followed(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    plain = train.set_trainable

    def spy(bridge: Any, mode: Any) -> None:
        seen.add(bridge.language_model.config._attn_implementation)
        plain(bridge, mode)

    fused = run(stage, tmp_path / "a", "lora", *fresh(stage))
    monkeypatch.setattr(train, "set_trainable", spy)
    eager = run(stage, tmp_path / "b", "lora", *fresh(stage), "--attn_implementation", "eager")
    run(stage, tmp_path / "c", "lora", "--init_from", str(tmp_path / "b" / "model"), "--attn_implementation", "eager")
    assert seen == {"eager"}
    assert [line["loss"] for line in eager] == pytest.approx([line["loss"] for line in fused], abs=1e-4)


def test_accumulated_batches_equal_a_large_one(stage: Path, tmp_path: Path) -> None:
    large = run(stage, tmp_path / "a", "lora", *fresh(stage), "--batch_size", "4")
    small = run(stage, tmp_path / "b", "lora", *fresh(stage), "--batch_size", "1", "--gradient_accumulation_steps", "4")
    assert [line["loss"] for line in small] == pytest.approx([line["loss"] for line in large], abs=1e-5)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_was_trained_can_be_saved_in_half_precision(stage: Path, tmp_path: Path, mode: str) -> None:
    run(stage, tmp_path / "one", "projector", *fresh(stage))
    start = ["--init_from", str(tmp_path / "one" / "model")]
    for dtype in ("float32", "float16"):
        run(stage, tmp_path / dtype, mode, *start, "--save_dtype", dtype)
    whole, half = (RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / dtype / "model", dtype="float32")
                   for dtype in ("float32", "float16"))  # fmt: skip
    for (name, wanted), found in zip(whole.named_parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3, msg=name)
    sizes = [sum(path.stat().st_size for path in (tmp_path / dtype / "model").rglob("*.safetensors"))
             for dtype in ("float32", "float16")]  # fmt: skip
    assert sizes[1] < 0.6 * sizes[0]


def test_a_named_language_model_is_kept_by_name(stage: Path, tmp_path: Path) -> None:
    run(stage, tmp_path / "one", "projector", *fresh(stage))
    run(stage, tmp_path / "two", "lora", "--init_from", str(tmp_path / "one" / "model"), "--tracker", "none")
    for stage_name in ("one", "two"):
        assert not (tmp_path / stage_name / "model" / "model.safetensors").exists()
        assert (tmp_path / stage_name / "model" / "projector.safetensors").is_file()
    run(stage, tmp_path / "three", "lora", "--init_from", str(tmp_path / "two" / "model"), "--tracker", "none")
    two, three = (load_file(tmp_path / n / "model" / "adapter" / "adapter_model.safetensors") for n in ("two", "three"))
    assert two.keys() == three.keys()
    assert any(not torch.equal(two[name], three[name]) for name in two)  # it went on with the adapter that was there
    run(stage, tmp_path / "full", "full", *fresh(stage))
    whole = ["--init_from", str(tmp_path / "full" / "model"), "--tracker", "none"]
    run(stage, tmp_path / "on whole", "lora", *whole)
    small = tmp_path / "on whole" / "model"
    assert not (small / "model.safetensors").exists()  # it names the folder that holds the language model
    bridge = RegionBridgeForConditionalGeneration.from_pretrained(small)
    below = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "full" / "model")
    assert bridge.config.language_model == whole[1]
    assert torch.equal(bridge.get_input_embeddings().weight, below.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="quantize needs a bridge that names"):
        run(stage, tmp_path / "x", "lora", *whole, "--quantize", "4bit")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_qlora_trains_on_a_quantized_language_model(
    stage: Path, tmp_path: Path, bits: str, make_tokenizer: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(stage / "lm" / "model")
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    flags = ["--language_model", str(tmp_path / "lm"), "--image_grid", "2", "--tracker", "none", "--quantize", bits,
             "--learning_rate", "1e-2", "--decay_fraction", "0.01"]  # fmt: skip
    lines = run(stage, tmp_path / "run", "lora", *flags, "--steps", "12")
    assert lines[-1]["loss"] < lines[0]["loss"]
    bridge = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert bridge.projector.linear_1.weight.dtype == torch.float32


@pytest.mark.parametrize(("mode", "flags", "words"), [
    ("full", ["--quantize", "4bit"], "quantize is for a frozen language model"),
    ("full", ["--language_model_dtype", "bfloat16"], "in float32"),
    ("projector", ["--merge", "true"], "but mode is projector"),
    ("lora", ["--load_best", "true"], "load_best needs evaluations"),
    ("lora", ["--init_from", "somewhere"], "both or neither"),
    ("lora", ["--steps", "0"], "steps 0"),
])  # fmt: skip
def test_options_that_exclude_each_other_are_refused(
    stage: Path, tmp_path: Path, mode: str, flags: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(stage, tmp_path / "x", mode, *fresh(stage), *flags)
    assert not (tmp_path / "x").exists()


def test_a_run_continues_with_the_same_arguments(stage: Path, tmp_path: Path) -> None:
    run(stage, tmp_path, "projector", *fresh(stage))
    before = (tmp_path / "arguments.yaml").read_text()
    with pytest.raises(ValueError, match=r"projector_learning_rate 0\.001, now 0\.5"):
        run(stage, tmp_path, "projector", *fresh(stage), "--projector_learning_rate", "0.5")
    assert (tmp_path / "arguments.yaml").read_text() == before
    run(stage, tmp_path, "projector", *fresh(stage), "--save_steps", "1")
    for path in (tmp_path / "checkpoints").rglob("trained.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-4 cannot be read .*delete it"):
        run(stage, tmp_path, "projector", *fresh(stage))


def test_mismatched_parts_are_refused(stage: Path, tmp_path: Path) -> None:
    flags = ["--language_model", str(stage / "lm" / "model"), "--image_grid", "2"]
    make(stage, "tap1", "cache of another")
    with pytest.raises(ValueError, match="make the cache with the bridge's tokenizer"):
        run(stage, tmp_path / "a", "projector", *flags, cache="cache of another")
    with pytest.raises(ValueError, match="--image_grid 3"):
        run(stage, tmp_path / "b", "projector", *flags[:2], "--image_grid", "3")
    with pytest.raises(ValueError, match="another output"):
        make(stage, "tap1", "cache")
    with pytest.raises(ValueError, match=r"Record 0 of .* has a picture or regions, but there is no cache"):
        train.main(["--output_dir", str(tmp_path / "c"), *flags[:2], "--region_tokenizer", str(stage / "tap0"),
                    "--data", str(stage / "records.jsonl"), "--steps", "4"])  # fmt: skip


def test_a_stopped_cache_continues_and_damage_is_found(stage: Path) -> None:
    make(stage, "tap0", "again")
    shards = sorted((stage / "again").glob("*.safetensors"))
    assert len(shards) == 3
    before = {path.name: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    make(stage, "tap0", "again")
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
    make(stage, "tap0", "again")  # which finds it, too, and makes it anew
    assert torch.equal(RegionCache(stage / "again").regions(5).boxes, RegionCache(stage / "cache").regions(5).boxes)


def test_a_bridge_can_be_trained_further_with_other_picture_context(stage: Path, tmp_path: Path) -> None:
    for name, more in (("annotated", ["--context_from", "annotated"]), ("found", [])):
        make(stage, "tap0", f"new_{name}", "--image_grid", "0", "--image_regions", "3", *more)
    make(stage, "tap1", "another's")
    run(stage, tmp_path / "old", "full", "--language_model", str(stage / "lm" / "model"), "--image_grid", "2")
    flags = ["--init_from", str(tmp_path / "old" / "model"), "--image_regions", "3"]
    with pytest.raises(ValueError, match="holds tokens of the tokenizer"):
        run(stage, tmp_path / "without", "full", *flags, cache="another's")
    for name in ("annotated", "found"):
        run(stage, tmp_path / name, "full", *flags, cache=f"new_{name}")
    chat = RegionChat.from_pretrained(tmp_path / "found" / "model")
    assert (chat.processor.image_grid, chat.processor.image_regions) == (0, 3)
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()
    assert isinstance(chat.ask("What is <region>?", image=picture, boxes=[[2, 3, 30, 20]], max_new_tokens=4), str)


def test_bfloat16_is_warned_of_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.05 < bfloat16_time(64) < 100
    for ratio, device, warned in ((4.24, "cpu", 1), (0.3, "cpu", 0), (4.24, "cuda", 0)):
        monkeypatch.setattr("finetune.loop.bfloat16_time", lambda ratio=ratio: ratio)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warn_of_bfloat16("--mixed_precision bf16", "--mixed_precision no", torch.device(device))
        assert len(found) == warned
        assert all("4.2 times as long" in str(one.message) for one in found)
