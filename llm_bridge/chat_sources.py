"""What `RegionChat` is loaded from: a bridge, or any instruct language model, which is then told of regions in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tap_tokenizer import (
    TapConfig,
    TapRegionTokenizer,
    check_device,
    check_findable,
    damage_told,
    gguf_of,
    in_fast_dtype,
    load_pretrained,
    read_json_object,
)

from .configuration_bridge import HUB_OPTIONS, RegionBridgeConfig, bundled_or_given
from .default_bridge import DEFAULT_BRIDGE, SMALL_BRIDGE
from .modeling_bridge import RegionBridgeForConditionalGeneration
from .processing_bridge import RegionBridgeProcessor
from .processing_described import DescribedRegionProcessor


def load_for_chat(
    source: str | Path,
    *,
    mode: Literal["tokens", "described"],
    region_tokenizer: TapRegionTokenizer | str | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    **kwargs: Any,
) -> tuple[Any, RegionBridgeProcessor]:
    """The model and its processor; arguments as for `RegionChat.from_pretrained`.

    Raises `ValueError`, before anything is loaded, for a source that does not suit the mode.
    """
    if mode not in ("tokens", "described"):
        raise ValueError(f'mode is {mode!r}, expected "tokens" or "described".')
    path = bundled_or_given(source)
    if mode == "described" and region_tokenizer is None:
        raise ValueError('mode "described" needs a region tokenizer: give region_tokenizer=….')
    check_device(device)
    _check_source(source, mode, kwargs)
    hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    with damage_told(path):
        if mode == "tokens":
            model = RegionBridgeForConditionalGeneration.from_pretrained(path, dtype=dtype or "auto", **kwargs)
            processor = RegionBridgeProcessor.from_pretrained(
                path, region_tokenizer=region_tokenizer, device=device, **hub
            )
        else:
            if isinstance(region_tokenizer, str):
                region_tokenizer = TapRegionTokenizer.from_pretrained(region_tokenizer, device=device)
            trusted = {"trust_remote_code": kwargs.pop("trust_remote_code", False)}
            model = load_pretrained(AutoModelForCausalLM, source, dtype=dtype or "auto", **trusted, **kwargs)
            words = load_pretrained(AutoTokenizer, source, **trusted, **hub)
            processor = DescribedRegionProcessor(words, region_tokenizer)
    return in_fast_dtype(model.to(device) if device is not None else model, dtype), processor


def _check_source(source: str | Path, mode: str, hub: dict[str, Any]) -> None:
    """Refuse a source that does not suit the mode before anything is loaded.

    If it is not on this machine, ask the Hub once.
    """
    path = bundled_or_given(source)
    if gguf_of(path) is not None:
        return  # which only a bridge refuses
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_file():
            raise ValueError(
                f"{path} is a file, expected the folder of a saved model, a Hub repository, or {DEFAULT_BRIDGE}."
            )
        if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise ValueError(f"Found no folder at {path}: give a folder, a Hub repository, or {DEFAULT_BRIDGE}.")
        if mode == "tokens" and "/" not in path:
            raise ValueError(
                f"Found no bridge {path}: give {DEFAULT_BRIDGE} or {SMALL_BRIDGE}, the folder of a bridge, or a Hub "
                "repository as owner/name."
            )
        check_findable(source, hub, may_lack_owner=True)
        return
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"{path} holds no config.json: give the folder of a saved model.")
    kind = read_json_object(config).get("model_type")
    if kind == TapConfig.model_type:
        raise ValueError(f"{path} is a region tokenizer, not a language model: give it as region_tokenizer=….")
    if mode == "tokens" and kind != RegionBridgeConfig.model_type:
        raise ValueError(
            f'{path} is a language model ({kind}), not a bridge: use mode="described", or train a bridge on it.'
        )
    if mode == "described" and kind == RegionBridgeConfig.model_type:
        raise ValueError(f'{path} is a bridge, which reads region tokens: leave mode="described" out.')
