"""What the commands of this project share: regions from flags or from a table, records in JSON lines, exit codes.

A table is a CSV with a row per region: `image`, and a box (`x1,y1,x2,y2`) or a point on it (`x,y`) or both, in pixels of
the picture; further columns are passed on. Knows files and flags; what is asked of a region is the commands' business.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

BAD_INPUT = 2
"""Exit code for what was asked wrongly; argparse has the same."""

INTERRUPTED = 130

CORNERS, POINT = ("x1", "y1", "x2", "y2"), ("x", "y")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ROTATED = (5, 6, 7, 8)
"""EXIF orientations in which a picture is seen with width and height exchanged."""


def run_command(
    parser: argparse.ArgumentParser,
    commands: dict[str, Callable[[argparse.Namespace], None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Run the command that `argv` names; gives the exit code: 0, 2 for bad input, 130 if it was interrupted.

    Bad input (`ValueError`, `OSError`, a library that is missing) is told in one line on the error stream.
    """
    arguments = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    try:
        commands[arguments.command](arguments)
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        sys.stderr.write(f"{parser.prog} {arguments.command}: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog} {arguments.command}: interrupted\n")
        return INTERRUPTED
    return 0


# --- regions from flags -----------------------------------------------------------------------------------------------


class _AddRegion(argparse.Action):
    """Keeps regions in the order in which they were given, whatever their kind."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        namespace.regions = [*(namespace.regions or []), (str(option).lstrip("-"), values)]


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add --box, --point and --mask, which may be repeated and mixed, and --boxes for a table."""
    parser.set_defaults(regions=None)
    group = parser.add_argument_group("regions, in pixels of the picture, any number in any order")
    for flag, number, names, words in (
        ("--box", 4, ("X1", "Y1", "X2", "Y2"), "a region by its box"),
        ("--point", 2, ("X", "Y"), "a region by a point on it"),
    ):
        group.add_argument(flag, type=float, nargs=number, metavar=names, action=_AddRegion, help=words)
    group.add_argument("--mask", type=Path, metavar="PICTURE", action=_AddRegion,
                       help="a region by a picture of the same size, white where it is")  # fmt: skip
    group.add_argument("--boxes", type=Path, metavar="CSV",
                       help="a table: image,x1,y1,x2,y2 (or x,y), a row per region; for a folder of pictures")  # fmt: skip


def prompts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as `TapRegionTokenizer.encode` takes it for one picture; {} if they name no region."""
    return region_prompts(arguments.regions or [])


def region_prompts(regions: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Regions as (kind, value), kind being box, point or mask (a picture's path) → the lists that `encode` takes."""
    masks: list[Image.Image | None] = []
    for kind, value in regions:
        if kind == "mask":
            with Image.open(value) as image:
                masks.append(image.convert("1"))
        else:
            masks.append(None)
    columns: dict[str, Any] = {
        "boxes": [value if kind == "box" else None for kind, value in regions],
        "points": [[value] if kind == "point" else None for kind, value in regions],
        "point_labels": [[1] if kind == "point" else None for kind, value in regions],
        "masks": masks,
    }
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


# --- a folder of pictures and a table ---------------------------------------------------------------------------------


@dataclass
class PictureRegions:
    """One picture of a folder: its name there, its path, and its regions, one dictionary each.

    A region has "box" [x1, y1, x2, y2] or "point" [x, y] or both, and the table's further columns.
    """

    image: str
    path: Path
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prompts(self) -> dict[str, Any]:
        """The regions as `TapRegionTokenizer.encode` takes them for one picture."""
        columns = {
            "boxes": [region.get("box") for region in self.regions],
            "points": [[region["point"]] if "point" in region else None for region in self.regions],
            "point_labels": [[1] if "point" in region else None for region in self.regions],
        }
        return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def pictures_of(folder: Path) -> list[PictureRegions]:
    """The pictures of a folder, by name, without regions."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with pictures.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not paths:
        raise ValueError(f"{folder} holds no pictures: expected files that end in {', '.join(PICTURES)}.")
    return [PictureRegions(path.relative_to(folder).as_posix(), path) for path in paths]


def read_region_table(table: Path, folder: Path) -> list[PictureRegions]:
    """The pictures that a table names, in its order, with their regions; names are relative to `folder`.

    Everything is checked before it returns: columns, numbers, that pictures are there and boxes lie in them. `ValueError`
    names the line.
    """
    found: dict[str, PictureRegions] = {}
    sizes: dict[str, tuple[int, int]] = {}
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            _check_columns(table, names)
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                if None in row or not row["image"] or None in row.values():
                    raise ValueError(f"{where}: got {sum(v is not None for v in row.values())} cells or no image, "
                                     f"expected {', '.join(names)}.")  # fmt: skip
                image = row["image"]
                if image not in found:
                    found[image] = PictureRegions(image, folder / image)
                    sizes[image] = _seen_size(found[image].path, where)
                found[image].regions.append(_region_of_row(row, sizes[image], where))
    except csv.Error as error:
        raise ValueError(f"{table} is no CSV: {error}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{table} is not UTF-8: save it as UTF-8.") from None
    if not found:
        raise ValueError(f"{table} has no rows: expected one per region.")
    return list(found.values())


def _check_columns(table: Path, names: list[str]) -> None:
    has_box, has_point = (set(part) <= set(names) for part in (CORNERS, POINT))
    if "image" not in names or not (has_box or has_point) or len(set(names)) < len(names):
        raise ValueError(
            f"{table} has columns {', '.join(names) or 'none'}, expected image and x1,y1,x2,y2 or x,y, each once, in the "
            "first line."
        )
    if taken := sorted({"box", "point", "caption", "concepts", "score", "mask", "answer", "name"} & set(names)):
        if taken == ["answer"]:  # as in tables to train from, where it stays what a person wrote
            return
        raise ValueError(f"{table} has a column {taken[0]}, which the records use themselves: rename it.")


def _seen_size(path: Path, where: str) -> tuple[int, int]:
    """Width and height of a picture as one sees it, from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(0x0112) in ROTATED else (width, height)
    except FileNotFoundError:
        raise ValueError(f"{where}: there is no picture {path}.") from None
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{where}: {path} is no picture that can be read.") from None


def _region_of_row(row: dict[str, str], size: tuple[int, int], where: str) -> dict[str, Any]:
    region: dict[str, Any] = {}
    for kind, names in (("box", CORNERS), ("point", POINT)):
        cells = [row.get(name, "").strip() for name in names]
        if not any(cells):
            continue
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise ValueError(f"{where}: {kind} is {', '.join(cells)}, expected {len(names)} numbers.") from None
        inside = all(math.isfinite(v) and -1 <= v <= size[i % 2] + 1 for i, v in enumerate(values))
        if not inside or (kind == "box" and (values[2] <= values[0] or values[3] <= values[1])):
            raise ValueError(
                f"{where}: {kind} {values} does not lie in the picture of {size[0]} × {size[1]} pixels, or is empty: "
                "expected x1 < x2, y1 < y2 in its pixels."
            )
        region[kind] = values
    if not region:
        raise ValueError(f"{where}: no box and no point, expected one of them.")
    kept = {name: value for name, value in row.items() if name not in (*CORNERS, *POINT, "image")}
    return {**region, **({"reference": kept.pop("answer")} if "answer" in kept else {}), **kept}


# --- what is written --------------------------------------------------------------------------------------------------


def check_picture_path(path: Path | None) -> None:
    """Refuse a path that no picture can be written to, before any work; None is none."""
    if path is None:
        return
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path} does not say what kind of picture it is: give a name that ends in .png or .jpg.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}: make it first.")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    partial = path.with_name(path.stem + ".partial" + path.suffix)
    try:
        image.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- records in JSON lines --------------------------------------------------------------------------------------------


def write_records(
    output: Path,
    pictures: Sequence[PictureRegions],
    settings: dict[str, Any],
    record: Callable[[PictureRegions], dict[str, Any]],
) -> None:
    """Write one JSON line per picture, with what `record` gives; go on where an interrupted call has stopped.

    Lines grow in `output` + ".partial", which becomes `output` when the last is written. Each line begins with the
    picture's name and `settings`; a partial file of other settings or pictures is refused, and so is an `output` that exists.
    """
    if output.exists():
        raise ValueError(f"{output} exists: give another name, or remove it.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}: make it first.")
    partial = output.with_name(output.name + ".partial")
    done = _written(partial, pictures, settings)
    with open(partial, "a", encoding="utf-8") as file:
        for picture in tqdm(pictures[done:], initial=done, total=len(pictures), unit="picture", disable=None):
            line = {"image": picture.image, **settings, **record(picture)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    partial.replace(output)


def _written(partial: Path, pictures: Sequence[PictureRegions], settings: dict[str, Any]) -> int:
    """How many whole lines a partial file holds; a line that was cut off is taken out of it."""
    if not partial.exists():
        return 0
    with open(partial, "rb+") as file:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
    lines = [json.loads(line) for line in whole.splitlines()]
    for i, line in enumerate(lines):
        expected = {"image": pictures[i].image, **settings} if i < len(pictures) else {}
        if {name: line.get(name) for name in expected} != expected or not expected:
            raise ValueError(
                f"{partial} was begun with other pictures, models or questions (line {i + 1}): go on as it began, or remove it."
            )
    return len(lines)
