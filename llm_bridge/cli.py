"""The command line: `region-chat ask`, `find`, `chat`, `demo`, `app`, `serve` and `vllm`.

It prints and writes files. Everything else it does is a single call of the library.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import (
    add_command,
    add_output_flags,
    add_prompt_flags,
    check_folder_of_pictures,
    check_new,
    check_one_picture,
    check_picture_path,
    inputs_of,
    prompts_of,
    region_prompts,
    run_command,
    save_picture,
    tell_folder,
    tell_limitation,
)

from .listening import add_listening_flags, check_listening, is_loopback

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    import numpy as np

    from tap_tokenizer import PictureRegions

    from .chat import RegionChat

DEMO = "region-chat-tiny"
TOKEN = "REGION_CHAT_TOKEN"
UPSTREAM_KEY = "UPSTREAM_API_KEY"
STUDIO_TOKEN = "LABEL_STUDIO_API_KEY"
EXIT_CODES = "0 done, 2 bad input, 130 interrupted"
ASK_CODES = "0 done, 2 bad input, 3 some pictures of a folder could not be read, 130 interrupted"
SERVE_CODES = "0 when Ctrl+C ends the server, 2 bad input, 130 interrupted before there was a server"
APP_CODES = "0 when Ctrl+C ends the page, 2 bad input, 130 interrupted before there was a page"


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code, which is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="region-chat",
        description="Ask a language model about regions of a picture.",
        epilog=f"exit codes: {ASK_CODES}",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ask = add_command(
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
    find = add_command(
        commands,
        "find",
        "find what words mean in a picture or in a folder of pictures, or that there is no such thing",
        'region-chat find picture.png "the red umbrella"',
        'region-chat find picture.png "the larger one" --box 177 392 271 470 --box 361 233 436 307 --save found.png',
        'region-chat find pictures "the red umbrella" --boxes boxes.csv --output found.json',
        exit_codes=ASK_CODES,
    )
    find.add_argument("image", type=Path, help="the picture, or a folder of pictures")
    find.add_argument("phrase", nargs="?", help='what to find, such as "the red umbrella"')
    find.add_argument("--phrases", type=Path, metavar="CSV",
                      help="for a folder, instead of one phrase: a table, image,phrase, a row per phrase")  # fmt: skip
    add_prompt_flags(find)
    group = find.add_argument_group(
        "how it is found", "Without --box, --point or --mask, everything in the picture may be it."
    )
    group.add_argument("--most", type=int, metavar="N",
                       help="ask about so many regions at once (default: as many as the model can read)")  # fmt: skip
    group.add_argument("--threshold", type=float, metavar="P",
                       help='find nothing if "none" is more probable than this, and else something (default: what was '
                       "saved with the model, or as its answer says)")  # fmt: skip
    find.add_argument(
        "--json", action="store_true", help="print one JSON object, with masks, instead of a line per region"
    )
    add_output_flags(find, coco=True)
    _add_model_flags(find, "which was not taught to find anything")
    chat = add_command(
        commands,
        "chat",
        "talk about regions of a picture, line by line",
        "region-chat chat picture.png --box 177 392 271 470",
        exit_codes=EXIT_CODES,
    )
    chat.add_argument("image", type=Path, help="the picture")
    add_prompt_flags(chat, folders=False)
    _add_model_flags(chat)
    demo = add_command(
        commands, "demo", "ask the bundled models about the bundled picture", "region-chat demo", exit_codes=EXIT_CODES
    )
    demo.add_argument("--output", type=Path, default=Path("region-chat-demo.png"),
                      help="where to write the annotated picture (default: %(default)s)")  # fmt: skip
    app = add_command(commands, "app", "serve the web page", "region-chat app --port 7860", exit_codes=APP_CODES)
    app.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    add_listening_flags(app, "the page", queue=40)
    _add_model_flags(app)
    serve = add_command(
        commands,
        "serve",
        "answer OpenAI's clients, X-AnyLabeling and Label Studio",
        "region-chat serve --port 8000",
        f"{TOKEN}=… region-chat serve --host 0.0.0.0",
        exit_codes=SERVE_CODES,
    )
    serve.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    add_listening_flags(serve, "the server", queue=32)
    serve.add_argument("--seconds", type=float, default=120,
                       help="how long a request may wait and be worked on (default: %(default)s)")  # fmt: skip
    serve.add_argument("--cache_mb", type=float, default=500,
                       help="memory for the latest pictures, which are encoded once, in MB (default: %(default)s)")  # fmt: skip
    serve.add_argument("--upstream", metavar="URL",
                       help="a server such as vLLM that runs the language model of --model: http://127.0.0.1:8001/v1; "
                       f"{UPSTREAM_KEY} in the environment is its key, if it wants one")  # fmt: skip
    serve.add_argument("--label_studio", metavar="URL",
                       help=f"Label Studio, to fetch pictures of tasks with the access token in {STUDIO_TOKEN}")  # fmt: skip
    _add_model_flags(serve)
    serve.set_defaults(max_new_tokens=512)
    serve.epilog = (
        f"{serve.epilog}\n\nenvironment: {TOKEN}, 16 characters or more, is a token that every request must bring"
    )
    vllm = add_command(
        commands,
        "vllm",
        "print the command that serves a bridge's language model with vLLM, for RegionChat.from_server",
        "region-chat vllm my-bridge",
        "region-chat vllm region-chat-tiny --output served",
        exit_codes=EXIT_CODES,
    )
    vllm.add_argument("bridge", help="name, folder or Hub repository of a bridge")
    vllm.add_argument("--output", type=Path, metavar="FOLDER",
                      help="where to write the language model of a bridge that holds its own; a new folder")  # fmt: skip
    doers: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "ask": _ask,
        "find": _find,
        "chat": _chat,
        "demo": _demo,
        "app": _app,
        "serve": _serve,
        "vllm": _vllm,
    }
    return run_command(parser, doers, argv)


def _add_model_flags(parser: argparse.ArgumentParser, about_default: str = "") -> None:
    group = parser.add_argument_group("the model")
    default = ", ".join(filter(None, (DEMO, about_default)))
    group.add_argument("--model", default=DEMO, help=f"name, folder or Hub repository of a bridge (default: {default})")
    group.add_argument("--mode", choices=("tokens", "described"), default="tokens",
                       help="described: --model is any instruct language model, which reads what TAP says")  # fmt: skip
    group.add_argument("--region_tokenizer", help="name, folder or Hub repository; described needs it")
    group.add_argument("--device", help="cpu, cuda or mps (default: cpu)")
    group.add_argument(
        "--dtype", help="dtype of the language model (default: as it was saved, if the CPU multiplies that)"
    )
    group.add_argument(
        "--max_new_tokens", type=int, default=64, help="length of an answer, at most (default: %(default)s)"
    )


def _load_upstream(arguments: argparse.Namespace) -> RegionChat:
    from .chat import RegionChat

    if arguments.mode != "tokens" or arguments.dtype is not None:
        raise ValueError("--mode described and --dtype are for a language model here: leave them out with --upstream.")
    return RegionChat.from_server(
        arguments.upstream,
        bridge=arguments.model,
        api_key=os.environ.get(UPSTREAM_KEY),
        timeout=arguments.seconds,
        region_tokenizer=arguments.region_tokenizer,
        device=arguments.device,
    )


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
    chat.warns_of_limitation = chat.warns_of_finding = False  # the commands show them beside every answer
    return chat


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
    chat = _load(arguments)
    answer = chat.ask(arguments.question, image=picture, max_new_tokens=arguments.max_new_tokens, prompts=prompts)
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
                f"The question has {each} <region> and {picture.image} has {len(picture.regions)} regions in the table: "
                "write one <region>, to ask of each, or as many as every picture has."
            )
        try:
            user_content(arguments.question, picture.prompts[:1] if each == 1 else picture.prompts)
        except ValueError as error:
            raise ValueError(f"{picture.image} has {len(picture.regions)} regions in the table: {error}") from None
    chat = _load(arguments)

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        """With one <region> in the question, each region is asked about by itself; else all are, at once."""
        count = len(picture.regions)
        said = []
        for group in [slice(i, i + 1) for i in range(count)] if each == 1 else [slice(count)]:
            chat.reset()
            options = {"image": pixels, "max_new_tokens": arguments.max_new_tokens, "prompts": picture.prompts[group]}
            said.append({"regions": picture.regions[group], "answer": chat.ask(arguments.question, **options)})
        return {"answers": said}

    skip = arguments.skip_unreadable
    unread = write_records(arguments.output, pictures, _settings(chat, arguments), record, skip_unreadable=skip)
    tell_limitation(chat.limitation)
    return tell_folder(arguments.output, len(pictures), unread, skip)


def _settings(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    asked = "phrase" if arguments.command == "find" else "question"
    return {
        "model": arguments.model,
        "mode": chat.mode,
        "region_tokenizer": chat.region_tokenizer.fingerprint,
        "max_new_tokens": arguments.max_new_tokens,
        asked: getattr(arguments, asked),
    }


def _said(chat: RegionChat, answer: Any) -> dict[str, Any]:
    """The answer, and what TAP itself says of each region."""
    regions = []
    for box, own in zip(chat.regions().boxes.tolist(), chat.baseline()):
        concepts = [{"name": name, "score": round(score, 4)} for name, score in own.concepts]
        regions.append(
            {"name": own.name, "box": [round(x, 2) for x in box], "caption": own.caption, "concepts": concepts}
        )
    return {"answer": answer, "mentioned": list(chat.mentioned(answer)), "regions": regions}


# --- find -------------------------------------------------------------------------------------------------------------


def _find(arguments: argparse.Namespace) -> int:
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
    chat = _load(arguments)
    options = {name: getattr(arguments, name) for name in ("most", "threshold", "max_new_tokens")}
    found = chat.find(arguments.phrase, image=picture, prompts=prompts, **options)
    shares = found.probabilities.tolist()
    if arguments.save is not None:
        save_picture(draw_regions(picture, found, labels=[f"{share:.0%}" for share in shares]), arguments.save)
    if arguments.json:
        height, width = picture.shape[:2]
        record = {"image": str(arguments.image), **_settings(chat, arguments), "width": width, "height": height}
        print(json.dumps({**record, **found_record(found)}, ensure_ascii=False))
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
    chat = _load(arguments)
    options = {name: getattr(arguments, name) for name in ("most", "threshold", "max_new_tokens")}

    def record(picture: PictureRegions, pixels: np.ndarray) -> dict[str, Any]:
        height, width = pixels.shape[:2]
        candidates = Candidates.of(chat.processor, pixels, picture.prompts if table is not None else None)
        found = [
            {"phrase": phrase,
             **found_record(find_among(chat.model, chat.processor, pixels, phrase, candidates, **options))}
            for phrase in asked[picture.image]
        ]  # fmt: skip
        return {"width": width, "height": height, "found": found}

    settings = {name: value for name, value in _settings(chat, arguments).items() if name != "phrase"}
    lines = output if output.suffix == ".jsonl" else output.with_name(f"{output.name}.lines")
    skip = arguments.skip_unreadable
    given = {"phrases": asked, "most": arguments.most, "threshold": arguments.threshold}
    unread = write_records(lines, pictures, settings, record, given, skip_unreadable=skip)
    if lines != output and lines.exists():  # complete
        write_coco(lines, output)
    _tell_finding(chat)
    return tell_folder(output, len(pictures), unread, skip)


def _tell_finding(chat: RegionChat) -> None:
    """Print on the error stream what the models cannot do, and if they were not taught to find anything."""
    tell_limitation(chat.limitation)
    tell_limitation(chat.finding_limitation)


# --- chat, demo and app -----------------------------------------------------------------------------------------------


def _chat(arguments: argparse.Namespace) -> None:
    from tap_tokenizer import load_rgb

    from .terminal_chat import HELP, TerminalChat

    picture = load_rgb(arguments.image)
    regions = arguments.regions or []
    region_prompts(regions, (picture.shape[0], picture.shape[1]))  # refused before a model is loaded
    chat = TerminalChat(_load(arguments), picture, inputs_of(arguments), arguments.max_new_tokens)
    for kind, value in regions:
        chat.mark(kind, value)
    print(f"{arguments.image}: {picture.shape[1]} × {picture.shape[0]} pixels. {HELP}")
    chat.run()


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
        draw_regions(
            image,
            regions,
            labels=chat.region_tokenizer.caption(regions),
        ),
        arguments.output,
    )
    print(f"Wrote {arguments.output}: the regions with TAP's masks and captions.")


def _app(arguments: argparse.Namespace) -> None:
    from .page.app import check_server, serve
    from .page.input import PageLimits

    check_server()  # refused before a model is loaded
    check_listening(arguments)
    limits = PageLimits(
        file_bytes=int(arguments.max_file_mb * 1e6),
        pixels=int(arguments.max_megapixels * 1e6),
        queue=arguments.queue,
        new_tokens=arguments.max_new_tokens,
    )
    chat = _load(arguments)
    try:
        page = serve(
            chat, host=arguments.host, port=arguments.port, limits=limits, allowed_hosts=arguments.allowed_host
        )
    except OSError:
        raise ValueError(
            f"Port {arguments.port or 'from 7860 on'} of {arguments.host} is not available: give another --port."
        ) from None
    try:
        print(f"The page is at {page.address} (Ctrl+C ends it).", flush=True)
        page.wait()
    except KeyboardInterrupt:
        page.close()


def _serve(arguments: argparse.Namespace) -> None:
    try:
        from .serving.server import serve
    except ImportError as error:
        if error.name in ("pydantic", "starlette", "uvicorn", "h11", "contourpy"):
            raise ImportError(
                "The server needs the extra serve of tap-bridge: pip install 'starlette>=0.46' 'uvicorn>=0.34' "
                "'pydantic>=2.10' 'contourpy>=1.3'."
            ) from None
        raise
    from .serving.label_studio_files import LabelStudioFiles
    from .serving.limits import ServerLimits

    token = os.environ.get(TOKEN)
    if token is not None and not (len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{TOKEN} is no safe token: give 16 or more letters and digits, or leave it out.")
    if token is None and not is_loopback(arguments.host):
        raise ValueError(
            f"--host {arguments.host} lets other machines in: put a token of 16 or more letters and digits into the "
            f"environment variable {TOKEN}, which every request must bring then."
        )
    check_listening(arguments)
    limits = ServerLimits(
        file_bytes=int(arguments.max_file_mb * 1e6),
        pixels=int(arguments.max_megapixels * 1e6),
        queue=arguments.queue,
        seconds=arguments.seconds,
        new_tokens=arguments.max_new_tokens,
        cache_bytes=int(arguments.cache_mb * 1e6),
    )
    files = LabelStudioFiles(arguments.label_studio, os.environ.get(STUDIO_TOKEN), limits.file_bytes)
    chat = _load(arguments) if arguments.upstream is None else _load_upstream(arguments)
    name = Path(arguments.model).name
    print(f"{name} answers at http://{arguments.host}:{arguments.port}/v1 (Ctrl+C ends it).", flush=True)
    tell_limitation(chat.limitation)
    serve(
        chat,
        name,
        host=arguments.host,
        port=arguments.port,
        limits=limits,
        allowed_hosts=arguments.allowed_host,
        token=token,
        files=files,
    )


# --- vllm -------------------------------------------------------------------------------------------------------------


def _vllm(arguments: argparse.Namespace) -> None:
    from .serving.vllm_command import vllm_command

    print(shlex.join(vllm_command(arguments.bridge, arguments.output)))
