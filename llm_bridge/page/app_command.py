"""`region-chat app`: the flags of the web page, and what is refused before a model is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from tap_tokenizer import add_command

from ..listening import add_listening_flags, check_listening, limits_of
from ..model_flags import add_model_flags, bridge_at_hand, check_model_flags, load_chat

EXIT_CODES = "0 when Ctrl+C ends the page, 2 bad input, 130 interrupted before there was a page"


def add_app_command(commands: Any) -> None:
    """Add `app`."""
    app = add_command(commands, "app", "serve the web page", "region-chat app --port 7860", exit_codes=EXIT_CODES)
    app.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    add_listening_flags(app, "the page", queue=40)
    add_model_flags(app)


def run_app(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl+C."""
    from .app import check_server, serve
    from .input import PageLimits

    check_server()  # refused before a model is loaded
    check_listening(arguments)
    limits = PageLimits(**limits_of(arguments))
    check_model_flags(arguments)
    arguments.model = arguments.model or bridge_at_hand()
    chat = load_chat(arguments)
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
