"""What only real processes show: a kill at any moment, two processes at once, a full disk."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from finetune import cache_regions, loop, train
from finetune.cache import MANIFEST, RegionCache
from finetune.checkpoints import BestWeights, list_checkpoints, save_whole
from finetune.loop import ignore_ctrl_c
from finetune.run_log import RunLog
from tap_tokenizer import only_writer

ROOT = Path(__file__).parents[2]
STEPS = 8
LAUNCH_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
"""accelerate's own launcher starts a single process on a CPU, whatever it is told; torchrun starts two."""

pytestmark = pytest.mark.slow


def flags(stage: Path, output: Path, *more: str) -> list[str]:
    return ["--output_dir", str(output), "--mode", "lora", "--language_model", str(stage / "lm" / "model"),
            "--region_tokenizer", str(stage / "tap0"), "--data", str(stage / "records.jsonl"),
            "--caches", str(stage / "cache"), "--image_grid", "2", "--lora_dropout", "0.1", "--steps", str(STEPS),
            "--batch_size", "2", "--log_steps", "1", "--save_steps", "2", "--warmup_steps", "1", "--tracker", "none",
            *more]  # fmt: skip


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(output / "checkpoints")[-1] / "trained.safetensors")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false",
            "ACCELERATE_USE_CPU": "true"}  # fmt: skip


def assert_same(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=1e-6)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6, msg=name)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl+C is heard even where the tests themselves run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_finishes_and_keeps_the_current_step(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint would have been due; asked before the first line of the log is written."""
    train.main(flags(stage, tmp_path / "whole"))
    rarely = ["--save_steps", "100", "--log_steps", "100"]
    plain, calls = train.summed_loss, []

    def interrupted(*arguments: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(train, "summed_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(flags(stage, tmp_path / "cut", *rarely))
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step, which is kept" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(tmp_path / "cut" / "checkpoints")] == ["step-3"]
    train.main(flags(stage, tmp_path / "cut", *rarely))
    first, second = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_twice_stops_at_once(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*arguments: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(train, "summed_loss", impatient)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags(stage, tmp_path / "cut"))
    assert list_checkpoints(tmp_path / "cut" / "checkpoints") == []


def test_killed_at_a_random_step(stage: Path, tmp_path: Path) -> None:
    train.main(flags(stage, tmp_path / "whole"))
    step = random.randrange(1, STEPS)
    command = [sys.executable, "-m", "finetune.train", *flags(stage, tmp_path / "cut")]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log, end = tmp_path / "cut" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= step):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    train.main(flags(stage, tmp_path / "cut"))
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_two_processes_equal_one(stage: Path, tmp_path: Path) -> None:
    more = ["--lora_dropout", "0", "--eval_data", str(stage / "records.jsonl"), "--eval_cache", str(stage / "cache"),
            "--eval_records", "5", "--eval_steps", str(STEPS)]  # fmt: skip
    command = [*LAUNCH_TWO, "finetune.train", *flags(stage, tmp_path / "two", *more)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one_process = ["--batch_size", "4"]
    train.main(flags(stage, tmp_path / "one", *more, *one_process))
    said = [json.loads((tmp_path / name / "environment.jsonl").read_text())["processes"] for name in ("one", "two")]
    assert said == [1, 2]
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    first, second = ([json.loads(line) for line in lines] for lines in logs)
    for key in ("loss", "val_loss", "val_answer"):
        digits = [[round(line[key] * 1e5) for line in lines if key in line] for lines in (first, second)]
        assert digits[0]
        assert digits[0] == pytest.approx(digits[1], rel=0, abs=1), key  # 1e-5, counted in the log's last digit
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=1e-6, msg=name)


def test_two_processes_share_a_cache(stage: Path, tmp_path: Path) -> None:
    words = ["--data", str(stage / "records.jsonl"), "--region_tokenizer", str(stage / "tap0"), "--output",
             str(tmp_path / "cache"), "--variants", "exact,jitter,points", "--shard_size", "2", "--workers", "0",
             "--image_grid", "2", "--device", "cpu"]  # fmt: skip
    done = subprocess.run(
        [*LAUNCH_TWO, "finetune.cache_regions", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for path in sorted((stage / "cache").glob("*.safetensors")):
        expected, found = load_file(path), load_file(tmp_path / "cache" / path.name)
        for name in expected:
            torch.testing.assert_close(found[name].float(), expected[name].float(), rtol=0, atol=1e-3, msg=name)


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(flags(stage, tmp_path / "whole"))
    plain = loop.save_state

    def stop_at_six(accelerator: Any, folder: Path, step: int) -> None:
        if step == 6:
            raise InterruptedError
        plain(accelerator, folder, step)

    monkeypatch.setattr(loop, "save_state", stop_at_six)
    with pytest.raises(InterruptedError):
        train.main(flags(stage, tmp_path / "full"))
    monkeypatch.setattr(loop, "save_state", plain)
    kept = {path: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").rglob("*") if path.is_file()}
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import finetune.train\n"
        "from finetune.config import run_command\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # what a full disk does: writing fails midway
        f"sys.exit(run_command(lambda: finetune.train.main({flags(stage, tmp_path / 'full')!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"step-6 could not be written \(.*File too large.*\): free some disk space", last)
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    assert [path.name for path in list_checkpoints(tmp_path / "full" / "checkpoints")] == ["step-2", "step-4"]
    train.main(flags(stage, tmp_path / "full"))
    assert_same(tmp_path / "full", tmp_path / "whole")


def test_two_runs_do_not_share_a_folder(stage: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with only_writer(output), pytest.raises(ValueError, match="Another process is writing"):
        train.main(flags(stage, output))
    assert not output.exists()
    cache = ["--data", str(stage / "records.jsonl"), "--region_tokenizer", str(stage / "tap0"), "--output", str(output)]
    with only_writer(output), pytest.raises(ValueError, match="Another process is writing"):
        cache_regions.main([*cache, "--workers", "0", "--device", "cpu"])
    assert not output.exists()


@pytest.mark.parametrize("torn", ["", "{", '{"step": 1}', "[]", "null"])
def test_a_damaged_file_about_the_best_weights_is_named(tmp_path: Path, torn: str) -> None:
    (tmp_path / "best.json").write_text(torn)
    with pytest.raises(ValueError, match=r"best\.json is damaged: delete it"):
        BestWeights(tmp_path, "val_loss", 10)


def test_other_damaged_files_of_a_run_are_named(stage: Path, tmp_path: Path) -> None:
    train.main(flags(stage, tmp_path / "run", "--steps", "2"))
    saved = (tmp_path / "run" / "arguments.yaml").read_text()
    for torn in ("", "steps: [", "just words"):
        (tmp_path / "run" / "arguments.yaml").write_text(torn)
        with pytest.raises(ValueError, match=r"arguments\.yaml is damaged"):
            train.main(flags(stage, tmp_path / "run", "--steps", "2"))
    (tmp_path / "run" / "arguments.yaml").write_text(saved)
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "loss": 2}\n\0\0\0\n')
    with pytest.raises(ValueError, match=r"log\.jsonl is damaged"):
        train.main(flags(stage, tmp_path / "run", "--steps", "2"))
    shutil.copytree(stage / "cache", tmp_path / "cache")
    (tmp_path / "cache" / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is damaged: delete it and run cache_regions again"):
        RegionCache(tmp_path / "cache")


def test_a_truncated_log_line_does_not_stop_a_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, Accelerator(cpu=True))
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in log.read()] == [1, 2, 3]
    log.forget_after(2)
    log.write({"step": 3, "loss": 0.25})
    assert [(line["step"], line["loss"]) for line in log.read()] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_result_is_complete_or_absent(tmp_path: Path) -> None:
    def torn(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_whole(tmp_path / "model", torn)
    assert not (tmp_path / "model").exists()
    save_whole(tmp_path / "model", lambda folder: (folder / "config.json").write_text("one"))
    save_whole(tmp_path / "model", lambda folder: (folder / "other.json").write_text("two"))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["other.json"]
    assert not (tmp_path / "model.partial").exists()


def test_ctrl_c_does_not_stop_the_workers_of_a_loader() -> None:
    loader = DataLoader(_Signals(), num_workers=1, worker_init_fn=ignore_ctrl_c)
    assert [int(handler) for handler in loader] == [int(signal.SIG_IGN)] * 2


class _Signals(Dataset[int]):
    """What the process that is asked does on Ctrl+C."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        handler = signal.getsignal(signal.SIGINT)
        return int(handler) if isinstance(handler, int) else -1
