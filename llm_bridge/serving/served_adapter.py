"""Adapters that a server loads by itself: whether their weights belong to layers of the plain language model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tap_tokenizer import check_regular_file, misfits_told, model_from_config, weight_shapes

from ..adapter_folder import ADAPTER_FILE
from ..configuration_bridge import RegionBridgeConfig

_PREFIX = "base_model.model."
"""What peft writes before the names of the plain language model."""


def check_names(folder: Path, config: RegionBridgeConfig) -> None:
    """Refuse (`ValueError`) the adapter in peft's folder if any of its weights belongs to no layer; no weight is read."""
    path = folder / ADAPTER_FILE
    check_regular_file(path)
    with misfits_told(folder), torch.device("meta"):
        model = model_from_config(AutoModelForCausalLM, config.text_config)
    layers = [name for name, _ in model.named_modules() if name]
    known = {_PREFIX + name for name in layers}
    strange = [name for name in weight_shapes([path]) if name.partition(".lora_")[0] not in known]
    if strange:
        raise ValueError(
            f"{path} holds {len(strange)} weights that belong to no layer of {type(model).__name__}, such as "
            f"{strange[0]:.200}: expected names such as {_PREFIX}{layers[-1]}.lora_A.weight. A server would load it and answer "
            "as without it: load the bridge here, and save it again."
        )
