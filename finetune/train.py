"""Teach a language model to read region tokens: the projector first, then LoRA. One accelerate loop, top to bottom.

    accelerate launch -m finetune.train --config miniature_projector
    accelerate launch -m finetune.train --config miniature_lora

Reads records and their cached region tokens (`finetune.cache_regions`), never pictures: the region tokenizer is frozen
by construction. A run that was stopped goes on from its last checkpoint when the same command is given again, as if it
had not been stopped.

In `output_dir`: `model`, the trained bridge; `best`, the weights of the best evaluation; `checkpoints`; `arguments.yaml`;
`environment.jsonl`, versions and commit; `log.jsonl` and `loss.png`; what the tracker writes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from llm_bridge import RegionBridgeProcessor, add_lora, count_parameters, has_adapter, merge_lora, set_trainable
from tap_tokenizer import only_writer

from .arguments import parse_arguments, run_command, save_arguments
from .bridge_setup import check_data, check_sharding, load_bridge, make_optimizers
from .checkpoints import save_whole
from .conversations import Conversations, evaluate, make_loader, summed_loss
from .environment import describe_environment, in_words, record_environment
from .loop import MeanWindow, RunLog, StopRequest, load_last_state, rate_share, save_state, seed_step
from .loss_plot import draw_losses
from .optimizers import param_groups
from .train_arguments import FREE, TrainArguments, check_arguments
from .trained_weights import BestWeights, is_sharded, keep_only_what_learns


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write bridge and processor to `output_dir`."""
    arguments = parse_arguments(TrainArguments, argv, description=__doc__)
    check_arguments(arguments)
    output = Path(arguments.output_dir)
    tracker = None if arguments.tracker == "none" else arguments.tracker
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, log_with=tracker, project_dir=str(output))
    check_sharding(arguments, accelerator)
    set_seed(arguments.seed)
    torch.set_flush_denormal(True)  # which a CPU multiplies at a fraction of its speed
    with only_writer(output, accelerator.is_main_process):
        _train(arguments, accelerator, output)


def _train(arguments: TrainArguments, accelerator: Accelerator, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    bridge, processor = load_bridge(arguments, accelerator)
    check_data(arguments, bridge)
    if arguments.max_length is None:
        arguments.max_length = getattr(bridge.config.text_config, "max_position_embeddings", None)
    if arguments.mode == "lora" and not has_adapter(bridge):
        add_lora(bridge, r=arguments.lora_r, alpha=arguments.lora_alpha, dropout=arguments.lora_dropout)
    bridge.projector.float()
    set_trainable(bridge, arguments.mode)
    if arguments.gradient_checkpointing:
        bridge.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    environment = describe_environment(accelerator.num_processes, str(accelerator.device))
    accelerator.print(in_words(environment))
    accelerator.print(count_parameters(bridge))
    optimizers = make_optimizers(bridge, arguments)
    model, *optimizers = accelerator.prepare(bridge, *optimizers)
    if not is_sharded(accelerator):
        keep_only_what_learns(accelerator)

    peaks = [group["lr"] for group in param_groups(optimizers)]  # before a checkpoint brings the rates of its step

    checkpoints, log = output / "checkpoints", RunLog(output, accelerator)
    start = load_last_state(accelerator, output, arguments, FREE)
    log.forget_after(start)
    best = BestWeights(output / "best", arguments.best_metric, start)
    if accelerator.is_main_process:
        save_arguments(arguments, output / "arguments.yaml")
        record_environment(output, start, environment)
    if arguments.tracker != "none":
        accelerator.init_trackers(arguments.tracker)
    loader = accelerator.prepare(make_loader(arguments, processor, start, accelerator.num_processes))
    accelerator.print(_passes(arguments, loader.dataset, accelerator.num_processes))
    began, window = time.perf_counter(), MeanWindow()
    progress = tqdm(range(start, arguments.steps), initial=start, total=arguments.steps, desc=arguments.mode,
                    disable=not accelerator.is_main_process)  # fmt: skip
    steps = _grouped(loader, arguments.gradient_accumulation_steps)
    with StopRequest(accelerator) as stop:
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
                    part = summed_loss(model, batch) / total
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
                log.write({
                    "step": done, "seconds_per_step": (time.perf_counter() - began) / (done - start), "rate": share, **means
                })  # fmt: skip
            if arguments.eval_data and (done % arguments.eval_steps == 0 or done == arguments.steps):
                found = evaluate(arguments, accelerator, model, processor)
                log.write({"step": done, **found})
                best.offer(accelerator, model, done, found)
            if done % arguments.save_steps == 0 or done == arguments.steps or stop.wanted:
                save_state(accelerator, checkpoints, done)
                if accelerator.is_main_process:
                    draw_losses(log.read(), output / "loss.png", str(output))
            stop.stop_if_wanted()
    _finish(arguments, accelerator, model, processor, best)


def _finish(
    arguments: TrainArguments,
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor: RegionBridgeProcessor,
    best: BestWeights,
) -> None:
    """Write the trained bridge: an adapter folder where the language model has a name that still stands for it."""
    bridge = accelerator.unwrap_model(model)
    if arguments.load_best:
        accelerator.print(f"the best {best.metric}, {best.value:.4f}, was at step {best.step}")
        best.load(bridge)
    state = accelerator.get_state_dict(model) if is_sharded(accelerator) else None
    folder = Path(arguments.output_dir) / "model"
    if accelerator.is_main_process:
        if arguments.merge:
            merge_lora(bridge)
        if arguments.mode == "full":
            bridge.config.language_model = None  # it is now another one than the name stands for
        by_reference = bridge.config.language_model is not None and not arguments.merge

        def fill(partial: Path) -> None:
            bridge.save_pretrained(partial, whole=not by_reference, **({} if state is None else {"state_dict": state}))
            processor.save_pretrained(partial)

        save_whole(folder, fill)
    accelerator.print(f"wrote {folder}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _passes(arguments: TrainArguments, data: Conversations, processes: int) -> str:
    """How often the run sees its records, in words."""
    records = sum(map(len, data.rows))
    drawn = arguments.steps * arguments.batch_size * arguments.gradient_accumulation_steps * processes
    return f"{arguments.steps} steps draw {drawn} of {records} records: {drawn / records:.2f} passes"


def _grouped(loader: Any, size: int) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of each optimizer step."""
    group: list[dict[str, Tensor]] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


if __name__ == "__main__":
    sys.exit(run_command(main))
