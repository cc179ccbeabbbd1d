"""The command line: `region-chat ask` and `chat`; `describe`, `demo`, `find`, `app`, `serve` and `vllm` have their own files.

It prints and writes files. Everything else it does is a single call of the library.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import (
    EXIT_CODES,
    FOLDER_CODES,
    CommandParser,
    add_command,
    add_output_flags,
    add_prompt_flags,
    check_folder_of_pictures,
    check_new,
    check_one_picture,
    check_picture_path,
    counted,
    inputs_of,
    prompts_of,
    region_prompts,
    run_command,
    save_picture,
    tell_folder,
    tell_limitation,
)

from .demo_command import add_demo_command, run_demo
from .describe_command import add_describe_command, run_describe
from .find_command import add_find_command, run_find
from .model_flags import add_model_flags, load_chat, settings_of
from .page.app_command import add_app_command, run_app
from .serving.serve_commands import add_serve_commands, run_serve, run_vllm

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from tap_tokenizer import PictureRegions

    from .chat import RegionChat


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code, which is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="region-chat",
        description="Ask a language model about regions of a picture.",
        epilog=f"exit codes: {FOLDER_CODES}",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=CommandParser)
    ask = add_command(
        commands,
        "ask",
        "ask about regions of your own picture, or of a folder of pictures",
        'region-chat ask picture.png "What is <region>, and where is it?" --box 177 392 271 470',
        'region-chat ask pictures "What is <region>?" --boxes boxes.csv --output answers.jsonl',
        exit_codes=FOLDER_CODES,
    )
    ask.add_argument("image", type=Path, help="the picture, or a folder of pictures")
    ask.add_argument("question", help="words, with a <region> for every box, point or mask, in order")
    add_prompt_flags(ask)
    ask.add_argument("--json", action="store_true", help="print one JSON object instead of the answer alone")
    add_output_flags(ask)
    add_model_flags(ask)
    add_find_command(commands)
    add_describe_command(commands)
    chat = add_command(
        commands,
        "chat",
        "talk about regions of a picture, line by line",
        "region-chat chat picture.png --box 177 392 271 470",
        exit_codes=EXIT_CODES,
    )
    chat.add_argument("image", type=Path, help="the picture")
    add_prompt_flags(chat, folders=False)
    add_model_flags(chat)
    add_demo_command(commands)
    add_app_command(commands)
    add_serve_commands(commands)
    doers: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "ask": _ask,
        "find": run_find,
        "describe": run_describe,
        "chat": _chat,
        "demo": run_demo,
        "app": run_app,
        "serve": run_serve,
        "vllm": run_vllm,
    }
    return run_command(parser, doers, argv)


# --- ask --------------------------------------------------------------------------------------------------------------


def _ask(arguments: argparse.Namespace) -> int:
    from tap_tokenizer import draw_regions, load_rgb

    from .chat_markup import user_content

    if arguments.image.is_dir():
        return _ask_folder(arguments)
    check_one_picture(arguments)
    prompts = prompts_of(arguments)
    check_picture_path(arguments.save, inputs_of(arguments))
    if not prompts:
        raise ValueError("Got no region to ask about: give --box X1 Y1 X2 Y2, --point X Y or --mask PICTURE.")
    user_content(arguments.question, prompts)
    picture = load_rgb(arguments.image)  # all is refused before a model is loaded
    chat = load_chat(arguments)
    answer = chat.ask(arguments.question, image=picture, max_new_tokens=arguments.max_new_tokens, prompts=prompts)
    if arguments.save is not None:
        save_picture(draw_regions(picture, chat.regions()), arguments.save)
    if arguments.json:
        height, width = picture.shape[:2]
        record = {"image": str(arguments.image), **_settings(chat, arguments), "width": width, "height": height}
        print(json.dumps({**record, **_said(chat, answer)}, ensure_ascii=False))
    else:
        print(answer)
    what = "about that region" if len(prompts) == 1 else "about all of the regions together"
    _tell_unmentioned(arguments.question, what)
    tell_limitation(chat.limitation)
    return 0


def _ask_folder(arguments: argparse.Namespace) -> int:
    """Ask one question about every picture of a table, with all its regions."""
    from tap_tokenizer import read_region_table, write_records

    from .chat_markup import user_content

    check_folder_of_pictures(arguments)
    if arguments.boxes is None or arguments.output is None:
        raise ValueError("A folder needs its regions, --boxes boxes.csv, and a file to write, --output answers.jsonl.")
    check_new(arguments.output)
    pictures = read_region_table(arguments.boxes, arguments.image)
    each = arguments.question.count("<region>") or None
    for picture in pictures:
        if each not in (None, 1, len(picture.regions)):
            raise ValueError(
                f"The question has {each} <region> and {picture.image} has {counted(len(picture.regions), 'region')} in the "
                "table: write one <region>, to ask about each, or as many as every picture has."
            )
        try:
            user_content(arguments.question, picture.prompts[:1] if each == 1 else picture.prompts)
        except ValueError as error:
            raise ValueError(
                f"{picture.image} has {counted(len(picture.regions), 'region')} in the table: {error}"
            ) from None
    chat = load_chat(arguments)
    _tell_unmentioned(arguments.question, "in each picture about all of its regions together, instead of about each")

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        """With one <region> in the question, each region is asked about by itself; else all are, at once."""
        count = len(picture.regions)
        said = []
        for group in [slice(i, i + 1) for i in range(count)] if each == 1 else [slice(count)]:
            chat.reset()
            options = {"image": pixels, "max_new_tokens": arguments.max_new_tokens, "prompts": picture.prompts[group]}
            answer = chat.ask(arguments.question, **options)
            records = [{**own, **given} for own, given in zip(_regions(chat), picture.regions[group], strict=True)]
            said.append({"regions": records, "answer": answer, "mentioned": list(chat.mentioned())})
        return {"answers": said}

    skip = arguments.skip_unreadable
    unread = write_records(arguments.output, pictures, _settings(chat, arguments), record, skip_unreadable=skip)
    tell_limitation(chat.limitation)
    return tell_folder(arguments.output, len(pictures), unread, skip)


def _tell_unmentioned(question: str, asked: str) -> None:
    """Say on the error stream what a question is `asked` about that speaks of no region."""
    from .chat_markup import spoken_numbers

    if "<region>" not in question and not spoken_numbers(question):
        sys.stderr.write(
            f"Note: The question has no <region>, so it is asked {asked}. Write <region> where you mean one, as in "
            '"What is <region>?".\n'
        )


def _settings(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    return {**settings_of(chat, arguments), "question": arguments.question}


def _said(chat: RegionChat, answer: Any) -> dict[str, Any]:
    """The answer, which regions it names, and what TAP itself says of each region."""
    regions = []
    for record, own in zip(_regions(chat), chat.baseline(), strict=True):
        concepts = [{"name": name, "score": round(score, 4)} for name, score in own.concepts]
        regions.append({**record, "caption": own.caption, "concepts": concepts})
    return {"answer": answer, "mentioned": list(chat.mentioned(answer)), "regions": regions}


def _regions(chat: RegionChat) -> list[dict[str, Any]]:
    """The regions of a conversation, by their names."""
    from .region_records import region_records

    regions = chat.regions()
    return region_records([f"region{number}" for number in range(1, len(regions) + 1)], regions)


# --- chat --------------------------------------------------------------------------------------------------------------


def _chat(arguments: argparse.Namespace) -> None:
    from tap_tokenizer import load_rgb

    from .terminal_chat import HELP, TerminalChat

    picture = load_rgb(arguments.image)
    regions = arguments.regions or []
    region_prompts(regions, (picture.shape[0], picture.shape[1]))  # refused before a model is loaded
    chat = TerminalChat(load_chat(arguments), picture, inputs_of(arguments), arguments.max_new_tokens)
    for kind, value in regions:
        chat.mark(kind, value)
    print(f"{arguments.image}: {picture.shape[1]} × {picture.shape[0]} pixels. {HELP}")
    chat.run()
