"""Checkpoints of a run: written whole or not at all, found again, and never more than a few.

Knows folders, not what is in them: whoever saves fills the folder that it is handed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_NAME = re.compile(r"step-(\d+)$")


def save_checkpoint(
    folder: Path,
    step: int,
    fill: Callable[[Path], None],
    *,
    keep: int = 2,
    is_main: bool = True,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Have `fill` write a checkpoint, then give it its name in one step, then drop the oldest beyond `keep`.

    Until the last moment the files lie in `step-N.partial`, which no one takes for a checkpoint: a full disk or a kill
    leaves the earlier checkpoints as they were. Every process of a distributed run calls `fill`; only the main one
    (`is_main`) clears what an interrupted save left, renames, and drops. `wait` returns when all processes have called
    it: none may write before the clearing, and the name is given after the last has written.
    """
    partial, final = folder / f"step-{step}.partial", folder / f"step-{step}"
    if is_main:
        shutil.rmtree(partial, ignore_errors=True)
    wait()
    partial.mkdir(parents=True, exist_ok=True)
    with failure_told(final):
        fill(partial)
    wait()
    if is_main:
        _publish(partial, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    wait()


def save_whole(folder: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a folder, a trained model say, and give it its name when all is there; one by that name is replaced."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with failure_told(folder):
        fill(partial)
    _publish(partial, folder)


_WRITER = ("PytorchStreamWriter", "inline_container", "writ")
"""What torch says where a file cannot be written, the second of them one that it found shorter than it should be."""


@contextmanager
def failure_told(folder: Path) -> Iterator[None]:
    """Around the writing of weights: `OSError` names the folder where a full disk gives each library's own exception."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITER):
            raise  # no trouble with the disk
        raise OSError(
            f"{folder} could not be written ({str(error).splitlines()[0]}): free some disk space, and run the same command "
            "again. It continues from the last complete checkpoint, if there is one."
        ) from error


def _publish(partial: Path, final: Path) -> None:
    """Give a filled folder its name."""
    _flush(partial)
    if final.exists():  # the same step again, after a resume: the new one replaces it
        shutil.rmtree(final)
    partial.rename(final)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.search(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was saved."""
    match = _NAME.search(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not a checkpoint folder, expected step-<number>.")
    return int(match[1])


def _flush(folder: Path) -> None:
    """Have the system write the files out before they get their name, so that a power cut cannot leave them hollow."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
