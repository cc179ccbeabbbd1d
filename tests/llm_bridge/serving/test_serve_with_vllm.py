"""`docs/serve_with_vllm.sh` starts vLLM, waits until it answers, and then our server; both end together."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "serve_with_vllm.sh"
ENGINE = """#!{python}
import http.server, pathlib, sys, time
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *given): pass
pathlib.Path({folder!r}, "engine").write_text(" | ".join(sys.argv[1:]))
if "broken" in sys.argv[2]:
    sys.exit("no such language model")
time.sleep(1.2)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Health).serve_forever()
"""
OURS = """#!/bin/sh
if [ "$1" = vllm ]; then echo "vllm serve 'language models/$2' --port $4"; else echo "$*"; fi
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def run(tmp_path: Path, port: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The script with stand-ins for vLLM and our command."""
    for name, text in (("vllm", ENGINE.format(python=sys.executable, folder=str(tmp_path))), ("region-chat", OURS)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE_PORT": str(port)}
    return subprocess.run(
        ["sh", str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@needs_curl
def test_our_server_begins_once_vllm_answers_and_vllm_ends_with_it(tmp_path: Path, port: int) -> None:
    done = run(tmp_path, port, "my-bridge", "--port", "8123")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"serve --model my-bridge --upstream http://127.0.0.1:{port}/v1 --port 8123"
    assert (tmp_path / "engine").read_text() == f"serve | language models/my-bridge | --port | {port}"
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the engine still listens")


@needs_curl
def test_an_engine_that_does_not_start_ends_it_all(tmp_path: Path, port: int) -> None:
    done = run(tmp_path, port, "broken")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "no such language model",
        "vLLM ended before it answered; its own words are above.",
    ]
