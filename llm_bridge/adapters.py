"""What of a bridge is trained, and how it is kept: LoRA on the language model through peft, the projector in full.

`trainable` lists, in one place, what a training mode touches. An adapter folder holds peft's standard files, the
projector and the config, and names the language model by reference. Knows peft; knows no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn

from .modeling_bridge import RegionBridgeForConditionalGeneration

if TYPE_CHECKING:
    from peft import PeftModel

TrainingMode = Literal["projector", "lora", "full"]


def set_trainable(bridge: RegionBridgeForConditionalGeneration, mode: TrainingMode) -> list[str]:
    """Let a mode's parameters learn and no others; gives their names.

    projector: the projector alone. lora: the projector and the active adapter, which `add_lora` has put in. full: all.
    Input embeddings never grow and are only trained in mode full.
    """
    if mode == "lora" and not _is_peft(bridge.language_model):
        raise ValueError("The bridge has no adapter to train: call add_lora first.")
    for name, parameter in bridge.named_parameters():
        is_projector = name.startswith("projector.")
        is_adapter = ".lora_" in name or ".modules_to_save." in name
        wanted = is_projector or mode == "full" or (mode == "lora" and is_adapter)
        parameter.requires_grad_(wanted and parameter.is_floating_point())
    return [name for name, parameter in bridge.named_parameters() if parameter.requires_grad]


def add_lora(
    bridge: RegionBridgeForConditionalGeneration,
    *,
    r: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all-linear",
    name: str = "default",
) -> RegionBridgeForConditionalGeneration:
    """Put a LoRA adapter on the language model's linear layers, in place; several may stand side by side by `name`.

    alpha defaults to 2 · r. targets: peft's `target_modules`; "all-linear" is every linear layer but the output head.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM,
    )
    if _is_peft(bridge.language_model):
        bridge.language_model.add_adapter(name, config)
        bridge.language_model.set_adapter(name)
    else:
        bridge.language_model = get_peft_model(bridge.language_model, config, adapter_name=name)
    return bridge


def merge_lora(bridge: RegionBridgeForConditionalGeneration) -> RegionBridgeForConditionalGeneration:
    """Add the active adapter to the language model's weights and take it off, in place; without one, nothing happens."""
    if _is_peft(bridge.language_model):
        bridge.language_model = bridge.language_model.merge_and_unload()
    return bridge


def count_parameters(bridge: nn.Module) -> str:
    """How many parameters learn, of how many, in words."""
    total = sum(parameter.numel() for parameter in bridge.parameters())
    learning = sum(parameter.numel() for parameter in bridge.parameters() if parameter.requires_grad)
    return f"{learning:,} of {total:,} parameters are trained ({learning / total:.2%})"


def _is_peft(language_model: nn.Module | PeftModel) -> bool:
    return hasattr(language_model, "peft_config") and hasattr(language_model, "merge_and_unload")
