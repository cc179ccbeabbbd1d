"""`tap-tokenizer index` and `search`: a folder's regions in one file, found again by words or by an example."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counts import counted
from .flags import (
    FOLDER_CODES,
    LEFT_OUT,
    add_command,
    add_prompt_flags,
    check_picture_path,
    prompts_of,
    save_picture,
    tell_limitation,
)
from .tokenizer_flags import DEFAULT, add_model_flags, add_search_flags, load_tokenizer, search_options

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from .folder_index import IndexReport
    from .picture_folders import PictureRegions
    from .region_index import RegionHit, RegionIndex
    from .region_tokens import RegionTokens


def add_index_commands(commands: Any) -> None:
    """Add `index` and `search`."""
    index = add_command(
        commands,
        "index",
        "all regions of a folder's pictures in one file, or just those in a table; run it again after the folder has changed",
        "tap-tokenizer index pictures --output regions.safetensors",
        "tap-tokenizer index pictures --boxes boxes.csv --output marked.safetensors",
        exit_codes=FOLDER_CODES,
    )
    index.add_argument("folder", type=Path, help="the folder of pictures")
    index.add_argument(
        "--output", type=Path, required=True, metavar="INDEX", help="the file to write, or to bring up to date"
    )
    index.add_argument("--boxes", type=Path, metavar="CSV", help="a table of regions: image,x1,y1,x2,y2 (or x,y), a row each; "
                       "default: all that are found")  # fmt: skip
    index.add_argument(
        "--tokens", action="store_true", help="keep semantic tokens beside embeddings, for search --by tokens"
    )
    index.add_argument("--no_captions", action="store_true", help="write no captions, which take most of the time")
    index.add_argument("--remove_vanished", action="store_true",
                       help="take out pictures that are no longer in the folder; otherwise they are only listed")  # fmt: skip
    add_search_flags(index)
    add_model_flags(index)
    search = add_command(
        commands,
        "search",
        "the regions of an index that words name, or that are like an example, or both",
        'tap-tokenizer search regions.safetensors "red umbrella" --save found.png',
        "tap-tokenizer search regions.safetensors --like picture.png --box 177 392 271 470",
        'tap-tokenizer search regions.safetensors "blue" --like picture.png --box 177 392 271 470',
        exit_codes="0 done, 2 bad input",
    )
    search.add_argument("index", type=Path, help="the file that index wrote")
    search.add_argument("phrase", nargs="?", metavar="WORDS", help="what to look for")
    search.add_argument("--like", type=Path, metavar="PICTURE", dest="image", help="a picture with an example, marked by "
                        "--box, --point or --mask; several are averaged")  # fmt: skip
    add_prompt_flags(search, folders=False)
    search.add_argument("--by", choices=("embeds", "tokens"), default="embeds", help="what to compare: semantic "
                        "embeddings, or tokens if the index has them (default: embeds). Tokens find fewer of the same kind "
                        "and colour.")  # fmt: skip
    search.add_argument("--top_k", type=int, default=10, help="number of regions (default: 10)")
    search.add_argument(
        "--name", action="append", help="only regions with this name, as index wrote it; may be repeated"
    )
    search.add_argument(
        "--min_quality", type=float, default=0.0, help="only masks of at least this quality (default: 0)"
    )
    search.add_argument("--save", type=Path, metavar="PICTURE", help="write a sheet of what was found")
    search.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where the pictures are (default: where they were)"
    )
    search.add_argument("--json", action="store_true", help="print one JSON object instead of words")
    add_model_flags(search, of_index=True)


def run_index(arguments: argparse.Namespace) -> int:
    """Make an index, or bring it up to date; gives the exit code."""
    from .folder_index import index_folder
    from .picture_folders import pictures_of, read_region_table

    options = search_options(arguments)
    if not arguments.output.parent.is_dir():
        raise ValueError(f"There is no folder {arguments.output.parent}: make it first.")
    if arguments.boxes is not None:
        pictures, found_by = read_region_table(arguments.boxes, arguments.folder), "table"
    else:
        pictures, found_by = pictures_of(arguments.folder), json.dumps(options)
    tokenizer = load_tokenizer(arguments)

    def find(picture: PictureRegions, pixels: np.ndarray) -> RegionTokens:
        if picture.regions:
            return tokenizer.encode(pixels, prompts=picture.prompts)
        return tokenizer.encode_everything(pixels, **options)

    precision = arguments.encoder_precision
    precision = "" if precision == "float32" else precision  # as in indexes that are older than the choice
    notes = {"regions": found_by, "encoder_precision": precision}
    hints = {"model": _place_of(arguments.model), "variant": arguments.variant or ""}
    if arguments.text_encoder is not None:
        hints["text_encoder"] = _place_of(arguments.text_encoder)
    folder = os.path.relpath(arguments.folder.resolve(), arguments.output.parent.resolve())
    report = index_folder(
        pictures,
        arguments.output,
        tokenizer,
        find,
        notes={**notes, "folder": folder},
        hints=hints,
        with_tokens=arguments.tokens,
        captions=not arguments.no_captions,
        remove_vanished=arguments.remove_vanished,
    )
    tell_limitation(tokenizer.limitation)
    _tell_report(report, arguments)
    return LEFT_OUT if report.unread else 0


def _place_of(source: str) -> str:
    """Where a model is found from any folder: its absolute path, or its name as it is."""
    path = Path(source)
    return str(path.resolve()) if path.is_file() or (path / "config.json").is_file() else source


def _tell_report(report: IndexReport, arguments: argparse.Namespace) -> None:
    from .region_index import RegionIndex

    for name, reason in report.unread.items():
        sys.stderr.write(f"{name}: {reason}\n")
    for name in report.vanished:
        taken_out = "was taken out" if arguments.remove_vanished else "stays in the index"
        sys.stderr.write(f"{name}: is no longer in the folder, and {taken_out}.\n")
    if report.vanished and not arguments.remove_vanished:
        sys.stderr.write("Add --remove_vanished to take these out.\n")
    index = RegionIndex.load(arguments.output)
    with_regions = set(index.column("picture").unique().tolist())
    encoded = {*report.added, *report.replaced}
    bare = [one.name for i, one in enumerate(index.pictures) if one.name in encoded and i not in with_regions]
    for name in bare:
        sys.stderr.write(f"{name}: no region was found in it.\n")
    counts = {"new": report.added, "changed": report.replaced, "unchanged": report.unchanged, "vanished": report.vanished,
              "not read": report.unread, "without a region": bare}  # fmt: skip
    told = ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
    held = f"{counted(len(index), 'region')} of {counted(len(index.pictures), 'picture')}"
    print(f"{arguments.output}: {held} ({told or 'nothing new'}).")


def run_search(arguments: argparse.Namespace) -> None:
    """Search an index, and print or draw what was found."""
    from .region_index import RegionIndex

    if arguments.regions and arguments.image is None:
        raise ValueError("--box, --point and --mask mark an example: say in which picture, --like PICTURE.")
    if arguments.image is not None and not arguments.regions:
        raise ValueError("--like needs a mark on its picture: give --box X1 Y1 X2 Y2, --point X Y or --mask PICTURE.")
    if arguments.phrase is None and arguments.image is None:
        raise ValueError("Got nothing to search for: give words, or --like PICTURE with --box, --point or --mask.")
    if arguments.top_k < 1:
        raise ValueError(f"--top_k is {arguments.top_k}, expected 1 or more.")
    check_picture_path(arguments.save, [path for path in (arguments.index, arguments.image) if path is not None])
    prompts = prompts_of(arguments) if arguments.image is not None else []
    index = RegionIndex.load(arguments.index)
    folder = arguments.pictures or arguments.index.parent / index.notes.get("folder", "")
    if arguments.save is not None and not folder.is_dir():
        raise ValueError(f"Found no folder {folder} with the index's pictures: say where they are, --pictures FOLDER.")
    arguments.model = arguments.model or index.notes.get("model", DEFAULT)
    arguments.variant = arguments.variant or index.notes.get("variant") or None
    if arguments.phrase is not None:
        arguments.text_encoder = arguments.text_encoder or index.notes.get("text_encoder")
    tokenizer = load_tokenizer(arguments)
    like = tokenizer.encode(arguments.image, prompts=prompts) if prompts else None
    find = partial(index.search, like, by=arguments.by, top_k=arguments.top_k, names=arguments.name)
    hits = find(words=arguments.phrase, tokenizer=tokenizer, min_quality=arguments.min_quality)
    tell_limitation(tokenizer.limitation)
    _tell_hits(hits, index, folder, arguments)


def _tell_hits(hits: list[RegionHit], index: RegionIndex, folder: Path, arguments: argparse.Namespace) -> None:
    if not hits:
        sys.stderr.write("No region passes the filters: give other names, or a lower --min_quality.\n")
    if arguments.save is not None and hits:
        from .contact_sheet import draw_hits

        save_picture(draw_hits(hits, folder), arguments.save)
    if arguments.json:
        found = [hit.as_dict() for hit in hits]
        print(json.dumps({"index": str(arguments.index), "regions": len(index), "found": found}, ensure_ascii=False))
        return
    for i, hit in enumerate(hits, start=1):
        box = " ".join(f"{x:.0f}" for x in hit.box)
        print(f"{i}. {hit.score:.3f} {hit.picture} ({hit.caption or hit.name or 'no caption'}; box {box})")
    if arguments.save is not None and hits:
        print(f"Wrote {arguments.save}.")
