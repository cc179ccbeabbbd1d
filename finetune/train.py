"""Teach a language model to read region tokens: the projector first, then LoRA. One accelerate loop, top to bottom.

    accelerate launch -m finetune.train --config region_chat_tiny_full
    accelerate launch -m finetune.train --config region_chat_tiny_lora

Reads records and their cached region tokens (`finetune.cache_regions`), never pictures: the region tokenizer is frozen
by construction. A run that was stopped goes on from its last checkpoint when the same command is given again, as if it
had not been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    add_lora,
    count_parameters,
    merge_lora,
    set_trainable,
)
from tap_tokenizer import TapRegionTokenizer

from .arguments import knob, parse_arguments, save_arguments
from .data.collator import CachedSample, ConversationCollator
from .data.mixture import Mixture
from .data.sample import cut_turns, load_samples
from .loop import MeanWindow, RunLog, load_last_state, mean_of, rate_share, save_state, seed_step
from .optimizers import OptimizerName, build_optimizers, param_groups
from .region_cache import RegionCache, file_checksum

TRAINED_WEIGHTS = "trained.safetensors"


@dataclass
class TrainArguments:
    """Train a bridge on conversations about regions."""

    output_dir: str = knob(help="folder of checkpoints, log and the trained bridge")
    language_model: str | None = knob(
        default=None, help="for a fresh bridge: name or folder of a causal language model"
    )
    init_from: str | None = knob(default=None, help="folder of a bridge to go on from, instead of a fresh one")
    region_tokenizer: str = knob(default="tap-tiny", help="name, folder or repository of the tokenizer of the caches")
    mode: Literal["projector", "lora", "full"] = knob(
        default="projector", help="what learns; the projector always does"
    )
    data: list[str] = knob(default_factory=list, help="record files to learn from")
    caches: list[str] = knob(default_factory=list, help="cache of each record file, in the same order")
    weights: list[float] = knob(default_factory=list, help="how often each is drawn; default: as its size")
    eval_data: str | None = knob(default=None, help="records to evaluate on during training")
    eval_cache: str | None = knob(default=None, help="their cache")
    experts: Literal["routed", "all"] = knob(default="routed", help="fresh bridge: tokens of a region")
    use_semantic_embeds: bool = knob(default=True, help="fresh bridge: does the projector read semantic embeddings")
    use_position: bool = knob(default=True, help="fresh bridge: does the projector read the position code")
    image_grid: int = knob(default=0, help="fresh bridge: points per side of the picture context; 0 for none")
    lora_r: int = knob(default=16, help="rank of LoRA")
    lora_alpha: int = knob(default=32, help="scale of LoRA")
    lora_dropout: float = knob(default=0.0, help="dropout inside LoRA")
    merge: bool = knob(default=False, help="add the adapter to the language model's weights at the end")
    seed: int = knob(default=0, help="of the order of records, the prompt variants and the new weights")
    steps: int = knob(default=1000, help="optimizer steps")
    batch_size: int = knob(default=16, help="records per forward pass and process")
    gradient_accumulation_steps: int = knob(default=1, help="forward passes per optimizer step")
    workers: int = knob(default=0, help="processes that put batches together")
    optimizer: OptimizerName = knob(default="adamw", help="muon: for the matrices of projector and transformer layers")
    muon_learning_rate: float = knob(default=5e-3, help="peak, of Muon")
    learning_rate: float = knob(default=2e-4, help="peak, of the language model or its adapter")
    projector_learning_rate: float = knob(default=1e-3, help="peak, of the projector")
    weight_decay: float = knob(default=0.0, help="of AdamW")
    warmup_steps: int = knob(default=50, help="linear rise of the learning rates")
    decay_fraction: float = knob(default=1.0, help="last part of the run, over which the rates fall to zero")
    max_grad_norm: float = knob(default=1.0, help="gradients are clipped to this norm")
    turns: list[int] = knob(
        default_factory=list,
        help="of each of the data: questions in a row taken from a record, if its questions stand alone; 0 for all",
    )
    max_length: int | None = knob(default=None, help="longest conversation in tokens; a longer one stops the run")
    mixed_precision: Literal["no", "bf16", "fp16"] = knob(default="no", help="as in accelerate")
    save_steps: int = knob(default=250, help="steps between checkpoints")
    log_steps: int = knob(default=20, help="steps between lines of log.jsonl")
    eval_steps: int = knob(default=250, help="steps between evaluations")
    eval_records: int = knob(default=128, help="records of an evaluation")


class Conversations(Dataset[CachedSample]):
    """The records of a mixture at the positions that are asked for, each with a prompt variant of its own."""

    def __init__(self, arguments: TrainArguments, mixture: Mixture, positions: range) -> None:
        self.samples = [load_samples(path) for path in arguments.data]
        self.caches = [RegionCache(path) for path in arguments.caches]
        self.mixture, self.positions = mixture, positions
        self.seed, self.turns = arguments.seed, arguments.turns

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> CachedSample:
        source, row, visit = self.mixture[self.positions[place]]
        cache = self.caches[source]
        variant = (row + visit + self.seed) % len(cache.plan.variants)
        item = CachedSample(self.samples[source][row], cache.regions(row, variant), cache.grid(row))
        turns = self.turns[source] if self.turns else 0
        return _cut(item, turns, np.random.RandomState([self.seed, 3, self.positions[place] % 2**32]))


def _cut(item: CachedSample, turns: int, random: np.random.RandomState) -> CachedSample:
    """`turns` questions in a row of a conversation that has more, from a random one on."""
    questions = sum(turn["role"] == "user" for turn in item.sample["conversations"])
    if not turns or questions <= turns:
        return item
    sample, rows = cut_turns(item.sample, random.randint(questions - turns + 1), turns)
    return CachedSample(sample, item.regions[rows], item.grid)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write bridge and processor to `output_dir`."""
    arguments = parse_arguments(TrainArguments, argv, description=__doc__)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    set_seed(arguments.seed)
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    bridge, processor = _bridge_and_processor(arguments)
    _check_data(arguments, bridge)
    if arguments.mode == "lora":
        add_lora(bridge, r=arguments.lora_r, alpha=arguments.lora_alpha, dropout=arguments.lora_dropout)
    set_trainable(bridge, arguments.mode)
    accelerator.print(count_parameters(bridge))
    optimizers = _optimizers(bridge, arguments)
    model, *optimizers = accelerator.prepare(bridge, *optimizers)
    _keep_only_what_learns(accelerator)

    peaks = [group["lr"] for group in param_groups(optimizers)]  # before a checkpoint brings the rates of its step

    checkpoints, log = output / "checkpoints", RunLog(output, accelerator)
    start = load_last_state(accelerator, checkpoints)
    log.forget_after(start)
    if accelerator.is_main_process:
        save_arguments(arguments, output / "arguments.yaml")
    loader = accelerator.prepare(_loader(arguments, processor, start, accelerator.num_processes))
    began, window = time.perf_counter(), MeanWindow()
    progress = tqdm(range(start, arguments.steps), initial=start, total=arguments.steps, desc=arguments.mode,
                    disable=not accelerator.is_main_process)  # fmt: skip
    steps = _grouped(loader, arguments.gradient_accumulation_steps)
    for step, batches in zip(progress, steps):
        share = rate_share(step, arguments.steps, arguments.warmup_steps, arguments.decay_fraction)
        for group, peak in zip(param_groups(optimizers), peaks):
            group["lr"] = peak * share
        seed_step(arguments.seed, step, accelerator.process_index)
        model.train()
        learned = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        total = accelerator.reduce(torch.tensor(float(learned), device=accelerator.device))
        loss = 0.0
        for i, batch in enumerate(batches):
            with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
                # the mean over all words that this step learns, in all passes and processes; DDP averages gradients
                part = _summed_loss(model, batch) / total
                accelerator.backward(part * accelerator.num_processes)
                loss += float(part.detach())
        accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        window.add({"loss": float(accelerator.reduce(torch.tensor(loss, device=accelerator.device)))})
        done = step + 1
        if done % arguments.log_steps == 0 or done == arguments.steps:
            means = window.take()
            progress.set_postfix(loss=f"{means['loss']:.3f}")
            log.write({"step": done, "seconds_per_step": (time.perf_counter() - began) / (done - start), **means})
        if arguments.eval_data and (done % arguments.eval_steps == 0 or done == arguments.steps):
            log.write({"step": done, **_evaluate(arguments, accelerator, model, processor)})
        if done % arguments.save_steps == 0 or done == arguments.steps:
            save_state(accelerator, checkpoints, done)
    if accelerator.is_main_process:
        bridge = accelerator.unwrap_model(model)
        if arguments.merge:
            merge_lora(bridge)
        bridge.save_pretrained(output / "model")
        processor.save_pretrained(output / "model")
    accelerator.print(f"wrote {output / 'model'}")


def _bridge_and_processor(
    arguments: TrainArguments,
) -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:
    """The bridge to train: one that was saved, or a fresh one on a language model."""
    if (arguments.language_model is None) == (arguments.init_from is None):
        raise ValueError(
            "Got both or neither of language_model and init_from: give one, a fresh start or a saved bridge."
        )
    if arguments.init_from is not None:
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(arguments.init_from, dtype=torch.float32)
        return bridge, RegionBridgeProcessor.from_pretrained(arguments.init_from)
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(arguments.language_model),
        region_tokenizer=tokenizer,
        dtype=torch.float32,
        experts=arguments.experts,
        use_semantic_embeds=arguments.use_semantic_embeds,
        use_position=arguments.use_position,
        image_grid=arguments.image_grid,
    )
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)


def _check_data(arguments: TrainArguments, bridge: RegionBridgeForConditionalGeneration) -> None:
    """Refuse caches that do not belong to the records or to the bridge, before anything is trained."""
    if not arguments.data or len(arguments.data) != len(arguments.caches):
        raise ValueError(
            f"Got {len(arguments.data)} data and {len(arguments.caches)} caches: give a cache for each record file."
        )
    if arguments.weights and len(arguments.weights) != len(arguments.data):
        raise ValueError(
            f"Got {len(arguments.weights)} weights for {len(arguments.data)} data: give one for each, or none."
        )
    if arguments.turns and (len(arguments.turns) != len(arguments.data) or min(arguments.turns) < 0):
        raise ValueError(
            f"Got turns {arguments.turns} for {len(arguments.data)} data: give a number for each, or none."
        )
    if (arguments.eval_data is None) != (arguments.eval_cache is None):
        raise ValueError("Got one of eval_data and eval_cache: give both or neither.")
    pairs = list(zip(arguments.data, arguments.caches))
    if arguments.eval_data is not None and arguments.eval_cache is not None:
        pairs.append((arguments.eval_data, arguments.eval_cache))
    for data, folder in pairs:
        cache = RegionCache(folder)
        if cache.plan.fingerprint != bridge.config.fingerprint:
            raise ValueError(
                f"{folder} holds tokens of the tokenizer {cache.plan.fingerprint}, the bridge reads those of "
                f"{bridge.config.fingerprint}: make the cache with the bridge's tokenizer."
            )
        if Path(data).is_file() and cache.plan.data_checksum != file_checksum(Path(data)):
            raise ValueError(f"{folder} was made from other records than {data} now holds: make the cache again.")
        if cache.plan.image_grid != bridge.config.image_grid:
            raise ValueError(
                f"{folder} has picture context of {cache.plan.image_grid} points per side, the bridge reads "
                f"{bridge.config.image_grid}: make the cache with --image_grid {bridge.config.image_grid}."
            )


def _optimizers(bridge: RegionBridgeForConditionalGeneration, arguments: TrainArguments) -> list[torch.optim.Optimizer]:
    """With a learning rate of its own for the projector."""
    learning = [(name, p) for name, p in bridge.named_parameters() if p.requires_grad]
    projector = [(name, p) for name, p in learning if name.startswith("projector.")]
    rest = [(name, p) for name, p in learning if not name.startswith("projector.")]
    return build_optimizers(
        [(projector, arguments.projector_learning_rate), (rest, arguments.learning_rate)],
        arguments.optimizer,
        arguments.muon_learning_rate,
        arguments.weight_decay,
        matrices=("projector.linear", ".layers.", ".h."),
    )


def _loader(
    arguments: TrainArguments, processor: RegionBridgeProcessor, start: int, processes: int
) -> DataLoader[CachedSample]:
    """Batches of the steps that are left; what a position holds does not depend on where the run began."""
    per_step = arguments.batch_size * arguments.gradient_accumulation_steps * processes
    sizes = [RegionCache(path).plan.samples for path in arguments.caches]
    mixture = Mixture(sizes, arguments.weights or None, arguments.seed)
    positions = range(start * per_step, arguments.steps * per_step)
    return DataLoader(
        Conversations(arguments, mixture, positions),
        batch_size=arguments.batch_size,
        collate_fn=ConversationCollator(processor, arguments.max_length),
        num_workers=arguments.workers,
    )


def _grouped(loader: Any, size: int) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of each optimizer step."""
    group: list[dict[str, Tensor]] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _summed_loss(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy summed over the words that the batch learns."""
    labels = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def _keep_only_what_learns(accelerator: Accelerator) -> None:
    """Checkpoints hold the trained parameters, not the frozen language model."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            for model in models:
                named = accelerator.unwrap_model(model).named_parameters()
                learned = {name: p.detach().cpu().contiguous() for name, p in named if p.requires_grad}
                save_file(learned, Path(folder) / TRAINED_WEIGHTS)
        weights.clear()

    def load(models: list[torch.nn.Module], folder: str) -> None:
        while models:
            model = accelerator.unwrap_model(models.pop())
            learned = load_file(Path(folder) / TRAINED_WEIGHTS)
            named = {name: p for name, p in model.named_parameters() if p.requires_grad}
            if set(learned) != set(named):
                raise ValueError(f"{folder} holds other trained parameters than this run: use another output_dir.")
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(learned[name])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


@torch.no_grad()
def _evaluate(
    arguments: TrainArguments, accelerator: Accelerator, model: torch.nn.Module, processor: RegionBridgeProcessor
) -> dict[str, float]:
    """Loss on held-out records, and how often the last answer of each is given word for word."""
    if not accelerator.is_main_process:
        return {}
    bridge = accelerator.unwrap_model(model).eval()
    samples, cache = load_samples(str(arguments.eval_data)), RegionCache(str(arguments.eval_cache))
    items = [
        CachedSample(samples[i], cache.regions(i), cache.grid(i))
        for i in range(min(arguments.eval_records, len(samples)))
    ]
    items = [
        _cut(item, max(arguments.turns, default=0), np.random.RandomState([arguments.seed, 4, i]))
        for i, item in enumerate(items)
        if item.sample["conversations"]
    ]
    collator = ConversationCollator(processor, arguments.max_length)
    lines = []
    for i in range(0, len(items), arguments.batch_size):
        part = items[i : i + arguments.batch_size]
        batch = {name: value.to(bridge.device) for name, value in collator(part).items()}
        words = int((batch["labels"][:, 1:] != -100).sum())
        lines.append({"val_loss": float(_summed_loss(bridge, batch)) / max(words, 1)})
        answers = answer_last(bridge, processor, part)
        truth = [item.sample["conversations"][-1]["content"] for item in part]
        lines += [{"val_answer": float(said == true)} for said, true in zip(answers, truth)]
    return mean_of(lines)


def answer_last(
    bridge: RegionBridgeForConditionalGeneration, processor: RegionBridgeProcessor, items: list[CachedSample]
) -> list[str]:
    """The bridge's own words in place of the last answer of each conversation."""
    collator = ConversationCollator(processor)
    cut = [
        CachedSample({**item.sample, "conversations": item.sample["conversations"][:-1]}, item.regions, item.grid)
        for item in items
    ]
    inputs = collator.prompts(cut).to(bridge.device)
    ids = bridge.generate(**inputs, max_new_tokens=32, do_sample=False)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


if __name__ == "__main__":
    main()
