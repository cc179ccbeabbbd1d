"""`region-chat serve` and `vllm`: flags of the server, and of the command that starts another for the language model."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import EXIT_CODES, add_command, tell_limitation

from ..default_bridge import DEFAULT_BRIDGE
from ..listening import add_listening_flags, check_listening, is_loopback, limits_of
from ..model_flags import add_model_flags, load_chat

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from ..chat import RegionChat

TOKEN = "REGION_CHAT_TOKEN"
UPSTREAM_KEY = "UPSTREAM_API_KEY"
STUDIO_TOKEN = "LABEL_STUDIO_API_KEY"
SERVE_CODES = "0 when Ctrl+C ends the server, 2 bad input, 130 interrupted before there was a server"


def add_serve_commands(commands: Any) -> None:
    """Add `serve` and `vllm`."""
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
    serve.add_argument("--memory_mb", type=float, default=250,
                       help="memory for what the language model has read of the latest prompts, in MB; 0: it reads all anew "
                       "(default: %(default)s)")  # fmt: skip
    serve.add_argument("--upstream", metavar="URL",
                       help="a server such as vLLM that runs the language model of --model: http://127.0.0.1:8001/v1; "
                       f"{UPSTREAM_KEY} in the environment is its key, if it wants one")  # fmt: skip
    serve.add_argument("--label_studio", metavar="URL",
                       help=f"Label Studio, to fetch pictures of tasks with the access token in {STUDIO_TOKEN}")  # fmt: skip
    add_model_flags(serve)
    serve.set_defaults(max_new_tokens=512)
    serve.epilog = (
        f"{serve.epilog}\n\nenvironment: {TOKEN}, 16 characters or more, is a token that every request must bring"
    )
    vllm = add_command(
        commands,
        "vllm",
        "print the command that serves a bridge's language model with vLLM, for RegionChat.from_server",
        "region-chat vllm my-bridge --port 8001",
        'eval "$(region-chat vllm region-chat-smollm2)"',
        exit_codes=EXIT_CODES,
    )
    vllm.add_argument("bridge", help="name, folder or Hub repository of a bridge")
    vllm.add_argument("--output", type=Path, metavar="FOLDER",
                      help="where to write the language model of a bridge that holds its own; a new folder")  # fmt: skip
    vllm.add_argument("--host", default="127.0.0.1",
                      help="address to listen on; vLLM trusts whoever reaches it (default: only this machine)")  # fmt: skip
    vllm.add_argument("--port", type=int, default=8000, help="port that vLLM listens on (default: %(default)s)")


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl+C."""
    try:
        from .server import serve
    except ImportError as error:
        if error.name in ("pydantic", "starlette", "uvicorn", "h11", "contourpy"):
            raise ImportError(
                "The server needs the extra serve of tap-bridge: pip install 'starlette>=1' 'uvicorn>=0.34' "
                "'pydantic>=2.10' 'contourpy>=1.3'."
            ) from None
        raise
    from .label_studio_files import LabelStudioFiles
    from .limits import ServerLimits

    token = os.environ.get(TOKEN)
    if token is not None and not (len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{TOKEN} is not a safe token: give 16 or more letters and digits, or leave it out.")
    if token is None and not is_loopback(arguments.host):
        raise ValueError(
            f"--host {arguments.host} lets other machines in: put a token of 16 or more letters and digits into the "
            f"environment variable {TOKEN}, which every request must then send."
        )
    check_listening(arguments)
    limits = ServerLimits(
        **limits_of(arguments),
        seconds=arguments.seconds,
        cache_bytes=int(arguments.cache_mb * 1e6),
        memory_bytes=int(arguments.memory_mb * 1e6),
    )
    files = LabelStudioFiles(arguments.label_studio, os.environ.get(STUDIO_TOKEN), limits.file_bytes)
    chat = load_chat(arguments) if arguments.upstream is None else _load_upstream(arguments)
    name = Path(arguments.model or DEFAULT_BRIDGE).name
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


def _load_upstream(arguments: argparse.Namespace) -> RegionChat:
    from ..chat import RegionChat

    if arguments.mode != "tokens" or arguments.dtype is not None:
        raise ValueError("--mode described and --dtype are for a language model here: leave them out with --upstream.")
    chat = RegionChat.from_server(
        arguments.upstream,
        bridge=arguments.model or DEFAULT_BRIDGE,
        api_key=os.environ.get(UPSTREAM_KEY),
        timeout=arguments.seconds,
        region_tokenizer=arguments.region_tokenizer,
        device=arguments.device,
    )
    chat.region_tokenizer.model.encoder_precision = arguments.encoder_precision
    return chat


def run_vllm(arguments: argparse.Namespace) -> None:
    """Print the command, quoted for the shell."""
    from .vllm_command import vllm_command

    if not 0 < arguments.port < 65536:
        raise ValueError(f"Got --port {arguments.port}: expected 1 to 65535, or leave it out.")
    print(shlex.join(vllm_command(arguments.bridge, arguments.output, host=arguments.host, port=arguments.port)))
