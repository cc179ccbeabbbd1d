"""`region-chat describe`: a picture in words that name the regions they speak of."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tap_tokenizer import (
    EXIT_CODES,
    add_command,
    add_prompt_flags,
    check_picture_path,
    inputs_of,
    prompts_of,
    save_picture,
    tell_limitation,
)

from .model_flags import add_model_flags, load_chat, settings_of


def add_describe_command(commands: Any) -> None:
    """Add `describe`."""
    describe = add_command(
        commands,
        "describe",
        "describe a picture, and say which regions the words are about",
        "region-chat describe picture.png --save described.png",
        exit_codes=EXIT_CODES,
    )
    describe.add_argument("image", type=Path, help="the picture")
    add_prompt_flags(describe, folders=False)
    describe.add_argument("--json", action="store_true", help="print one JSON object, with masks of all regions")
    describe.add_argument("--save", type=Path, metavar="PICTURE", help="draw the regions that the description names")
    add_model_flags(describe, 256)


def run_describe(arguments: argparse.Namespace) -> None:
    """Describe a picture by what is marked in it, or else by everything that is found in it."""
    from tap_tokenizer import draw_regions, load_rgb

    from .region_records import region_records

    prompts = prompts_of(arguments)
    check_picture_path(arguments.save, inputs_of(arguments))
    picture = load_rgb(arguments.image)  # all is refused before a model is loaded
    chat = load_chat(arguments)
    answer = chat.describe(picture, prompts=prompts, max_new_tokens=arguments.max_new_tokens)
    regions, mentioned = chat.regions(), list(chat.mentioned(answer))
    names = [f"region{number}" for number in range(1, len(regions) + 1)]
    if arguments.save is not None:
        drawn = regions[[names.index(name) for name in mentioned]]
        save_picture(draw_regions(picture, drawn, labels=mentioned), arguments.save)
    if arguments.json:
        height, width = picture.shape[:2]
        about = {"image": str(arguments.image), **settings_of(chat, arguments), "width": width, "height": height}
        record = {**about, "answer": answer, "mentioned": mentioned, "regions": region_records(names, regions)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(answer)
    tell_limitation(chat.limitation)
