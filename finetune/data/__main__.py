"""Makes records from data sets, checks them, and shows them: `python -m finetune.data convert FORMAT … | validate … | show …`.

    python -m finetune.data convert boxes_csv --boxes mine.csv --images pictures --output runs/mine.jsonl
    python -m finetune.data validate --data runs/mine.jsonl
    python -m finetune.data show --data runs/mine.jsonl --output runs/mine.png

`convert FORMAT --help` shows what a format needs. If a conversion was stopped, run it again and it continues. The output gets
its name only when it is complete. Entries that cannot be used are left out and named, and the last lines count them; with
`--strict true`, the first such entry ends the conversion.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from tap_tokenizer import counted, draw_regions, only_writer, save_picture

from ..config import knob, parse_arguments
from ..glyphs.records import GlyphScenesSource
from ..records import Record, Region, decode_mask, open_image
from .boxes_csv import BoxesCsvSource
from .coco import CocoPanopticSource, CocoSource, LvisSource
from .ferret_bench import FerretBenchSource
from .gar_bench import GarBenchSource
from .osprey import OspreySource
from .pixelrefer import PixelReferSource
from .refcoco import GRefCocoSource, RefCocoSource
from .source import Source, convert
from .validation import problems_of, read_raw
from .visual_genome import GritSource, VisualGenomeSource

FORMATS: dict[str, type[Source]] = {
    "boxes_csv": BoxesCsvSource,
    "coco": CocoSource,
    "coco_panoptic": CocoPanopticSource,
    "ferret_bench": FerretBenchSource,
    "gar_bench": GarBenchSource,
    "glyph_scenes": GlyphScenesSource,
    "grefcoco": GRefCocoSource,
    "grit": GritSource,
    "lvis": LvisSource,
    "osprey": OspreySource,
    "pixelrefer": PixelReferSource,
    "refcoco": RefCocoSource,
    "visual_genome": VisualGenomeSource,
}
"""What can be converted, by the name that `convert` takes."""

HELP = ("-h", "--help")
SHOWN_PER_KIND = 5


@dataclass
class ValidateArguments:
    """Name every problem of a file of records, and count what is left without them."""

    data: str = knob(help="records: JSONL or parquet")
    pictures: Literal["skip", "header", "decode"] = knob(
        default="header", help="how much of each picture is read: nothing, its size, or every pixel"
    )
    show_all: bool = knob(default=False, help=f"print every problem instead of {SHOWN_PER_KIND} of each kind")
    keep: str | None = knob(
        default=None, help="JSONL file for the records without problems, in the same folder as data"
    )


@dataclass
class ShowArguments:
    """Draw records on a contact sheet."""

    data: str = knob(help="records: JSONL or parquet")
    output: str = knob(help="PNG file to write")
    start: int = knob(default=0, help="number of the first record, counted from 0")
    count: int = knob(default=9, help="records on the sheet")
    columns: int = knob(default=3, help="records in a row of the sheet")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 1 if validate found problems, 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[Sequence[str]], int]] = {"convert": _convert, "validate": _validate, "show": _show}
    asks_for_help = argv and (argv[0] in HELP or (argv[0] == "convert" and argv[1:2] and argv[1] in HELP))
    if asks_for_help or not argv or argv[0] not in commands:
        print(f"{__doc__}\nFormats: {', '.join(FORMATS)}", file=sys.stderr)
        return 0 if asks_for_help else 2
    try:
        return commands[argv[0]](argv[1:])
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, KeyError, UnpicklingError) as error:
        words = f"an entry lacks {error}: is it the format that was named?" if isinstance(error, KeyError) else error
        print(f"python -m finetune.data {argv[0]}: {words}", file=sys.stderr)
        return 2


def _convert(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in FORMATS:
        raise ValueError(f"the format is {argv[0] if argv else 'missing'}, expected one of {', '.join(FORMATS)}.")
    source = parse_arguments(FORMATS[argv[0]], argv[1:])
    try:
        count = convert(source)
    finally:
        for sentence in source.left_out.named:
            print(f"left out: {sentence}")
    print(f"wrote {source.output}: {count} record{'s' * (count != 1)}")
    for line in source.left_out.summary():
        print(line)
    return 0


def _validate(argv: Sequence[str]) -> int:
    arguments = parse_arguments(ValidateArguments, argv)
    if arguments.keep is None:
        return _check(arguments, None)
    keep = Path(arguments.keep)
    with only_writer(keep):
        return _check(arguments, _Kept(keep, Path(arguments.data)))


def _check(arguments: ValidateArguments, kept: _Kept | None) -> int:
    data = Path(arguments.data)
    records = whole = regions = questions = unanswered = 0
    kinds: Counter[str] = Counter()
    root = data if data.is_dir() else data.parent
    for number, record in enumerate(tqdm(read_raw(data), desc="validating", unit="record"), 1):
        records += 1
        problems = problems_of(record, root, arguments.pictures)
        for kind, words in problems:
            kinds[kind] += 1
            if arguments.show_all or kinds[kind] <= SHOWN_PER_KIND:
                tqdm.write(f"record {number}: {kind}: {words}")
        if problems or isinstance(record, str):
            continue
        whole += 1
        regions += len(record["regions"])
        roles = Counter(turn["role"] for turn in record["conversations"])
        questions += roles["user"]
        unanswered += roles["user"] - roles["assistant"]
        if kept is not None:
            kept.add(record)
    for kind, count in kinds.most_common():
        print(f"{count:>8} × {kind}")
    held = f"{counted(regions, 'region')}, {counted(questions, 'question')}, {unanswered:,} unanswered"
    print(f"{whole:,} of {counted(records, 'record')} {'is' if whole == 1 else 'are'} whole: {held}")
    if not records:
        raise ValueError(f"{data} holds no records.")
    if kept is not None:
        kept.close()
        print(f"wrote {arguments.keep}: {whole} record{'s' * (whole != 1)}")
    return 1 if kinds else 0


class _Kept:
    """A JSONL file of the records that are whole; it has its name only when it is complete."""

    def __init__(self, path: Path, data: Path) -> None:
        if path.exists():
            raise ValueError(f"{path} exists already: choose another name for keep.")
        if path.suffix != ".jsonl" or data.suffix != ".jsonl" or path.parent.resolve() != data.parent.resolve():
            raise ValueError(f"keep is {path}, expected a .jsonl file in the folder of {data}, also .jsonl.")
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.file = self.partial.open("w", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()
        self.partial.rename(self.path)


def _show(argv: Sequence[str]) -> int:
    arguments = parse_arguments(ShowArguments, argv)
    if not arguments.output.endswith(".png"):
        raise ValueError(f"output is {arguments.output}, expected a name that ends in .png.")
    data, output = Path(arguments.data), Path(arguments.output)
    root = data if data.is_dir() else data.parent
    chosen: list[Record] = []
    raw = islice(read_raw(data), arguments.start, arguments.start + arguments.count)
    for number, record in enumerate(raw, arguments.start + 1):
        if problems := problems_of(record, root):
            raise ValueError(f"record {number}: {problems[0][0]}: {problems[0][1]}; validate names all of them.")
        assert isinstance(record, dict)
        chosen.append(Record.from_dict(record))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_picture(contact_sheet(chosen, root, arguments.columns), output)
    print(f"wrote {output}: {len(chosen)} record{'s' * (len(chosen) != 1)}")
    return 0


TILE = 420
TEXT_LINES = 7
FONT_SIZE = 14


def contact_sheet(records: Sequence[Record], root: Path, columns: int = 3) -> Image.Image:
    """A sheet of tiles, row by row; masks filled, boxes and points outlined, regions named as in the talk."""
    if not records:
        raise ValueError("Got no records to show: the file is empty, or start is past its end.")
    tiles = [_tile(record, root) for record in records]
    columns = min(columns, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (columns * TILE, sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            sheet.paste(tile, (j * TILE, sum(heights[:i])))
    return sheet


def _tile(record: Record, root: Path) -> Image.Image:
    """The picture with its regions, if there is one, and what is said beneath it."""
    drawn = Image.new("RGB", (TILE, 1), "white") if record.image is None else _drawn(record, root)
    room = TILE - 12
    drawn.thumbnail((room, room))
    lines = lines_of(record)
    most = TEXT_LINES * (2 if any(turn.told for turn in record.conversations) else 1)
    height = drawn.height + 16 + min(len(lines), most) * (FONT_SIZE + 4)
    tile = Image.new("RGB", (TILE, height + 8), "white")
    tile.paste(drawn, ((TILE - drawn.width) // 2, 6))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_SIZE)
    for number, line in enumerate(lines[:most]):
        more = " …" if number == most - 1 and len(lines) > most else ""
        pen.text((8, drawn.height + 10 + number * (FONT_SIZE + 4)), line + more, fill="black", font=font)
    return tile


def lines_of(record: Record) -> list[str]:
    """What is said, a line for about 56 letters: questions (Q), what a teacher was told in their place (told), answers (A)."""
    lines: list[str] = []
    for turn in record.conversations:
        mark = {"user": "Q: ", "assistant": "A: "}.get(turn.role, "")
        lines += textwrap.wrap(mark + turn.content, 56) or [mark]
        lines += textwrap.wrap(f"told: {turn.told}", 56) if turn.told else []
    return lines


def _drawn(record: Record, root: Path) -> Image.Image:
    picture = open_image(record, root)
    size, regions = (picture.shape[0], picture.shape[1]), record.regions
    masks = [np.zeros(size, bool) if region.mask is None else decode_mask(region.mask, size) for region in regions]
    return draw_regions(
        picture,
        masks=np.stack(masks) if masks else None,
        boxes=[_outline(region, size) for region in regions] or None,
        points=[region.points or [] for region in regions],
        point_labels=[region.point_labels or [1] * len(region.points or []) for region in regions],
    )


def _outline(region: Region, size: tuple[int, int]) -> list[float]:
    """The box to draw of a region: its own, its mask's, or the one around its points."""
    around = region.around(size)
    if around is not None or not region.points:
        return around or [0.0, 0.0, 0.0, 0.0]
    xs, ys = np.asarray(region.points, dtype=float).T
    return [float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())]


if __name__ == "__main__":
    sys.exit(main())
