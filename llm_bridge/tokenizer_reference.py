"""How a saved processor refers to its region tokenizer, and how that is found again: in its folder, or where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from tap_tokenizer import TapRegionTokenizer

REGION_TOKENIZER_FOLDER = "region_tokenizer"
"""Where a region tokenizer lies that is saved with its processor."""
_KEYS = {"source", "variant", "concepts", "text_tokenizer", "revision", "fingerprint"}
"""What a reference says: arguments that load the region tokenizer, and its fingerprint."""


def reference_to(tokenizer: TapRegionTokenizer | None) -> dict[str, str] | None:
    """Where a region tokenizer came from, and its fingerprint; None for none."""
    return None if tokenizer is None else {**tokenizer.source, "fingerprint": tokenizer.fingerprint}


def load_referenced(
    name: str, reference: dict[str, str], hub: dict[str, Any], device: torch.device | str | None
) -> TapRegionTokenizer:
    """The region tokenizer that lies in the processor's folder `name`, or else the one that is referred to.

    Raises `ValueError` for a reference that is none, and for a region tokenizer with another fingerprint.
    """
    if not isinstance(reference, dict) or "fingerprint" not in reference or not _KEYS.issuperset(reference):
        raise ValueError(
            f"{name} has a processor_config.json that does not refer to a region tokenizer: got {reference!r:.80}, expected "
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
