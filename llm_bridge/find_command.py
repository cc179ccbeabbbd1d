"""`region-chat find`: what words mean in a picture, or in the pictures of a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import (
    FOLDER_CODES,
    add_command,
    add_output_flags,
    add_prompt_flags,
    check_folder_of_pictures,
    check_new,
    check_one_picture,
    check_picture_path,
    inputs_of,
    prompts_of,
    save_picture,
    tell_folder,
    tell_limitation,
)

from .model_flags import add_model_flags, load_chat, settings_of

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from tap_tokenizer import PictureRegions

    from .chat import RegionChat


def add_find_command(commands: Any) -> None:
    """Add `find`."""
    find = add_command(
        commands,
        "find",
        "find what words mean in a picture or in a folder of pictures, or that there is no such thing",
        'region-chat find picture.png "the red umbrella"',
        'region-chat find picture.png "the larger one" --box 177 392 271 470 --box 361 233 436 307 --save found.png',
        'region-chat find pictures "the red umbrella" --boxes boxes.csv --output found.json',
        exit_codes=FOLDER_CODES,
    )
    find.add_argument("image", type=Path, help="the picture, or a folder of pictures")
    find.add_argument("phrase", nargs="?", help='what to find, such as "the red umbrella"')
    find.add_argument("--phrases", type=Path, metavar="CSV",
                      help="for a folder, instead of one phrase: a table of image,phrase with a row per phrase")  # fmt: skip
    add_prompt_flags(find)
    group = find.add_argument_group(
        "how it is found", "Without --box, --point or --mask, everything in the picture is a candidate."
    )
    group.add_argument("--most", type=int, metavar="N",
                       help="ask about this many regions at once (default: as many as the model can read)")  # fmt: skip
    group.add_argument("--threshold", type=float, metavar="P",
                       help='find nothing if "none" is more probable than this, and otherwise something (default: what '
                       "was saved with the model, or what its answer says)")  # fmt: skip
    find.add_argument(
        "--json", action="store_true", help="print one JSON object, with masks, instead of a line per region"
    )
    add_output_flags(find, coco=True)
    add_model_flags(find, None, "enough to name every region that is shown")


def run_find(arguments: argparse.Namespace) -> int:
    """Find a phrase in one picture, or phrases in a folder; gives the exit code."""
    from tap_tokenizer import draw_regions, load_rgb

    from .grounding import check_choice, find_question
    from .phrase_table import found_record

    check_choice(arguments.most, arguments.threshold, "--")
    if arguments.phrase is not None:
        find_question(arguments.phrase)
    if arguments.image.is_dir():
        return _find_in_folder(arguments)
    check_one_picture(arguments)
    if arguments.phrase is None or arguments.phrases is not None:
        raise ValueError("One picture needs one phrase: --phrases is for a folder of pictures.")
    prompts = prompts_of(arguments)
    check_picture_path(arguments.save, inputs_of(arguments))
    picture = load_rgb(arguments.image)  # all is refused before a model is loaded
    chat = load_chat(arguments)
    options = {name: getattr(arguments, name) for name in ("most", "threshold", "max_new_tokens")}
    found = chat.find(arguments.phrase, image=picture, prompts=prompts, **options)
    shares = found.probabilities.tolist()
    if arguments.save is not None:
        save_picture(draw_regions(picture, found, labels=[f"{share:.0%}" for share in shares]), arguments.save)
    if arguments.json:
        height, width = picture.shape[:2]
        asked = {**settings_of(chat, arguments), "phrase": arguments.phrase}
        record = {"image": str(arguments.image), **asked, "width": width, "height": height, **found_record(found)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        for name, box, share in zip(found.names, found.boxes.tolist(), shares):
            print(f"{name}: box {' '.join(f'{x:.0f}' for x in box)} ({share:.0%})")
        if not len(found):
            print("none")
    _tell_finding(chat)
    return 0


def _find_in_folder(arguments: argparse.Namespace) -> int:
    """Find phrases in the pictures of a folder, among the regions of a table or all that is in them."""
    from tap_tokenizer import read_region_table, write_records

    from .grounding import Candidates, find_among
    from .phrase_table import found_record, pictures_to_search, read_phrases, write_coco

    check_folder_of_pictures(arguments)
    output = arguments.output
    if output is None or output.suffix not in (".json", ".jsonl"):
        raise ValueError(
            "A folder needs --output found.jsonl, for a line per picture, or found.json, in COCO's layout."
        )
    check_new(output)
    if (arguments.phrase is None) == (arguments.phrases is None):
        raise ValueError("A folder needs a phrase for all its pictures, or --phrases phrases.csv.")
    phrases = arguments.phrase if arguments.phrases is None else read_phrases(arguments.phrases, arguments.image)
    table = None if arguments.boxes is None else read_region_table(arguments.boxes, arguments.image)
    pictures, asked = pictures_to_search(arguments.image, phrases, table)
    chat = load_chat(arguments)
    options = {name: getattr(arguments, name) for name in ("most", "threshold", "max_new_tokens")}

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        height, width = pixels.shape[:2]
        candidates = Candidates.of(chat.processor, pixels, picture.prompts if table is not None else None)
        found = [
            {"phrase": phrase,
             **found_record(find_among(chat.speaker, chat.processor, pixels, phrase, candidates, **options))}
            for phrase in asked[picture.image]
        ]  # fmt: skip
        return {"width": width, "height": height, "found": found}

    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    skip = arguments.skip_unreadable
    given = {"phrases": asked, "most": arguments.most, "threshold": arguments.threshold}
    unread = write_records(lines, pictures, settings_of(chat, arguments), record, given, skip_unreadable=skip)
    if lines != output and lines.exists():  # complete
        write_coco(lines, output)
    _tell_finding(chat)
    return tell_folder(output, len(pictures), unread, skip)


def _tell_finding(chat: RegionChat) -> None:
    """Print on the error stream what the models cannot do, and if they were not taught to find anything."""
    tell_limitation(chat.limitation)
    tell_limitation(chat.finding_limitation)
