"""Chunks of records → lines of predictions on disk, on any number of processes, going on where a run was stopped.

A chunk is the unit of work and lands in a file of its own, whole or not at all; when all are there they become
`predictions.jsonl`. What a chunk holds depends on the records alone, so the bytes are the same however the work was split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from tap_tokenizer import write_whole

from ..cache import file_checksum
from .text_files import read_json, read_json_lines

PREDICTIONS, ABOUT, PARTS, METRICS = "predictions.jsonl", "about.json", "parts", "metrics.json"
CHECKSUM = "predictions.sha256"
"""Beside finished predictions, in the form of `sha256sum --check`, so that a file that was edited since is not scored."""


def refuse_changed(output: Path) -> None:
    """Raises `ValueError` if finished predictions are not as their run wrote them, or a part of unfinished ones is torn."""
    path, note = output / PREDICTIONS, output / CHECKSUM
    if path.is_file():
        written = note.read_text(encoding="utf-8").split()[:1] if note.is_file() else []
        found = file_checksum(path)
        if written != [found]:
            expected = f"{written[0][:16]}… as it was written" if written else f"that of {CHECKSUM}, which is not there"
            raise ValueError(
                f"{path} has checksum {found[:16]}…, expected {expected}: delete it to predict again, or score it as it "
                "is with --predictions and another output."
            )
    for part in sorted((output / PARTS).glob("*.jsonl")):
        try:
            torn = bool(list(read_json_lines(part))) and not part.read_bytes().endswith(b"\n")
            why = "ends within a line"
        except ValueError as error:
            torn, why = True, str(error).removeprefix(f"{part}, ").rstrip(".")
        if torn:
            raise ValueError(f"{part} is not a complete part of predictions ({why}): delete it to have it made again.")


def refuse_others(output: Path, about: dict[str, Any]) -> None:
    """Raises `ValueError` if the folder holds predictions or results of something else than `about`."""
    note = output / ABOUT
    if not note.is_file():
        if (output / METRICS).is_file():
            raise ValueError(
                f"{output} holds {METRICS} without {ABOUT}, expected both: choose another output, or delete it."
            )
        return
    old, plain = read_json(note), json.loads(json.dumps(about))
    changed = [key for key in {**plain, **old} if key not in old or key not in plain or old[key] != plain[key]]
    if changed:
        raise ValueError(
            f"{output} holds predictions with other {', '.join(changed)}: choose another output, or delete it."
        )


def prepare_output(output: Path, about: dict[str, Any]) -> bool:
    """Make the folder, or find it as an earlier run of the same left it; gives whether its predictions are complete.

    Raises `ValueError` if it holds predictions of something else.
    """
    refuse_others(output, about)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / ABOUT, json.dumps(about, indent=1, ensure_ascii=False))
    return (output / PREDICTIONS).is_file()


def run_chunks(output: Path, chunks: int, work: Callable[[int], list[dict[str, Any]]], state: PartialState) -> None:
    """Do the chunks that are not on disk yet, those of this process, and join all when every process is through."""
    parts = output / PARTS
    parts.mkdir(exist_ok=True)
    mine = range(state.process_index, chunks, state.num_processes)
    left = [k for k in mine if not (parts / f"{k:06d}.jsonl").is_file()]
    for k in tqdm(left, desc="evaluating", unit="chunk", disable=not state.is_main_process):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in work(k))
        write_whole(parts / f"{k:06d}.jsonl", text)
    state.wait_for_everyone()
    if state.is_main_process:
        text = "".join((parts / f"{k:06d}.jsonl").read_text(encoding="utf-8") for k in range(chunks))
        write_whole(output / CHECKSUM, f"{sha256(text.encode()).hexdigest()}  {PREDICTIONS}\n")
        write_whole(output / PREDICTIONS, text)
        shutil.rmtree(parts)
    state.wait_for_everyone()
