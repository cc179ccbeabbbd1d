"""The script that makes the bundled models: its commands in order, as the recipes say them, and none twice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_script import commands_of

from finetune.config import RECIPES

SCRIPT = RECIPES / "bundled" / "run.sh"
STAGES = {
    "tap_dense": "pretrain_tap",
    "tap_prompt": "pretrain_tap",
    "tap_heads": "pretrain_tap",
    "region_chat_tiny_lm": "pretrain_lm",
    "chat_tiny": "train",
    "chat_smollm2": "distill",
    "chat_smollm2_more": "train",
}
"""The recipes in the order of the script, and the command of each."""

PYTHON = """#!/usr/bin/env bash
echo "$@" >> commands
while [ $# -gt 0 ]; do
  if [ "$1" = --config ]; then
    made=$(sed -n 's/^output_dir: //p' "$2")
    mkdir -p "$made/model" && echo '{"step": 1}' > "$made/log.jsonl"
    if [[ $made = */chat_smollm2 ]]; then mkdir -p "$made/lessons/cache" && touch "$made"/lessons/{lessons,talks}.jsonl; fi
  fi
  if [ "$1" = --output ]; then mkdir -p "$2" && [[ $2 = *.jsonl ]] || touch "$2/manifest.json"; fi
  if [ "$1" = convert ] && [ "$2" != glyph_scenes ]; then mkdir -p "$3"; fi
  shift
done
"""
"""In place of Python: writes down what it was asked to do, and leaves what the real commands would leave."""


def commands(folder: Path, *flags: str, **variables: str) -> list[str]:
    return commands_of(SCRIPT, folder, PYTHON, *flags, **variables)


def recipe_of(name: str, out: Path) -> dict[str, Any]:
    return yaml.safe_load((out / "recipes" / f"{name}.yaml").read_text())


def test_every_recipe_is_trained_in_order(tmp_path: Path) -> None:
    found = [line.split() for line in commands(tmp_path)]
    trained = [line for line in found if line[2] == "--config"]
    assert [line[1:] for line in trained] == [
        [f"finetune.{command}", "--config", f"runs/bundled/recipes/{name}.yaml"] for name, command in STAGES.items()
    ]
    assert set(STAGES) == {path.stem for path in SCRIPT.parent.glob("*.yaml")}
    converted = next(line for line in found if line[1] == "tap_tokenizer")
    assert converted[2:7] == ["convert", "runs/bundled/tap_heads/model", "runs/bundled/tap-tiny", "--dtype", "float16"]
    log = (tmp_path / "runs/bundled/tap-tiny/training/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in log] == ["dense", "prompt", "heads"]


def test_what_a_recipe_reads_was_made_before_it(tmp_path: Path) -> None:
    commands(tmp_path, OUT="made")
    made = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "made").rglob("*")}
    for name in STAGES:
        recipe = recipe_of(name, tmp_path / "made")
        read = [
            recipe.get(key)
            for key in ("init_from", "language_model", "region_tokenizer", "data", "eval_data", "eval_cache")
        ]
        read += [source.get(key) for source in recipe.get("sources", ()) for key in ("records", "cache")]
        assert {path for path in read if path not in (None, "smollm2-135m")} <= made, name
        assert recipe["output_dir"] == f"made/{name}"


def test_records_are_converted_before_they_are_cached(tmp_path: Path) -> None:
    found = commands(tmp_path)
    for i, line in enumerate(found):
        words = line.split()
        if words[1] in ("finetune.cache_regions", "finetune.compose_regions"):
            data = words[words.index("--data") + 1]
            assert any(f"glyph_scenes --output {data} " in earlier for earlier in found[:i])


def test_finding_is_calibrated_at_the_end_on_scenes_that_are_not_learned_from(tmp_path: Path) -> None:
    found = [line.split() for line in commands(tmp_path)]
    assert found[-1][1] == "finetune.calibrate"
    asked = found[-1][found[-1].index("--data") + 1]
    made = next(line for line in found if line[1:4] == ["finetune.data", "convert", "glyph_scenes"] and asked in line)
    assert made[made.index("--split") + 1] == "val"
    for name in ("chat_smollm2", "chat_smollm2_more"):
        learned = recipe_of(name, tmp_path / "runs/bundled")["sources"]
        assert asked not in [source["records"] for source in learned]
    assert (tmp_path / "runs/bundled/chat_smollm2_more/calibration.txt").is_file()


def test_a_second_run_repeats_nothing(tmp_path: Path) -> None:
    once = commands(tmp_path)
    assert commands(tmp_path) == once
    (tmp_path / "runs/bundled/tap_heads/model").rmdir()
    assert [line.split()[3] for line in commands(tmp_path)[len(once) :]] == ["runs/bundled/recipes/tap_heads.yaml"]


@pytest.mark.parametrize(
    ("flags", "launched"),
    [
        ([], ""),
        (["--num_processes", "4"], "accelerate.commands.launch --num_processes 4 -m "),
        (["--nproc_per_node", "2"], "torch.distributed.run --standalone --nproc_per_node 2 -m "),
    ],
    ids=["one process", "GPUs", "CPUs"],
)
def test_flags_are_those_of_a_launcher_and_variables_reach_every_stage(
    tmp_path: Path, flags: list[str], launched: str
) -> None:
    found = commands(tmp_path, *flags, OUT="made", FLAGS="--workers 8 --batch_size 2")
    trained = [line for line in found if " --config " in line]
    assert len(trained) == len(STAGES)
    for command in trained:
        assert command.startswith(f"-m {launched}finetune.")
        assert command.endswith(" --workers 8 --batch_size 2")
    assert not any("runs/bundled" in command for command in found)


def test_script_and_recipes_are_short_enough_to_be_read() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 60
    for path in SCRIPT.parent.glob("*.yaml"):
        assert len(path.read_text().splitlines()) < 40


def test_what_was_made_is_shipped_under_the_names_of_the_package(tmp_path: Path) -> None:
    commands(tmp_path)
    made = tmp_path / "runs/bundled"
    for stage in ("chat_tiny", "chat_smollm2_more"):
        reference = {"source": str(made / "tap-tiny"), "fingerprint": "f"}
        (made / stage / "model" / "processor_config.json").write_text(json.dumps({"region_tokenizer": reference}))
        (made / stage / "model" / "config.json").write_text('{"limitation": null}')
        (made / stage / "model" / "README.md").write_text("of the run")
    (made / "chat_smollm2_more/model/adapter").mkdir()
    (made / "chat_smollm2_more/model/adapter/adapter_model.safetensors").touch()
    (made / "tap-tiny/model.safetensors").touch()
    bridges = tmp_path / "llm_bridge/pretrained"
    for name in ("region-chat-tiny", "region-chat-smollm2"):
        (bridges / name).mkdir(parents=True)
        (bridges / name / "README.md").write_text("by hand")
        (bridges / name / "of_an_earlier_model.json").touch()
    subprocess.run(["bash", str(SCRIPT.with_name("ship.sh"))], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "tap_tokenizer/pretrained/tap-tiny/model.safetensors").is_file()
    assert (bridges / "region-chat-smollm2/adapter/adapter_model.safetensors").is_file()
    for stage, name in (("chat_tiny", "region-chat-tiny"), ("chat_smollm2_more", "region-chat-smollm2")):
        processor = json.loads((bridges / name / "processor_config.json").read_text())
        assert processor["region_tokenizer"] == {"source": "tap-tiny", "fingerprint": "f"}
        log = [json.loads(line) for line in (bridges / name / "training/log.jsonl").read_text().splitlines()]
        assert log[-1] == {"stage": stage, "step": 1}
        assert len(log) == 2  # of both stages
        assert not (bridges / name / "of_an_earlier_model.json").exists()
        assert json.loads((bridges / name / "config.json").read_text())["limitation"].startswith(f"{name} knows only")
        assert (bridges / name / "README.md").read_text() == "by hand"
