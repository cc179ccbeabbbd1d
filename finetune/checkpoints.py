"""What long work keeps: checkpoints, the weights of the best evaluation, the result, and chunks of what is written.

Each is written completely or not at all, so that work goes on after a stop. Only a few checkpoints are kept.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from tap_tokenizer import write_whole

from .config import refuse_other_arguments

TRAINED_WEIGHTS = "trained.safetensors"

_NAME = re.compile(r"step-(\d+)$")


def save_checkpoint(
    folder: Path,
    step: int,
    fill: Callable[[Path], None],
    *,
    keep: int = 2,
    is_main: bool = True,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Have `fill` write a checkpoint, then give it its name in one step, then drop the oldest beyond `keep`.

    Until the last moment the files lie in `step-N.partial`, which no one takes for a checkpoint: a full disk or a kill
    leaves the earlier checkpoints as they were. Every process of a distributed run calls `fill`; only the main one
    (`is_main`) clears what an interrupted save left, renames, and drops. `wait` returns when all processes have called
    it: none may write before the clearing, and the name is given after the last has written.
    """
    partial, final = folder / f"step-{step}.partial", folder / f"step-{step}"
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
    wait()
    partial.mkdir(parents=True, exist_ok=True)
    with failure_told(final):
        fill(partial)
    wait()
    if is_main:
        _publish(partial, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    wait()


def save_whole(folder: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a folder, a trained model say, and name it once it is complete; a folder by that name is replaced."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with failure_told(folder):
        fill(partial)
    _publish(partial, folder)


_WRITER = ("PytorchStreamWriter", "inline_container", "writ")
"""What torch says if a file cannot be written, or (the second) is shorter than it should be."""


@contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Around the writing of weights: `OSError` names the folder where a full disk gives each library's own exception."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITER):
            raise  # no trouble with the disk
        raise OSError(
            f"{folder} could not be written ({str(error).splitlines()[0]}): free some disk space, and run the same command "
            "again. It continues from the last complete checkpoint, if there is one."
        ) from error


def _publish(partial: Path, final: Path) -> None:
    """Give a filled folder its name."""
    _flush(partial)
    if final.exists():  # the same step again, after a resume: the new one replaces it
        shutil.rmtree(final)
    partial.rename(final)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.search(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was saved."""
    match = _NAME.search(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not a checkpoint folder, expected step-<number>.")
    return int(match[1])


def _flush(folder: Path) -> None:
    """Have the system write the files out before they get their name, so that a power cut cannot leave them hollow."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def save_state(accelerator: Accelerator, folder: Path, step: int) -> None:
    """A checkpoint of all that accelerate knows, written whole or not at all.

    accelerate's own naming would write in place, after it had deleted the oldest, and count saves instead of steps.
    """
    save_checkpoint(
        folder,
        step,
        lambda partial: accelerator.save_state(str(partial)),
        is_main=accelerator.is_main_process,
        wait=accelerator.wait_for_everyone,
    )


def load_last_state(accelerator: Accelerator, output: Path, arguments: Any) -> int:
    """Load a run's newest checkpoint and give its step; 0 if there is none.

    Refused before anything is loaded: other arguments than those it began with, but for those that are free, and fewer steps
    than it has made.
    """
    found = list_checkpoints(output / "checkpoints")
    if not found:
        return 0
    refuse_other_arguments(arguments, output / "arguments.yaml")
    if step_of(found[-1]) > arguments.steps:
        raise ValueError(
            f"{found[-1]} is past the last of {arguments.steps} steps, and its learning rates have not fallen: give more "
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


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the parameters only, which accelerate then saves in its own way."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


class BestWeights:
    """The trained weights of the best evaluation so far, in a folder of their own."""

    def __init__(self, folder: Path, metric: str, start: int) -> None:
        self.folder, self.metric = folder, metric
        self.step, self.value = -1, math.inf if metric == "val_loss" else -math.inf
        note = folder / "best.json"
        if note.is_file():
            try:
                found = json.loads(note.read_text(encoding="utf-8"))
                found["metric"], found["step"], found["value"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{note} is damaged: delete it to continue; the best evaluation is then counted from here on."
                ) from None
            if found["metric"] == metric and found["step"] <= start:  # later ones are about to be run again
                self.step, self.value = found["step"], found["value"]

    def offer(self, accelerator: Accelerator, model: torch.nn.Module, step: int, found: dict[str, float]) -> None:
        """Keep the present weights if this evaluation is the best."""
        value = found[self.metric]
        is_better = value < self.value if self.metric == "val_loss" else value > self.value
        if not is_better:
            return
        self.step, self.value = step, value
        bridge = accelerator.unwrap_model(model)
        state = accelerator.get_state_dict(model) if is_sharded(accelerator) else dict(bridge.named_parameters())
        weights = _learned(bridge, state)
        if not accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{TRAINED_WEIGHTS}.partial"
        with failure_told(self.folder):
            save_file(weights, partial)
        partial.replace(self.folder / TRAINED_WEIGHTS)
        write_whole(self.folder / "best.json", json.dumps({"step": step, "metric": self.metric, "value": value}))

    def load(self, bridge: torch.nn.Module) -> None:
        """Put the kept weights into a bridge."""
        _put(bridge, load_file(self.folder / TRAINED_WEIGHTS), self.folder)


def _learned(model: torch.nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained parameters, by name, out of a model's whole state."""
    named = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: state[name].detach().cpu().contiguous() for name in named}


@torch.no_grad()
def _put(model: torch.nn.Module, learned: dict[str, Tensor], folder: str | Path) -> None:
    """Put kept parameters into the model that they came from."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if set(learned) != set(named):
        raise ValueError(f"{folder} holds other trained parameters than this run: use another output_dir.")
    for name, parameter in named.items():
        kept, own = tuple(learned[name].shape), tuple(parameter.shape)
        if kept != own:
            raise ValueError(
                f"{folder} holds {name} of shape {kept}, but this run trains {own}: use another output_dir."
            )
    for name, parameter in named.items():
        parameter.copy_(learned[name])


def keep_only_what_learns(accelerator: Accelerator) -> None:
    """Checkpoints hold the trained parameters, not the frozen language model."""

    def save(models: list[torch.nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        if accelerator.is_main_process:
            for model in models:
                bridge = accelerator.unwrap_model(model)
                save_file(_learned(bridge, dict(bridge.named_parameters())), Path(folder) / TRAINED_WEIGHTS)
        weights.clear()

    def load(models: list[torch.nn.Module], folder: str) -> None:
        while models:
            _put(accelerator.unwrap_model(models.pop()), load_file(Path(folder) / TRAINED_WEIGHTS), folder)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


# --- chunks of lines ---------------------------------------------------------------------------------------------------


def write_chunks(
    parts: Path, chunks: int, work: Callable[[int], Iterable[dict[str, Any]]], state: PartialState, title: str
) -> None:
    """Write the lines of every chunk that is not in the folder `parts` yet; returns when all processes are through.

    A chunk's lines land in a file of their own. If they depend on the chunk alone, the joined text is the same however the
    work was split, and wherever it was stopped.
    """
    write_chunk_texts(parts, chunks, lambda left: ((k, as_lines(work(k))) for k in left), state, title)


def write_chunk_texts(
    parts: Path,
    chunks: int,
    texts_of: Callable[[Sequence[int]], Iterable[tuple[int, str]]],
    state: PartialState,
    title: str,
) -> None:
    """The same with whatever gives the chunks that are left as texts, each with its number, in any order."""
    parts.mkdir(parents=True, exist_ok=True)
    mine = range(state.process_index, chunks, state.num_processes)
    left = [k for k in mine if not _chunk(parts, k).is_file()]
    for k, text in tqdm(texts_of(left), total=len(left), desc=title, unit="chunk", disable=not state.is_main_process):
        write_whole(_chunk(parts, k), text)
    state.wait_for_everyone()


def as_lines(lines: Iterable[dict[str, Any]]) -> str:
    """A chunk's lines as its file holds them."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def joined_chunks(parts: Path, chunks: int) -> str:
    """The lines of all chunks, in order."""
    return "".join(_chunk(parts, k).read_text(encoding="utf-8") for k in range(chunks))


def _chunk(parts: Path, chunk: int) -> Path:
    return parts / f"{chunk:06d}.jsonl"
