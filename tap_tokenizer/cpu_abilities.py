"""What the CPU of this machine does well: which dtypes it has instructions for, and which PyTorch emulates."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch
from torch import nn

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16; without them they take several times as long as in float32.

    Only x86 processors are judged. Others are taken to have them, and so is every processor by a PyTorch that cannot tell.
    """
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found.get("architecture") != "x86_64" or any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


def in_fast_dtype(model: Model, asked: object = None) -> Model:
    """A loaded model on its device: in float32, in place, if it came in bfloat16 to a CPU without instructions for it.

    asked: the dtype that its user asked for. If it is a dtype, it is kept, with a warning, as is the dtype of a model that
    somebody else has loaded ("unknown"). Quantized models are left alone.
    """
    weights = [
        weight for weight in model.parameters() if weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    ]
    if not weights or multiplies_bfloat16() or getattr(model, "is_quantized", False):
        return model
    if asked not in (None, "auto"):
        logger.warning(
            "The CPU of this machine has no instructions for bfloat16 (AVX512-BF16 or AMX): products take several times as "
            "long as in float32. Use dtype=float32, or --dtype float32 in the shell."
        )
        return model
    return model.float()
