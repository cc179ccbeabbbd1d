"""What every training loop here shares: the learning rate's course, the log, and checkpoints through accelerate.

Knows steps and files, not what is trained.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from tap_tokenizer import write_whole

from .arguments import refuse_other_arguments
from .checkpoints import list_checkpoints, save_checkpoint, step_of


def rate_share(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, a plateau, and a cosine to zero over the last part."""
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


class RunLog:
    """`log.jsonl` of a run, one line of numbers after every few steps, and what accelerate's trackers make of them."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.path = folder / "log.jsonl"
        self.accelerator = accelerator

    def write(self, values: dict[str, float | int]) -> None:
        """Append a line; floats to five decimals."""
        if self.accelerator.is_main_process:
            line = {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        numbers = {name: value for name, value in values.items() if name != "step"}
        self.accelerator.log(numbers, step=int(values["step"]))  # trackers, if the run has any

    def read(self) -> list[dict[str, float]]:
        """All lines so far; a last one that a full disk or a kill left torn is not among them."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise ValueError(f"{self.path} is damaged: move it away to continue with a new one.") from None

    def forget_after(self, step: int) -> None:
        """Drop lines of steps after the last checkpoint: they are about to be run again."""
        if self.accelerator.is_main_process and self.path.exists():
            kept = [json.dumps(line) for line in self.read() if line["step"] <= step]
            write_whole(self.path, "".join(line + "\n" for line in kept))


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


def ignore_ctrl_c(worker: int) -> None:
    """For a loader's workers, which a terminal's Ctrl+C reaches as well: batches come until the main process stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class MeanWindow:
    """Means of named numbers over the steps since the last look."""

    def __init__(self) -> None:
        self._lines: list[dict[str, float]] = []

    def add(self, values: dict[str, float]) -> None:
        self._lines.append(values)

    def take(self) -> dict[str, float]:
        """The means; the window is empty afterwards."""
        lines, self._lines = self._lines, []
        return mean_of(lines)


def mean_of(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each name over the lines that have it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: sum(values) / len(values) for name in names if (values := [x[name] for x in lines if name in x])}


def seed_step(seed: int, step: int, process: int) -> None:
    """Make the random numbers of a step (dropout, drop path) depend on its number alone, not on where the run began."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + process)


def save_state(accelerator: Accelerator, folder: Path, step: int) -> None:
    """A checkpoint of all that accelerate knows, written whole or not at all."""
    save_checkpoint(
        folder,
        step,
        lambda partial: accelerator.save_state(str(partial)),
        is_main=accelerator.is_main_process,
        wait=accelerator.wait_for_everyone,
    )


def load_last_state(accelerator: Accelerator, output: Path, arguments: Any, free: Sequence[str]) -> int:
    """Load a run's newest checkpoint and give its step; 0 if there is none.

    Refused before anything is loaded: other arguments than those it began with, but for the `free` ones, and fewer steps
    than it has made.
    """
    found = list_checkpoints(output / "checkpoints")
    if not found:
        return 0
    refuse_other_arguments(arguments, output / "arguments.yaml", free)
    if step_of(found[-1]) > arguments.steps:
        raise ValueError(
            f"{found[-1]} lies after the last of {arguments.steps} steps, and its rates have not fallen: give more "
            "steps, or another output_dir."
        )
    try:
        accelerator.load_state(str(found[-1]))
    except Exception as error:  # every kind of file in it fails in its own way
        raise ValueError(
            f"{found[-1]} cannot be read ({type(error).__name__}: {error}): delete it, and the same command continues from "
            "the one before it."
        ) from error
    accelerator.print(f"resuming from {found[-1]}")
    return step_of(found[-1])
