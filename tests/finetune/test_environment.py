"""What a run says of how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from finetune.environment import describe_environment, in_words, record_environment


def test_environment(tmp_path: Path) -> None:
    environment = describe_environment(processes=2)
    assert environment["torch"] == torch.__version__
    assert environment["commit"] is None or len(environment["commit"].removesuffix("-changed")) == 40
    assert f"torch {torch.__version__}" in in_words(environment)
    assert "2 processes on cpu" in in_words(environment)
    for step in (0, 40):
        record_environment(tmp_path, step, environment)
    lines = [json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 40]
