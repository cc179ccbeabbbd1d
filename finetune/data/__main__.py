"""Records on disk: `python -m finetune.data convert …`.

    python -m finetune.data convert --split train --scenes 3000 --output runs/records/train.jsonl

Draws scenes of GlyphScenes and writes a record of each, in order. A run that was stopped goes on where it was; the
output has its name only when it is whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import IMapIterator
from pathlib import Path

from tqdm.auto import tqdm

from ..arguments import knob, parse_arguments
from .glyph_questions import FAMILIES
from .glyph_records import glyph_record
from .glyph_scenes import SPLITS
from .sample import Sample


@dataclass
class ConvertArguments:
    """Write scenes of GlyphScenes as records."""

    output: str = knob(help="JSONL file to write")
    split: str = knob(default="train", help=f"one of {', '.join(SPLITS)}")
    seed: int = knob(default=0, help="of the scenes and the questions")
    scenes: int = knob(default=1000, help="records to write: scenes 0, 1, … of the seed")
    turns: int = knob(default=6, help="questions of a record, at most")
    families: str = knob(default=",".join(FAMILIES), help="question families, separated by commas")
    long_side: int = knob(default=512, help="of the pictures, in pixels")
    workers: int = knob(default=2, help="processes that draw")


def main(argv: list[str] | None = None) -> int:
    """Run a command; gives the exit code, 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] != ["convert"]:
        print(__doc__, file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    arguments = parse_arguments(ConvertArguments, argv[1:], description=__doc__)
    try:
        convert(arguments)
    except (ValueError, OSError) as error:
        print(f"python -m finetune.data convert: {error}", file=sys.stderr)
        return 2
    return 0


def convert(arguments: ConvertArguments) -> None:
    """Write the records that are missing, then give the file its name."""
    families = tuple(arguments.families.split(","))
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families has {', '.join(unknown)}, expected some of {', '.join(FAMILIES)}.")
    if arguments.split not in SPLITS:
        raise ValueError(f"split is {arguments.split}, expected one of {', '.join(SPLITS)}.")
    output = Path(arguments.output)
    if output.exists():
        raise ValueError(f"{output} exists already: choose another output, or delete it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    # what is not yet whole is named after all that shapes it, so that no other run goes on with it
    key = f"{arguments.split}-{arguments.seed}-{arguments.turns}-{arguments.long_side}-{'-'.join(families)}"
    unfinished = output.with_name(f"{output.name}.{key[:120]}.partial")
    done = _whole_lines(unfinished)
    draw = partial(
        glyph_record,
        split=arguments.split,
        seed=arguments.seed,
        turns=arguments.turns,
        families=families,
        long_side=arguments.long_side,
    )
    with unfinished.open("a") as file, _drawn(draw, range(done, arguments.scenes), arguments.workers) as records:
        for record in tqdm(records, initial=done, total=arguments.scenes, desc="drawing", unit="record"):
            file.write(json.dumps(record) + "\n")
    unfinished.rename(output)
    print(f"wrote {output}: {arguments.scenes} records")


def _whole_lines(path: Path) -> int:
    """How many records an unfinished file holds; the torn end of a run that was killed is cut off."""
    if not path.is_file():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    with path.open("r+b") as file:
        file.truncate(whole)
    return data[:whole].count(b"\n")


@contextmanager
def _drawn(draw: partial[Sample], numbers: range, workers: int) -> Iterator[Iterator[Sample] | IMapIterator[Sample]]:
    """Records of the scenes with these numbers, in order, drawn by this process or by `workers` others."""
    if workers < 2:
        yield map(draw, numbers)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield pool.imap(draw, numbers, chunksize=8)


if __name__ == "__main__":
    sys.exit(main())
