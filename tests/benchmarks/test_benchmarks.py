"""Each benchmark runs, on a tiny model, and refuses to time what is not the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
TABLES = ("encode_picture", "region_tokens", "captions", "language_model", "growth")


def run(script: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, f"{script}.py", "--quick", "--threads", "1", *options],
        cwd=FOLDER, env=environment, check=check, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", TABLES)
def test_tables(script: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run(script, "--output", str(tmp_path))
    table = (tmp_path / f"{script}.md").read_text()
    assert table.splitlines()[-1].startswith("|")
    assert table.splitlines()[-1] in done.stdout
    found = json.loads((tmp_path / f"{script}.json").read_text())
    assert found["machine"] in table
    if script in TABLES[:3]:
        assert (tmp_path / f"{script}.png").read_bytes().startswith(b"\x89PNG")
        assert all(row["floor"] > 0 and {"plain", "fast"} <= set(row["seconds"]) for row in found["rows"])


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    run("region_tokens", "--dtype", "bfloat16", "--output", str(tmp_path))


@pytest.mark.slow
def test_a_long_run_holds() -> None:
    assert "pictures in 0.05 minutes" in run("long_run").stdout


@pytest.mark.slow
def test_the_original_beside(tmp_path: Path) -> None:
    """A stand-in with the doors of the original's repository; and a folder that is none of it."""
    package = tmp_path / "original" / "tokenize_anything"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class Model:\n"
        "    def get_inputs(self, inputs): return {'img': inputs['img']}\n"
        "    def get_features(self, inputs): assert inputs['img'].shape == (1, 64, 64, 3); return {'features': 0}\n"
        "    def get_outputs(self, inputs): assert inputs['points'].shape[1:] == (2, 3) and 'features' in inputs\n"
        "    def generate_text(self, tokens): assert tokens.shape[1:] == (1, 32)\n"
        "model_registry = {'tap_vit_tiny': lambda device, dtype: Model()}\n"
    )
    for script in TABLES[:3]:
        run(script, "--output", str(tmp_path), "--original", str(package.parent))
        rows = json.loads((tmp_path / f"{script}.json").read_text())["rows"]
        assert any("original" in row["seconds"] for row in rows)
    refused = run("captions", "--output", str(tmp_path), "--original", str(tmp_path), check=False)
    assert refused.returncode
    assert "expected the folder of the original's repository" in refused.stderr


@pytest.mark.slow
def test_what_differs_is_not_timed() -> None:
    """A fast way that is wrong stops the benchmark before a second is measured."""
    code = (
        "import torch, side_by_side as s\n"
        "row = s.Row('wrong', {'plain': lambda: torch.zeros(3), 'fast': lambda: torch.full((3,), 1e-3)}, 1)\n"
        "s.check(row, torch.float32)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "wrong: the result differs by 0.001" in done.stderr
