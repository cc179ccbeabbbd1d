"""Checkpoints: whole or not at all, newest found, old ones dropped; trained weights go back where they came from."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("accelerate")

from accelerate import Accelerator

from finetune.checkpoints import (
    TRAINED_WEIGHTS,
    BestWeights,
    keep_only_what_learns,
    list_checkpoints,
    save_checkpoint,
    step_of,
)


def write(text: str):  # type: ignore[no-untyped-def]
    return lambda folder: (folder / "x").write_text(text) and None


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, write(str(step)), keep=2)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [10, 100]
    assert (list_checkpoints(tmp_path)[-1] / "x").read_text() == "100"


def test_an_interrupted_save_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, write("one"))

    def full(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, full)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-1"]
    assert (tmp_path / "step-1" / "x").read_text() == "one"
    save_checkpoint(tmp_path, 2, write("two"))
    assert (tmp_path / "step-2" / "x").read_text() == "two"


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, write("a"))
    save_checkpoint(tmp_path, 3, write("b"))
    assert (tmp_path / "step-3" / "x").read_text() == "b"


def test_other_folders_are_not_taken_for_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-7.partial").mkdir()
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        step_of(tmp_path / "other")


def test_clearing_old_checkpoints_leaves_those_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shutil.rmtree

    def late(path: Path, **more: bool) -> None:
        time.sleep(0.1)
        plain(path, **more)

    monkeypatch.setattr(shutil, "rmtree", late)
    barrier = threading.Barrier(2)

    def save(name: str, is_main: bool) -> None:
        def fill(partial: Path) -> None:
            (partial / name).write_text(name)

        save_checkpoint(tmp_path, 1, fill, is_main=is_main, wait=lambda: barrier.wait(timeout=20) and None)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, ("main", "other"), (True, False)))
    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == ["main", "other"]


@pytest.mark.parametrize(
    "words", ["[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0", "PytorchStreamWriter"]
)
def test_a_full_disk_is_reported_with_the_folder(tmp_path: Path, words: str) -> None:
    def fill(folder: Path) -> None:
        raise RuntimeError(words)

    with pytest.raises(OSError, match=r"step-3 could not be written .*free some disk space"):
        save_checkpoint(tmp_path, 3, fill)
    assert not list_checkpoints(tmp_path)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (1, 1), (3, 4), (4, 3, 1)])
def test_weights_of_another_shape_are_refused_and_not_broadcast(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = nn.Linear(3, 4)
    before = model.weight.detach().clone()
    save_file({"weight": torch.ones(shape), "bias": torch.zeros(4)}, tmp_path / TRAINED_WEIGHTS)
    message = r"holds weight of shape .*, but this run trains \(4, 3\): use another output_dir"
    with pytest.raises(ValueError, match=message):
        BestWeights(tmp_path, "val_loss", 0).load(model)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    keep_only_what_learns(accelerator)
    with pytest.raises(ValueError, match=message):
        accelerator.load_state(str(tmp_path))
    assert torch.equal(prepared.weight, before)
    accelerator.free_memory()


def test_weights_of_the_same_shape_are_put_in(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    save_file({"weight": torch.ones(4, 3), "bias": torch.zeros(4)}, tmp_path / TRAINED_WEIGHTS)
    BestWeights(tmp_path, "val_loss", 0).load(model)
    assert torch.equal(model.weight, torch.ones(4, 3))
