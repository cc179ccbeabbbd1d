"""`make smoke`: records, cache, two stages of training and an evaluation, command by command on a CPU."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from shell import run_module

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines that make would run, all in this process."""
    for name in ("finetune", "llm_bridge", "tap_tokenizer", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    planned = subprocess.run(
        ["make", "--dry-run", "smoke", "BIN=there", "VENV=there", "-o", "there/.train"],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    lines = [shlex.split(line) for line in planned.stdout.replace("\\\n", " ").splitlines() if "there/python" in line]
    assert len(lines) >= 9
    for words in lines:
        assert words[:2] == ["there/python", "-m"], words
        run_module(*words[2:])
    metrics = json.loads((tmp_path / "runs" / "miniature" / "evaluation" / "metrics.json").read_text())
    assert metrics["n"]["items"] > 10
    assert "records are whole" in capsys.readouterr().out
    assert (tmp_path / "runs" / "miniature" / "lora" / "loss.png").is_file()
