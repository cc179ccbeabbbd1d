"""A log as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from finetune.loss_plot import draw_losses


def test_curves(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [{"step": i, "loss": 5 / i} for i in range(1, 9)]
    held_out: list[dict[str, float]] = [
        {"step": 4, "val_loss": 2.0, "val_answer": 0.3},
        {"step": 8, "val_loss": 1.0, "val_answer": 0.6},
    ]
    for name, content in (("empty", []), ("plain", lines), ("both", lines + held_out)):
        draw_losses(content, tmp_path / f"{name}.png", "a run")
    pictures = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in tmp_path.glob("*.png")}
    assert pictures["both"].shape[0] > pictures["plain"].shape[0]  # a row for answers
    coloured = {name: int((np.ptp(picture.astype(int), axis=-1) > 60).sum()) for name, picture in pictures.items()}
    assert coloured["empty"] == 0 < coloured["plain"] < coloured["both"]
