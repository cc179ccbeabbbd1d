"""accelerate itself reads the configurations for many GPUs; what they need of a run is refused where it is missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from finetune.config import RECIPES
from finetune.train import check_sharding
from finetune.train_arguments import TrainArguments

CONFIGS = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 8 * config.num_machines
    known = {action.dest for action in launch_command_parser()._actions}
    for name in ("fsdp_config", "deepspeed_config"):
        unknown = {key if key.startswith("fsdp_") or name == "deepspeed_config" else f"fsdp_{key}"
                   for key in getattr(config, name, None) or {}} - known  # fmt: skip
        assert not unknown


def test_there_is_a_configuration_for_every_kind_of_distribution() -> None:
    kinds = {load_config_from_file(str(path)).distributed_type for path in CONFIGS}
    assert {DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED} == set(kinds)


@pytest.mark.parametrize(("kind", "changes", "words"), [
    (DistributedType.FSDP, {"optimizer": "muon"}, "use --optimizer adamw"),
    (DistributedType.FSDP, {"quantize": "4bit"}, "plain data parallelism"),
    (DistributedType.DEEPSPEED, {"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 1"),
])  # fmt: skip
def test_options_that_splitting_does_not_allow_are_refused(kind: Any, changes: dict[str, Any], words: str) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind)
    with pytest.raises(ValueError, match=words):
        check_sharding(TrainArguments(output_dir="x", **changes), accelerator)
    check_sharding(TrainArguments(output_dir="x"), accelerator)
