"""The command line: `tap-tokenizer describe`, `everything` and `convert`; other modules have `export`, `index` and `search`.

It prints and writes files. Everything else it does is a single call of the library.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cluster import RAY_ADDRESS_HELP, RAY_HELP, check_ray_flags
from .coco_command import run_coco
from .export_command import add_export_command, run_export
from .flags import (
    FOLDER_CODES,
    CommandParser,
    add_command,
    add_output_flags,
    add_prompt_flags,
    check_folder_of_pictures,
    check_new,
    check_one_picture,
    check_picture_path,
    inputs_of,
    prompts_of,
    run_command,
    save_picture,
    tell_folder,
    tell_limitation,
)
from .index_commands import add_index_commands, run_index, run_search
from .tokenizer_flags import add_model_flags, add_search_flags, load_tokenizer, search_options

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from .folder_actors import Record
    from .picture_folders import PictureRegions
    from .region_tokenizer import TapRegionTokenizer
    from .region_tokens import RegionTokens


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code, which is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="tap-tokenizer",
        description="What TAP sees in a picture: masks, captions, concepts, and where else the same things are found.",
        epilog=f"exit codes: {FOLDER_CODES}",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=CommandParser)
    describe = _command(
        commands,
        "describe",
        "mask, caption and concepts of regions that you point at",
        "tap-tokenizer describe picture.png --box 177 392 271 470 --point 398 270 --save described.png",
        "tap-tokenizer describe pictures --boxes boxes.csv --output described.jsonl",
        "tap-tokenizer describe pictures --coco instances.json --results detections.json --output described.json",
    )
    add_prompt_flags(describe)
    group = describe.add_argument_group("a detector's boxes or masks, for a folder of pictures")
    group.add_argument(
        "--coco",
        type=Path,
        metavar="JSON",
        help="regions from a file in COCO's layout; --output gets the same layout, with TAP's masks and words",
    )
    group.add_argument(
        "--results",
        type=Path,
        metavar="JSON",
        help="COCO's results for the pictures of --coco, instead of its own annotations",
    )
    group.add_argument(
        "--replace_masks",
        action="store_true",
        help="with --coco: write TAP's mask also where there is a segmentation; otherwise, that is kept",
    )
    group.add_argument(
        "--as_results",
        action="store_true",
        help="with --coco: write a list, as COCO's results, which its tools for evaluation read",
    )
    everything = _command(
        commands,
        "everything",
        "find all objects of a picture, and say what they are",
        "tap-tokenizer everything picture.png --points_per_crop 16 --pred_iou_thresh 0.5 --stability_score_thresh 0.7 "
        "--crops_nms_thresh 0.3",
        "tap-tokenizer everything pictures --output everything.jsonl",
    )
    add_search_flags(everything)
    conversion = commands.add_parser(
        "convert",
        help="convert a checkpoint of the original to a folder that loads fast, or a folder to another dtype",
        epilog="example: tap-tokenizer convert BAAI/tokenize-anything tap-vit-l --variant tap_vit_l_v1_1",
    )
    _add_conversion_flags(conversion)
    add_export_command(commands)
    add_index_commands(commands)
    work = {
        "describe": _describe,
        "everything": _everything,
        "convert": _convert,
        "export": run_export,
        "index": run_index,
        "search": run_search,
    }
    return run_command(parser, work, argv)


def _command(commands: Any, name: str, words: str, *examples: str) -> argparse.ArgumentParser:
    """A command that reads a picture or a folder and says something of regions."""
    parser = add_command(commands, name, words, *examples, exit_codes=FOLDER_CODES)
    parser.add_argument("image", type=Path, help="the picture, or a folder of pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of words")
    add_output_flags(parser)
    parser.add_argument("--masks", action="store_true", help="put masks into the JSON, as COCO run lengths")
    parser.add_argument("--top_k", type=int, default=3, help="number of concepts for each region (default: 3)")
    add_model_flags(parser)
    group = parser.add_argument_group("for a folder that takes long, on this machine or many")
    group.add_argument("--ray", type=int, default=0, metavar="N", help=RAY_HELP)
    group.add_argument("--ray_address", metavar="ADDRESS", help=RAY_ADDRESS_HELP)
    return parser


def _add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a .pkl checkpoint, the Hub repository of the original, or the folder of a region tokenizer"
    )
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    parser.add_argument("--variant", help="checkpoint in the repository, e.g. tap_vit_l_v1_1")
    parser.add_argument(
        "--concepts", help="a concept file, or its name in the repository (merged_2560, lvis_1203, coco_80)"
    )
    parser.add_argument(
        "--text_tokenizer", help="the caption vocabulary: a tokenizer.model, a folder or a Hub repository"
    )
    parser.add_argument("--dtype", default="float32", help="dtype of the written weights (default: float32)")
    parser.add_argument("--limitation", help="a sentence for users about what these weights cannot do")


def _describe(arguments: argparse.Namespace) -> int:
    from .image_processing_tap import load_rgb
    from .picture_folders import read_region_table

    if arguments.image.is_dir():
        _check_folder_flags(arguments)
        needs_coco = arguments.results or arguments.replace_masks or arguments.as_results
        if (arguments.boxes is None) == (arguments.coco is None) or (needs_coco and arguments.coco is None):
            raise ValueError(
                f"{arguments.image} is a folder: give its regions in a table, --boxes boxes.csv, or in a file of COCO's "
                "layout, --coco instances.json."
            )
        if arguments.coco is not None:
            return run_coco(arguments)
        pictures = read_region_table(arguments.boxes, arguments.image)
        tokenizer = load_tokenizer(arguments)
        make_record = partial(_described, arguments)
        return _write_folder(tokenizer, pictures, _settings(tokenizer), make_record, arguments)
    check_one_picture(arguments)
    prompts = prompts_of(arguments)
    if not prompts:
        raise ValueError(
            "Got no region: give --box X1 Y1 X2 Y2, --point X Y or --mask PICTURE; or search with everything."
        )
    _check_flags(arguments)
    load_rgb(arguments.image)  # refused before a model is loaded
    tokenizer = load_tokenizer(arguments)
    _tell(tokenizer, tokenizer.encode(arguments.image, prompts=prompts, with_masks=True), arguments)
    return 0


def _described(arguments: argparse.Namespace, tokenizer: TapRegionTokenizer) -> Record:
    """What is said of the regions that a table gives."""

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        regions = tokenizer.encode(pixels, prompts=picture.prompts, with_masks=arguments.masks)
        found = _record(tokenizer, regions, arguments)
        found["regions"] = [{**given, **own} for given, own in zip(picture.regions, found["regions"])]
        return found

    return record


def _everything(arguments: argparse.Namespace) -> int:
    from .image_processing_tap import load_rgb
    from .picture_folders import pictures_of

    options = search_options(arguments)
    if arguments.image.is_dir():
        _check_folder_flags(arguments)
        pictures = pictures_of(arguments.image)
        tokenizer = load_tokenizer(arguments)
        settings = {**_settings(tokenizer), "search": options}
        return _write_folder(tokenizer, pictures, settings, partial(_found, arguments, options), arguments)
    if arguments.output is not None or arguments.ray:
        raise ValueError("--output and --ray are for a folder of pictures: print --json for one picture.")
    _check_flags(arguments)
    load_rgb(arguments.image)
    tokenizer = load_tokenizer(arguments)
    regions = tokenizer.encode_everything(arguments.image, **options)
    if not len(regions):
        sys.stderr.write("No mask passed the filters: lower --pred_iou_thresh or --stability_score_thresh.\n")
    _tell(tokenizer, regions, arguments)
    return 0


def _found(arguments: argparse.Namespace, options: dict[str, Any], tokenizer: TapRegionTokenizer) -> Record:
    """What is said of everything that a search finds."""
    return lambda picture, pixels: _record(tokenizer, tokenizer.encode_everything(pixels, **options), arguments)


def _convert(arguments: argparse.Namespace) -> None:
    """Write the folder of a converted checkpoint, whole or not at all."""
    from .output_files import only_writer
    from .region_tokenizer import TapRegionTokenizer

    with only_writer(arguments.folder):
        if arguments.folder.exists():
            raise ValueError(f"{arguments.folder} exists: give a new folder.")
        partial = arguments.folder.with_name(arguments.folder.name + ".partial")
        names = ("variant", "concepts", "text_tokenizer", "dtype")
        try:
            tokenizer = TapRegionTokenizer.from_pretrained(
                arguments.source, **{name: getattr(arguments, name) for name in names}
            )
            if arguments.limitation is not None:
                tokenizer.model.config.limitation = arguments.limitation
            tokenizer.save_pretrained(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.replace(arguments.folder)
    weights = f"{tokenizer.model.num_parameters():,} parameters"
    print(f"wrote {arguments.folder}: {weights}, fingerprint {tokenizer.fingerprint}")


def _write_folder(
    tokenizer: TapRegionTokenizer,
    pictures: Sequence[PictureRegions],
    settings: dict[str, Any],
    make_record: Callable[[TapRegionTokenizer], Record],
    arguments: argparse.Namespace,
) -> int:
    """Write the records of a folder and say what was written; gives the exit code."""
    from .folder_actors import outcomes_here_or_on_ray
    from .picture_folders import write_outcomes

    options, skip = _options(tokenizer, arguments), arguments.skip_unreadable
    outcomes_of = partial(outcomes_here_or_on_ray, make_record, tokenizer, arguments)
    unread = write_outcomes(arguments.output, pictures, settings, outcomes_of, options, skip_unreadable=skip)
    tell_limitation(tokenizer.limitation)
    return tell_folder(arguments.output, len(pictures), unread, skip)


def _check_folder_flags(arguments: argparse.Namespace) -> None:
    check_folder_of_pictures(arguments)
    check_ray_flags(arguments)
    if arguments.output is None:
        raise ValueError("A folder needs --output: the file of JSON lines to write.")
    check_new(arguments.output)
    _check_flags(arguments)


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.top_k < 1:
        raise ValueError(f"--top_k is {arguments.top_k}, expected 1 or more.")
    check_picture_path(arguments.save, inputs_of(arguments))


def _settings(tokenizer: TapRegionTokenizer) -> dict[str, Any]:
    return {"region_tokenizer": tokenizer.fingerprint}


def _options(tokenizer: TapRegionTokenizer, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a record depends on besides: the banks and the numbers that were asked for."""
    concepts = tokenizer.concepts.digest if tokenizer.concepts is not None else None
    asked = {name: getattr(arguments, name) for name in ("top_k", "masks", "dtype", "text_tokenizer")}
    if arguments.encoder_precision != "float32":  # without it, as it was before there was a choice
        asked["encoder_precision"] = arguments.encoder_precision
    return {"concepts": concepts, **{name: None if value is None else str(value) for name, value in asked.items()}}


def _record(tokenizer: TapRegionTokenizer, regions: RegionTokens, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is said of the regions of one picture, for a script."""
    height, width = regions.image_sizes[0].tolist()
    captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
    concepts = (
        tokenizer.classify(regions, arguments.top_k) if tokenizer.concepts is not None else [[] for _ in captions]
    )
    masks = regions.coco_rle() if arguments.masks else [None] * len(regions)
    rows = []
    for box, score, caption, best, mask in zip(
        regions.boxes.tolist(), regions.quality.tolist(), captions, concepts, masks
    ):
        row: dict[str, Any] = {
            "box": [round(x, 2) for x in box],
            "score": round(score, 4),
            "caption": caption,
            "concepts": [{"name": name, "score": round(value, 4)} for name, value in best],
        }
        rows.append({**row, "mask": mask} if arguments.masks else row)
    return {"width": width, "height": height, "regions": rows}


def _tell(tokenizer: TapRegionTokenizer, regions: RegionTokens, arguments: argparse.Namespace) -> None:
    """Print what is said of one picture's regions, and draw them if asked."""
    record = _record(tokenizer, regions, arguments)
    tell_limitation(tokenizer.limitation)
    if arguments.save is not None:
        from .visualization import draw_regions

        labels = [
            row["caption"] or (row["concepts"][0]["name"] if row["concepts"] else "") for row in record["regions"]
        ]
        save_picture(draw_regions(arguments.image, regions, labels=labels), arguments.save)
    if arguments.json:
        print(json.dumps({"image": str(arguments.image), **_settings(tokenizer), **record}, ensure_ascii=False))
        return
    for i, row in enumerate(record["regions"], start=1):
        box = " ".join(f"{x:.0f}" for x in row["box"])
        concepts = ", ".join(f"{concept['name']} {concept['score']:.0%}" for concept in row["concepts"])
        print(f"{i}. {row['caption'] or '–'} ({concepts or 'no concepts'}; box {box}; mask quality {row['score']:.2f})")
    if arguments.save is not None:
        print(f"Wrote {arguments.save}.")
