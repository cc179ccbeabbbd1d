"""The house keeps its own rules: style, types, whole files, no path of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tap_tokenizer", "llm_bridge", "finetune")


def tracked() -> list[Path]:
    """The project's files, as git lists them, or all outside hidden folders where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    return [
        p
        for p in ROOT.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(ROOT).parts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["style", "format", "types"]
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert re.match(r'(#.*\n)*r?"""\S', path.read_text()), f"{path} has no docstring at its head"


def test_no_unfinished_code_is_marked() -> None:
    words = "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error"])
    for path in tracked():
        if path.suffix == ".py":
            found = re.search(rf"\b({words})\b", path.read_text())
            assert not found, f"{path}: {found[0] if found else ''}"


def test_no_path_of_one_machine() -> None:
    places = "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]"])
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ".txt", ".ipynb", "") and path.name != "LICENSE":
            found = re.search(rf"(^|[^\w.])({places})", path.read_text(errors="ignore"))
            assert not found, f"{path}: {found[0] if found else ''}"


def test_weights_are_small_enough() -> None:
    for path in tracked():
        assert path.stat().st_size <= 20e6, path


def test_constraints_pin_every_dependency() -> None:
    tomllib = pytest.importorskip("tomllib")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(x for extra in project["optional-dependencies"].values() for x in extra)]
    pinned = {
        re.split("[=; ]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    for requirement in wanted:
        name = re.split(r"[<>=\[ ;]", requirement)[0].lower().replace("_", "-")
        assert name in pinned or name == project["name"], f"constraints.txt does not pin {name}"


def test_an_environment_made_for_some_tests_skips_none_of_them(tmp_path: Path) -> None:
    """`make tools-test` would otherwise pass without the tools."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "support" / "no_skips.py").read_text())
    assert "from no_skips import" in (ROOT / "tests" / "conftest.py").read_text()
    (tmp_path / "test_file.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    (tmp_path / "test_one.py").write_text('import pytest\ndef test_it():\n    pytest.skip("no such tool")\n')
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    for flags, code, words in (
        ([], 0, ("2 skipped",)),
        (["--no-skips", "--continue-on-collection-errors"], 1, ("1 failed, 1 error", "no such tool", "no_such_module")),
    ):
        done = subprocess.run(
            [*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert all(word in done.stdout for word in words), done.stdout
