"""`region-chat serve`: what it refuses before a model is loaded, and that it answers until Ctrl+C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from llm_bridge.cli import main


def test_serve_asks_for_a_token_before_it_lets_other_machines_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("contourpy", reason="needs the extra serve")
    monkeypatch.delenv("REGION_CHAT_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.20", "example.org", ""):
        assert main(["serve", "--host", host]) == 2
        assert "REGION_CHAT_TOKEN" in capsys.readouterr().err
    for token in ("short", "", "with a space in it", "ümläut-ümläut-ümläut"):
        monkeypatch.setenv("REGION_CHAT_TOKEN", token)
        for host in ("127.0.0.1", "0.0.0.0"):
            assert main(["serve", "--host", host]) == 2
            assert "is not a safe token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "0"], "--port 0"),
        (["--port", "65536"], "--port 65536"),
        (["--seconds", "0"], "--seconds"),
        (["--cache_mb", "nan"], "--cache_mb"),
        (["--queue", "0"], "queue is 0"),
        (["--label_studio", "file:///etc"], "--label_studio"),
        (["--upstream", "http://127.0.0.1:9/v1", "--mode", "described"], "--upstream"),
        (["--upstream", "http://127.0.0.1:9/v1"], "No server answers"),
    ],
)
def test_serve_refuses_what_it_cannot_do(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("contourpy", reason="needs the extra serve")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    assert main(["serve", "--port", str(free), *flags]) == 2
    assert words in capsys.readouterr().err


def test_serve_answers_until_ctrl_c() -> None:
    pytest.importorskip("contourpy", reason="needs the extra serve")
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    command = [sys.executable, "-m", "llm_bridge", "serve", "--port", port, "--model", "region-chat-tiny"]
    restored = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = {command[2:]!r}; "
    )
    restored += "import runpy; runpy.run_module('llm_bridge', run_name='__main__')"
    with subprocess.Popen(
        [sys.executable, "-c", restored], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        assert f"http://127.0.0.1:{port}/v1" in serving.stdout.readline()
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                    assert json.load(answer)["status"] == "UP"
                break
            except OSError:
                time.sleep(0.1)
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 0
        assert serving.stderr is not None
        assert "Traceback" not in serving.stderr.read()
