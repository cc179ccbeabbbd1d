"""`make smoke`: records, cache, two stages of training and an evaluation, in one command on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_smoke(tmp_path: Path) -> None:
    for name in ("finetune", "llm_bridge", "tap_tokenizer", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", "smoke", f"BIN={Path(sys.executable).parent}", "VENV=there", "-o", "there/.train"], cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "runs" / "miniature" / "evaluation" / "metrics.json").read_text())
    assert metrics["n"]["items"] > 10
    assert "records are whole" in done.stdout
    assert (tmp_path / "runs" / "miniature" / "lora" / "loss.png").is_file()
