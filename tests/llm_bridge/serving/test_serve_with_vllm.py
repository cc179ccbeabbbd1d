"""`docs/serve_with_vllm.sh` starts vLLM, waits until it answers, and then our server; both end together."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "serve_with_vllm.sh"
ENGINE = """#!{python}
import http.server, os, pathlib, sys, threading, time
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *given): pass
pathlib.Path({folder!r}, "engine").write_text(" | ".join(sys.argv[1:]))
pathlib.Path({folder!r}, "engine.pid").write_text(str(os.getpid()))
if any("broken" in word for word in sys.argv):
    sys.exit("no such language model")
time.sleep(1.2)
if any("dies" in word for word in sys.argv):
    threading.Timer(2, os._exit, [3]).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Health).serve_forever()
"""
OURS = """#!/bin/sh
if [ "$1" = vllm ]; then
  [ "$5" = --output ] || exit 2
  mkdir "$6" && echo "$6" >{folder}/written
  echo "vllm serve 'language models/$2' --port $4"
  exit
fi
echo "$*"
case $* in *waits*) echo $$ >{folder}/server.pid; exec sleep 100 ;; *fails*) exit 7 ;; esac
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def begin(tmp_path: Path, port: int, *words: str, **variables: str) -> subprocess.Popen[str]:
    """The script with stand-ins for vLLM and our command."""
    engine = ENGINE.format(python=sys.executable, folder=str(tmp_path))
    for name, text in (("vllm", engine), ("region-chat", OURS.format(folder=tmp_path))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENGINE_PORT": str(port), "TMPDIR": str(tmp_path)}
    environment = {**os.environ, **own, **variables}
    return subprocess.Popen(
        ["sh", str(SCRIPT), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # whoever runs tests in the background ignores it
    )  # fmt: skip


def run(tmp_path: Path, port: int, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = begin(tmp_path, port, *words, **variables)
    said, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, said, errors)


def read(path: Path) -> int:
    """The number that a process of the script writes to a file."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    pytest.fail(f"{path.name} has not begun")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


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


@needs_curl
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_script_alone_ends_both(tmp_path: Path, port: int, number: int, status: int) -> None:
    process = begin(tmp_path, port, "waits")
    server, engine = read(tmp_path / "server.pid"), read(tmp_path / "engine.pid")
    process.send_signal(number)
    assert process.wait(20) == status
    assert not is_running(server)
    assert not is_running(engine)
    assert not Path((tmp_path / "written").read_text().strip()).exists()


@needs_curl
def test_a_signal_while_vllm_starts_ends_it(tmp_path: Path, port: int) -> None:
    process = begin(tmp_path, port, "waits")
    engine = read(tmp_path / "engine.pid")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert not is_running(engine)
    assert not (tmp_path / "server.pid").exists()


@needs_curl
def test_our_server_ends_with_vllm(tmp_path: Path, port: int) -> None:
    done = run(tmp_path, port, "dies-and-waits")
    assert done.returncode == 1
    assert "vLLM has ended, so the server ends, too" in done.stderr
    assert not is_running(read(tmp_path / "server.pid"))


@needs_curl
def test_the_servers_exit_code_is_the_scripts(tmp_path: Path, port: int) -> None:
    assert run(tmp_path, port, "fails").returncode == 7
    assert not is_running(read(tmp_path / "engine.pid"))


@needs_curl
def test_the_engine_may_be_started_by_another_command(tmp_path: Path, port: int) -> None:
    (tmp_path / "other").mkdir()
    engine = tmp_path / "other" / "api_server"
    engine.write_text(ENGINE.format(python=sys.executable, folder=str(tmp_path)))
    engine.chmod(0o755)
    folder = tmp_path / "kept"
    done = run(tmp_path, port, "my-bridge", ENGINE=f"LEVEL=1 {engine} --quick", ENGINE_FOLDER=str(folder))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "engine").read_text() == f"--quick | --model | language models/my-bridge | --port | {port}"
    assert folder.is_dir()  # what was written where the user wanted it is left there


def test_it_says_that_it_needs_a_bridge(tmp_path: Path, port: int) -> None:
    done = run(tmp_path, port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Got no bridge: sh docs/serve_with_vllm.sh my-bridge\n"
