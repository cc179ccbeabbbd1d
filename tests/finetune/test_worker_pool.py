"""Workers do not outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

SCRIPT = r"""
import os, time
from finetune.worker_pool import worker_pool

def start(word):
    os.write(1, f"{os.getpid()} {word}\n".encode())  # at once, whatever the other one writes

if __name__ == "__main__":
    with worker_pool(2, start, "here") as pool:
        pool.submit(time.sleep, 0)
        pool.submit(time.sleep, 600)
        time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_workers_end_with_a_process_that_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    """One waits for a task, the other is at work."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(2)]
        assert [word for _, word in said] == ["here", "here"]
        process.send_signal(how)
        try:
            process.communicate(timeout=60)  # until nobody can write to the pipe any more, workers included
        except subprocess.TimeoutExpired:
            for number, _ in said:
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            raise
