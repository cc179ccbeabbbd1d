"""What the commands of this project share: regions from flags, files that are written, exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .counts import counted

if TYPE_CHECKING:
    from .prompts import RegionPrompt

BAD_INPUT = 2
"""Exit code for what was asked wrongly; argparse has the same."""

LEFT_OUT = 3
"""Exit code of a folder some of whose pictures could not be read."""

INTERRUPTED = 130

EXIT_CODES = "0 done, 2 bad input, 130 interrupted"
FOLDER_CODES = "0 done, 2 bad input, 3 some pictures of a folder could not be read, 130 interrupted"
"""What the help of a command says of its exit codes: of any, and of one that takes folders."""


def run_command(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, Callable[[argparse.Namespace], int | None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Run the command that `argv` names; gives the exit code: its own, else 0, 2 for bad input, 130 if it was interrupted.

    Bad input (`ValueError`, `OSError`, a library that is missing, a pickle that is refused) is told in one line on the
    error stream.
    """
    arguments = parser.parse_args(argv)
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers.utils import logging  # here: --help does without it

    logging.disable_progress_bar()
    try:
        return commands[arguments.command](arguments) or 0
    except (ValueError, OSError, ImportError, UnpicklingError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        sys.stderr.write(f"{parser.prog} {arguments.command}: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog} {arguments.command}: interrupted\n")
        return INTERRUPTED


class CommandParser(argparse.ArgumentParser):
    """The flags of one command; unknown ones are refused beside its own usage, not that of the whole program."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Read all of them."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def add_command(commands: Any, name: str, words: str, *examples: str, exit_codes: str) -> argparse.ArgumentParser:
    """Add a command whose help is `words`, examples, and its exit codes."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=words,
        epilog="examples:\n  " + "\n  ".join(examples) + f"\n\nexit codes: {exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


# --- regions from flags -----------------------------------------------------------------------------------------------


class _AddRegion(argparse.Action):
    """Keeps regions in the order in which they were given, whatever their kind."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.regions = [*(namespace.regions or []), (str(option).lstrip("-"), values)]


def add_prompt_flags(parser: argparse.ArgumentParser, *, folders: bool = True) -> None:
    """Add --box, --point and --mask, which may be repeated and mixed, and --boxes for a table if folders are taken."""
    parser.set_defaults(regions=None)
    group = parser.add_argument_group(
        "regions, in pixels of the picture, any number in any order",
        "Each flag is a region of its own: --box and --point together are two regions.",
    )
    for flag, number, names, words in (
        ("--box", 4, ("X1", "Y1", "X2", "Y2"), "a region by its box"),
        ("--point", 2, ("X", "Y"), "a region by a point on it"),
    ):
        group.add_argument(flag, type=float, nargs=number, metavar=names, action=_AddRegion, help=words)
    group.add_argument("--mask", type=Path, metavar="PICTURE", action=_AddRegion,
                       help="a region as a picture of the same size, white where it is and black elsewhere")  # fmt: skip
    if folders:
        group.add_argument("--boxes", type=Path, metavar="CSV",
                           help="a table: image,x1,y1,x2,y2 (or x,y; both together are one region), a row per region; for "
                           "a folder of pictures")  # fmt: skip


def add_output_flags(parser: argparse.ArgumentParser, *, coco: bool = False) -> None:
    """Add --save and --output: a picture with its regions, and the records of a folder, if `coco` also in COCO's layout."""
    parser.add_argument("--save", type=Path, metavar="PICTURE", help="write the picture with its regions drawn on it")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="JSONL",
        help="for a folder: a line per picture"
        + ", or COCO's layout if its name ends in .json" * coco
        + ". Lines go into JSONL.partial first; run the same command again to continue "
        "after an interruption, or after you have repaired pictures that could not be read",
    )

    parser.add_argument(
        "--skip_unreadable",
        type=_true_or_false,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="for a folder: finish without the pictures that cannot be read, which are named and counted (default: false)",
    )


def _true_or_false(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {word!r}, expected true or false")
    return word.lower() == "true"


def prompts_of(arguments: argparse.Namespace) -> list[RegionPrompt]:
    """The regions that the flags name, checked against the picture."""
    from .image_processing_tap import open_image, upright_size

    if not arguments.regions:
        return []
    with open_image(arguments.image) as picture:
        width, height = upright_size(picture)
    return region_prompts(arguments.regions, (height, width))


def region_prompts(regions: Sequence[tuple[str, Any]], size: tuple[int, int], first: int = 1) -> list[RegionPrompt]:
    """Regions as (kind, value), kind being box, point or mask (a picture's path), of a picture of (height, width) `size`.

    first: the number that errors give the first of them.
    """
    from .prompts import RegionPrompt, prompts_in_picture

    given = [{"points": [value]} if kind == "point" else {kind: value} for kind, value in regions]
    prompts = [RegionPrompt.read(values, f"Region {i}") for i, values in enumerate(given, first)]
    return prompts_in_picture(prompts, size, first=first)


def check_one_picture(arguments: argparse.Namespace) -> None:
    """Refuse flags that are for a folder of pictures."""
    if arguments.boxes is not None or arguments.output is not None or getattr(arguments, "coco", None) is not None:
        raise ValueError(
            "--boxes, --coco and --output are for a folder of pictures: give --box, --point or --mask for one picture."
        )
    if getattr(arguments, "ray", 0) or getattr(arguments, "ray_address", None):
        raise ValueError("--ray and --ray_address are for a folder of pictures: leave them out for one picture.")


def check_folder_of_pictures(arguments: argparse.Namespace) -> None:
    """Refuse flags that are for one picture."""
    if arguments.json or arguments.save is not None or getattr(arguments, "regions", None):
        raise ValueError(
            "--json, --save, --box, --point and --mask are for one picture: for a folder, give the regions in a table, --boxes "
            "CSV, and --output."
        )


# --- what is written --------------------------------------------------------------------------------------------------


def inputs_of(arguments: argparse.Namespace) -> list[Path]:
    """The files that the flags name to be read."""
    masks = [value for kind, value in getattr(arguments, "regions", None) or [] if kind == "mask"]
    tables = [getattr(arguments, name, None) for name in ("boxes", "coco", "results")]
    return [path for path in (arguments.image, *tables, *masks) if path is not None]


def check_not_read(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write to a file that is read, by whatever name either goes."""
    for written in (path, _partial(path)):
        for given in inputs:
            if written.exists() and given.exists() and written.samefile(given):
                raise ValueError(
                    f"Writing {path} would overwrite {given}, which is read: give another name to write to."
                )


def check_picture_path(path: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Refuse a path that no picture can be written to, or that is one of `inputs`, before any work.

    None means no path.
    """
    if path is None:
        return
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError, ValueError):  # no such format, one that is only read, or one that has no colours
        raise ValueError(
            f"{path} does not say what kind of picture it is: give a name that ends in .png or .jpg."
        ) from None
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}: make it first.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a picture to write.")
    check_not_read(path, inputs)


def check_new(output: Path) -> None:
    """Refuse a file of records that is there already, or has no folder to lie in."""
    if output.exists():
        raise ValueError(f"{output} exists: give another name, or remove it.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}: make it first.")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    from .output_files import only_writer

    partial = _partial(path)
    with only_writer(path):
        try:
            image.save(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.stem + ".partial" + path.suffix)


def tell_folder(output: Path, pictures: int, unread: dict[str, str], skip_unreadable: bool = False) -> int:
    """Say which of a folder's pictures `write_records` could not read, and what it wrote; gives the exit code.

    skip_unreadable: the user has agreed to leave those pictures out, so the output is there without them.
    """
    for name, reason in unread.items():
        sys.stderr.write(f"{name}: {reason}\n")
    if unread and not skip_unreadable:
        sys.stderr.write(
            f"{len(unread)} of {counted(pictures, 'picture')} could not be read. The lines of the others are in "
            f"{output}.partial. Repair or remove those pictures and run the same command again, which continues there; or "
            "add --skip_unreadable true to finish without them.\n"
        )
        return LEFT_OUT
    are = "is" if len(unread) == 1 else "are"
    left_out = f" {len(unread)} of {pictures} could not be read and {are} left out." if unread else ""
    sys.stdout.write(f"Wrote {output}: {counted(pictures - len(unread), 'picture')}.{left_out}\n")
    return 0


def tell_limitation(limitation: str | None) -> None:
    """Print on the error stream what the models cannot do, beside an answer of theirs."""
    if limitation is not None:
        sys.stderr.write(f"Note: {limitation}\n")
