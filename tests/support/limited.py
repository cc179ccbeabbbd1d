"""A command in a process of its own, under limits of processor time and memory; gives what it used of both."""

from __future__ import annotations

import os
import resource
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

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors, preexec_fn=limit, env=os.environ | _QUIET
        )
        watch = threading.Timer(wait, process.kill)
        watch.start()
        assert process.stdin is not None
        if stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        _, status, used = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if stdin is None:
            process.stdin.close()
        written = []
        for file in (output, errors):
            file.seek(0)
            written.append(file.read().decode(errors="replace"))
    scale = 1 if sys.platform == "darwin" else 1024
    return Outcome(process.returncode, *written, used.ru_utime + used.ru_stime, used.ru_maxrss * scale)


def run_python(code: str, *arguments: str | Path, **limits: object) -> Outcome:
    """`run_limited` of Python code, which finds `arguments` in sys.argv[1:]."""
    return run_limited([sys.executable, "-c", code, *map(str, arguments)], **limits)  # type: ignore[arg-type]


_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
