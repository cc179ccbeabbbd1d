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
from typing import Any
from unittest.mock import MagicMock

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
    "questions",
    "finding",
)
Run = Callable[..., object]


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """A script as a module; pytest finds their folder by pyproject.toml."""
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
    found = written(tmp_path, name, capsys)
    if name in TABLES[:3]:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert all(row["floor"] > 0 and {"plain", "fast"} <= set(row["seconds"]) for row in found["rows"])


def written(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON of a run, whose table is written and printed."""
    table = (folder / f"{name}.md").read_text()
    assert table.splitlines()[-1].startswith("|")
    assert table.splitlines()[-1] in capsys.readouterr().out
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["machine"] in table
    return found


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


@pytest.mark.slow
def test_the_whole_way_is_walked_by_rivals_without_tap_and_by_the_original(
    run: Run, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "original" / "tokenize_anything"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class Model:\n"
        "    def get_inputs(self, inputs): assert inputs['img'].shape == (1, 1024, 1024, 3); return inputs\n"
        "    def get_features(self, inputs): return {'features': 0}\n"
        "    def get_outputs(self, inputs): assert inputs['points'].shape == (1, 2, 3) and 'features' in inputs\n"
        "    def generate_text(self, tokens): assert tokens.shape == (1, 1, 256)\n"
        "model_registry = {'tap_vit_b': lambda device, dtype: Model()}\n"
    )
    run("whole_way", "--output", str(tmp_path), "--original", str(package.parent))
    rows = written(tmp_path, "whole_way", capsys)["rows"]
    assert [row["way"] for row in rows] == ["tap-tiny, region-chat-tiny", "TAP-B's own code, its captions"]
    assert all(set(row["stages"]) == set(script("walk").STAGES) for row in rows)


def test_the_shipped_bridge_is_among_the_ways_and_a_missing_original_is_not(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole_way = script("whole_way")
    monkeypatch.setattr(whole_way, "run", lambda *_: None)
    arguments = argparse.Namespace(
        quick=False, shapes=[], language="smollm2-135m", threads=1, rivals=True, original=tmp_path, words=2
    )
    ways = whole_way.ways_of(arguments, str(tmp_path))
    assert ways["tap-tiny, region-chat-smollm2"]["source"] == "region-chat-smollm2"
    assert {way["way"] for way in ways.values()} == {"bridge", "crop", "captioner"}
    assert "holds no tokenize_anything, so it is left out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_crop_is_not_charged_for_tap(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tap_tokenizer.TapRegionTokenizer.from_pretrained", None)
    walk = script("walk")
    found = walk.walk("crop", "region-chat-tiny", 2, walk.time.time())
    assert set(found) == set(walk.STAGES)


def test_ways_with_different_results_are_not_timed(script: Callable[[str], ModuleType]) -> None:
    """A fast way that is wrong stops the benchmark before a second is measured."""
    side_by_side = script("side_by_side")
    ways = {"plain": lambda: torch.zeros(3), "fast": lambda: torch.full((3,), 1e-3)}
    with pytest.raises(SystemExit, match=r"wrong: the result differs by 0\.001"):
        side_by_side.check(side_by_side.Row("wrong", ways, 1), torch.float32)


def test_other_ways_are_checked_against_plain_and_have_a_ratio(script: Callable[[str], ModuleType]) -> None:
    """int8 may be off by its rounding, anything else of ours by that of its dtype."""
    side_by_side = script("side_by_side")
    ways = {"plain": lambda: torch.ones(3), "fast": lambda: torch.ones(3)}
    for name, off, fails in (("int8", 0.1, False), ("int8", 0.3, True), ("compiled", 1e-3, True)):
        row = side_by_side.Row(
            "row", {**ways, name: lambda off=off: torch.full((3,), 1 + off)}, 1, others=(name, "gone")
        )
        if fails:
            with pytest.raises(SystemExit, match=f"row: the result differs by .* between plain and {name}"):
                side_by_side.check(row, torch.float32)
            continue
        operations, found, _ = side_by_side.check(row, torch.float32)
        assert found == {"fast": 0, name: pytest.approx(off, rel=1e-3)}
        seconds = {"plain": 4.0, "fast": 2.0, name: 1.0}
        table = side_by_side.table([{"row": "row", "seconds": seconds, "operations": operations, "off": found, "floor": 1.0,
                                     "bound": "bytes"}])  # fmt: skip
        head, _, line = table.splitlines()
        cells = dict(zip(head.split(" | "), line.split(" | ")))
        assert cells[f"plain / {name}"] == "**4.00**"
        assert cells[f"{name} is off by"] == "0.1"


def test_every_way_has_run_before_it_is_timed(script: Callable[[str], ModuleType]) -> None:
    side_by_side = script("side_by_side")
    ran: list[str] = []
    ways = {name: lambda name=name: ran.append(name) or torch.ones(1) for name in ("plain", "fast", "int8", "SAM")}
    side_by_side.check(side_by_side.Row("row", ways, 1), torch.float32)
    assert set(ran) == set(ways)


def test_growth_measures_the_memory_of_its_device(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = script("growth")
    devices: list[str] = []
    monkeypatch.setattr(growth, "peak_bytes", lambda device, way: devices.append(device) or way() or 0)
    growth.grow("axis", lambda number: (number, lambda: None), [1], "cuda")
    assert devices == ["cuda"]


def test_everything_waits_for_a_gpu(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    everything = script("everything")
    waited: list[bool] = []
    monkeypatch.setattr(everything.torch.cuda, "synchronize", lambda: waited.append(True))
    assert everything.clock("cpu") <= everything.time.process_time()
    assert not waited
    assert everything.clock("cuda") <= everything.time.perf_counter()
    assert waited


def test_captions_leave_weights_alone_that_are_as_wanted(script: Callable[[str], ModuleType]) -> None:
    """A written weight would have the fast way lay out all weights again, in each timed call."""
    captions, side_by_side = script("captions"), script("side_by_side")
    model = side_by_side.make_tap(argparse.Namespace(size="tiny", device="cpu", dtype="float32"))
    weight, end = model.text_decoder.lm_head.weight, model.text_decoder.config.eos_token_id
    usual = weight[end].clone()
    tokens = torch.randn(2, model.text_decoder.config.region_size)
    for wanted in (usual * 2, usual):
        caption = captions.captioning(model, tokens, wanted)
        caption()
        version = weight._version
        caption()
        assert weight._version == version
        assert torch.equal(weight[end], wanted)


def test_the_page_under_load_asks_the_bridge_whose_answers_are_expected(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    app_load = script("app_load")
    started: list[list[str]] = []
    page = MagicMock(stdout=["The page is at http://127.0.0.1:1 now"])
    page.__enter__.return_value = page
    monkeypatch.setattr(app_load.subprocess, "Popen", lambda command, **_: started.append(command) or page)
    with app_load.served(1, 2) as address:
        assert address == "http://127.0.0.1:1"
    asked: list[str] = []
    monkeypatch.setattr(app_load.RegionChat, "from_pretrained", asked.append)
    app_load.make_tasks(0)
    (command,) = started
    assert [command[command.index("--model") + 1]] == asked


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
