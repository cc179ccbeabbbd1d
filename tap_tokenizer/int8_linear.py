"""Linear layers in int8: weights are rounded once, and rows as they come; the sums between are of whole numbers, and exact.

Every row has a scale of its own, so what a layer makes of it does not depend on the rows beside it.

Without instructions for products in int8 (AVX512-VNNI, AVX-VNNI, AMX), oneDNN adds them by twos in 16 bits and cuts off what
does not fit: of two products with a weight of 127, at worst a half. There, weights are rounded to ±64, with which everything
fits (2 · 255 · 64 < 2¹⁵), so sums are exact everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

_LARGEST = 127
_LARGEST_IN_HALF = 64
_LEAST = torch.finfo(torch.float32).tiny


class Int8Linear:
    """What a linear layer in float32 on a CPU computes, up to the rounding of rows to 255 steps, and of weights to as many, or
    to 129 on a CPU without instructions for int8.
    """

    def __init__(self, layer: nn.Linear) -> None:
        weight, self.scale = _rounded(layer.weight.detach(), largest_weight())
        self.weight = weight.T.contiguous()
        self.scale = self.scale.T.contiguous()
        self.bias = layer.bias

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (…, D) → (…, E)."""
        whole, scale = _rounded(rows.flatten(0, -2))
        sums = torch._int_mm(whole, self.weight).float().mul_(self.scale)
        return torch.addcmul(self.bias, sums, scale, out=sums).unflatten(0, rows.shape[:-1])


def _rounded(rows: Tensor, largest: int = _LARGEST) -> tuple[Tensor, Tensor]:
    """Rows (N, D) as whole numbers from −largest to largest, and the scale (N, 1) of each."""
    scale = rows.abs().amax(dim=1, keepdim=True).div_(largest).clamp_(min=_LEAST)
    return (rows / scale).round_().to(torch.int8), scale


@lru_cache(maxsize=1)
def largest_weight() -> int:
    """The largest whole number that weights may be for sums to be exact, found by a product whose sums are known.

    Names of instructions would not do: what oneDNN uses of them depends on its version and its settings, too.
    """
    rows, weight = (torch.full(shape, _LARGEST, dtype=torch.int8) for shape in ((32, 256), (256, 64)))
    is_exact = bool((torch._int_mm(rows, weight) == 256 * _LARGEST**2).all())
    return _LARGEST if is_exact else _LARGEST_IN_HALF


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
