"""What of a bridge is trained, and how it is kept: LoRA on the language model through peft, the projector in full.

`set_trainable` says, in one place, what a training mode touches. An adapter folder holds the projector, peft's standard
files, the config and a card, and names the language model by reference; one that has no name lies in it. Knows peft; knows
no data.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, is_peft_available

from tap_tokenizer import (
    check_findable,
    check_folder,
    check_patterns,
    check_regular_file,
    check_weights,
    load_pretrained,
    misfits_told,
    read_json_object,
    weight_shapes,
)

from .configuration_bridge import HUB_OPTIONS, RegionBridgeConfig, bundled_or_given
from .language_model import differing_weights, embedding_sums, load_language_model, plain, text_side, weight_sums
from .picture_context import PictureContext
from .projector import make_projector

logger = logging.getLogger(__name__)

Bridge = TypeVar("Bridge", bound=PreTrainedModel)
"""`RegionBridgeForConditionalGeneration`, whose module stands on this one."""

TrainingMode = Literal["projector", "lora", "full"]

PROJECTOR_FILE = "projector.safetensors"
ADAPTER_FOLDER = "adapter"
"""Where peft's files lie: beside them in one folder, transformers' Auto classes would take the bridge for a bare adapter."""
LANGUAGE_MODEL_FOLDER = "language_model"
"""Where a language model lies that has no name to refer to."""
_BARE = ""
"""What stands for no adapter among the names of adapters."""
_SAME_MODEL = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def set_trainable(bridge: PreTrainedModel, mode: TrainingMode) -> list[str]:
    """Let a mode's parameters learn and no others; gives their names.

    projector: the projector alone. lora: the projector and the active adapter, which `add_lora` has put in. full: all.
    Input embeddings never grow, and are trained only in mode full.
    """
    if mode not in get_args(TrainingMode):
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(get_args(TrainingMode))}.")
    if mode == "lora" and not has_adapter(bridge):
        raise ValueError("The bridge has no adapter to train: call add_lora first.")
    active = bridge.language_model.active_adapter if mode == "lora" else None
    for name, parameter in bridge.named_parameters():
        is_adapter = active is not None and _is_of_adapter(name, active)
        wanted = name.startswith("projector.") or mode == "full" or is_adapter
        parameter.requires_grad_(wanted and parameter.is_floating_point())
    return [name for name, parameter in bridge.named_parameters() if parameter.requires_grad]


def _is_of_adapter(parameter: str, adapter: str) -> bool:
    """Whether a parameter, by its name in the bridge, belongs to an adapter."""
    return ".lora_" in parameter and f".{adapter}." in f"{parameter}."


def count_parameters(bridge: nn.Module) -> str:
    """How many parameters learn, of how many, in words."""
    total = sum(parameter.numel() for parameter in bridge.parameters())
    learning = sum(parameter.numel() for parameter in bridge.parameters() if parameter.requires_grad)
    return f"{learning:,} of {total:,} parameters are trained ({learning / total:.2%})"


# --- adapters on the language model -----------------------------------------------------------------------------------


def has_adapter(bridge: PreTrainedModel) -> bool:
    """Whether the language model wears a peft adapter."""
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

    alpha defaults to 2 · r. targets: peft's `target_modules`; "all-linear" is every linear layer but the output head, and but
    those that peft refuses (the last ones of Mamba's layers).
    name: several adapters may stand side by side; each keeps a projector of its own, and `use_adapter` changes between
    them. A language model loaded in 4 or 8 bit is prepared for training first (QLoRA).
    """
    _require_peft()
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if r < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(f"Got r {r} and alpha {alpha}: expected r and alpha above 0.")
    _check_new_name(bridge, name)
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM,
    )
    refused = _layers_that_peft_refuses(bridge.language_model, config)
    if targets == "all-linear":
        config.exclude_modules = refused or None
    elif not isinstance(targets, str) and (wrong := sorted(set(targets).intersection(refused))):
        raise ValueError(f"peft cannot adapt {', '.join(wrong)} of this language model: leave it out of targets.")
    _keep_projector(bridge)
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


def _layers_that_peft_refuses(language_model: Any, config: Any) -> list[str]:
    """Names of linear layers that peft would stop at, midway, for the layers around them read their weights themselves."""
    from peft.tuners.lora import LoraModel

    refused = []
    for name in sorted({p.rpartition(".")[2] for p, m in language_model.named_modules() if isinstance(m, nn.Linear)}):
        try:
            LoraModel._check_target_module_compatiblity(None, config, plain(language_model), name)
        except ValueError:
            refused.append(name)
    return refused


def _require_peft() -> None:
    if not is_peft_available():
        raise ImportError('Adapters need peft: pip install "peft>=0.20", or this package with its extra "bridge".')


def _check_new_name(bridge: PreTrainedModel, name: str) -> None:
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


def _name_base(bridge: PreTrainedModel, name: str) -> None:
    """peft's own files name the language model too."""
    bridge.language_model.peft_config[name].base_model_name_or_path = bridge.config.language_model


def load_adapter(bridge: PreTrainedModel, folder: str | Path, name: str) -> None:
    """Put the adapter and the projector of another folder beside those that are there, and make them the active ones."""
    path = find_adapter(folder)
    if path is None or not (path / ADAPTER_FOLDER).is_dir():
        raise ValueError(f"{folder} is not an adapter folder of a bridge: give one that a LoRA run has saved.")
    _check_new_name(bridge, name)
    check_folder(path)
    _require_peft()
    with misfits_told(path):
        _check_same_model(RegionBridgeConfig.from_pretrained(path), bridge.language_model, path)
        projector = _read_projector(path, bridge.projector)
    _check_adapter(path / ADAPTER_FOLDER, bridge.language_model)
    _keep_projector(bridge)
    with misfits_told(path / ADAPTER_FOLDER):
        if has_adapter(bridge):
            bridge.language_model.load_adapter(str(path / ADAPTER_FOLDER), adapter_name=name)
            bridge.language_model.set_adapter(name)
        else:
            from peft import PeftModel

            bridge.language_model = PeftModel.from_pretrained(
                bridge.language_model, str(path / ADAPTER_FOLDER), adapter_name=name
            )
    bridge.projector.load_state_dict(projector)
    _keep_projector(bridge)


def use_adapter(bridge: PreTrainedModel, name: str) -> None:
    """Change to another of the adapters that stand side by side, and to its projector."""
    kept = _projectors(bridge)
    if not has_adapter(bridge) or name not in bridge.language_model.peft_config:
        known = ", ".join(bridge.language_model.peft_config) if has_adapter(bridge) else "none"
        raise ValueError(f"There is no adapter {name!r}; there are: {known}.")
    _keep_projector(bridge)
    bridge.language_model.set_adapter(name)
    bridge.projector.load_state_dict(kept[name])


def merge_lora(bridge: Bridge) -> Bridge:
    """Add the active adapter to the language model's weights and take all adapters off, in place."""
    if has_adapter(bridge):
        bridge.language_model = bridge.language_model.merge_and_unload()
        bridge.config.language_model = None  # it is now another one than the name stands for
        _projectors(bridge).clear()
    return bridge


def remove_lora(bridge: Bridge) -> Bridge:
    """Remove all adapters. Language model and projector are then as they were before the first, or as loaded with it."""
    if has_adapter(bridge):
        bridge.language_model = bridge.language_model.unload()
        if own := _projectors(bridge).get(_BARE):
            bridge.projector.load_state_dict(own)
        _projectors(bridge).clear()
    return bridge


def _projectors(bridge: PreTrainedModel) -> dict[str, dict[str, Tensor]]:
    """The projector weights of each adapter that was active once, and those of the bridge without any."""
    if not hasattr(bridge, "_projector_of_adapter"):
        bridge._projector_of_adapter = {}
    return bridge._projector_of_adapter


def _keep_projector(bridge: PreTrainedModel) -> None:
    """Remember the present projector as the active adapter's, or as the bridge's own where there is none."""
    state = {key: value.detach().clone() for key, value in bridge.projector.state_dict().items()}
    _projectors(bridge)[bridge.language_model.active_adapter if has_adapter(bridge) else _BARE] = state


# --- adapter folders --------------------------------------------------------------------------------------------------


def save_adapter_folder(bridge: PreTrainedModel, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
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
    (partial / "README.md").write_text(model_card(bridge))
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
    """Take from a folder what made it an adapter folder, once a whole bridge lies there."""
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


def _save_language_model(bridge: PreTrainedModel, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the language model as it is without its adapters."""
    language_model, prefix = bridge.language_model, "language_model."
    if has_adapter(bridge):
        language_model, prefix = language_model.get_base_model(), "language_model.base_model.model."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and ".lora_" not in k}
    plain = {re.sub(r"(\.base_layer)+\.", ".", k): v for k, v in own.items()}  # peft's name for what it has wrapped
    language_model.save_pretrained(folder, state_dict=plain)


def _weights_index(bridge: PreTrainedModel) -> str:
    """Which of the folder's files holds which weight of the bridge, as transformers' Trainer looks for them on resuming."""
    files = {name: file for name in bridge.state_dict() if (file := _file_of(bridge, name)) is not None}
    return json.dumps({"metadata": {}, "weight_map": files}, indent=2)


def _file_of(bridge: PreTrainedModel, name: str) -> str | None:
    """The file of an adapter folder that holds a weight of the bridge; None for one that belongs to the language model."""
    if name.startswith("projector."):
        return PROJECTOR_FILE
    is_adapter = has_adapter(bridge) and _is_of_adapter(name, bridge.language_model.active_adapter)
    return f"{ADAPTER_FOLDER}/adapter_model.safetensors" if is_adapter else None


def frozen_weights(bridge: PreTrainedModel) -> set[str]:
    """Names of the weights that an adapter folder does without."""
    return {name for name in bridge.state_dict() if _file_of(bridge, name) is None}


def put_adapter_weights(bridge: PreTrainedModel, state: dict[str, Tensor]) -> bool:
    """Put the weights of one file of an adapter folder, by the names in the file, into a bridge; whether `state` is such."""
    if state.keys() == bridge.projector.state_dict().keys():
        bridge.projector.load_state_dict(state)
        return True
    if not has_adapter(bridge) or not state or not all(name.startswith("base_model.") for name in state):
        return False
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(bridge.language_model, state, adapter_name=bridge.language_model.active_adapter)
    return True


def find_adapter(source: str | Path, **hub: Any) -> Path | None:
    """The folder of an adapter, downloaded if need be; None if `source` is none."""
    check_findable(source, hub)
    source = bundled_or_given(source)
    if Path(source).is_dir():
        return Path(source) if (Path(source) / PROJECTOR_FILE).is_file() else None
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(str(source), PROJECTOR_FILE, _raise_exceptions_for_gated_repo=False, **quiet, **hub)
    if found is None:
        return None
    peft_files = [f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
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
            projector = _read_projector(folder, make_projector(config))
    bridge = bridge_class(config, source)
    config.text_config = source.config
    bridge.projector.load_state_dict(projector)
    bridge.adopt_language_model()
    if (folder / ADAPTER_FOLDER).is_dir():
        _require_peft()
        from peft import PeftModel

        _keep_projector(bridge)
        _check_adapter(folder / ADAPTER_FOLDER, bridge.language_model)
        with misfits_told(folder / ADAPTER_FOLDER):
            bridge.language_model = PeftModel.from_pretrained(bridge.language_model, str(folder / ADAPTER_FOLDER))
    return bridge.eval()


def _load_language_model(bridge_class: type[PreTrainedModel], source: str, **options: Any) -> PreTrainedModel:
    """A causal language model by name or folder, or the one inside a bridge that was saved whole."""
    source = bundled_or_given(source)
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    if load_pretrained(AutoConfig, source, **hub, **trusted).model_type == RegionBridgeConfig.model_type:
        return bridge_class.from_pretrained(source, **options).language_model
    return load_language_model(source, **options)


def _read_projector(folder: Path, projector: nn.Module) -> dict[str, Tensor]:
    """The projector's weights, which must have the names and shapes of `projector`'s."""
    path = folder / PROJECTOR_FILE
    check_regular_file(path)
    check_weights(weight_shapes([path]), projector.state_dict(), path)
    return load_file(path)


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

    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
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
        raise ValueError(
            f"{folder} was made for another language model ({config.language_model}): this one has {', '.join(differing)}. "
            "Give the one that it was trained on."
        )


def model_card(bridge: PreTrainedModel, name: str = "path/or/name/of/this/folder", whole: bool = False) -> str:
    """The README.md of a saved bridge: what it is, what it needs, how it is loaded by `name`."""
    config = bridge.config
    base = config.language_model or "(no name)"
    peft = bridge.language_model.peft_config[bridge.language_model.active_adapter] if has_adapter(bridge) else None
    held = "language model and projector" if whole else "the projector"
    if peft:
        held += f", and LoRA of rank {peft.r} for the language model"
    context = str(PictureContext.of(config))
    header = "\n".join(
        ["---", "library_name: transformers", "pipeline_tag: image-text-to-text"]
        + ([f"base_model: {base}"] if config.language_model and not Path(base).exists() else [])
        + ["tags: [region-captioning, tap, llm_bridge]", "---"]
    )
    return f"""{header}

# A language model that reads regions

A bridge from the region tokenizer `{config.fingerprint}` to `{base}`: it answers questions about regions of a picture.

| | |
|---|---|
| language model | `{base}` |
| region tokenizer | fingerprint `{config.fingerprint}` |
| holds | {held} |
| a region gives | {config.slots_per_region} token(s), experts: {config.experts} |
| the projector reads | token{", semantic embedding" * config.use_semantic_embeds}{", position" * config.use_position} |
| picture context | {context} |

```python
from llm_bridge import RegionChat

chat = RegionChat.from_pretrained("{name}")
print(chat.ask("What is <region>?", image="picture.png", boxes=[[40, 60, 310, 420]]))
```
"""
