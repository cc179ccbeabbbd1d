"""An actor of Ray that is killed in the middle of its work, so that another one has to take its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_actor_killed(has_begun: Callable[[], bool]) -> Iterator[None]:
    """Inside it, one of this process's actors is killed as soon as the work has begun; an error if none was."""
    psutil = pytest.importorskip("psutil")
    killed: list[int] = []

    def kill_one() -> None:
        wait_until(has_begun)
        for process in psutil.Process().children(recursive=True):
            if "_Actor" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        yield
    finally:
        killer.join()
    assert len(killed) == 1


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, four minutes at most."""
    end = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
