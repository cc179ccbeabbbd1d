"""Checks weights before they are used: damaged files and missing devices give a one-sentence error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_PACKED = 32
"""How many weights one number of a quantized file may hold: an int32 of packed bits, and no more."""

_SMALL = 50_000_000
"""Weights that cost little memory, whatever a file says: 200 MB."""


@contextmanager
def damage_told(source: str | Path) -> Iterator[None]:
    """Around the reading of safetensors and JSON files: `ValueError` names `source` if one is damaged or incomplete."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{source} is not a whole safetensors file, or holds one that is damaged ({error}): copy or download it again."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{source} holds JSON that is damaged ({error}): copy or download it again.") from None


def weight_shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with damage_told(path.parent), safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def check_weights(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor], source: str | Path, of: str = "it"
) -> None:
    """Refuse (`ValueError`) files that lack weights or hold them in other shapes, before any is read.

    found: as from `weight_shapes`; expected: what the configuration makes, best on the meta device.
    """
    if lacking := sorted(set(expected) - set(found)):
        raise ValueError(
            f"{source} lacks {len(lacking)} weights of {of} ({', '.join(lacking[:3])} …): copy or download it again."
        )
    for name, tensor in expected.items():
        if found[name] != tuple(tensor.shape):
            raise ValueError(
                f"{source} holds weights that do not fit its config.json: {name} is {found[name]}, expected "
                f"{tuple(tensor.shape)}. Copy or download it again."
            )


def check_weight_count(source: str | Path, model: nn.Module) -> None:
    """Refuse (`ValueError`) a configuration that makes a model far larger than its weights: it would fill memory.

    source: a folder, which is not judged without safetensors files, or a GGUF file, which has at most a weight for each bit.
    model: what the configuration makes, on the meta device.
    """
    if Path(source).is_file():
        most = held = 8 * Path(source).stat().st_size
    else:
        held = sum(math.prod(shape) for shape in weight_shapes(Path(source).glob("model*.safetensors")).values())
        most = _PACKED * held
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if held and wanted > max(_SMALL, most):
        raise ValueError(
            f"{source} has a configuration for a model of {wanted:,} weights, but holds at most {most:,}: copy or download "
            "it again."
        )


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that this PyTorch or this machine does not have. None means that no device was given."""
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
