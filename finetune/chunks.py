"""Work that is done chunk by chunk, by any number of processes, and goes on after a stop.

A chunk's lines land in a file of their own, whole or not at all. If they depend on the chunk alone, the joined text is the
same however the work was split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from tap_tokenizer import write_whole


def write_chunks(
    parts: Path, chunks: int, work: Callable[[int], Iterable[dict[str, Any]]], state: PartialState, title: str
) -> None:
    """Write the lines of every chunk that is not in the folder `parts` yet; returns when all processes are through."""
    parts.mkdir(parents=True, exist_ok=True)
    mine = range(state.process_index, chunks, state.num_processes)
    left = [k for k in mine if not _path(parts, k).is_file()]
    for k in tqdm(left, desc=title, unit="chunk", disable=not state.is_main_process):
        write_whole(_path(parts, k), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in work(k)))
    state.wait_for_everyone()


def joined_chunks(parts: Path, chunks: int) -> str:
    """The lines of all chunks, in order."""
    return "".join(_path(parts, k).read_text(encoding="utf-8") for k in range(chunks))


def _path(parts: Path, chunk: int) -> Path:
    return parts / f"{chunk:06d}.jsonl"
