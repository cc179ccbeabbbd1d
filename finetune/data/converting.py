"""A reader's records → a file that appears whole or not at all, and goes on where it was stopped.

Knows readers and files, not what a data set holds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from datasets import Image as Picture
from tqdm.auto import tqdm

from .sample import FEATURES, GLYPH_SCHEME, Sample
from .source import Source


def convert(source: Source) -> int:
    """Write a source's records to its output, and give their number; those that an earlier run wrote are kept."""
    output = Path(source.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"output is {output.name}, expected a name that ends in .jsonl or .parquet.")
    if output.exists():
        raise ValueError(f"{output} exists already: choose another output, or delete it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    # what is not yet whole is named after all that shapes it, so that no other run goes on with it
    knobs = {key: value for key, value in asdict(source).items() if key not in ("output", "workers")}
    files = [Path(value) for value in knobs.values() if isinstance(value, str) and os.path.isfile(value)]
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]  # an edited file is another source
    key = sha256(json.dumps([type(source).__name__, knobs, states], sort_keys=True).encode()).hexdigest()[:12]
    unfinished = output.with_name(f"{output.name}.{key}.partial")
    done = count = _whole_lines(unfinished)
    try:
        with unfinished.open("a", encoding="utf-8") as file:
            for sample in tqdm(source.limited(done), initial=done, desc="converting", unit="record"):
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise ValueError(
                "The source gives no record: check that its files belong together, and its split and limit."
            )
    finally:
        if not unfinished.stat().st_size:
            unfinished.unlink()  # nothing to go on with
    if output.suffix == ".parquet":
        _pack(unfinished, output)
        unfinished.unlink()
    else:
        unfinished.rename(output)
    return count


def _whole_lines(path: Path) -> int:
    """How many records an unfinished file holds; the torn end of a run that was killed is cut off."""
    if not path.is_file():
        return 0
    lines = whole = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines += 1
                whole += len(line)
        file.truncate(whole)
    return lines


def _pack(lines: Path, output: Path) -> None:
    """A JSONL file → parquet with the pictures' own bytes inside, in bounded memory."""

    def samples() -> Any:
        with lines.open(encoding="utf-8") as file:
            for line in tqdm(file, desc="packing pictures", unit="record"):
                sample: Sample = json.loads(line)
                path = lines.parent / sample["image"]
                if sample["image"].startswith(GLYPH_SCHEME):
                    raise ValueError(
                        "GlyphScenes has no picture files: write .jsonl, whose pictures are drawn when opened."
                    )
                if not path.is_file():
                    raise ValueError(f"Found no picture at {path}: a parquet file holds them all.")
                yield {**sample, "image": {"bytes": path.read_bytes(), "path": path.name}}

    with TemporaryDirectory(dir=output.parent) as folder:
        features = FEATURES.copy()
        features["image"] = Picture(decode=False)
        packed = Dataset.from_generator(samples, features=features, cache_dir=folder)
        partial = output.with_name(output.name + ".partial")
        packed.to_parquet(partial, batch_size=64)
    partial.replace(output)
