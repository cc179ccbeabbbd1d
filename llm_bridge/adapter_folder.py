"""A bridge on disk without its language model: the projector, peft's standard files, the config and a card.

Peft's files are an adapter of the plain language model, by its own names: peft and servers read them by themselves.
The folder names the language model. If the model has no name, it lies in the folder, too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tap_tokenizer import (
    check_findable,
    check_folder,
    check_patterns,
    check_regular_file,
    gguf_of,
    install_command,
    load_pretrained,
    misfits_told,
    read_json_object,
    weight_shapes,
)

from .adapters import Bridge, check_new_name, has_adapter, is_of_adapter, keep_projector, require_peft
from .bridge_parts import RegionBridgePreTrainedModel
from .configuration_bridge import HUB_OPTIONS, RegionBridgeConfig, bundled_or_given
from .language_model import differing_weights, embedding_sums, load_language_model, plain, text_side, weight_sums
from .model_card import bridge_card
from .projector import make_projector
from .projector_files import PROJECTOR_FILE, read_projector

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
"""Where peft's files lie: beside them in one folder, transformers' Auto classes would take the bridge for a bare adapter."""
ADAPTER_FILE = "adapter_model.safetensors"
LANGUAGE_MODEL_FOLDER = "language_model"
"""Where a language model lies that has no name to refer to."""
_SAME_MODEL = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def save_adapter_folder(
    bridge: RegionBridgePreTrainedModel, folder: Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write projector, active adapter, config and card; `state_dict` as gathered by a distributed run.

    A language model without a name is written too, in a folder of its own: nothing else holds it.
    """
    reference = bridge.config.language_model
    if reference is not None and Path(bundled_or_given(reference)).resolve() == folder.resolve():
        raise ValueError(
            f"{folder} holds the language model that the adapter belongs to: save it to another folder, or call "
            "merge_lora(bridge) and save the whole bridge."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = bridge.state_dict() if state_dict is None else state_dict
    projector = {k.removeprefix("projector."): v for k, v in state.items() if k.startswith("projector.")}
    save_file({key: value.detach().cpu().contiguous() for key, value in projector.items()}, partial / PROJECTOR_FILE)
    if has_adapter(bridge):
        own = {k.removeprefix("language_model."): v for k, v in state.items() if k.startswith("language_model.")}
        active = bridge.language_model.active_adapter
        bridge.language_model.save_pretrained(str(partial / ADAPTER_FOLDER), selected_adapters=[active], state_dict=own,
                                             save_embedding_layers=False)  # fmt: skip
        if active != "default":  # peft gives other adapters a folder of their own
            for path in (partial / ADAPTER_FOLDER / active).iterdir():
                path.replace(partial / ADAPTER_FOLDER / path.name)
            (partial / ADAPTER_FOLDER / active).rmdir()
        (partial / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)  # the bridge's own card is the one to read
        _sort_modules(partial / ADAPTER_FOLDER / "adapter_config.json")
    if reference is None:
        logger.warning(
            "The language model has no name to refer to, so it is saved in %s.", folder / LANGUAGE_MODEL_FOLDER
        )
        _save_language_model(bridge, partial / LANGUAGE_MODEL_FOLDER, state)
    (partial / SAFE_WEIGHTS_INDEX_NAME).write_text(_weights_index(bridge))
    bridge.config.language_model_signature = embedding_sums(bridge.language_model)
    bridge.config.language_model_weights = weight_sums(bridge.language_model)
    bridge.config.save_pretrained(partial)
    if bridge.generation_config is not None:
        bridge.generation_config.save_pretrained(partial)
    (partial / "README.md").write_text(bridge_card(bridge))
    for path in [path for path in partial.rglob("*") if path.is_file()]:
        target = folder / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(partial)
    if not has_adapter(bridge):  # what follows is of a bridge that was here before
        shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)
    if reference is not None:
        shutil.rmtree(folder / LANGUAGE_MODEL_FOLDER, ignore_errors=True)
    (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)


def forget_adapter(folder: Path) -> None:
    """Remove the files of an adapter folder after a whole bridge has been saved there."""
    (folder / PROJECTOR_FILE).unlink(missing_ok=True)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file() and PROJECTOR_FILE in json.loads(index.read_text())["weight_map"].values():
        index.unlink()
    for name in (ADAPTER_FOLDER, LANGUAGE_MODEL_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)


def _sort_modules(path: Path) -> None:
    """Give the lists that peft writes from sets, whose order changes from process to process, an order of their own."""
    config = json.loads(path.read_text())
    for name in ("target_modules", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _save_language_model(bridge: RegionBridgePreTrainedModel, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the language model as it is without its adapters."""
    language_model, prefix = bridge.language_model, "language_model."
    if has_adapter(bridge):
        language_model, prefix = language_model.get_base_model(), "language_model.base_model.model."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and ".lora_" not in k}
    own = {re.sub(r"(\.base_layer)+\.", ".", k): v for k, v in own.items()}  # peft's name for what it has wrapped
    language_model.save_pretrained(folder, state_dict=own)


def _weights_index(bridge: RegionBridgePreTrainedModel) -> str:
    """Which of the folder's files holds which weight of the bridge, as transformers' Trainer looks for them on resuming."""
    files = {name: file for name in bridge.state_dict() if (file := _file_of(bridge, name)) is not None}
    return json.dumps({"metadata": {}, "weight_map": files}, indent=2)


def _file_of(bridge: RegionBridgePreTrainedModel, name: str) -> str | None:
    """The file of an adapter folder that holds a weight of the bridge; None for one that belongs to the language model."""
    if name.startswith("projector."):
        return PROJECTOR_FILE
    is_adapter = has_adapter(bridge) and is_of_adapter(name, bridge.language_model.active_adapter)
    return f"{ADAPTER_FOLDER}/{ADAPTER_FILE}" if is_adapter else None


def frozen_weights(bridge: RegionBridgePreTrainedModel) -> set[str]:
    """Names of the weights that an adapter folder does without."""
    return {name for name in bridge.state_dict() if _file_of(bridge, name) is None}


def put_adapter_weights(bridge: RegionBridgePreTrainedModel, state: dict[str, Tensor]) -> bool:
    """Put the weights of one file of an adapter folder, by the names in the file, into a bridge; whether `state` is such."""
    if state.keys() == bridge.projector.state_dict().keys():
        bridge.projector.load_state_dict(state)
        return True
    if not has_adapter(bridge) or not state or not all(name.startswith("base_model.") for name in state):
        return False
    if unused := _put_lora_weights(bridge, state, bridge.language_model.active_adapter):
        raise ValueError(f"The checkpoint {unused}")
    return True


def _put_lora_weights(bridge: RegionBridgePreTrainedModel, state: dict[str, Tensor], name: str) -> str | None:
    """Put weights, by their names in peft's file, into an adapter. Says which belong nowhere: peft drops them in silence."""
    from peft import set_peft_model_state_dict

    dropped = set_peft_model_state_dict(bridge.language_model, state, adapter_name=name).unexpected_keys
    if not dropped:
        return None
    expected = next(
        parameter for parameter, _ in bridge.language_model.named_parameters() if is_of_adapter(parameter, name)
    )
    got, expected = (f"{key}.".replace(f".{name}.", ".").rstrip(".") for key in (dropped[0], expected))
    return (
        f"holds {len(dropped)} weights that belong to no adapted layer of {type(plain(bridge.language_model)).__name__}, such "
        f"as {got:.200}: expected names such as {expected}. Save the adapter again from the bridge that it was trained in, or "
        "give its weights the names that the language model itself has."
    )


def find_adapter(source: str | Path, **hub: Any) -> Path | None:
    """The folder of an adapter, downloaded if necessary; None if `source` is not an adapter."""
    check_findable(source, hub)
    given, source = source, bundled_or_given(source)
    if gguf_of(source) is not None:
        raise ValueError(f'{given} is a language model, not a bridge: use mode="described", or train a bridge on it.')
    if Path(source).is_dir():
        return Path(source) if (Path(source) / PROJECTOR_FILE).is_file() else None
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(str(source), PROJECTOR_FILE, _raise_exceptions_for_gated_repo=False, **quiet, **hub)
    if found is None:
        return None
    peft_files = [f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", ADAPTER_FILE)]
    for name in ("config.json", "generation_config.json", *peft_files):
        cached_file(str(source), name, **quiet, **hub)
    if RegionBridgeConfig.from_pretrained(Path(found).parent).language_model is None:
        snapshot_download(str(source), allow_patterns=[f"{LANGUAGE_MODEL_FOLDER}/*"], **hub)
    return Path(found).parent


def load_adapter_folder(
    bridge_class: type[Bridge],
    folder: Path,
    language_model: Any = None,
    *,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> Bridge:
    """A bridge from an adapter folder and its language model; options are those of the language model's loading."""
    check_folder(folder)
    with misfits_told(folder):
        config = RegionBridgeConfig.from_pretrained(folder)
    source = language_model if language_model is not None else config.language_model
    if source is None and (folder / LANGUAGE_MODEL_FOLDER).is_dir():
        source = folder / LANGUAGE_MODEL_FOLDER
    if source is None:
        raise ValueError(f"{folder} does not say which language model it belongs to: give language_model=….")
    if isinstance(source, (str, Path)):
        try:
            options.pop("revision", None)  # which is the adapter's, not its language model's
            source = _load_language_model(bridge_class, str(source), dtype=dtype or "auto", **options)
        except OSError as error:
            raise OSError(
                f"{folder} belongs to the language model {source}, which could not be loaded: {error}. If it lies "
                "elsewhere, give language_model=…."
            ) from error
    source = text_side(source)
    with misfits_told(folder):
        _check_same_model(config, source, folder)
        with torch.device("meta"):
            projector = read_projector(folder, make_projector(config))
    bridge = bridge_class(config, source)
    config.text_config = source.config
    bridge.projector.load_state_dict(projector)
    bridge.adopt_language_model()
    if (folder / ADAPTER_FOLDER).is_dir():
        _load_lora(bridge, folder / ADAPTER_FOLDER, "default")
    return bridge.eval()


def _load_language_model(bridge_class: type[PreTrainedModel], source: str, **options: Any) -> PreTrainedModel:
    """A causal language model by name or folder, or the one inside a bridge that was saved whole."""
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    if load_pretrained(AutoConfig, source, **hub, **trusted).model_type == RegionBridgeConfig.model_type:
        return bridge_class.from_pretrained(source, **options).language_model
    return load_language_model(source, **options)


_LORA_FIELDS = {
    "alpha_pattern", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
    "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules", "target_parameters",
    "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""What an adapter's configuration may say; peft's other fields copy layers, import modules, or start computations."""


def _check_adapter(folder: Path, language_model: nn.Module) -> None:
    """Refuse (`ValueError`) an adapter that is no LoRA, says what a LoRA need not, or has patterns without end."""
    from peft import LoraConfig

    path, weights = folder / "adapter_config.json", folder / ADAPTER_FILE
    values = read_json_object(path)
    check_regular_file(weights)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{path} has peft_type {values.get('peft_type')!r:.40}, expected LORA.")
    usual = LoraConfig().to_dict()
    if strange := [name for name in usual if name not in _LORA_FIELDS and values.get(name) not in (usual[name], None)]:
        raise ValueError(
            f"{path} sets {', '.join(strange)[:200]}, which an adapter of a bridge never needs: remove them."
        )
    if values.get("init_lora_weights") not in (None, True, False, "gaussian"):
        raise ValueError(
            f"{path} has init_lora_weights {values['init_lora_weights']!r:.40}, which starts a computation: expected true, "
            "false or gaussian."
        )
    modules = [name for name, _ in plain(language_model).named_modules() if name]
    endings = {
        ".".join(parts[start:]) for parts in (name.split(".") for name in modules) for start in range(len(parts))
    }
    targets = values.get("target_modules")
    if isinstance(targets, list) and targets and endings.isdisjoint(map(str, targets)):
        raise ValueError(
            f"{path} has target_modules such as {targets[0]!r:.200}, and {type(plain(language_model)).__name__} has no such "
            f"layer: expected names of its own, such as {modules[-1]}."
        )
    ranks = [values.get("r"), *_table(values, "rank_pattern", path).values()]
    largest = max((shape[0] for name, shape in weight_shapes([weights]).items() if ".lora_A." in name), default=0)
    if any(type(rank) is not int or not 1 <= rank <= largest for rank in ranks):
        raise ValueError(f"{path} has ranks {ranks!r:.80}, expected 1 to {largest}, the largest among its weights.")
    patterns = [*_table(values, "rank_pattern", path), *_table(values, "alpha_pattern", path)]
    patterns = [rf"(.*\.)?({pattern})$" for pattern in patterns]
    patterns += [v for v in (values.get("target_modules"), values.get("exclude_modules")) if isinstance(v, str)]
    layers = values.get("layers_pattern") or []
    patterns += [rf".*\.{pattern}\.(\d+)\." for pattern in ([layers] if isinstance(layers, str) else layers)]
    check_patterns(patterns, [name for name, _ in language_model.named_modules()], str(path))


def _table(values: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = values.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{path} has {name} {table!r:.40}, expected a table.")
    return table


def _check_same_model(config: RegionBridgeConfig, language_model: Any, folder: str | Path) -> None:
    """Refuse a language model that the adapter was not made for: one of other sizes, or with other embeddings."""
    wanted, got = config.text_config, language_model.config
    differing = [
        f"{name} {getattr(got, name, None)!r} instead of {getattr(wanted, name, None)!r}"
        for name in _SAME_MODEL
        if getattr(got, name, None) != getattr(wanted, name, None)
    ]
    if not differing and config.language_model_signature is not None:
        kept, found = torch.tensor(config.language_model_signature), torch.tensor(embedding_sums(language_model))
        if float((kept - found).abs().max()) > 0.1 * float(kept.abs().max()):  # far beyond any rounding of dtypes
            differing = ["other weights"]
    if not differing and (changed := differing_weights(language_model, config.language_model_weights or {})):
        differing = [f"other weights in {changed[0]}" + f" and {len(changed) - 1} more places" * (len(changed) > 1)]
    if differing:
        command = install_command(config.language_model or "")
        raise ValueError(
            f"{folder} was made for another language model ({config.language_model}): this one has {', '.join(differing)}. "
            f"Give the one that it was trained on{f', which may be this: {command}' if command else '.'}"
        )


def load_adapter(bridge: RegionBridgePreTrainedModel, folder: str | Path, name: str) -> None:
    """Add the adapter and the projector of another folder to those that are there, and make them the active ones."""
    path = find_adapter(folder)
    if path is None or not (path / ADAPTER_FOLDER).is_dir():
        raise ValueError(f"{folder} is not an adapter folder of a bridge: give one that a LoRA run has saved.")
    check_new_name(bridge, name)
    check_folder(path)
    with misfits_told(path):
        _check_same_model(RegionBridgeConfig.from_pretrained(path), bridge.language_model, path)
        projector = read_projector(path, bridge.projector)
    _load_lora(bridge, path / ADAPTER_FOLDER, name)
    bridge.projector.load_state_dict(projector)
    keep_projector(bridge)


def _load_lora(bridge: RegionBridgePreTrainedModel, folder: Path, name: str) -> None:
    """Add the adapter in peft's files and make it the active one; refuse it (`ValueError`) if any of its weights has no place.

    An adapter that leaves the language model as it is, since it was never trained, is loaded with a warning.
    """
    require_peft()
    from peft import PeftModel

    _check_adapter(folder, bridge.language_model)
    keep_projector(bridge)
    earlier = bridge.language_model.active_adapter if has_adapter(bridge) else None
    with misfits_told(folder):
        if earlier is None:
            bridge.language_model = PeftModel.from_pretrained(bridge.language_model, str(folder), adapter_name=name)
        else:
            bridge.language_model.load_adapter(str(folder), adapter_name=name)
            bridge.language_model.set_adapter(name)
        unused = _put_lora_weights(bridge, load_file(folder / ADAPTER_FILE), name)
    if unused:
        if earlier is None:
            bridge.language_model = bridge.language_model.unload()
        else:
            bridge.language_model.set_adapter(earlier)
            bridge.language_model.delete_adapter(name)
        raise ValueError(f"{folder / ADAPTER_FILE} {unused}")
    second_factors = (
        weight for key, weight in bridge.language_model.named_parameters() if is_of_adapter(key, name) and "_B." in key
    )
    if not any(weight.any() for weight in second_factors):
        logger.warning(
            "The adapter in %s changes nothing, because all of its B matrices are zero, as they are before training: the "
            "language model answers as it does without it. Train it, or load the folder that was saved after training.",
            folder,
        )
