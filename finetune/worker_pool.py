"""Worker processes, which end with the process that started them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any


def worker_pool(workers: int, start: Callable[..., None], *options: Any) -> ProcessPoolExecutor:
    """Fresh processes for tasks, each of which first calls `start` with these options."""
    return ProcessPoolExecutor(workers, get_context("spawn"), _start, (start, options))


def _start(start: Callable[..., None], options: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    start(*options)


def _end_with_parent() -> None:
    """A process that is killed cannot tell its workers, which would wait for their next task for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
