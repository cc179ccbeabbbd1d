"""Each benchmark runs, on a tiny model, and refuses to time what is not the same."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("matplotlib")
FOLDER = Path(__file__).parents[2] / "benchmarks"
TABLES = (
    "encode_picture",
    "region_tokens",
    "captions",
    "language_model",
    "growth",
    "everything",
    "whole_way",
    "questions",
    "finding",
)
Run = Callable[..., object]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def run(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a script in miniature; gives what its `main` returns."""
    threads = torch.get_num_threads()

    def go(name: str, *options: str) -> object:
        path = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), "--quick", "--threads", str(threads), *options])
        return script(name).main()

    yield go
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_run_writes_its_table_json_and_figure(
    run: Run, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, "--output", str(tmp_path))
    table = (tmp_path / f"{name}.md").read_text()
    assert table.splitlines()[-1].startswith("|")
    assert table.splitlines()[-1] in capsys.readouterr().out
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["machine"] in table
    if name in TABLES[:3]:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert all(row["floor"] > 0 and {"plain", "fast"} <= set(row["seconds"]) for row in found["rows"])


def test_one_script_makes_the_table_of_a_gpu(tmp_path: Path) -> None:
    stand_in = '#!/bin/bash\necho "$*" >> "$COMMANDS"\n'
    commands = tmp_path / "commands"
    for flags, device, sizes in (([], "--device cuda --dtype bfloat16", "blh"), (["--quick"], "--quick", ["tiny"])):
        commands.unlink(missing_ok=True)
        (tmp_path / "python").write_text(stand_in)
        (tmp_path / "python").chmod(0o755)
        own = {"PYTHON": str(tmp_path / "python"), "COMMANDS": str(commands), "OUT": "out"}
        subprocess.run(["bash", FOLDER / "on_a_gpu.sh", *flags], env={**os.environ, **own}, check=True, timeout=60)
        *encoding, tokens = commands.read_text().splitlines()
        assert len(encoding) == len(sizes)
        for size, line in zip(sizes, encoding):
            assert line.startswith(f"benchmarks/encode_picture.py {device}")
            assert line.endswith(f"--size {size} --compile --output out/{size}")
        assert tokens.startswith(f"benchmarks/region_tokens.py {device}")
        assert "--boxes 1 64 256" in tokens


def without_memory(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the measurement that starts processes of its own."""
    monkeypatch.setattr(script("region_tokens"), "compare_memory", lambda *_: None)


@pytest.mark.slow
def test_tables_can_be_made_in_bfloat16(
    run: Run, script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memory(script, monkeypatch)
    for name in TABLES[:3]:
        run(name, "--dtype", "bfloat16", "--output", str(tmp_path))


@pytest.mark.slow
def test_memory_does_not_grow_in_a_long_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("long_run") == 0
    assert "pictures in 0.05 minutes" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation_cost_prints_time_and_memory(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("datasets")
    run("evaluation_cost", "--output", str(tmp_path))
    table = (tmp_path / "evaluation_cost.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("\n| ") == 4
    found = json.loads((tmp_path / "evaluation_cost.json").read_text())
    assert [row["run"] for row in found["rows"]] == ["1x2", "2x2", "1x4"]
    assert all(row["wall"] > 0 and row["processor"] > 0 and row["peak"] > 2**26 for row in found["rows"])


def test_the_cost_of_an_evaluation_is_fitted(script: Callable[[str], ModuleType]) -> None:
    """Runs that cost what a start, pictures and regions cost give these back, and the whole follows."""
    cost = script("evaluation_cost")
    runs = [
        {"pictures": p, "regions": r, "wall": 3 + 5 * p + 0.02 * p * r} for p, r in ((1, 8), (4, 8), (1, 40), (4, 47))
    ]
    assert cost.fit(runs, "wall") == pytest.approx({"start": 3, "picture": 5, "region": 0.02})
    assert cost.work_of({"pictures": 5000, "regions": 47}) == (1, 5000, 235000)


@pytest.mark.slow
def test_the_original_is_measured_beside_ours(
    run: Run, script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the doors of the original's repository; and a folder that is none of it."""
    without_memory(script, monkeypatch)
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
    for name in TABLES[:3]:
        run(name, "--output", str(tmp_path), "--original", str(package.parent))
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert any("original" in row["seconds"] for row in rows)
    with pytest.raises(SystemExit, match="expected the folder of the original's repository"):
        run("captions", "--output", str(tmp_path), "--original", str(tmp_path))


def test_ways_with_different_results_are_not_timed(script: Callable[[str], ModuleType]) -> None:
    """A fast way that is wrong stops the benchmark before a second is measured."""
    side_by_side = script("side_by_side")
    ways = {"plain": lambda: torch.zeros(3), "fast": lambda: torch.full((3,), 1e-3)}
    with pytest.raises(SystemExit, match=r"wrong: the result differs by 0\.001"):
        side_by_side.check(side_by_side.Row("wrong", ways, 1), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "other", "lost", "fails"),
    [("float32", 0, [], False), ("float32", 1, [], True), ("bfloat16", 1, [], False), ("bfloat16", 0, ["gone"], True)],
)
def test_wrong_answers_under_load_fail_in_float32_and_lost_ones_always(
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    other: int,
    lost: list[str],
    fails: bool,
) -> None:
    pytest.importorskip("accelerate")
    serving = script("serving")
    monkeypatch.setattr(serving, "use", lambda *_: serving.Tally(seconds=[0.1], other=other, lost=lost))
    monkeypatch.setattr(serving, "rate_here", lambda *_: 1.0)
    arguments = argparse.Namespace(users=2, seconds=1.0, dtype=dtype)
    assert serving.load(None, None, None, [None], arguments) is fails
