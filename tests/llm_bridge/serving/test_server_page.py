"""The examples of docs/server.md work against a server, as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_requests import MODEL

from llm_bridge import RegionChat
from llm_bridge.configuration_bridge import BUNDLED

PAGE = Path(__file__).parents[3] / "docs" / "server.md"


@pytest.fixture(scope="module")
def port(build: Callable[..., Any], bundled_chat: RegionChat, listening: Callable[..., Any]) -> Iterator[int]:
    with listening(build(bundled_chat, MODEL)) as port:
        yield port


def example(language: str, word: str, port: int) -> str:
    """The one block of a language on the page that holds a word, for a server at a port."""
    blocks = re.findall(rf"^<!-- no-run -->\n```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return block.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("region-chat-smollm2", MODEL)


def test_the_example_in_python_prints_answers(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai", reason="needs the extra dev")
    shutil.copy(BUNDLED / MODEL / "demo.png", tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example("python", "OpenAI", port), PAGE.name, "exec"), {})
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "cloud" in first
    assert "pink" in second


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("base64")), reason="needs curl and base64")
def test_the_example_in_the_shell_prints_an_answer(port: int, tmp_path: Path) -> None:
    shutil.copy(BUNDLED / MODEL / "demo.png", tmp_path / "picture.png")
    done = subprocess.run(
        ["bash", "-euc", example("sh", "curl", port)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '"content":"cloud"' in done.stdout, done.stderr + done.stdout
