"""What the commands here share about the model: which one, how it is loaded, and what is written of it beside answers."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tap_tokenizer import install_command

from .default_bridge import DEFAULT_BRIDGE, SMALL_BRIDGE

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from .chat import RegionChat


def add_model_flags(parser: argparse.ArgumentParser, new_tokens: int | None = 64, length: str = "%(default)s") -> None:
    """Add --model and what belongs to it; new_tokens: the default length of an answer, `length` in words."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", help=f"name, folder or Hub repository of a bridge (default: {DEFAULT_BRIDGE})")
    group.add_argument("--mode", choices=("tokens", "described"), default="tokens",
                       help="described: --model is any instruct language model, which reads what TAP says")  # fmt: skip
    group.add_argument("--region_tokenizer", help="name, folder or Hub repository; described needs it")
    group.add_argument("--device", help="cpu, cuda or mps (default: cpu)")
    group.add_argument(
        "--dtype", help="dtype of the language model (default: as it was saved, if the CPU multiplies that)"
    )
    group.add_argument("--encoder_precision", default="float32", choices=("float32", "int8"),
                       help="in int8, a CPU encodes pictures in a fraction of the time, and a little differently")  # fmt: skip
    group.add_argument(
        "--max_new_tokens", type=int, default=new_tokens, help=f"length of an answer, at most (default: {length})"
    )


def load_chat(arguments: argparse.Namespace) -> RegionChat:
    """A conversation with the model that the flags name, which warns of nothing by itself.

    Without a name, `arguments.model` becomes that of the default. Raises `OSError` if its language model is not on this
    machine, and `ValueError` for flags that do not go together.
    """
    from .chat import RegionChat

    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens is {arguments.max_new_tokens}, expected 1 or more.")
    check_model_flags(arguments)
    if arguments.model is None:
        if (absence := _absence()) is not None:
            raise OSError(f"{absence}. Or use the small model that needs nothing else: --model {SMALL_BRIDGE}.")
        arguments.model = DEFAULT_BRIDGE
    chat = RegionChat.from_pretrained(
        arguments.model,
        mode=arguments.mode,
        region_tokenizer=arguments.region_tokenizer,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    chat.region_tokenizer.model.encoder_precision = arguments.encoder_precision
    chat.warns_of_limitation = chat.warns_of_finding = False  # the commands show them beside every answer
    return chat


def bridge_at_hand() -> str:
    """The default bridge; if its language model is not on this machine, the small one, and a line on stderr says so."""
    absence = _absence()
    if absence is None:
        return DEFAULT_BRIDGE
    sys.stderr.write(f"{absence}. Until then {SMALL_BRIDGE} answers, whose language model knows a few hundred words.\n")
    return SMALL_BRIDGE


def check_model_flags(arguments: argparse.Namespace) -> None:
    """Refuse the mode that needs a language model where none is named."""
    if arguments.mode == "described" and arguments.model is None:
        raise ValueError("--mode described needs an instruct language model: give its name or folder as --model.")


def _absence() -> str | None:
    """What the default bridge lacks on this machine, and what installs it; None if it lacks nothing."""
    from .configuration_bridge import SMOLLM2  # with which the name is known

    command = install_command(SMOLLM2)
    if command is None and find_spec("peft") is None:
        command = "pip install peft"
    return None if command is None else f"{DEFAULT_BRIDGE} lacks what it needs on this machine. Install it: {command}"


def settings_of(chat: RegionChat, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is written of the model beside its answers."""
    settings = {
        "model": arguments.model,
        "mode": chat.mode,
        "region_tokenizer": chat.region_tokenizer.fingerprint,
        "max_new_tokens": arguments.max_new_tokens,
    }
    if arguments.encoder_precision != "float32":  # without it, as it was before there was a choice
        settings["encoder_precision"] = arguments.encoder_precision
    return settings
