"""What the commands here share about the model: which one, how it is loaded, and what is written of it beside answers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from .chat import RegionChat

DEFAULT = "region-chat-tiny"


def add_model_flags(parser: argparse.ArgumentParser, about_default: str = "") -> None:
    """Add --model and what belongs to it; about_default: what must be said of the default."""
    group = parser.add_argument_group("the model")
    default = ", ".join(filter(None, (DEFAULT, about_default)))
    group.add_argument(
        "--model", default=DEFAULT, help=f"name, folder or Hub repository of a bridge (default: {default})"
    )
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
    """A conversation with the model that the flags name, which warns of nothing by itself."""
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


def settings_of(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is written of the model beside its answers."""
    return {
        "model": arguments.model,
        "mode": chat.mode,
        "region_tokenizer": chat.region_tokenizer.fingerprint,
        "max_new_tokens": arguments.max_new_tokens,
    }
