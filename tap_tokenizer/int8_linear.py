"""Linear layers in int8: weights are rounded once, and rows as they come; the sums between are of whole numbers, and exact.

Every row has a scale of its own, so what a layer makes of it does not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LARGEST = 127
_LEAST = torch.finfo(torch.float32).tiny


class Int8Linear:
    """What a linear layer in float32 on a CPU computes, up to the rounding of weights and rows to 255 steps each."""

    def __init__(self, layer: nn.Linear) -> None:
        weight, self.scale = _rounded(layer.weight.detach())
        self.weight = weight.T.contiguous()
        self.scale = self.scale.T.contiguous()
        self.bias = layer.bias

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (…, D) → (…, E)."""
        whole, scale = _rounded(rows.flatten(0, -2))
        sums = torch._int_mm(whole, self.weight).float().mul_(self.scale)
        return torch.addcmul(self.bias, sums, scale, out=sums).unflatten(0, rows.shape[:-1])


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D) as whole numbers, and the scale (N, 1) of each."""
    scale = rows.abs().amax(dim=1, keepdim=True).div_(_LARGEST).clamp_(min=_LEAST)
    return (rows / scale).round_().to(torch.int8), scale


def weights_elsewhere(weights: nn.Module) -> str:
    """Where weights are, and in what, if that is not float32 on a CPU, as int8 wants them; else nothing."""
    found = {(weight.device.type, weight.dtype) for weight in weights.parameters()} - {("cpu", torch.float32)}
    return ", ".join(sorted(f"{str(dtype).removeprefix('torch.')} on {device}" for device, dtype in found))


def check_int8(weights: nn.Module) -> None:
    """Refuse int8 for weights that are not in float32 on a CPU for which PyTorch has such products."""
    if places := weights_elsewhere(weights):
        raise ValueError(
            f"encoder_precision is 'int8' and the weights are in {places}, expected float32 on cpu: leave out dtype and "
            "device, or encoder_precision."
        )
    if not torch.backends.mkldnn.is_available():
        raise ValueError(
            "encoder_precision is 'int8', but this PyTorch has no oneDNN, which multiplies in int8: leave it out."
        )
