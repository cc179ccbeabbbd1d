"""Chunks of records → lines of predictions on disk, on any number of processes, going on where a run was stopped.

A chunk is the unit of work and lands in a file of its own, whole or not at all; when all are there they become
`predictions.jsonl`. What a chunk holds depends on the records alone, so the bytes are the same however the work was split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

PREDICTIONS, ABOUT, PARTS = "predictions.jsonl", "about.json", "parts"


def prepare_output(output: Path, about: dict[str, Any]) -> bool:
    """Make the folder, or find it as an earlier run of the same left it; gives whether its predictions are complete.

    Raises `ValueError` if it holds predictions of something else.
    """
    note = output / ABOUT
    plain = json.loads(json.dumps(about))
    if note.is_file() and (old := json.loads(note.read_text())) != plain:
        changed = ", ".join(key for key in plain if old.get(key) != plain[key])
        raise ValueError(f"{output} holds predictions with other {changed}: choose another output, or delete it.")
    (output / PARTS).mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(plain, indent=1, ensure_ascii=False))
    return (output / PREDICTIONS).is_file()


def run_chunks(output: Path, chunks: int, work: Callable[[int], list[dict[str, Any]]], state: PartialState) -> None:
    """Do the chunks that are not on disk yet, those of this process, and join all when every process is through."""
    parts = output / PARTS
    mine = range(state.process_index, chunks, state.num_processes)
    left = [k for k in mine if not (parts / f"{k:06d}.jsonl").is_file()]
    for k in tqdm(left, desc="evaluating", unit="chunk", disable=not state.is_main_process):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in work(k))
        write_whole(parts / f"{k:06d}.jsonl", text)
    state.wait_for_everyone()
    if state.is_main_process:
        text = "".join((parts / f"{k:06d}.jsonl").read_text(encoding="utf-8") for k in range(chunks))
        write_whole(output / PREDICTIONS, text)
        shutil.rmtree(parts)
    state.wait_for_everyone()


def write_whole(path: Path, text: str) -> None:
    """A text file that is there as a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
