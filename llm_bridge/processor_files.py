"""What a saved processor says about itself, and where its region tokenizer is: in its folder, or where it came from."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from tap_tokenizer import TapRegionTokenizer, check_chat_template, read_json_object

CONFIG_FILE = "processor_config.json"
REGION_TOKENIZER_FOLDER = "region_tokenizer"
"""Where a region tokenizer lies that is saved with its processor."""
_KEYS = {"source", "variant", "concepts", "text_tokenizer", "text_encoder", "revision", "fingerprint"}
"""What a reference says: arguments that load the region tokenizer, and its fingerprint."""


def reference_to(tokenizer: TapRegionTokenizer | None) -> dict[str, str] | None:
    """Where a region tokenizer came from, and its fingerprint; None for none."""
    return None if tokenizer is None else {**tokenizer.source, "fingerprint": tokenizer.fingerprint}


def read_processor_config(made_by: type, source: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """A processor's file: its path, the arguments of the class `made_by`, and the reference to its region tokenizer.

    source: a folder or a repository, which is asked with the options `hub`. Raises `ValueError` for what another class has
    saved, for arguments that the class does not take, and for a chat template that does too much.
    """
    path = cached_file(source, CONFIG_FILE, **hub)
    options = read_json_object(path)
    saved_by = options.pop("processor_class", made_by.__name__)
    if saved_by != made_by.__name__:
        raise ValueError(f"{source} was saved by {saved_by}: load it with that class.")
    reference = options.pop("region_tokenizer", None)
    if unknown := sorted(set(options) - set(inspect.signature(made_by).parameters)):
        raise ValueError(
            f"{path} has {', '.join(unknown)[:200]}, which {made_by.__name__} does not know: copy or download it again."
        )
    if isinstance(options.get("chat_template"), str):
        check_chat_template(options["chat_template"], str(path))
    return path, options, reference


def load_region_tokenizer(
    name: str, reference: dict[str, str], hub: dict[str, Any], device: torch.device | str | None
) -> TapRegionTokenizer:
    """The region tokenizer that lies in the processor's folder `name`, or else the one that is referred to.

    Raises `ValueError` for a reference that is none, and for a region tokenizer with another fingerprint.
    """
    if not isinstance(reference, dict) or "fingerprint" not in reference or not _KEYS.issuperset(reference):
        raise ValueError(
            f"{name} has a {CONFIG_FILE} that does not refer to a region tokenizer: got {reference!r:.80}, expected "
            f"{', '.join(sorted(_KEYS))}. Copy it again, or give region_tokenizer=…."
        )
    whole = Path(name)
    if not whole.is_dir():
        whole = Path(snapshot_download(name, allow_patterns=[f"{REGION_TOKENIZER_FOLDER}/*"], **hub))
    folder = whole / REGION_TOKENIZER_FOLDER
    arguments: dict[str, Any] = {key: value for key, value in reference.items() if key != "fingerprint"}
    if folder.is_dir():
        arguments = {"source": str(folder)}
    tokenizer = TapRegionTokenizer.from_pretrained(**arguments, device=device)
    if tokenizer.fingerprint != reference["fingerprint"]:
        raise ValueError(
            f"{name} was saved with the region tokenizer {reference['fingerprint']}, but {arguments['source']} now holds "
            f"{tokenizer.fingerprint}: give region_tokenizer=…."
        )
    return tokenizer
