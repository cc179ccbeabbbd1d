"""What a run writes about itself: how it was made, and its log as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from PIL import Image

from finetune.run_log import describe_environment, draw_losses, in_words, record_environment


def test_the_environment_is_recorded(tmp_path: Path) -> None:
    environment = describe_environment(processes=2)
    assert environment["torch"] == torch.__version__
    assert environment["commit"] is None or len(environment["commit"].removesuffix("-changed")) == 40
    assert f"torch {torch.__version__}" in in_words(environment)
    assert "2 processes on cpu" in in_words(environment)
    for step in (0, 40):
        record_environment(tmp_path, step, environment)
    lines = [json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 40]


def test_losses_and_answers_are_drawn(tmp_path: Path) -> None:
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
