"""The one training loop: it runs, logs, evaluates, keeps the best weights, saves, and continues a run that was stopped.

Each command gives it a `Training`, which says what is learned from which batches, and how it is measured and saved.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from tap_tokenizer import only_writer

from .checkpoints import BestWeights, load_last_state, save_state
from .config import check_counts, knob, save_arguments
from .run_log import RunLog, describe_environment, draw_losses, in_words, record_environment


@dataclass(kw_only=True)
class RunArguments:
    """Options of every training run."""

    output_dir: str = knob(free=True, help="folder for checkpoints, the log and the trained model")
    seed: int = knob(default=0, help="seed for the data, their order and new weights")
    steps: int = knob(default=1000, help="optimizer steps")
    batch_size: int = knob(default=16, help="records, pictures or texts in a forward pass of each process")
    workers: int = knob(default=1, free=True, help="processes that prepare batches")
    optimizer: Literal["adamw", "muon"] = knob(
        default="adamw", help="muon trains the matrices of attention and MLPs, and AdamW the rest"
    )
    learning_rate: float = knob(default=1e-3, help="peak learning rate of AdamW")
    muon_learning_rate: float = knob(default=5e-3, help="peak learning rate of Muon")
    weight_decay: float = knob(default=0.05, help="weight decay of both optimizers")
    warmup_steps: int = knob(default=100, help="steps over which the learning rates rise linearly")
    decay_fraction: float = knob(
        default=0.5, help="share of the run, at its end, over which the learning rates fall to zero along a cosine"
    )
    max_grad_norm: float = knob(default=1.0, help="norm to which gradients are clipped")
    mixed_precision: Literal["no", "bf16", "fp16"] = knob(default="no", help="mixed precision, as in accelerate")
    save_steps: int = knob(default=250, free=True, help="steps between checkpoints")
    log_steps: int = knob(default=20, free=True, help="steps between lines of log.jsonl")
    eval_steps: int = knob(default=500, free=True, help="steps between evaluations")
    tracker: str = knob(
        default="none", free=True, help="a tracker that accelerate knows: tensorboard, wandb, mlflow, …; or none"
    )


class Training(ABC):
    """What one training run learns; everything else is up to the loop.

    The loop replaces `model` by what accelerate makes of it for several processes, before it asks for the first batch.
    """

    name: str
    """In front of the progress bar."""
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    passes = 1
    """Forward passes per optimizer step."""
    best_metric: Literal["val_loss", "val_answer"] | None = None
    """Which number of an evaluation is best, if the weights of the best one are to be kept in `output_dir/best`."""
    load_best = False
    """Whether it is those that are saved at the end."""

    @abstractmethod
    def batches(self, start: int) -> Iterable[Any]:
        """A batch for every forward pass from step `start` on, which depends on its step and nothing that came before."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars to be logged, among them `loss`, which is learned; each is summed over the `size` of the batch."""

    def size(self, batch: Any) -> int:
        """How much a batch counts beside the others of its step: 1 for a mean, the number of terms for a sum."""
        return 1

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Numbers on held-out data; nothing in a process, or a run, that does not evaluate."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained to a folder, whole or not at all. Every process calls this, and the main one writes."""


def run(arguments: RunArguments, begin: Callable[[Accelerator], Training]) -> None:
    """Train what `begin` makes, from the last checkpoint in `output_dir` if there is one, and save it to `output_dir/model`."""
    check_counts(arguments, "steps", "batch_size", "save_steps", "log_steps", "eval_steps")
    output = Path(arguments.output_dir)
    tracker = None if arguments.tracker == "none" else arguments.tracker
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, log_with=tracker, project_dir=str(output))
    if arguments.mixed_precision == "bf16":
        warn_of_bfloat16("--mixed_precision bf16", "--mixed_precision no", accelerator.device)
    set_seed(arguments.seed)
    torch.set_flush_denormal(True)  # which a CPU multiplies at a fraction of its speed
    with only_writer(output, accelerator.is_main_process):
        training = begin(accelerator)
        output.mkdir(parents=True, exist_ok=True)
        _run(arguments, accelerator, training, output)


def _run(arguments: RunArguments, accelerator: Accelerator, training: Training, output: Path) -> None:
    environment = describe_environment(accelerator.num_processes, str(accelerator.device))
    accelerator.print(in_words(environment))
    training.model, *optimizers = accelerator.prepare(training.model, *training.optimizers)
    peaks = [group["lr"] for group in param_groups(optimizers)]  # before a checkpoint brings the rates of its step
    log = RunLog(output, accelerator)
    start = load_last_state(accelerator, output, arguments)
    log.forget_after(start)
    best = BestWeights(output / "best", training.best_metric, start) if training.best_metric else None
    if accelerator.is_main_process:
        save_arguments(arguments, output / "arguments.yaml")
        record_environment(output, start, environment)
    if arguments.tracker != "none":
        accelerator.init_trackers(arguments.tracker)
    began, window = time.perf_counter(), list[dict[str, float]]()
    progress = tqdm(range(start, arguments.steps), initial=start, total=arguments.steps, desc=training.name,
                    disable=not accelerator.is_main_process)  # fmt: skip
    with StopRequest(accelerator) as stop:
        for step, batches in zip(progress, _grouped(training.batches(start), training.passes)):
            share = rate_share(step, arguments.steps, arguments.warmup_steps, arguments.decay_fraction)
            for group, peak in zip(param_groups(optimizers), peaks):
                group["lr"] = peak * share
            seed_step(arguments.seed, step, accelerator.process_index)
            training.model.train()
            window.append(_learn(accelerator, training, batches, step))
            accelerator.clip_grad_norm_(training.model.parameters(), arguments.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done = step + 1
            is_last = done == arguments.steps
            if done % arguments.log_steps == 0 or is_last:
                means = mean_of(window)
                window.clear()
                progress.set_postfix(loss=f"{means['loss']:.3f}")
                seconds = (time.perf_counter() - began) / (done - start)
                log.write({"step": done, "seconds_per_step": seconds, "rate": share, **means})
            if (done % arguments.eval_steps == 0 or is_last) and (found := training.evaluate()):
                log.write({"step": done, **found})
                if best is not None:
                    best.offer(accelerator, training.model, done, found)
            if done % arguments.save_steps == 0 or is_last or stop.wanted:
                save_state(accelerator, output / "checkpoints", done)
                if accelerator.is_main_process:
                    draw_losses(log.read(), output / "loss.png", str(output))
            stop.stop_if_wanted()
    if best is not None and training.load_best:
        accelerator.print(f"the best {best.metric}, {best.value:.4f}, was at step {best.step}")
        best.load(accelerator.unwrap_model(training.model))
    training.save(output / "model")
    accelerator.print(f"wrote {output / 'model'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _learn(accelerator: Accelerator, training: Training, batches: Sequence[Any], step: int) -> dict[str, float]:
    """Add up the gradients of a step's batches; its loss is the mean over all of them, in all processes."""
    size = torch.tensor(float(sum(map(training.size, batches))), device=accelerator.device)
    total = accelerator.reduce(size)
    sums: dict[str, float] = {}
    for i, batch in enumerate(batches):
        with accelerator.no_sync(training.model) if i < len(batches) - 1 else nullcontext():
            values = {name: value / total for name, value in training.loss(batch, step).items()}
            accelerator.backward(values["loss"] * accelerator.num_processes)  # DDP averages gradients
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    means = accelerator.reduce(torch.tensor(list(sums.values()), device=accelerator.device)).tolist()
    return dict(zip(sums, means))


def _grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches of each optimizer step."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


class StopRequest:
    """Ctrl+C while a run is under way: the step at hand is finished and kept, then the run stops; a second one stops at once.

    As a context around the steps; ask `wanted` after each, save if it is, and then `stop_if_wanted`. Processes that train
    together would be asked at different steps, so there, and outside the main thread, Ctrl+C stops at once as ever.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.wanted = False
        self._listens = accelerator.num_processes == 1 and threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        if self._listens:
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        print("\nstopping after this step, which is kept; Ctrl+C once more stops now", flush=True)

    def stop_if_wanted(self) -> None:
        """End the run, as Ctrl+C does, once its last step is saved."""
        if self.wanted:
            raise KeyboardInterrupt


def warn_of_bfloat16(asked: str, instead: str, device: torch.device) -> None:
    """Warn whoever asked for bfloat16 on a CPU that has no instructions for it: its matrix products take longer there."""
    if device.type == "cpu" and (ratio := bfloat16_time()) > 1:
        reason = f"products of matrices take {ratio:.1f} times as long in bfloat16 as in float32 on this CPU"
        warnings.warn(f"Got {asked}, but {reason}: use {instead}.", stacklevel=3)


def bfloat16_time(size: int = 256) -> float:
    """How long this CPU takes for a product of two matrices in bfloat16, in units of what it takes in float32."""
    seconds = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    one = torch.ones(size, size)
    for _ in range(8):  # the fastest of some, in turns: other work on the machine only makes them longer
        for dtype in seconds:
            matrix = one.to(dtype)
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def ignore_ctrl_c(worker: int) -> None:
    """For a loader's workers, which a terminal's Ctrl+C reaches as well: batches come until the main process stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mean_of(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each name over the lines that have it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: sum(values) / len(values) for name in names if (values := [x[name] for x in lines if name in x])}


def seed_step(seed: int, step: int, process: int) -> None:
    """Make the random numbers of a step (dropout, drop path) depend on its number alone, not on where the run began."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + process)


# --- optimizers: AdamW, or Muon for the weight matrices of transformer layers ---------------------------------------------


def build_optimizers(
    groups: Sequence[tuple[Sequence[tuple[str, nn.Parameter]], float]],
    name: str,
    muon_learning_rate: float,
    weight_decay: float,
    matrices: Sequence[str] = (".layers.",),
) -> list[torch.optim.Optimizer]:
    """Optimizers of named parameters, which come in groups with AdamW's learning rate of each.

    matrices: with `muon`, the two-dimensional parameters whose name holds one of these are Muon's, which moves all directions
    of a matrix evenly: rare ones (a kind among forty) are learned along with common ones. A group whose rate is 0 stays as it
    is.
    """
    taken = {
        id(p)
        for named, rate in groups
        for key, p in named
        if name == "muon" and rate > 0 and p.ndim == 2 and any(part in key for part in matrices) and "bias" not in key
    }
    rest = [{"params": [p for _, p in named if id(p) not in taken], "lr": rate} for named, rate in groups]
    options: dict[str, Any] = {"weight_decay": weight_decay}
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([group for group in rest if group["params"]], betas=(0.9, 0.98), **options)
    ]
    if taken:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer is muon, which PyTorch {torch.__version__} lacks: use adamw or PyTorch 2.9.")
        chosen = [p for named, _ in groups for _, p in named if id(p) in taken]
        _orthogonalize_in_float32_on_cpu()
        found.append(torch.optim.Muon(chosen, muon_learning_rate, adjust_lr_fn="match_rms_adamw", **options))
    return found


def param_groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """The parameter groups of all, in order: where learning rates are set."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def rate_share(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, a plateau, and a cosine to zero over the last part.

    transformers' `get_wsd_schedule` has this shape with other numbers: its rise begins at zero, and cannot overlap the fall.
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def _orthogonalize_in_float32_on_cpu() -> None:
    """Let Muon work in float32 on a CPU without AMX, where bfloat16 takes twice as long, or many times without AVX512-BF16.

    Replaces the step inside PyTorch for the whole process, for gradients that lie on the CPU; a PyTorch that has no such
    step by that name keeps its own.
    """
    muon: Any = getattr(torch.optim, "_muon", None)
    fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    plain = getattr(muon, "_zeropower_via_newtonschulz", None)
    if fast or plain is None or hasattr(plain, "plain"):
        return

    def by_device(gradient: Tensor, *options: Any) -> Tensor:
        return (orthogonalized if gradient.device.type == "cpu" else plain)(gradient, *options)

    by_device.plain = plain  # type: ignore[attr-defined]
    muon._zeropower_via_newtonschulz = by_device


def orthogonalized(
    gradient: Tensor, coefficients: tuple[float, float, float], steps: int, smallest_norm: float
) -> Tensor:
    """A matrix (M, N) with its singular values brought near one by Newton-Schulz steps, singular vectors kept; float32.

    Keller Jordan's quintic a·X + (b·A + c·A²)·X with A = X·Xᵀ, on the side of X that is shorter.
    """
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.float().T if tall else gradient.float()
    x = x / x.norm().clamp(min=smallest_norm)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
