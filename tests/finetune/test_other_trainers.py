"""transformers' Trainer and trl's SFTTrainer train a bridge with our collator, save it, and go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from datasets import Dataset
from PIL import Image

from finetune.batches import CachedRecord, ConversationCollator, Item
from finetune.records import Record
from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    add_lora,
    merge_lora,
    set_trainable,
)

BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
SILENT = {"report_to": [], "logging_steps": 1, "disable_tqdm": True, "use_cpu": True}


@pytest.fixture(scope="module")
def processor() -> RegionBridgeProcessor:
    return RegionBridgeProcessor.from_pretrained("region-chat-tiny")


def conversation(number: int) -> dict[str, Any]:
    answer = ("a small red star", "a large blue cloud", "an anchor")[number % 3]
    turns = [{"role": "user", "content": "What is <region1>?"}, {"role": "assistant", "content": answer}]
    return {"regions": [{"box": BOXES[number % 2]}], "conversations": turns}


def in_words() -> dict[str, Any]:
    turns = [{"role": "user", "content": "What is larger?"}, {"role": "assistant", "content": "a cloud"}]
    return {"image": None, "regions": [], "conversations": turns}


@pytest.fixture(scope="module")
def cached(processor: RegionBridgeProcessor, picture: Image.Image) -> list[CachedRecord]:
    assert processor.region_tokenizer is not None
    regions = processor.region_tokenizer.encode(picture, boxes=BOXES)
    return [CachedRecord(Record.from_dict(conversation(i)), regions[[i % 2]]) for i in range(8)]


def bridge_for(mode: str, seed: int = 0) -> RegionBridgeForConditionalGeneration:
    bridge = RegionBridgeForConditionalGeneration.from_pretrained("region-chat-tiny")
    set_seed(seed)
    if mode == "lora":
        add_lora(bridge, r=2, dropout=0.1)
    set_trainable(bridge, mode)  # type: ignore[arg-type]
    return bridge


class StopAfter(TrainerCallback):
    """Ends a run with a checkpoint, as a kill would."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def train(
    output: Path,
    processor: RegionBridgeProcessor,
    data: Any,
    mode: str = "lora",
    *,
    bridge: RegionBridgeForConditionalGeneration | None = None,
    resume: bool | None = None,
    stop: int | None = None,
    metrics: Callable[..., dict[str, float]] | None = None,
    **options: Any,
) -> Trainer:
    arguments = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **options}
    trainer = Trainer(
        bridge or bridge_for(mode, seed=1 if resume else 0),
        TrainingArguments(str(output), **SILENT, **arguments),
        train_dataset=data,
        eval_dataset=data,
        data_collator=ConversationCollator(processor),
        processing_class=processor,
        compute_metrics=metrics,
        callbacks=[StopAfter(stop)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("mode", ["lora", "projector", "full"])
def test_a_resumed_trainer_run_equals_an_uninterrupted_one(
    processor: RegionBridgeProcessor,
    cached: list[CachedRecord],
    tmp_path: Path,
    mode: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.enable_propagation()
    whole = train(tmp_path / "whole", processor, cached, mode)
    train(tmp_path / "cut", processor, cached, mode, stop=2)
    resumed = train(tmp_path / "cut", processor, cached, mode, resume=True)
    assert losses(resumed) == losses(whole)
    assert_equal_weights(resumed.model, whole.model)
    logging.disable_propagation()
    assert "language_model.base_model" not in caplog.text  # the frozen weights are not told to be missing
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "model.safetensors").exists() == (mode != "lora")
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(checkpoint)
    assert_equal_weights(loaded, whole.model)
    assert RegionChat.from_pretrained(checkpoint).processor.region_tokenizer is not None


def test_a_checkpoint_refers_to_the_bundled_model_by_its_name(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    train(tmp_path, processor, cached, max_steps=1, save_steps=1)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-1")
    assert loaded.config.language_model == "region-chat-tiny"
    assert "base_model: region-chat-tiny" in (tmp_path / "checkpoint-1" / "README.md").read_text()


def test_a_language_model_without_a_name_is_saved_in_each_checkpoint(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    bridge = merge_lora(bridge_for("lora"))
    add_lora(bridge, r=2)
    trainer = train(tmp_path, processor, cached, bridge=bridge, max_steps=1, save_steps=1)
    assert_equal_weights(RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-1"), trainer.model)


def test_the_best_checkpoint_is_loaded_at_the_end(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = train(tmp_path, processor, cached, learning_rate=0.3, **options)  # a rate at which it gets worse
    found = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = min(found, key=lambda step: found[step])
    assert best != max(found)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(found[best], abs=1e-6)
    assert_equal_weights(
        trainer.model, RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / f"checkpoint-{best}")
    )


def test_metrics_see_logits_and_labels(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    seen: list[tuple[int, ...]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.extend([prediction.predictions.shape, prediction.label_ids.shape])
        return {"words": float((prediction.label_ids != -100).sum())}

    trainer = train(tmp_path, processor, cached, metrics=metrics, max_steps=1, save_strategy="no")
    assert trainer.evaluate()["eval_words"] > len(cached)
    logits, labels = seen
    assert logits[:2] == labels == (len(cached), labels[1])
    assert logits[2] == trainer.model.config.text_config.vocab_size


def test_gradient_checkpointing_changes_no_loss(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    plain, thrifty = (
        train(tmp_path, processor, cached, "projector", max_steps=2, save_strategy="no", gradient_checkpointing=is_on)
        for is_on in (False, True)
    )
    assert losses(thrifty) == pytest.approx(losses(plain), abs=1e-5)


def test_accumulated_batches_give_the_loss_of_a_large_one(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path
) -> None:
    shapes = ({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2})
    large, small = (
        train(tmp_path, processor, cached, "projector", max_steps=2, save_strategy="no", **shape) for shape in shapes
    )
    assert losses(small) == pytest.approx(losses(large), abs=1e-4)


@pytest.mark.parametrize("mode", ["lora", "projector"])
def test_regions_and_words_alone_are_learned_together(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], tmp_path: Path, mode: str
) -> None:
    """In one batch, and in batches of which one has no region at all."""
    words = CachedRecord(Record.from_dict(in_words()), None)
    for number, mixed in enumerate(([cached[0], words] * 4, [*cached[:2], words, words])):
        trainer = train(
            tmp_path / str(number), processor, mixed, mode, save_strategy="no", train_sampling_strategy="sequential"
        )
        assert all(np.isfinite(losses(trainer)))


def test_records_need_no_cache(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "p.png")
    records = [{**item.record.to_dict(), "image": "p.png", "width": 90, "height": 60} for item in cached[:3]]
    collator = ConversationCollator(processor, images=tmp_path)
    assert_same_batch(collator(records), collator(cached[:3]))
    assert_same_batch(collator([{**record, "image": picture} for record in records]), collator(cached[:3]))
    mixed: list[Item] = [in_words(), records[0], cached[1]]
    assert collator(mixed)["region_mask"].sum(dim=1).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"p\.png says that its picture has 91 × 60 pixels, but it has 90 × 60"):
        collator([{**records[0], "width": 91}])
    with pytest.raises(
        ValueError, match=r"Got an item with image, expected a record with conversations.* remove_unused_columns=False"
    ):
        collator([{"image": "p.png"}])
    with pytest.raises(ValueError, match="in which the assistant says nothing"):
        collator([{**in_words(), "conversations": in_words()["conversations"][:1]}])


def assert_same_batch(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


def sft(output: Path, processor: RegionBridgeProcessor, data: Dataset, images: Path, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    resume, stop = options.pop("resume", None), options.pop("stop", None)
    arguments = {
        "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "bf16": False,
        "remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}, **options,
    }  # fmt: skip
    trainer = SFTTrainer(
        bridge_for("lora", seed=1 if resume else 0),
        SFTConfig(str(output), **SILENT, **arguments),
        train_dataset=data,
        eval_dataset=data,
        data_collator=ConversationCollator(processor, images=images),
        processing_class=processor,
        callbacks=[StopAfter(stop)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_trl_run_equals_an_uninterrupted_one(
    processor: RegionBridgeProcessor, cached: list[CachedRecord], picture: Image.Image, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="needs the extra dev, on Python 3.11 or later")
    picture.save(tmp_path / "p.png")
    data = Dataset.from_list(
        [{**item.record.to_dict(), "image": "p.png", "width": 90, "height": 60} for item in cached]
    )
    whole = sft(tmp_path / "whole", processor, data, tmp_path)
    assert losses(whole) == pytest.approx(losses(train(tmp_path / "ours", processor, cached)), abs=1e-4)
    sft(tmp_path / "cut", processor, data, tmp_path, stop=2)
    resumed = sft(tmp_path / "cut", processor, data, tmp_path, resume=True)
    assert losses(resumed) == losses(whole)
    assert_equal_weights(resumed.model, whole.model)
    assert_equal_weights(
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "cut" / "checkpoint-4"), whole.model
    )
    assert np.isfinite(whole.evaluate()["eval_loss"])
