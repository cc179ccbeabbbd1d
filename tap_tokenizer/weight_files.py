"""What can be wrong with weights before they are used: a damaged file, a device that is not there. Told in a sentence.

Knows files and devices; no models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError


@contextmanager
def damage_told(source: str | Path) -> Iterator[None]:
    """Around the reading of safetensors and JSON files: `ValueError` names `source` if one is damaged or incomplete."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{source} is no whole safetensors file, or holds one that is damaged ({error}): copy or download it again."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} holds JSON that is damaged ({error}): copy or download it again.") from None


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that this PyTorch or this machine does not have; None is none."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # every backend has an exception of its own for this
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device is {str(device)!r}, which PyTorch cannot use here ({reason}): expected cpu, or cuda or mps where there "
            "is one."
        ) from None
