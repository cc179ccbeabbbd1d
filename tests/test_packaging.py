"""The wheel and the sdist that `python -m build` makes hold what they should, and the wheel works away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tap_tokenizer", "llm_bridge", "finetune")
pytest.importorskip("build", reason="needs the extra dev")
pytestmark = pytest.mark.slow


def project_files() -> list[Path]:
    """What git has or would have, or all files that are no leavings where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [path for path in found if not {".venv", "__pycache__", "runs", "build", "dist"} & set(path.parts)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both, built from a copy of the project, with the tools of this environment."""
    copy = tmp_path_factory.mktemp("project")
    for path in project_files():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy / path)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=copy, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy / "dist"


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_wheel_holds_the_packages_whole(built: Path) -> None:
    """Every tracked file of the packages but the diary, bundled models and py.typed among them, and nothing else."""
    names = zipfile.ZipFile(one(built, "*.whl")).namelist()
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == {path.as_posix() for path in project_files() if path.parts[0] in PACKAGES} - {"finetune/LOG.md"}
    for package in PACKAGES:
        assert f"{package}/py.typed" in inside
    for model in (
        "tap_tokenizer/pretrained/tap-tiny",
        "llm_bridge/pretrained/region-chat-tiny",
    ):
        assert f"{model}/model.safetensors" in inside
    for file in ("projector.safetensors", "adapter/adapter_model.safetensors", "demo.json"):
        assert f"llm_bridge/pretrained/region-chat-smollm2/{file}" in inside
    assert one(built, "*.whl").stat().st_size < 40e6


def test_wheel_says_what_it_is(built: Path) -> None:
    archive = zipfile.ZipFile(one(built, "*.whl"))
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    said = Parser().parsestr(archive.read(metadata).decode())
    assert said["Name"] == "tap-bridge"
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == ">=3.10"
    assert {"bridge", "train", "app", "notebooks", "docs", "dev"} <= set(said.get_all("Provides-Extra"))
    assert "torchvision" not in " ".join(said.get_all("Requires-Dist"))
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_sdist_contains_the_project(built: Path) -> None:
    """All that is tracked but what only git needs, so that tests and documentation can be made from it."""
    with tarfile.open(one(built, "*.tar.gz")) as archive:
        names = {Path(*Path(member.name).parts[1:]).as_posix() for member in archive.getmembers() if member.isfile()}
    assert {path.as_posix() for path in project_files()} - {".gitignore"} <= names
    assert not [name for name in names if "/runs/" in name or name.endswith(".pyc")]


def test_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    """Unpacked where pip would, alone before this environment's libraries: the README's example."""
    zipfile.ZipFile(one(built, "*.whl")).extractall(tmp_path / "site")
    shutil.copyfile(ROOT / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png", tmp_path / "picture.png")
    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})",
            example,
            "print(*(sys.modules[name].__file__ for name in ('tap_tokenizer', 'llm_bridge')))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].count(str(tmp_path / "site")) == 2
