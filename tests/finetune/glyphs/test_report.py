"""Figures of an evaluation: training curves are read from each model's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from finetune.glyphs.report import draw_curves, stages_of


def test_curves_are_drawn_stage_by_stage(tmp_path: Path) -> None:
    lines = [
        {"stage": "tokens", "step": 10, "loss": 2.0},
        {"stage": "tokens", "step": 20, "loss": 1.0, "val_loss": 1.5},
        {"stage": "lora", "step": 10, "loss": 0.5, "val_loss": 0.6, "val_answer": 0.9},
    ]
    log = tmp_path / "tiny" / "training" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert stages_of(log) == {"tokens": lines[:2], "lora": lines[2:]}
    draw_curves([log], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
