"""The script that measures a bridge from pictures alone: its rows, their lessons, and the table of its numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_script import commands_of

from finetune.config import RECIPES
from finetune.glyphs.questions import ATTRIBUTE_FAMILIES
from finetune.recipes.pictures_alone.table import main as print_table

FOLDER = RECIPES / "pictures_alone"

PYTHON = """#!/usr/bin/env bash
echo "$@" >> commands
while [ $# -gt 0 ]; do
  if [ "$1" = --output_dir ]; then mkdir -p "$2/model"; fi
  if [ "$1" = --output ]; then mkdir -p "$2" && touch "$2/table.md" "$2/manifest.json"; fi
  shift
done
"""
"""In place of Python: writes down what it was asked to do, and leaves what the real commands would leave."""


def commands(folder: Path, *flags: str, **variables: str) -> list[list[str]]:
    return [line.split() for line in commands_of(FOLDER / "run.sh", folder, PYTHON, *flags, **variables)]


def value(line: list[str], flag: str) -> str:
    return line[line.index(flag) + 1]


def test_every_row_learns_the_same_lessons_and_is_measured(tmp_path: Path) -> None:
    found = commands(tmp_path, OUT="made")
    trained = [line for line in found if "--config" in line]
    rows = [value(line, "--output_dir") for line in trained]
    assert rows == [
        f"made/{row}"
        for row in ("both-0", "after-0", "alone-0", "projector-0", "adapter-0", "projector-1", "projector-2")
    ]
    assert [value(line, "--seed") for line in trained] == [row[-1] for row in rows]
    taught = [line for line in trained if line[1] == "finetune.distill"]
    assert len(taught) == 5
    assert {value(line, "--lessons") for line in taught} == {"made/lessons"}
    measured = [line for line in found if line[1] == "finetune.evaluate_glyphs"]
    assert [value(line, "--model") for line in measured] == [*(f"{row}/model" for row in rows), "none"]
    sizes = {
        (value(line, "--seeds"), value(line, "--question_scenes"), value(line, "--free_scenes")) for line in measured
    }
    assert len(sizes) == 1
    assert value(measured[-1], "--control_scenes") == value(measured[-1], "--question_scenes")
    assert found[-1] == ["-m", "finetune.recipes.pictures_alone.table", "made"]


def test_supervised_alone_differs_from_after_distilling_by_its_start_alone(tmp_path: Path) -> None:
    after, alone = (
        line for line in commands(tmp_path, ROWS="after-3 alone-3", OUT="made") if line[1] == "finetune.train"
    )
    assert value(after, "--init_from") == "made/both-3/model"
    assert value(alone, "--language_model") == "smollm2-135m"
    assert [w.replace("after", "alone") for w in after[: after.index("--init_from")]] == alone[
        : alone.index("--language_model")
    ]


def test_no_answer_of_ours_reaches_the_lessons() -> None:
    recipe = yaml.safe_load((FOLDER / "distill.yaml").read_text())
    assert recipe["true_words"] is False
    assert "sources" not in recipe


def test_what_is_there_is_passed_over(tmp_path: Path) -> None:
    once = commands(tmp_path)
    assert commands(tmp_path)[len(once) :] == [once[-1]]
    (tmp_path / "runs/pictures_alone/projector-1/model").rmdir()
    assert [value(line, "--output_dir") for line in commands(tmp_path)[len(once) + 1 : -1]] == [
        "runs/pictures_alone/projector-1"
    ]


@pytest.mark.parametrize(
    ("flags", "launched"),
    [
        (["--nproc_per_node", "2"], "torch.distributed.run --standalone --nproc_per_node 2"),
        (["--num_processes", "4"], "accelerate.commands.launch --num_processes 4"),
    ],
)
def test_flags_are_those_of_a_launcher_and_variables_reach_every_row(
    tmp_path: Path, flags: list[str], launched: str
) -> None:
    found = commands(tmp_path, *flags, ROWS="both-0 alone-0", FLAGS="--steps 3 --batch_size 4")
    trained = [" ".join(line) for line in found if "--config" in line]
    assert len(trained) == 2
    for line in trained:
        assert line.startswith(f"-m {launched} -m finetune.")
        assert line.endswith("--steps 3 --batch_size 4")


def test_a_row_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        commands(tmp_path, ROWS="lora-0")
    assert caught.value.returncode == 2


def test_scripts_and_recipes_are_short_enough_to_be_read() -> None:
    assert len((FOLDER / "run.sh").read_text().splitlines()) < 60
    for path in FOLDER.glob("*.yaml"):
        assert len(path.read_text().splitlines()) < 40


# --- the table --------------------------------------------------------------------------------------------------------


def measured(root: Path, name: str, numbers: dict[str, float], log: dict[str, float]) -> None:
    for folder in (root / name, root / "measured" / name):
        folder.mkdir(parents=True)
    (root / "measured" / name / "metrics.json").write_text(json.dumps({"of": {}, "test": numbers}))
    (root / name / "log.jsonl").write_text(f'{{"step": 1, "loss": 1.0}}\n{json.dumps(log)}\n')


def families(kind: str, *shares: float) -> dict[str, float]:
    return {f"{kind}: {family}": share for family, share in zip(ATTRIBUTE_FAMILIES, shares, strict=True)}


def numbers_of_a_bridge(first: float, **more: Any) -> dict[str, float]:
    known = {"full: what takes general knowledge": 0.4, "full: phrasing that no recipe contains": 0.5}
    return {**families("contained", first, 1, 1, 1, 1), **known, **more}


def test_the_table_has_the_ratios_that_are_wanted_and_the_spread_of_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        **families("described contained", 1, 1, 1, 1, 0.5),
        "told the truth, in its best form: what takes general knowledge": 0.5,
        "described: phrasing that no recipe contains": 0.7,
    }
    measured(tmp_path, "described", told, {})
    nearness = {"val_kl_new": 0.1, "val_kl_shuffled": 5.0, "val_kl_new_shuffled": 1.0}
    perplexity = {"LLM: perplexity of plain text": 20.2, "the same without the adapter": 20.0}
    measured(tmp_path, "both-0", numbers_of_a_bridge(0.5, **perplexity), nearness)
    measured(tmp_path, "both-1", numbers_of_a_bridge(0.0, **perplexity), nearness)
    measured(tmp_path, "alone-0", numbers_of_a_bridge(1.0), {})
    assert print_table([str(tmp_path)]) == 0
    rows = {line.split(" | ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["| wanted"] == "| wanted |  | ≥ .95 | ≤ .2 | ≥ .9 | ≤ 1.02 |  |  | after > alone |"
    assert rows["| both"] == (
        "| both | 2 | .944 (.889–1.000) | .100 (.100–.100) | .800 (.800–.800) | 1.010 (1.010–1.010) "
        "| .850 (.800–.900) | .400 (.400–.400) | .500 (.500–.500) |"
    )
    assert rows["| alone"] == "| alone | 1 | 1.111 |  | .800 |  | 1.000 | .400 | .500 |"
    assert rows["| the teacher, told in words"].endswith("|  |  |  |  |  | .900 | .500 | .700 |")


def test_a_folder_that_holds_no_teacher_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_table([str(tmp_path)]) == 2
    assert "run.sh has filled" in capsys.readouterr().err
