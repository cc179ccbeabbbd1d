"""The trained parameters of a bridge, apart from the frozen language model: in checkpoints, and of the best evaluation.

Knows which parameters learn by `requires_grad`; knows no data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor

from tap_tokenizer import write_whole

from .checkpoints import failure_told

TRAINED_WEIGHTS = "trained.safetensors"


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
