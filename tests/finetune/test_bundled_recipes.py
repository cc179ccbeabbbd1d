"""The script that makes the bundled models: its commands in order, as the recipes say them, and none twice."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from finetune.config import RECIPES

SCRIPT = RECIPES / "bundled" / "run.sh"
STAGES = ["tap_dense", "tap_prompt", "tap_heads"]

PYTHON = """#!/usr/bin/env bash
echo "$@" >> commands
while [ $# -gt 0 ]; do
  if [ "$1" = --output_dir ]; then mkdir -p "$2/model" && echo '{"step": 1}' > "$2/log.jsonl"; fi
  if [ "$1" = convert ]; then mkdir -p "$3"; fi
  shift
done
"""
"""In place of Python: writes down what it was asked to do, and leaves what the real commands would leave."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def commands(folder: Path, *flags: str, **variables: str) -> list[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": "./python", **variables}
    subprocess.run(["bash", str(SCRIPT), *flags], cwd=folder, env=environment, check=True, timeout=60)
    return (folder / "commands").read_text().splitlines()


def test_every_stage_goes_on_from_the_one_before_it_as_its_recipe_says(folder: Path) -> None:
    *trained, converted = commands(folder)
    assert len(trained) == len(STAGES)
    for name, command in zip(STAGES, trained):
        recipe = yaml.safe_load((RECIPES / "bundled" / f"{name}.yaml").read_text())
        start = f" --init_from {recipe['init_from']}" if "init_from" in recipe else ""
        wanted = f"-m finetune.pretrain_tap --config bundled/{name} --output_dir {recipe['output_dir']}{start}"
        assert command.rstrip() == wanted
    assert converted.startswith(
        "-m tap_tokenizer convert runs/bundled/tap_heads/model runs/bundled/tap-tiny --dtype float16"
    )
    log = (folder / "runs/bundled/tap-tiny/training/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in log] == ["dense", "prompt", "heads"]


def test_a_second_run_repeats_nothing(folder: Path) -> None:
    once = commands(folder)
    assert commands(folder) == once
    (folder / "runs/bundled/tap_heads/model").rmdir()
    assert [line.split()[3] for line in commands(folder)[len(once) :]] == ["bundled/tap_heads"]


def test_flags_are_those_of_accelerate_and_variables_reach_every_stage(folder: Path) -> None:
    *trained, converted = commands(folder, "--num_processes", "4", OUT="made", FLAGS="--workers 8 --batch_size 2")
    for command in trained:
        assert command.startswith("-m accelerate.commands.launch --num_processes 4 -m finetune.pretrain_tap ")
        assert command.endswith(" --workers 8 --batch_size 2")
        assert " --output_dir made/tap_" in command
    assert " made/tap_heads/model made/tap-tiny " in converted
