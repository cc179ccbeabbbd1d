"""`region-chat app`: what it refuses before a model is loaded."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from shell import Shell

from llm_bridge import RegionChat
from llm_bridge.cli import main

refused = Shell("region-chat", main).refused


def test_invalid_page_options_are_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setattr(RegionChat, "from_pretrained", lambda *_, **__: pytest.fail("must not be called"))
    for number in ("nan", "inf", "0", "-1"):
        for flag in ("--max_file_mb", "--max_megapixels"):
            assert f"Got {flag} {float(number)}: expected" in refused(capsys, "app", flag, number)
    assert "Cannot listen on 300.1.1.1" in refused(capsys, "app", "--host", "300.1.1.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1, port {port}" in refused(capsys, "app", "--port", port)


def test_the_page_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name that pip knows, whatever way the project was installed; and before a model is loaded."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(RegionChat, "from_pretrained", lambda *_, **__: pytest.fail("must not be called"))
    assert "the extra app of tap-bridge: pip install 'starlette>=1' 'uvicorn>=0.34'" in refused(capsys, "app")
    extras = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'name = "tap-bridge"' in extras
    assert 'app = ["starlette>=1", "uvicorn>=0.34"]' in extras
