"""What the commands here share about the model: which one, how it is loaded, and what is written of it beside answers."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tap_tokenizer import install_command, is_here

from .default_bridge import DEFAULT_BRIDGE, SMALL_BRIDGE

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from .chat import RegionChat


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model and what belongs to it."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", help=f"name, folder or Hub repository of a bridge (default: {DEFAULT_BRIDGE})")
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


def load_chat(arguments: argparse.Namespace) -> RegionChat:
    """A conversation with the model that the flags name, which warns of nothing by itself.

    Without a name, `arguments.model` becomes that of the default. Raises `OSError` if its language model cannot be had.
    """
    from .chat import RegionChat

    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens is {arguments.max_new_tokens}, expected 1 or more.")
    is_named = arguments.model is not None
    arguments.model = arguments.model or DEFAULT_BRIDGE
    try:
        chat = RegionChat.from_pretrained(
            arguments.model,
            mode=arguments.mode,
            region_tokenizer=arguments.region_tokenizer,
            device=arguments.device,
            dtype=arguments.dtype,
        )
    except OSError as error:
        if is_named:
            raise
        raise OSError(f"{error} Or use the small model that needs nothing else: --model {SMALL_BRIDGE}.") from error
    chat.warns_of_limitation = chat.warns_of_finding = False  # the commands show them beside every answer
    return chat


def bridge_at_hand() -> str:
    """The default bridge; if its language model is not on this machine, the small one, and a line on stderr says so."""
    from .configuration_bridge import SMOLLM2

    if is_here(SMOLLM2):
        return DEFAULT_BRIDGE
    sys.stderr.write(
        f"{DEFAULT_BRIDGE} needs {SMOLLM2}, which is not on this machine: {install_command(SMOLLM2)}. Until then "
        f"{SMALL_BRIDGE} answers, whose language model knows a few hundred words.\n"
    )
    return SMALL_BRIDGE


def settings_of(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is written of the model beside its answers."""
    return {
        "model": arguments.model,
        "mode": chat.mode,
        "region_tokenizer": chat.region_tokenizer.fingerprint,
        "max_new_tokens": arguments.max_new_tokens,
    }
