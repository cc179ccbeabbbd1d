"""AdamW, or Muon for the weight matrices of transformer layers with AdamW for the rest; and how learning rates rise and fall.

Muon moves all directions of a matrix evenly, so that rare ones (a kind among forty) are learned along with common ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon"]


def build_optimizers(
    groups: Sequence[tuple[Sequence[tuple[str, nn.Parameter]], float]],
    name: OptimizerName,
    muon_learning_rate: float,
    weight_decay: float,
    matrices: Sequence[str] = (".layers.",),
) -> list[torch.optim.Optimizer]:
    """Optimizers of named parameters, which come in groups with AdamW's learning rate of each.

    matrices: with `muon`, the two-dimensional parameters whose name holds one of these are Muon's.
    """
    taken = {
        id(p)
        for named, _ in groups
        for key, p in named
        if name == "muon" and p.ndim == 2 and any(part in key for part in matrices) and "bias" not in key
    }
    rest = [{"params": [p for _, p in named if id(p) not in taken], "lr": rate} for named, rate in groups]
    options: dict[str, Any] = {"weight_decay": weight_decay}
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([group for group in rest if group["params"]], betas=(0.9, 0.98), **options)
    ]
    if taken:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer is muon, which PyTorch {torch.__version__} lacks: use adamw or PyTorch 2.9.")
        chosen = [p for named, _ in groups for _, p in named if id(p) in taken]
        _orthogonalize_in_float32_on_cpu()
        found.append(torch.optim.Muon(chosen, muon_learning_rate, adjust_lr_fn="match_rms_adamw", **options))
    return found


def param_groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """The parameter groups of all, in order: where learning rates are set."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def rate_share(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, a plateau, and a cosine to zero over the last part.

    transformers' `get_wsd_schedule` has this shape with other numbers: its rise begins at zero, and cannot overlap the fall.
    """
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def _orthogonalize_in_float32_on_cpu() -> None:
    """Let Muon work in float32 on a CPU without AMX, where bfloat16 takes twice as long, or many times without AVX512-BF16.

    Replaces the step inside PyTorch for the whole process, for gradients that lie on the CPU; a PyTorch that has no such
    step by that name keeps its own.
    """
    muon: Any = getattr(torch.optim, "_muon", None)
    fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    plain = getattr(muon, "_zeropower_via_newtonschulz", None)
    if fast or plain is None or hasattr(plain, "plain"):
        return

    def by_device(gradient: Tensor, *options: Any) -> Tensor:
        return (orthogonalized if gradient.device.type == "cpu" else plain)(gradient, *options)

    by_device.plain = plain  # type: ignore[attr-defined]
    muon._zeropower_via_newtonschulz = by_device


def orthogonalized(
    gradient: Tensor, coefficients: tuple[float, float, float], steps: int, smallest_norm: float
) -> Tensor:
    """A matrix (M, N) with its singular values brought near one by Newton-Schulz steps, singular vectors kept; float32.

    Keller Jordan's quintic a·X + (b·A + c·A²)·X with A = X·Xᵀ, on the side of X that is shorter.
    """
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.float().T if tall else gradient.float()
    x = x / x.norm().clamp(min=smallest_norm)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
