"""What the commands here share about the region tokenizer: which one, its words, and how it searches a picture."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .everything_options import EverythingOptions

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from .region_tokenizer import TapRegionTokenizer

DEFAULT = "tap-tiny"
_NAMES = ("variant", "concepts", "text_tokenizer", "text_encoder", "device", "dtype", "encoder_precision")


def add_model_flags(parser: argparse.ArgumentParser, *, of_index: bool = False) -> None:
    """Add --model and what belongs to it; of_index: the default is an index's, and nothing is captioned or named."""
    group = parser.add_argument_group("the model")
    default = None if of_index else DEFAULT
    told = "the index's" if of_index else DEFAULT
    group.add_argument("--model", default=default, help=f"name, folder, checkpoint or Hub repository (default: {told})")
    group.add_argument("--variant", help="checkpoint in the original's repository, e.g. tap_vit_l_v1_1")
    group.add_argument("--concepts", help="a concept file, or its name in the original's repository")
    if not of_index:
        group.add_argument("--vocabulary", metavar="WORDS",
                           help="concepts of your own instead, separated by commas; needs a text encoder")  # fmt: skip
        group.add_argument("--text_tokenizer", help="the caption vocabulary: a file, a folder or a Hub repository")
    group.add_argument(
        "--text_encoder",
        help="for words: the encoder that the weights were trained to match, a folder or a Hub repository (default: what was "
        "saved with the model)",
    )
    group.add_argument("--device", help="cpu, cuda or mps (default: cpu)")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32)")
    group.add_argument("--encoder_precision", default="float32", choices=("float32", "int8"),
                       help="in int8, a CPU encodes pictures in a fraction of the time, and a little differently")  # fmt: skip


def load_tokenizer(arguments: argparse.Namespace) -> TapRegionTokenizer:
    """The region tokenizer that the flags name; words of --vocabulary become its concepts."""
    from .region_tokenizer import TapRegionTokenizer

    given = getattr(arguments, "vocabulary", None)
    words = None if given is None else [word.strip() for word in given.split(",")]
    if words is not None and (arguments.concepts is not None or not all(words)):
        raise ValueError(f"--vocabulary is {given!r}, expected words separated by commas, and no --concepts beside it.")
    options: dict[str, Any] = {name: value for name in _NAMES if (value := getattr(arguments, name, None)) is not None}
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.model, **options)
    if words is not None:
        tokenizer.concepts = tokenizer.concept_bank(words)
    return tokenizer


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `EverythingOptions`."""
    group = parser.add_argument_group("the search, as in transformers' mask generation")
    for option in fields(EverythingOptions):
        if isinstance(option.default, bool):
            group.add_argument(
                f"--{option.name}", action="store_true", help="ask every point at full resolution: slower"
            )
            continue
        kind = int if isinstance(option.default, int) else float
        group.add_argument(
            f"--{option.name}", type=kind, default=option.default, metavar="N", help="default: %(default).4g"
        )


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a search, checked."""
    options = {option.name: getattr(arguments, option.name) for option in fields(EverythingOptions)}
    EverythingOptions(**options)
    return options
