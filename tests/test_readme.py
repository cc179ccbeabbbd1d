"""What README and CONTRIBUTING say is so: the tree is the tree, links lead somewhere, code runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def tree() -> str:
    found = re.search(r"## The tree\n\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_tree_names_every_module_and_nothing_else() -> None:
    for package in ("tap_tokenizer", "llm_bridge", "finetune"):
        part = re.search(rf"^{package}/.*?\n((?:  .*\n)+)", tree(), re.MULTILINE)
        assert part is not None
        named = set(re.findall(r"(\w+)\.py", part[1]))
        there = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert named == there, package
        for folder in re.findall(r"^  ([\w/-]+)/ ", part[1], re.MULTILINE):
            assert (ROOT / package / folder).is_dir(), folder


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "finetune/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if not target.startswith(("http", "#")):
            assert ((ROOT / page).parent / target.split("#")[0]).exists(), f"{page} links to {target}"


def test_files_that_its_commands_write_are_ignored_by_git() -> None:
    """`make demo`, the picture that is copied, and what `--save` writes do not show up in git."""
    for name in ("region-chat-demo.png", *re.findall(r"--save (\S+)", TEXT), *re.findall(r"demo\.png (\S+)`", TEXT)):
        assert f"/{name}\n" in (ROOT / ".gitignore").read_text(), name


def test_the_first_blocks_of_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a picture of one's own: TAP's caption and concepts of a region, then the language model's answer."""
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    demo = ROOT / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
    shutil.copyfile(demo, tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    seen, answer, both = capsys.readouterr().out.splitlines()
    assert re.match(r"\['a [a-z]+ pink cloud'\] \[\[\('cloud', [\d.]+\)", seen)
    assert "pink cloud" in answer
    assert re.match(r"\['a [a-z]+ pink cloud', 'a [a-z]+ white [a-z ]+'\]", both)
