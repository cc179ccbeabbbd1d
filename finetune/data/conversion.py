"""Writes a reader's records to a file that appears only when it is complete. A stopped conversion can be continued."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from datasets import Image as Picture
from datasets.arrow_writer import ParquetWriter
from tqdm.auto import tqdm

from tap_tokenizer import only_writer

from ..records import FEATURES, GLYPH_SCHEME
from .problems import EntryError, LeftOut
from .source import Source

PACKED_TOGETHER = 64
"""Pictures of a parquet file that are in memory at once."""


def convert(source: Source) -> int:
    """Write a source's records to its output and return how many there are. Those that an earlier run wrote are kept.

    `source.left_out` then tells what there is no record of. Raises `ValueError` if there is none of anything.
    """
    output = Path(source.output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"output is {output.name}, expected a name that ends in .jsonl or .parquet.")
    with only_writer(output):
        if output.exists():
            raise ValueError(f"{output} exists already: choose another output, or delete it.")
        return _convert(source, output)


def _convert(source: Source, output: Path) -> int:
    # what is not yet whole is named after all that shapes it, so that no other run goes on with it
    knobs = {key: value for key, value in asdict(source).items() if key not in _SHAPELESS}
    files = [Path(value) for value in knobs.values() if isinstance(value, str) and os.path.isfile(value)]
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]  # an edited file is another source
    key = sha256(json.dumps([type(source).__name__, knobs, states], sort_keys=True).encode()).hexdigest()[:12]
    unfinished = output.with_name(f"{output.name}.{key}.partial")
    done = count = _whole_lines(unfinished)
    source.left_out.clear()  # all entries are read again, also those whose records are there
    try:
        with unfinished.open("a", encoding="utf-8") as file:
            for record in tqdm(source.limited(done), initial=done, desc="converting", unit="record"):
                file.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise _no_record(source.left_out)
    finally:
        if unfinished.is_file() and not unfinished.stat().st_size:
            unfinished.unlink()  # nothing to go on with
    if output.suffix == ".parquet":
        count = _pack(unfinished, output, source.left_out)
        unfinished.unlink()
    else:
        unfinished.rename(output)
    return count


_SHAPELESS = ("output", "workers", "strict", "show_all", "left_out")
"""Fields of a source that shape none of its records."""


def _no_record(left_out: LeftOut) -> ValueError:
    words = "The source yields no records"
    if not left_out.summary():
        return ValueError(f"{words}: check its split and limit, and that its files belong together.")
    said = " ".join(line.strip() for line in left_out.summary())
    return ValueError(f"{words}. {said}" + (f"; the first: {left_out.named[0]}" if left_out.named else ""))


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


def _pack(lines: Path, output: Path, left_out: LeftOut) -> int:
    """Write a JSONL file as parquet with the pictures' bytes inside, in bounded memory; returns the number of records.

    What is not yet whole is one file, `output` with .partial behind its name, which the next run writes anew.
    """
    features = FEATURES.copy()
    features["image"] = Picture(decode=False)
    partial = output.with_name(output.name + ".partial")
    count = 0
    try:
        with (
            ParquetWriter(features=features, path=str(partial), writer_batch_size=PACKED_TOGETHER) as writer,
            lines.open(encoding="utf-8") as file,
        ):
            for number, line in enumerate(tqdm(file, desc="packing pictures", unit="record"), 1):
                record = json.loads(line)
                path = lines.parent / record["image"]
                if record["image"].startswith(GLYPH_SCHEME):
                    raise ValueError(
                        "GlyphScenes has no picture files: write .jsonl, whose pictures are drawn when opened."
                    )
                with left_out.entry(output, f"record {number}"):
                    if not path.is_file():
                        raise EntryError("missing picture", f"found none at {path}, and a parquet file holds them all")
                    inside = {**record, "image": {"bytes": path.read_bytes(), "path": path.name}}
                    writer.write(features.encode_example(inside))
                    count += 1
            if not count:
                raise _no_record(left_out)
            writer.finalize()
    except BaseException:
        partial.unlink(missing_ok=True)  # it holds people's pictures
        raise
    partial.replace(output)
    return count
