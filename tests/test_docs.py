"""The documentation is so: it builds without a warning, its code runs, its pages name what there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from chromium import chromium
from shell import run_module

import llm_bridge
import tap_tokenizer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DEMO = ROOT / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
BLOCK = re.compile(r"^(<!-- no-run -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, bool, str]]:
    """(language, whether it runs, code) of each block of a page."""
    return [(found[2], not found[1], found[3]) for found in BLOCK.finditer(page.read_text())]


def with_code(pages: list[Path]) -> list[Path]:
    return [page for page in pages if any(runs for language, runs, _ in blocks(page) if language in ("python", "sh"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_code(PAGES), ids=lambda page: page.stem)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks in their order, in one folder with a picture; Python's share their names."""
    shutil.copyfile(DEMO, tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, runs, code in blocks(page):
        if language == "python" and runs:
            if "from trl import" in code:
                pytest.importorskip("trl", reason="needs the extra dev, on Python 3.11 or later")
            exec(compile(code, page.name, "exec"), names)
        if language == "sh" and runs:
            for command in commands(code):
                run_command(command)


def commands(code: str) -> Iterator[str]:
    """The commands of a block, each a line, or more if a line ends within quotes or with a backslash."""
    command = ""
    for line in code.splitlines(keepends=True):
        command += line
        with suppress(ValueError):  # quotes are open, or nothing is escaped
            shlex.split(command.removesuffix("\n"))
            yield command.strip()
            command = ""
    assert not command, command


def run_command(command: str) -> None:
    """One of ours in this process, unless it needs a shell, and any other in bash."""
    words = shlex.split(command.replace("\\\n", " "))
    ours = {"tap-tokenizer": "tap_tokenizer", "region-chat": "llm_bridge"}
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    elif words and words[0] in ours:
        words[0] = ours[words[0]]
    else:
        words = []
    if words and not re.search(r"[|&;<>$`*]", command):
        run_module(*words)
        return
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euc", command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_blocks_are_valid(page: Path) -> None:
    """Blocks that are not run are still Python, or JSON; those that are not run say why: they fetch or need much."""
    for language, runs, code in blocks(page):
        assert language in ("python", "sh", "json", "js"), (
            f"{page.name} has a block in {language or 'no language'}; one that is not run has <!-- no-run --> above it"
        )
        if language == "python":
            compile(code, page.name, "exec")
        if language == "json":
            json.loads(code)
        if not runs:
            needs = (
                r"Qwen|BAAI|fiftyone|text_encoder=|\.pkl|tap-vit-l|pip install|mine\.csv|add_lora|region-chat (app|serve)"
                r"|127\.0\.0\.1:8000|from_server"
            )
            assert re.search(needs, code), f"{page.name}: run it\n{code}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built in strict mode."""
    pytest.importorskip("zensical", reason="needs the extra docs, on Python 3.11 or newer")
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    for package in ("tap_tokenizer", "llm_bridge", "finetune"):
        (folder / package).symlink_to(ROOT / package)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
def test_site_builds_without_a_warning(site: Path) -> None:
    assert "```" not in re.sub(
        r"<script.*?</script>", "", (site / "serving" / "index.html").read_text(), flags=re.DOTALL
    )
    regions = (site / "api" / "tap_tokenizer" / "RegionTokens" / "index.html").read_text()
    assert "<li><code>semantic_tokens</code> (R, K, D): a token per expert, what the caption decoder" in regions
    assert (site / "figures" / "region_tokens.png").is_file()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(site: Path) -> None:
    """Tables and code that are wider than a screen of 390 pixels scroll inside themselves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        for index in site.rglob("index.html"):
            name = index.parent.relative_to(site).as_posix()
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}/", wait_until="domcontentloaded")
            page.wait_for_function(UNWRAPPED + " === 0")
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
    server.shutdown()


UNWRAPPED = (
    "[...document.querySelectorAll('.md-typeset table')].filter(t => !t.closest('.md-typeset__scrollwrap')).length"
)
"""JavaScript: how many tables the theme has not yet put into a frame that scrolls."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("package", [tap_tokenizer, llm_bridge], ids=lambda package: package.__name__)
def test_reference_has_every_public_name(package: Any) -> None:
    """A class has a page of its own, others share one; the overview links to every page."""
    name = package.__name__
    pages = {page.stem: page.read_text() for page in (DOCS / "api" / name).glob("*.md")}
    listed = [found for text in pages.values() for found in re.findall(rf"^::: {name}\.(\w+)$", text, re.MULTILINE)]
    assert sorted(listed) == sorted(package.__all__), f"docs/api/{name}/ has other names than {name} exports"
    for public in listed:
        if isinstance(getattr(package, public), type):
            assert pages.get(public, "").startswith(f"::: {name}.{public}\n"), f"make docs/api/{name}/{public}.md"
    overview = (DOCS / "api" / f"{name}.md").read_text()
    assert sorted(re.findall(rf"\({name}/(\w+)\.md\)", overview)) == sorted(pages)
    assert ":::" not in overview


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


def test_files_that_pages_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:finetune|docs|benchmarks|notebooks|tests|tap_tokenizer|llm_bridge)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_docstrings_become_lists_and_code() -> None:
    spec = spec_from_file_location("docstrings", DOCS / "docstrings.py")
    pytest.importorskip("griffe", reason="needs the extra docs")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (
        "Load.\n\n>>> a = load(\n...     1)\n\nsource: a name\nof it.\nboxes (R, 4), points: xyxy\n\nNothing: here"
    )
    assert module.as_markdown(written) == (
        "Load.\n\n\n```pycon\n>>> a = load(\n...     1)\n```\n\n- `source`: a name\n  of it.\n"
        "- `boxes` (R, 4), `points`: xyxy\n\nNothing: here"
    )


def test_caching_costs_follow_from_one_set_of_numbers() -> None:
    """The documentation and the recipes name the same seconds, and days and hours follow from seconds and operations."""
    page, recipes = ((ROOT / name).read_text() for name in ("docs/performance.md", "finetune/README.md"))
    rows = {
        name: [float(number) for number in re.findall(r"[\d.]+", cells)]
        for name, cells in re.findall(r"^\| (TAP-[BL]) \|(.* s \|.*, .*)\|$", recipes, re.MULTILINE)
    }
    small, large = rows["TAP-B"], rows["TAP-L"]
    assert f"| TAP-B | {small[0]:g} s | {small[1]:g} s |" in page
    assert large[0] == pytest.approx(small[0] * large[2] / small[2], abs=0.05)
    assert small[1] == large[1] < small[0] / 300
    assert "less than a three-hundredth" in page
    assert f"{large[2] / small[2]:.1f} times as long" in page
    table = re.findall(r"^\| [^|]+ \| [\d,]+(?: M)? \| .* [Mk] \| .* [GT]B \|$", recipes, re.MULTILINE)
    assert len(table) == 3
    scale = {"": 1, "k": 1e3, "M": 1e6}
    for row in table:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        pictures, regions = (
            float(number.replace(",", "")) * scale[unit]
            for number, unit in (re.fullmatch(r"([\d.,]+) ?([kM]?)", cell).groups() for cell in cells[1:3])  # type: ignore[union-attr]
        )
        assert float(cells[3]) == pytest.approx((pictures * large[0] + regions * large[1]) / 86400, abs=0.6)
        hours = (pictures * large[2] + regions * large[3]) * 1e9 / 1e14 / 3600
        assert float(cells[4]) == pytest.approx(hours, abs=0.5 if hours > 2 else 0.06)


def test_costs_on_many_machines_follow_from_measured_numbers() -> None:
    """The seconds are those of the other pages, and days, hours and bytes follow from them."""
    page, speeds, measured = (
        (ROOT / name).read_text() for name in ("docs/many_machines.md", "finetune/README.md", "benchmarks/README.md")
    )
    seconds = {
        name: float(found) for name, found in re.findall(r"^\| (TAP-[BL]) \| ([\d.]+) s \| 0\.015 s", speeds, re.M)
    }
    assert f"{seconds['TAP-B']:g} s a picture for TAP-B, {seconds['TAP-L']:g} s for TAP-L" in page
    assert "| logits of answers alone | 2.67 |" in measured
    assert "| here, 8 at a time | 2.77 |" in measured
    rows = {
        name: [float(number.replace(",", "")) for number in re.findall(r"\| ([\d.,]+)", cells)]
        for name, cells in re.findall(r"^\| ([a-z][^|]+) (\| [\d.,]+ [^\n]*\|)$", page, re.MULTILINE)
    }
    for column, regions in enumerate((1e6, 1e8, 1e9)):
        pictures = regions / 50
        expected = {
            "encoding with TAP-B, days on 2 cores": (pictures * seconds["TAP-B"] + regions * 0.015) / 86400,
            "encoding with TAP-L, days on 2 cores": (pictures * seconds["TAP-L"] + regions * 0.015) / 86400,
            "encoding with TAP-L, hours on one GPU, on paper": (pictures * 2702 + regions * 0.9) * 1e9 / 1e14 / 3600,
            "learning one answer about each, days on 1 core": regions * 2.67 / 12 / 86400,
            "answering one question about each, days on 1 core": regions / 2.77 / 86400,
        }
        for name, value in expected.items():
            assert rows[name][column] == pytest.approx(value, rel=0.03), name
