"""A training step of SmolLM2-135M with LoRA from cached region tokens: what each change to it brings, in CPU seconds.

    python benchmarks/training_step.py                     # three minutes on one core
    python benchmarks/training_step.py --questions 1 --batch_size 16

All ways learn the same answers of the same conversations. The first one computes logits for every word of every prompt, as any
training loop does that gives the language model its labels. Each further way adds a change to the one before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from torch.nn import functional as F

from finetune import cache_regions
from finetune.batches import ConversationCollator, Conversations
from finetune.config import Source
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.losses import summed_loss
from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, add_lora, set_trainable
from tap_tokenizer import TapRegionTokenizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language_model", default="smollm2-135m", help="name or folder")
    parser.add_argument("--batch_size", type=int, default=4, help="conversations of a step")
    parser.add_argument("--questions", type=int, default=6, help="questions of a conversation")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each way; the fastest counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    print(describe_machine())
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")

    def model(dtype: torch.dtype, attention: str) -> RegionBridgeForConditionalGeneration:
        torch.manual_seed(0)
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            arguments.language_model, region_tokenizer=tokenizer, dtype=dtype, attn_implementation=attention
        )
        set_trainable(add_lora(bridge), "lora")
        bridge.projector.float()
        return bridge.train()

    plain, eager = model(torch.float32, "sdpa"), model(torch.bfloat16, "eager")
    batch = make_batch(RegionBridgeProcessor.for_bridge(plain.config, region_tokenizer=tokenizer), arguments)
    ways: dict[str, tuple[Callable[[], torch.Tensor], Any]] = {
        "logits of every word": (lambda: loss_of_all(plain, batch), nullcontext),
        "logits of answers alone": (lambda: summed_loss(plain, batch), nullcontext),
        "its matrix products in bfloat16": (lambda: summed_loss(plain, batch), bfloat16),
        "frozen weights in bfloat16, too, eager attention": (lambda: summed_loss(eager, batch), bfloat16),
    }
    seconds: dict[str, float] = {}
    losses: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, (loss, context) in ways.items():
            start = time.process_time()
            with context():
                value = loss()
            value.backward()
            seconds[name] = min(seconds.get(name, float("inf")), time.process_time() - start)
            losses[name] = float(value.detach())
            for one in (plain, eager):
                one.zero_grad()
    learned = int((batch["labels"] != -100).sum())
    first = next(iter(seconds.values()))
    print(f"\n{tuple(batch['labels'].shape)} words, {learned} of them learned\n")
    print("| a step | CPU s | times as fast | loss a word |\n|---|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.2f} | **{first / taken:.2f}** | {losses[name] / learned:.4f} |")


def make_batch(processor: RegionBridgeProcessor, arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Conversations about as many scenes, with cached region tokens."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "records.jsonl")
        scenes = arguments.batch_size
        convert(GlyphScenesSource(output=data, scenes=scenes, turns=2 * arguments.questions, workers=1))
        cache_regions.main(["--data", data, "--output", f"{folder}/cache"])
        found = Conversations([Source(data, f"{folder}/cache", turns=arguments.questions)])
        return ConversationCollator(processor)([found[i] for i in range(scenes)])


def loss_of_all(bridge: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same loss from the logits of every word."""
    labels = batch["labels"][:, 1:]
    logits = bridge(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


@contextmanager
def bfloat16() -> Iterator[None]:
    """Matrix products in bfloat16, as `mixed_precision: bf16` of a training run has them."""
    with torch.autocast("cpu", torch.bfloat16):
        yield


if __name__ == "__main__":
    main()
