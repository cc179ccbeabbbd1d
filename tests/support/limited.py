"""A command in a process of its own, under limits of processor time and memory; gives what it used of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """How a command ended (negative: by which signal), what it wrote, and what it used."""

    code: int
    output: str
    errors: str
    cpu_seconds: float
    peak_memory: int
    """Bytes of memory at once, at most."""


def run_limited(
    command: Sequence[str],
    *,
    stdin: str | None = "",
    cpu_seconds: int = 30,
    memory: int = 3 * GIGABYTE,
    wait: int = 240,
) -> Outcome:
    """Run a command. stdin: what it can read, or None for a pipe that stays open and says nothing."""

    begin, end = os.pipe()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(begin) as told:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCH, str(end), str(cpu_seconds), str(memory), *command],
            stdin=subprocess.PIPE, stdout=output, stderr=errors, env=os.environ | _QUIET, pass_fds=[end],
            start_new_session=True,
        )  # fmt: skip
        os.close(end)
        watch = threading.Timer(wait, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        assert process.stdin is not None
        if stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        said = told.read()
        process.wait()
        watch.cancel()
        if stdin is None:
            process.stdin.close()
        written = []
        for file in (output, errors):
            file.seek(0)
            written.append(file.read().decode(errors="replace"))
    assert said, f"the command took longer than {wait} s: {written[1][-1000:]}"
    status, seconds, peak = json.loads(said)
    scale = 1 if sys.platform == "darwin" else 1024
    return Outcome(os.waitstatus_to_exitcode(status), *written, seconds, peak * scale)


_LAUNCH = """
import json, os, resource, sys
told, cpu_seconds, memory, *command = sys.argv[1:]
pid = os.fork()
if not pid:
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    os.close(int(told))
    os.execvp(command[0], command)
_, status, used = os.wait4(pid, 0)
os.write(int(told), json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss]).encode())
"""
"""A small process between the tests and the command: its peak of memory would begin with that of the process it comes from."""


def run_python(code: str, *arguments: str | Path, **limits: object) -> Outcome:
    """`run_limited` of Python code, which finds `arguments` in sys.argv[1:]."""
    return run_limited([sys.executable, "-c", code, *map(str, arguments)], **limits)  # type: ignore[arg-type]


_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
