"""Arguments: recipe first, flags over it, everything shown, nothing unknown."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("accelerate")

from finetune.config import (
    RECIPES,
    Source,
    knob,
    parse_arguments,
    refuse_other_arguments,
    save_arguments,
    shipped_recipes,
)  # fmt: skip
from finetune.train_arguments import TrainArguments


@dataclass
class Knobs:
    """Some knobs."""

    name: str = knob(help="a name")
    steps: int = knob(default=10, help="how many")
    rate: float = knob(default=0.5, help="how fast")
    kind: Literal["a", "b"] = knob(default="a", help="which")
    flag: bool = knob(default=False, help="whether")
    paths: list[str] = knob(default_factory=list, help="several")
    other: str | None = knob(default=None, help="maybe")
    either: bool | None = knob(default=None, help="whether, if it is said")


def test_flags_override_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nsteps: 20\nrate: 1.0e-3\npaths: [p, q]\nother: null\nflag: true\n")
    got = parse_arguments(Knobs, ["--config", str(recipe), "--steps", "30", "--kind=b"])
    assert got == Knobs(name="x", steps=30, rate=1e-3, kind="b", flag=True, paths=["p", "q"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["steps"].endswith("30                               (flag)")
    assert lines["kind"].endswith("(flag)")
    assert lines["rate"].endswith(f"({recipe})")
    assert lines["other"].endswith("(default)") or lines["other"].endswith(f"({recipe})")


@pytest.mark.parametrize(("flags", "said"), [([], None), (["--either"], True), (["--either", "false"], False)])
def test_optional_values_are_given_like_any_other(flags: list[str], said: bool | None) -> None:
    assert parse_arguments(Knobs, ["--name", "x", *flags]).either is said


def test_saved_arguments_are_a_recipe(tmp_path: Path) -> None:
    first = parse_arguments(Knobs, ["--name", "x", "--paths", "a", "b", "--flag", "true"])
    save_arguments(first, tmp_path / "saved.yaml")
    assert parse_arguments(Knobs, ["--config", str(tmp_path / "saved.yaml")]) == first


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("name: x\nstpes: 3\n", [], "unknown names stpes"),
        ("name: x\nsteps: many\n", [], "invalid int value: 'many'"),
        ("name: x\nkind: c\n", [], "invalid choice: 'c'"),
        ("- a\n- b\n", [], "expected a mapping"),
        ("steps: 3\n", [], "required: --name"),
        ("name: x\n", ["--stpes", "3"], "unrecognized arguments: --stpes 3"),
    ],
)
def test_bad_arguments_end_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, flags: list[str], message: str
) -> None:
    (tmp_path / "r.yaml").write_text(recipe)
    with pytest.raises(SystemExit):
        parse_arguments(Knobs, ["--config", str(tmp_path / "r.yaml"), *flags])
    assert message in capsys.readouterr().err


def test_unknown_recipes_are_named_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(Knobs, ["--config", "nowhere"])
    said = capsys.readouterr().err
    assert "bundled/tap_dense" in said
    assert "multi_gpu" not in said


def test_a_shipped_recipe_is_found_with_or_without_its_folder() -> None:
    one, other = (parse_arguments(TrainArguments, ["--config", name]) for name in ("real/tap_l_lora", "tap_l_lora"))
    assert one == other


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_every_shipped_recipe_can_be_read(recipe: str) -> None:
    from finetune.distill import DistillArguments
    from finetune.pretrain_lm import LanguageArguments
    from finetune.tap_stages import PretrainArguments

    errors = []
    for kind in (PretrainArguments, LanguageArguments, TrainArguments, DistillArguments):
        try:
            parse_arguments(kind, ["--config", recipe])
            return
        except SystemExit as error:
            errors.append(error)
    pytest.fail(f"no command reads {recipe}")


def test_help_shows_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(Knobs, ["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--steps", "how many", "--config", "Some knobs"))


def test_bad_input_ends_with_one_line(tmp_path: Path) -> None:
    words = ["--data", str(tmp_path / "none.jsonl"), "--output", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "finetune.cache_regions", *words]
    done = subprocess.run(command, cwd=RECIPES.parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"python -m finetune.cache_regions: Found no records at {tmp_path / 'none.jsonl'}: give a JSONL or parquet file."
    )
    assert "Traceback" not in done.stderr


def bomb(line: str) -> str:
    """YAML whose aliases unfold to more than any memory holds, each line in nine of the line before it."""
    first = "paths: &a0 [x, x, x, x, x, x, x, x, x]\n"
    return first + "".join(f"n{i}: &a{i} " + line.format(", ".join([f"*a{i - 1}"] * 9)) + "\n" for i in range(1, 30))


@pytest.mark.parametrize("text", [
    bomb("[{}]"), bomb("{{<<: [{}]}}"), bomb("{{k: [{}]}}"), "paths: &a [x, *a]", "&a\nname: *a", "name: &a {b: *a}",
    "name: " + "[" * 50_000, "name: " + "{a: " * 20_000, "\n".join(" " * i + "name:" for i in range(300)), "paths: [[x]]",
    "paths: [{a: b}]",
    "name: {a: 1}", "- name", "", "steps: " + "9" * 5000, "name: 2020-13-45", "name: [x", "name: x\n---\nname: y",
    "name: !!python/object/apply:os.system [ls]", "? [a]\n: b", "name: " + "x" * 200_000, "7: x", "name: \x07",
])  # fmt: skip
def test_no_recipe_expands_endlessly_or_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as end:
        parse_arguments(Knobs, ["--config", str(path)])
    assert end.value.code == 2
    assert str(path) in (said := capsys.readouterr().err)
    assert len(said) < 3000
    if text != "7: x":
        with pytest.raises(ValueError, match=r"r\.yaml"):
            refuse_other_arguments(Knobs(name="x"), path)


def test_yaml_anchors_may_reuse_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: &n x\npaths: &p [*n, y]\nother: *n\n")
    assert parse_arguments(Knobs, ["--config", str(path)]) == Knobs(name="x", paths=["x", "y"], other="x")


SOURCES = [
    Source("a.jsonl", "a_cache", weight=0.3, turns=2),
    Source("b.jsonl", "b_cache", weight=0.7, loss="teacher"),
]
RECIPE = """sources:
- {records: a.jsonl, cache: a_cache, weight: 0.3, turns: 2}
- {records: b.jsonl, cache: b_cache, weight: 0.7, loss: teacher}
"""


def sources(*words: str) -> list[Source]:
    return parse_arguments(TrainArguments, ["--output_dir", "x", *words]).sources


def test_sources_are_a_list_in_a_recipe_and_columns_as_flags(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert sources("--config", str(tmp_path / "r.yaml")) == SOURCES
    columns = ["--data", "a.jsonl", "b.jsonl", "--caches", "a_cache", "b_cache", "--weights", "0.3", "0.7"]
    columns += ["--turns", "2", "0"]
    assert sources(*columns, "--losses", "answers", "teacher") == SOURCES
    assert sources("--data", "a.jsonl", "--caches", "c") == [Source("a.jsonl", "c")]


def test_flags_override_a_field_of_the_sources_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = ["--config", str(tmp_path / "r.yaml")]
    changed = sources(*recipe, "--caches", "c", "d", "--turns", "1", "1")
    assert [(source.cache, source.turns, source.weight) for source in changed] == [("c", 1, 0.3), ("d", 1, 0.7)]
    assert sources(*recipe, "--data", "n.jsonl", "--caches", "n") == [Source("n.jsonl", "n")]
    assert sources("--data", "a.jsonl") == [Source("a.jsonl", None)]  # conversations in words
    with pytest.raises(ValueError, match="Got 1 caches for 2 data"):
        sources(*recipe, "--caches", "c")


def test_saved_sources_are_a_recipe_and_those_of_older_runs_are_compared(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace(", loss: teacher", ""))
    arguments = parse_arguments(TrainArguments, ["--output_dir", "x", "--config", str(tmp_path / "r.yaml")])
    save_arguments(arguments, tmp_path / "saved.yaml")
    assert parse_arguments(TrainArguments, ["--config", str(tmp_path / "saved.yaml")]) == arguments
    old = (tmp_path / "saved.yaml").read_text().split("sources:")[0] + (
        "data: [a.jsonl, b.jsonl]\ncaches: [a_cache, b_cache]\nweights: [0.3, 0.7]\nturns: [2, 0]\n"
    )
    (tmp_path / "old.yaml").write_text(old)
    refuse_other_arguments(arguments, tmp_path / "old.yaml")
    before_losses = re.sub(r"\n *loss: answers", "", (tmp_path / "saved.yaml").read_text())
    assert "loss:" not in before_losses
    (tmp_path / "old.yaml").write_text(before_losses)
    refuse_other_arguments(arguments, tmp_path / "old.yaml")
    (tmp_path / "old.yaml").write_text(old.replace("turns: [2, 0]", "turns: [2, 1]"))
    with pytest.raises(ValueError, match=r"with other arguments \(sources"):
        refuse_other_arguments(arguments, tmp_path / "old.yaml")


def test_options_that_no_longer_exist_may_stand_in_saved_arguments_where_they_were_off(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    arguments = parse_arguments(TrainArguments, ["--output_dir", "x", "--config", str(tmp_path / "r.yaml")])
    save_arguments(arguments, old := tmp_path / "old.yaml")
    off = old.read_text().replace("  loss:", "  questions: ''\n  loss:") + (
        "same_region: 0.0\nmask_history: false\nnew_region_tokenizer: null\n"
    )
    old.write_text(off)
    refuse_other_arguments(arguments, old)
    assert parse_arguments(TrainArguments, ["--config", str(old)]) == arguments
    for was, on in (("same_region: 0.0", "same_region: 0.5"), ("questions: ''", "questions: What")):
        old.write_text(off.replace(was, on))
        with pytest.raises(ValueError, match="with other arguments"):
            refuse_other_arguments(arguments, old)
        with pytest.raises(SystemExit):
            parse_arguments(TrainArguments, ["--config", str(old)])


@pytest.mark.parametrize(("source", "message"), [
    ("{cache: a}", "expected records, and maybe cache"),
    ("{records: a, cache: b, turn: 1}", "expected records, and maybe cache, weight, turns and loss"),
    ("{records: a, cache: b, loss: none}", "loss is 'none' for a, expected answers or teacher"),
    ("{records: a, cache: b, turns: few}", "invalid literal for int"),
    ("{records: a, cache: b, turns: -1}", "Got turns -1 for a"),
    ("{records: a, cache: b, questions: What}", "expected records, and maybe cache, weight, turns and loss"),
    ("a.jsonl", "expected records, and maybe cache"),
    ("[a.jsonl, a_cache]", "expected a plain value"),
])  # fmt: skip
def test_what_is_no_source_ends_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(f"sources: [{source}]\n")
    with pytest.raises(SystemExit):
        sources("--config", str(tmp_path / "r.yaml"))
    assert message in capsys.readouterr().err
