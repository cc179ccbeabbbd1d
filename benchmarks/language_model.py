"""What regions cost a language model: 64 questions about a region each, when a region is 1, 4 or 196 tokens.

    python benchmarks/language_model.py
    python benchmarks/language_model.py --device cuda --dtype bfloat16 --width 2048 --layers 24

196 is a 14 × 14 crop, as systems without region tokens hand over (docs/comparison.md). One batch of prompts on a random Llama:
reading them (prefill), writing words after them (decode), the memory of keys and values, and, on CUDA, the memory's height.
The floor is of operations, or of the bytes of weights, keys and values: all are read again for every word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from machine import copy_rate, describe_machine, interleaved, matrix_rate
from side_by_side import arguments_of, operations_of
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

QUESTION = 24
"""Tokens of a prompt beside the region's."""


class Batch:
    """Prompts of `tokens` tokens a region and a question, and their words."""

    def __init__(self, model: LlamaForCausalLM, regions: int, tokens: int, words: int) -> None:
        self.model, self.words = model, words
        shape = (regions, tokens + QUESTION, model.config.hidden_size)
        self.prompt = torch.randn(shape, device=model.device, dtype=model.dtype)
        self.cache = DynamicCache(config=model.config)

    def prefill(self) -> None:
        self.cache = DynamicCache(config=self.model.config)
        output = self.model(inputs_embeds=self.prompt, past_key_values=self.cache, logits_to_keep=1)
        self.word = output.logits.argmax(dim=-1)

    def decode(self) -> None:
        written = self.cache.get_seq_length() - self.prompt.shape[1]
        if written:
            self.cache.crop(-written)
        for _ in range(self.words):
            self.word = self.model(input_ids=self.word, past_key_values=self.cache).logits.argmax(dim=-1)

    @property
    def cache_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    arguments = arguments_of(
        __doc__,
        regions={"type": int, "default": 64, "help": "prompts of the batch"},
        tokens={"type": int, "nargs": "+", "default": [1, 4, 196], "help": "tokens of a region"},
        words={"type": int, "default": 16, "help": "words of an answer"},
        width={"type": int, "default": 512, "help": "of the language model"},
        layers={"type": int, "default": 8, "help": "of the language model"},
    )
    if arguments.quick:
        arguments.regions, arguments.tokens, arguments.words, arguments.width, arguments.layers = 2, [1, 4], 2, 64, 2
    config = LlamaConfig(
        vocab_size=32000, hidden_size=arguments.width, intermediate_size=4 * arguments.width,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.width // 64,
    )  # fmt: skip
    dtype = getattr(torch, arguments.dtype)
    model = LlamaForCausalLM(config).eval().to(device=arguments.device, dtype=dtype)
    rates = (
        matrix_rate(arguments.device, dtype, quick=arguments.quick),
        copy_rate(arguments.device, quick=arguments.quick),
    )
    weights = sum(p.nbytes for p in model.parameters())
    head = f"{describe_machine()}; Llama of {weights / dtype.itemsize / 1e6:.0f} M parameters, {arguments.dtype}"
    print(head, flush=True)
    batches = {count: Batch(model, arguments.regions, count, arguments.words) for count in arguments.tokens}
    found = measure(batches, rates, weights, arguments.seconds)
    lines = [
        "| a region is | prefill, s | reached | decode, s | reached | keys and values, MiB | height, MiB |",
        "|---" * 7 + "|",
    ]
    for row in found:
        lines.append(
            f"| {row['tokens']} token{'s' * (row['tokens'] > 1)} | {row['prefill']:.3f} | {row['prefill_reached']:.0%} | "
            f"{row['decode']:.3f} | {row['decode_reached']:.0%} | {row['cache'] / 2**20:.0f} | {row['height'] / 2**20:.0f} |"
        )
    words = f"{head}; {arguments.regions} regions, {arguments.words} words each\n\n" + "\n".join(lines) + "\n"
    print(f"\n{words}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "language_model.md").write_text(words)
    (arguments.output / "language_model.json").write_text(json.dumps({"machine": head, "rows": found}, indent=1))


def measure(batches: dict[int, Batch], rates: tuple[float, float], weights: int, budget: float) -> list[dict[str, Any]]:
    """Seconds of each step, the share of its floor, and memory; one row for each batch."""
    found = []
    for count, batch in batches.items():
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        batch.prefill()
        batch.decode()
        height = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else weights + batch.cache_bytes
        found.append({"tokens": count, "cache": batch.cache_bytes, "height": height})
    for step in ("prefill", "decode"):
        ways: dict[str, Callable[[], object]] = {str(count): getattr(batch, step) for count, batch in batches.items()}
        once = interleaved(ways, 1)
        seconds = interleaved(ways, max(1, min(7, int(budget / sum(once.values())))))
        for row, batch in zip(found, batches.values()):
            moved = weights if step == "prefill" else batch.words * (weights + row["cache"])
            floor = max(operations_of(ways[str(row["tokens"])])[1] / rates[0], moved / rates[1])
            row[step] = seconds[str(row["tokens"])]
            row[f"{step}_reached"] = floor / row[step]
    return found


if __name__ == "__main__":
    main()
