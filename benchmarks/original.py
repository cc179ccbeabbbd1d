"""The original, from its own repository (github.com/baaivision/tokenize-anything), as ways to be timed beside ours.

Its weights are random, too. What it needs to be imported (flash-attn for captions among it) is for whoever has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Original:
    """The original's model of a size, "b", "l" or "h"."""

    def __init__(self, path: Path, size: str, device: str, dtype: str) -> None:
        if not (path / "tokenize_anything").is_dir():
            raise SystemExit(f"--original is {path}, expected the folder of the original's repository.")
        sys.path.insert(0, str(path))
        from tokenize_anything import model_registry

        self.model: Any = model_registry[f"tap_vit_{size}"](device=device, dtype=dtype)
        self.inputs: dict[str, Any] = {}

    def encode(self, side: int) -> Callable[[], Any]:
        """Encoding a picture."""
        picture = np.random.RandomState(0).randint(0, 255, (1, side, side, 3), dtype=np.uint8)
        inputs = self.model.get_inputs({"img": picture})
        return lambda: self.model.get_features(inputs)

    def regions(self, boxes: torch.Tensor, side: int) -> Callable[[], Any]:
        """Masks and tokens of boxes (R, 2, 2): corners in pixels of the model frame; it always makes both."""
        if not self.inputs:
            inputs = self.model.get_inputs({"img": np.zeros((1, side, side, 3), dtype=np.uint8)})
            self.inputs = {**inputs, **self.model.get_features(inputs)}
        labels = torch.tensor([2.0, 3.0]).view(1, 2, 1).expand(len(boxes), -1, -1)
        points = torch.cat([boxes.float().cpu(), labels], dim=-1).numpy()
        return lambda: self.model.get_outputs({**self.inputs, "points": points})

    def captions(self, tokens: torch.Tensor) -> Callable[[], Any]:
        """Captions of semantic tokens (R, D), as long as it makes them."""
        return lambda: self.model.generate_text(tokens[:, None])
