"""The command line: `region-chat ask`, `chat`, `demo` and `app`.

Prints and writes files; everything it does is one call of the library.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import (
    add_output_flags,
    add_prompt_flags,
    check_new,
    check_not_read,
    check_picture_path,
    inputs_of,
    prompts_of,
    region_prompts,
    run_command,
    save_picture,
    tell_folder,
    tell_limitation,
)

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from tap_tokenizer import PictureRegions

    from .chat import RegionChat

DEMO = "region-chat-tiny"
EXIT_CODES = "exit codes: 0 done, 2 bad input, 130 interrupted"
ASK_CODES = "exit codes: 0 done, 2 bad input, 3 some pictures of a folder could not be read, 130 interrupted"
APP_CODES = "exit codes: 0 when Ctrl+C ends the page, 2 bad input, 130 interrupted before there was a page"


def main(argv: list[str] | None = None) -> int:
    """Run a command; gives the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="region-chat", description="Ask a language model about regions of a picture.", epilog=ASK_CODES
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ask = _command(
        commands,
        "ask",
        "ask about regions of your own picture, or of a folder of pictures",
        'region-chat ask picture.png "What is <region>, and where is it?" --box 177 392 271 470',
        'region-chat ask pictures "What is <region>?" --boxes boxes.csv --output answers.jsonl',
        exit_codes=ASK_CODES,
    )
    ask.add_argument("image", type=Path, help="the picture, or a folder of pictures")
    ask.add_argument("question", help="words, with a <region> for every box, point or mask, in order")
    add_prompt_flags(ask)
    ask.add_argument("--json", action="store_true", help="print one JSON object instead of the answer alone")
    add_output_flags(ask)
    _add_model_flags(ask)
    chat = _command(
        commands,
        "chat",
        "talk about regions of a picture, line by line",
        "region-chat chat picture.png --box 177 392 271 470",
    )
    chat.add_argument("image", type=Path, help="the picture")
    add_prompt_flags(chat, folders=False)
    _add_model_flags(chat)
    demo = _command(commands, "demo", "ask the bundled models about the bundled picture", "region-chat demo")
    demo.add_argument("--output", type=Path, default=Path("region-chat-demo.png"),
                      help="where to write the annotated picture (default: %(default)s)")  # fmt: skip
    app = _command(commands, "app", "serve the web page", "region-chat app --port 7860", exit_codes=APP_CODES)
    app.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    app.add_argument("--port", type=int, help="default: the first free one from 7860")
    app.add_argument("--allowed_host", action="append", default=[], metavar="NAME",
                     help="another name under which the page answers, such as a proxy's; you may repeat this")  # fmt: skip
    app.add_argument("--max_file_mb", type=float, default=10, help="of a picture's file (default: %(default)s)")
    app.add_argument("--max_megapixels", type=float, default=16, help="of a picture (default: %(default)s)")
    app.add_argument("--queue", type=int, default=40, help="questions that may wait at once (default: %(default)s)")
    _add_model_flags(app)
    return run_command(parser, {"ask": _ask, "chat": _chat, "demo": _demo, "app": _app}, argv)


def _command(
    commands: Any, name: str, words: str, *examples: str, exit_codes: str = EXIT_CODES
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=words,
        epilog="examples:\n  " + "\n  ".join(examples) + f"\n\n{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default=DEMO, help=f"name, folder or Hub repository of a bridge (default: {DEMO})")
    group.add_argument("--mode", choices=("tokens", "described"), default="tokens",
                       help="described: --model is any instruct language model, which reads what TAP says")  # fmt: skip
    group.add_argument("--region_tokenizer", help="name, folder or Hub repository; described needs it")
    group.add_argument("--device", help="cpu, cuda or mps (default: cpu)")
    group.add_argument("--dtype", help="of the language model (default: as it was saved)")
    group.add_argument("--max_new_tokens", type=int, default=64, help="of an answer (default: %(default)s)")


def _load(arguments: argparse.Namespace) -> RegionChat:
    from .chat import RegionChat

    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens is {arguments.max_new_tokens}, expected 1 or more.")
    chat = RegionChat.from_pretrained(
        arguments.model,
        mode=arguments.mode,
        region_tokenizer=arguments.region_tokenizer,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    chat.warns_of_limitation = False  # the commands show it beside every answer
    return chat


# --- ask --------------------------------------------------------------------------------------------------------------


def _ask(arguments: argparse.Namespace) -> int:
    from tap_tokenizer import RegionPrompt, draw_regions, load_rgb

    from .chat_markup import user_content

    if arguments.image.is_dir():
        return _ask_folder(arguments)
    if arguments.boxes is not None or arguments.output is not None:
        raise ValueError(
            "--boxes and --output are for a folder of pictures: give --box, --point or --mask for one picture."
        )
    prompts = prompts_of(arguments)
    check_picture_path(arguments.save, inputs_of(arguments))
    if not prompts:
        raise ValueError("Got no region to ask about: give --box X1 Y1 X2 Y2, --point X Y or --mask PICTURE.")
    user_content(arguments.question, RegionPrompt.read_lists(**prompts))
    picture = load_rgb(arguments.image)  # all is refused before a model is loaded
    chat = _load(arguments)
    answer = chat.ask(arguments.question, image=picture, max_new_tokens=arguments.max_new_tokens, **prompts)
    if arguments.save is not None:
        save_picture(draw_regions(picture, chat.regions()), arguments.save)
    if arguments.json:
        height, width = picture.shape[:2]
        record = {"image": str(arguments.image), **_settings(chat, arguments), "width": width, "height": height}
        print(json.dumps({**record, **_said(chat, answer)}, ensure_ascii=False))
    else:
        print(answer)
    tell_limitation(chat.limitation)
    return 0


def _ask_folder(arguments: argparse.Namespace) -> int:
    """One question of every picture of a table, about all its regions."""
    from tap_tokenizer import PictureRegions, RegionPrompt, read_region_table, write_records

    from .chat_markup import user_content

    if arguments.json or arguments.save is not None or arguments.regions:
        raise ValueError(
            "--json, --save, --box, --point and --mask are for one picture: a folder is written to --output."
        )
    if arguments.boxes is None or arguments.output is None:
        raise ValueError("A folder needs its regions, --boxes boxes.csv, and a file to write, --output answers.jsonl.")
    check_new(arguments.output)
    pictures = read_region_table(arguments.boxes, arguments.image)
    each = arguments.question.count("<region>") or None
    for picture in pictures:
        if each not in (None, 1, len(picture.regions)):
            raise ValueError(
                f"The question has {each} <region> and {picture.image} has {len(picture.regions)} regions in the table: "
                "write one <region>, to ask of each, or as many as every picture has."
            )
        try:
            prompts = RegionPrompt.read_lists(**picture.prompts)
            user_content(arguments.question, prompts[:1] if each == 1 else prompts)
        except ValueError as error:
            raise ValueError(f"{picture.image} has {len(picture.regions)} regions in the table: {error}") from None
    chat = _load(arguments)

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        """With one <region> in the question, each region is asked about by itself; else all are, at once."""
        groups = [[region] for region in picture.regions] if each == 1 else [picture.regions]
        said = []
        for group in groups:
            chat.reset()
            part = PictureRegions(picture.image, picture.path, group)
            answer = chat.ask(arguments.question, image=pixels, max_new_tokens=arguments.max_new_tokens, **part.prompts)
            said.append({"regions": group, "answer": answer})
        return {"answers": said}

    skip = arguments.skip_unreadable
    unread = write_records(arguments.output, pictures, _settings(chat, arguments), record, skip_unreadable=skip)
    tell_limitation(chat.limitation)
    return tell_folder(arguments.output, len(pictures), unread, skip)


def _settings(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "mode": chat.mode,
        "region_tokenizer": chat.region_tokenizer.fingerprint,
        "max_new_tokens": arguments.max_new_tokens,
        "question": arguments.question,
    }


def _said(chat: RegionChat, answer: Any) -> dict[str, Any]:
    """The answer, and what TAP itself says of each region."""
    regions = []
    for box, own in zip(chat.regions().boxes.tolist(), chat.baseline()):
        concepts = [{"name": name, "score": round(score, 4)} for name, score in own.concepts]
        regions.append(
            {"name": own.name, "box": [round(x, 2) for x in box], "caption": own.caption, "concepts": concepts}
        )
    return {"answer": answer, "regions": regions}


# --- chat -------------------------------------------------------------------------------------------------------------

CHAT_HELP = """Write a question, with <region> for each new region; region1, region2, … are those you asked about before.
  /box X1 Y1 X2 Y2 · /point X Y · /mask PICTURE   a region for the next question · /undo   take it back
  /save PICTURE   draw the regions · /json FILE   write the conversation · /new   start a new chat · /quit"""


def _chat(arguments: argparse.Namespace) -> None:
    from tap_tokenizer import load_rgb

    regions = list(arguments.regions or [])
    inputs = inputs_of(arguments)
    picture = load_rgb(arguments.image)
    size = picture.shape[:2]
    region_prompts(regions, size)  # refused before a model is loaded
    chat = _load(arguments)
    for region in regions:
        _try_region(picture, region)
    print(f"{arguments.image}: {picture.shape[1]} × {picture.shape[0]} pixels. {CHAT_HELP}")
    while (line := _next_line()) is not None:
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _obey(line, chat, picture, regions, inputs)
            elif line:
                _check_marked(line, chat, len(regions))
                pieces = chat.ask(
                    line,
                    image=picture,
                    stream=True,
                    max_new_tokens=arguments.max_new_tokens,
                    **region_prompts(regions, size),
                )
                for piece in pieces:
                    print(piece, end="", flush=True)
                print(flush=True)
                tell_limitation(chat.limitation)
                regions.clear()
        except (ValueError, OSError) as error:
            print(error)


def _check_marked(question: str, chat: RegionChat, new: int) -> None:
    """Refuse a question with more or fewer <region> than regions wait for one, in words of the commands that mark them."""
    marks = "/box X1 Y1 X2 Y2, /point X Y or /mask PICTURE marks one"
    if not new and not chat._regions and not chat.sees_pictures:
        raise ValueError(f"No region is marked yet: {marks}; then ask.")
    spoken = question.count("<region>")
    waiting = "no new region is" if not new else "1 new region is" if new == 1 else f"{new} new regions are"
    if spoken > new:
        earlier = ", or speak of one that you asked about before by its name, as in region1" if chat._regions else ""
        raise ValueError(f"The question has {spoken} <region>, and {waiting} marked: {marks}{earlier}.")
    if 0 < spoken < new:
        raise ValueError(
            f"The question has {spoken} <region>, and {waiting} marked: write <region> once for each, or take the others "
            "back with /undo."
        )


def _next_line() -> str | None:
    """A line of input without its ends, or None when there is no more."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _obey(line: str, chat: RegionChat, picture: np.ndarray, regions: list[tuple[str, Any]], inputs: list[Path]) -> None:
    """Do what a line that begins with a slash says; `inputs` are files that must stay as they are."""
    name, _, rest = line[1:].partition(" ")
    words = rest.split()
    if name in ("box", "point"):
        count = 4 if name == "box" else 2
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) != count:
            raise ValueError(f"Got /{name} {rest}, expected {count} numbers in pixels of the picture.")
        _try_region(picture, (name, values))
        regions.append((name, values))
    elif name == "mask" and rest:
        _try_region(picture, ("mask", Path(rest)))
        regions.append((name, Path(rest)))
        inputs.append(Path(rest))
    elif name == "undo":
        if not regions:
            raise ValueError(
                "There is no region that waits for a question: /undo takes back the last /box, /point or /mask."
            )
        kind, value = regions.pop()
        print(f"Took back /{kind} {value if kind == 'mask' else ' '.join(f'{number:g}' for number in value)}.")
    elif name == "save" and rest:
        check_picture_path(Path(rest), inputs)
        if chat.image is None:
            raise ValueError("There is nothing to draw yet: ask about a region first.")
        from tap_tokenizer import draw_regions

        save_picture(draw_regions(chat.image, chat.regions()), Path(rest))
        print(f"Wrote {rest}.")
    elif name == "json" and rest:
        messages = [{"role": role, "content": content} for role, content in chat.history]
        check_not_read(Path(rest), inputs)
        partial = Path(rest + ".partial")
        partial.write_text(json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        partial.replace(rest)
        print(f"Wrote {rest}.")
    elif name == "new":
        chat.reset()
        regions.clear()
    else:
        raise ValueError(CHAT_HELP)


def _try_region(picture: np.ndarray, region: tuple[str, Any]) -> None:
    """Refuse a region that no question could be asked about, as the region tokenizer does, before it waits for one."""
    from tap_tokenizer import RegionPrompt, prompts_in_picture

    height, width = picture.shape[:2]
    prompts = region_prompts([region], (height, width))
    prompts_in_picture(RegionPrompt.read_lists(**prompts), (height, width))


# --- demo and app -----------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> None:
    from PIL import Image

    from tap_tokenizer import draw_regions

    from .chat import RegionChat
    from .configuration_bridge import BUNDLED

    folder = BUNDLED / DEMO
    picture = folder / "demo.png"
    check_picture_path(arguments.output, [picture])
    questions = json.loads((folder / "demo.json").read_text())["questions"]
    chat = RegionChat.from_pretrained(DEMO)
    chat.warns_of_limitation = False  # printed below
    image = Image.open(picture)
    print(f"Picture: {picture} ({image.width} × {image.height})")
    print(
        "Models:  tap-tiny, the region tokenizer, and region-chat-tiny, a small language model that reads its tokens."
    )
    print(
        "         Both were trained on GlyphScenes and know nothing but such pictures: coloured glyphs on backgrounds.\n"
    )
    for question in questions:
        chat.reset()
        answer = chat.ask(question["text"], image=image, boxes=question["boxes"])
        print(f"Q: {chat.history[0][1]}")
        print(f"A: {answer}")
        for baseline, box in zip(chat.baseline(top_k=1), question["boxes"]):
            name, score = baseline.concepts[0]
            where = " ".join(f"{x:.0f}" for x in box)
            print(
                f'   {baseline.name} is the box {where}; TAP itself: "{baseline.caption}", concept {name} ({score:.0%})'
            )
        print()
    boxes = [box for question in questions for box in question["boxes"]]
    boxes = [box for i, box in enumerate(boxes) if box not in boxes[:i]]
    regions = chat.region_tokenizer.encode(image, boxes=boxes)
    save_picture(
        draw_regions(image, regions, labels=chat.region_tokenizer.caption(regions), opacity=0.25), arguments.output
    )
    print(f"Wrote {arguments.output}: the regions with TAP's masks and captions.")


def _app(arguments: argparse.Namespace) -> None:
    from .page.app import load_gradio, serve
    from .page.input import PageLimits

    load_gradio()  # refused before a model is loaded
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise ValueError(f"Got --port {arguments.port}: expected 1 to 65535, or leave it out.")
    for name in ("max_file_mb", "max_megapixels"):
        if not 1e-6 <= getattr(arguments, name) < math.inf:
            raise ValueError(f"Got --{name} {getattr(arguments, name)}: expected a number of millions above 0.")
    _check_address(arguments.host, arguments.port)
    limits = PageLimits(
        file_bytes=int(arguments.max_file_mb * 1e6),
        pixels=int(arguments.max_megapixels * 1e6),
        queue=arguments.queue,
        new_tokens=arguments.max_new_tokens,
    )
    chat = _load(arguments)
    try:
        page, address = serve(
            chat,
            host=arguments.host,
            port=arguments.port,
            limits=limits,
            allowed_hosts=arguments.allowed_host,
            block=False,
        )
    except OSError:
        raise ValueError(
            f"Port {arguments.port or 'from 7860 on'} of {arguments.host} cannot be had: give another --port."
        ) from None
    try:
        print(f"The page is at {address} (Ctrl+C ends it).", flush=True)
        page.block_thread()  # which hears Ctrl+C itself
    except KeyboardInterrupt:  # a moment before
        page.close(verbose=False)


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be listened at, before a model is loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server((address[0], address[1]), family=family).close()
    except OSError as error:
        raise ValueError(
            f"{host}{f', port {port},' if port else ''} cannot be listened at ({error}): give another --host or --port."
        ) from None
