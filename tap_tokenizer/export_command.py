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
        "write ONNX graphs, which transformers.js runs as it runs SAM, or a web page that needs only a file server",
        "tap-tokenizer export tap-tiny --browser tap-tiny-page",
        "tap-tokenizer export tap-tiny --onnx tap-tiny-onnx",
        "tap-tokenizer export tap-vit-b --onnx tap-vit-b-onnx --precision int8",
        exit_codes="0 done, 2 bad input, 130 interrupted",
    )
    parser.add_argument("source", help="name, folder, checkpoint or Hub repository of a region tokenizer")
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--onnx", type=Path, metavar="FOLDER", help="where to write the graphs; must not exist")
    output.add_argument(
        "--browser",
        type=Path,
        metavar="FOLDER",
        help="where to write a page that shows masks under the pointer, all in the browser; must not exist",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "int8"),
        help="int8: files of half the size or less, and nearly the same numbers (default: float32 with --onnx, int8 with "
        "--browser)",
    )
    parser.add_argument("--variant", help="checkpoint in the original's repository, e.g. tap_vit_b_v1_1")
    parser.add_argument("--concepts", help="a concept file, or its name in the original's repository")
    page = parser.add_argument_group("the page, with --browser")
    page.add_argument(
        "--runtime",
        type=Path,
        metavar="DIST",
        help="the dist folder of the npm package onnxruntime-web: copy the runtime into the page, which otherwise loads it "
        "from jsDelivr",
    )
    page.add_argument(
        "--picture",
        type=Path,
        action="append",
        default=[],
        metavar="PICTURE",
        help="an example on the page, instead of the drawing there; may be repeated",
    )


def run_export(arguments: argparse.Namespace) -> None:
    """Check the flags, load, export, and say what was written."""
    from .browser_page import check_page, export_browser_page
    from .onnx_export import check_export, export_onnx
    from .region_tokenizer import TapRegionTokenizer

    folder, runtime, pictures = arguments.browser or arguments.onnx, arguments.runtime, arguments.picture
    precision = arguments.precision or ("int8" if arguments.browser else "float32")
    if arguments.browser:
        check_page(folder, precision, runtime, pictures)
    else:
        if runtime is not None or pictures:
            raise ValueError("--runtime and --picture are for a page: give --browser FOLDER instead of --onnx.")
        check_export(folder, precision)
    tokenizer = TapRegionTokenizer.from_pretrained(
        arguments.source, variant=arguments.variant, concepts=arguments.concepts
    )
    if arguments.browser:
        sizes = export_browser_page(tokenizer, folder, precision=precision, runtime=runtime, pictures=pictures)
    else:
        sizes = export_onnx(tokenizer, folder, precision=precision)
    tell_limitation(tokenizer.limitation)
    print(f"Wrote {folder}:")
    for name, size in sizes.items():
        print(f"  {name}: {size / 1e6:.1f} MB" if size >= 1e5 else f"  {name}: {size / 1e3:.1f} kB")
    if arguments.browser:
        print(f"See it: python -m http.server --directory {folder} --bind 127.0.0.1, then http://127.0.0.1:8000")
