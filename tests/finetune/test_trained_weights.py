"""Trained weights go back into the model that they came from, and into no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("accelerate")

from accelerate import Accelerator

from finetune.trained_weights import TRAINED_WEIGHTS, BestWeights, keep_only_what_learns


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
