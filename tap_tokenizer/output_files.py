"""Writes files: one process at a time, and each file completely or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def only_writer(output: str | Path, wanted: bool = True) -> Iterator[None]:
    """Reserve an output file or folder for this process while the block runs. Its parent folder is created.

    Raises `ValueError` if another process holds it. If a process is killed, it no longer holds anything. wanted: False in
    every process but the main one, if several share a run.
    """
    if not wanted:
        yield
        return
    output = Path(output)
    path = output.with_name(output.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except PermissionError:
        raise PermissionError(
            f"You may not write in {path.parent}: choose another output, or have its permissions changed."
        ) from None
    except Timeout:
        raise ValueError(
            f"Another process is writing {output}: wait until it has finished, or choose another output."
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file: the empty lock stays there
            path.unlink()
        lock.release()


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all; if the disk is full, what was there before stays."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, after `make` has filled it if it was not there: completely or not at all. Other processes wait meanwhile."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a process left that was killed
            partial.mkdir()
            try:
                make(partial)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, completely or not at all.

    On a full disk it raises `OSError` and keeps what was there before.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}): make room on the disk.") from error
    finally:
        partial.unlink(missing_ok=True)
