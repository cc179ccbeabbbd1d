"""`tap-tokenizer export`: a folder with which other software, such as a browser, runs a region tokenizer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .flags import add_command, tell_limitation


def add_export_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser = add_command(
        commands,
        "export",
        "write ONNX graphs, which transformers.js runs in a browser as it runs SAM",
        "tap-tokenizer export tap-tiny --onnx tap-tiny-onnx",
        "tap-tokenizer export tap-vit-b --onnx tap-vit-b-onnx --precision int8",
        exit_codes="0 done, 2 bad input, 130 interrupted",
    )
    parser.add_argument("source", help="name, folder, checkpoint or Hub repository of a region tokenizer")
    parser.add_argument("--onnx", type=Path, required=True, metavar="FOLDER", help="where to write; must not exist")
    parser.add_argument(
        "--precision",
        choices=("float32", "int8"),
        default="float32",
        help="int8: files of half the size or less, and nearly the same numbers (default: float32)",
    )
    parser.add_argument("--variant", help="checkpoint in the original's repository, e.g. tap_vit_b_v1_1")
    parser.add_argument("--concepts", help="a concept file, or its name in the original's repository")


def run_export(arguments: argparse.Namespace) -> None:
    """Check the flags, load, export, and say what was written."""
    from .onnx_export import check_export, export_onnx
    from .region_tokenizer import TapRegionTokenizer

    check_export(arguments.onnx, arguments.precision)
    tokenizer = TapRegionTokenizer.from_pretrained(
        arguments.source, variant=arguments.variant, concepts=arguments.concepts
    )
    sizes = export_onnx(tokenizer, arguments.onnx, precision=arguments.precision)
    tell_limitation(tokenizer.limitation)
    print(f"Wrote {arguments.onnx}:")
    for name, size in sizes.items():
        print(f"  {name}: {size / 1e6:.1f} MB" if size >= 1e5 else f"  {name}: {size / 1e3:.1f} kB")
