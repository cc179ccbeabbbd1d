"""Which parts of a bridge are trained, and LoRA on its language model, by peft; each adapter keeps its own projector.

`set_trainable` decides, in one place, what each training mode trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from transformers.utils import is_peft_available

from .bridge_parts import RegionBridgePreTrainedModel
from .language_model import plain

Bridge = TypeVar("Bridge", bound=RegionBridgePreTrainedModel)

TrainingMode = Literal["projector", "lora", "full"]

_BARE = ""
"""What stands for no adapter among the names of adapters."""


def set_trainable(bridge: RegionBridgePreTrainedModel, mode: TrainingMode) -> list[str]:
    """Train the parameters of a mode and freeze all others. Returns their names.

    projector: the projector alone. lora: the projector and the active adapter, which `add_lora` adds. full: everything.
    Input embeddings never grow, and are trained only in mode full.
    """
    if mode not in get_args(TrainingMode):
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(get_args(TrainingMode))}.")
    if mode == "lora" and not has_adapter(bridge):
        raise ValueError("The bridge has no adapter to train: call add_lora first.")
    active = bridge.language_model.active_adapter if mode == "lora" else None
    for name, parameter in bridge.named_parameters():
        is_adapter = active is not None and is_of_adapter(name, active)
        wanted = name.startswith("projector.") or mode == "full" or is_adapter
        parameter.requires_grad_(wanted and parameter.is_floating_point())
    return [name for name, parameter in bridge.named_parameters() if parameter.requires_grad]


def is_of_adapter(parameter: str, adapter: str) -> bool:
    """Whether a parameter, by its name in the bridge, belongs to an adapter."""
    return ".lora_" in parameter and f".{adapter}." in f"{parameter}."


def count_parameters(bridge: nn.Module) -> str:
    """A sentence that says how many parameters are trained, and out of how many."""
    total = sum(parameter.numel() for parameter in bridge.parameters())
    learning = sum(parameter.numel() for parameter in bridge.parameters() if parameter.requires_grad)
    return f"{learning:,} of {total:,} parameters are trained ({learning / total:.2%})"


# --- adapters on the language model -----------------------------------------------------------------------------------


def has_adapter(bridge: RegionBridgePreTrainedModel) -> bool:
    """Whether the language model has a peft adapter."""
    return hasattr(bridge.language_model, "peft_config") and hasattr(bridge.language_model, "merge_and_unload")


def add_lora(
    bridge: Bridge,
    *,
    r: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
) -> Bridge:
    """Put a LoRA adapter on the language model's linear layers, in place, and make it the active one.

    alpha defaults to 2 · r. targets: peft's `target_modules`; "all-linear" is every linear layer except the output head and
    those that LoRA cannot adapt (the last ones of Mamba's layers, routers to experts).
    name: a bridge may have several adapters, each with its own projector; `use_adapter` switches between
    them. A language model loaded in 4 or 8 bit is prepared for training first (QLoRA).
    """
    require_peft()
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if r < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(f"Got r {r} and alpha {alpha}: expected r and alpha above 0.")
    check_new_name(bridge, name)
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM,
    )
    refused = _layers_that_lora_cannot_adapt(bridge.language_model, config)
    if targets == "all-linear":
        config.exclude_modules = refused or None
    elif not isinstance(targets, str) and (wrong := sorted(set(targets).intersection(refused))):
        raise ValueError(f"LoRA cannot adapt {', '.join(wrong)} of this language model: leave it out of targets.")
    keep_projector(bridge)
    if has_adapter(bridge):
        bridge.language_model.add_adapter(name, config)
        bridge.language_model.set_adapter(name)
        _name_base(bridge, name)
        return bridge
    if getattr(bridge.language_model, "is_quantized", False):
        bridge.language_model = prepare_model_for_kbit_training(bridge.language_model, use_gradient_checkpointing=False)
        bridge.projector.to(torch.float32)
    bridge.language_model = get_peft_model(bridge.language_model, config, adapter_name=name)
    _name_base(bridge, name)
    return bridge


def _layers_that_lora_cannot_adapt(language_model: Any, config: Any) -> list[str]:
    """Names of linear layers that LoRA cannot stand beside: those that peft would stop at, midway, and those that are no map.

    The layers around the former read their weights themselves; the latter, such as routers to experts, return something else.
    """
    from peft.tuners.lora import LoraModel

    model = plain(language_model)
    layers = {path.rpartition(".")[2]: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    refused = []
    for name, layer in sorted(layers.items()):
        try:
            LoraModel._check_target_module_compatiblity(None, config, model, name)
        except ValueError:
            refused.append(name)
            continue
        is_own = type(layer).__module__ == type(model).__module__
        if is_own and not _maps_rows(layer):
            refused.append(name)
    return refused


@torch.no_grad()
def _maps_rows(layer: nn.Linear) -> bool:
    """Whether a class that is derived from `nn.Linear` still gives a row of out_features for each row of in_features."""
    try:
        output = layer(layer.weight.new_zeros(3, layer.in_features))
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    return isinstance(output, Tensor) and output.shape == (3, layer.out_features)


def require_peft() -> None:
    """Raise `ImportError` where peft is missing."""
    if not is_peft_available():
        raise ImportError('Adapters need peft: pip install "peft>=0.20", or this package with its extra "bridge".')


def check_new_name(bridge: RegionBridgePreTrainedModel, name: str) -> None:
    """Refuse a name that an adapter has, or that no part of a module and no folder can have."""
    if has_adapter(bridge) and name in bridge.language_model.peft_config:
        raise ValueError(f"There is an adapter {name!r} already: choose another name.")
    parts = {part for path, _ in bridge.language_model.named_parameters() for part in path.split(".")}
    taken = hasattr(nn.ModuleDict(), name) or name in parts or "lora_" in name
    if taken or not re.fullmatch(r"\w([\w -]*\w)?", name):
        raise ValueError(
            f"An adapter cannot be named {name!r}: use letters, digits, '_', '-' and spaces, and not the name of a part of the "
            "language model."
        )


def _name_base(bridge: RegionBridgePreTrainedModel, name: str) -> None:
    """Write the language model's name into peft's own files, too."""
    bridge.language_model.peft_config[name].base_model_name_or_path = bridge.config.language_model


def use_adapter(bridge: RegionBridgePreTrainedModel, name: str) -> None:
    """Switch to another of the bridge's adapters, and to its projector."""
    kept = _projectors(bridge)
    if not has_adapter(bridge) or name not in bridge.language_model.peft_config:
        known = ", ".join(bridge.language_model.peft_config) if has_adapter(bridge) else "none"
        raise ValueError(f"There is no adapter {name!r}; there are: {known}.")
    keep_projector(bridge)
    bridge.language_model.set_adapter(name)
    bridge.projector.load_state_dict(kept[name])


@contextmanager
def adapter_off(bridge: RegionBridgePreTrainedModel) -> Iterator[None]:
    """The language model as it is without its adapter, for as long as the context lasts; nothing changes where it has none."""
    if not has_adapter(bridge):
        yield
        return
    learning = {name: parameter.requires_grad for name, parameter in bridge.language_model.named_parameters()}
    try:
        with bridge.language_model.disable_adapter():
            yield
    finally:  # peft lets every active adapter learn that it turns on again
        for name, parameter in bridge.language_model.named_parameters():
            parameter.requires_grad_(learning[name])


def merge_lora(bridge: Bridge) -> Bridge:
    """Merge the active adapter into the language model's weights and remove all adapters, in place."""
    if has_adapter(bridge):
        bridge.language_model = bridge.language_model.merge_and_unload()
        bridge.config.language_model = None  # it is now another one than the name stands for
        _projectors(bridge).clear()
    return bridge


def remove_lora(bridge: Bridge) -> Bridge:
    """Remove all adapters. Language model and projector are then as before the first one was added, or as loaded with it."""
    if has_adapter(bridge):
        bridge.language_model = bridge.language_model.unload()
        if own := _projectors(bridge).get(_BARE):
            bridge.projector.load_state_dict(own)
        _projectors(bridge).clear()
    return bridge


def _projectors(bridge: RegionBridgePreTrainedModel) -> dict[str, dict[str, Tensor]]:
    """The projector weights of each adapter that was active once, and those of the bridge without any."""
    if not hasattr(bridge, "_projector_of_adapter"):
        bridge._projector_of_adapter = {}
    return bridge._projector_of_adapter


def keep_projector(bridge: RegionBridgePreTrainedModel) -> None:
    """Remember the present projector as the active adapter's, or as the bridge's own where there is none."""
    state = {key: value.detach().clone() for key, value in bridge.projector.state_dict().items()}
    _projectors(bridge)[bridge.language_model.active_adapter if has_adapter(bridge) else _BARE] = state
