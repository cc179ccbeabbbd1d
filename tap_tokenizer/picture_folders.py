"""Folders of pictures: tables of their regions, and JSON lines that can be continued after an interruption.

A table is a CSV with a row per region: `image`, and a box (`x1,y1,x2,y2`) or a point on it (`x,y`) or both, in pixels of
the picture; further columns are passed on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .coordinates import box_problems, point_problems
from .counts import counted
from .flags import check_new
from .foreign_files import check_regular_file
from .image_processing_tap import load_rgb, open_image, upright_size
from .output_files import only_writer
from .prompts import RegionPrompt

CORNERS, POINT = ("x1", "y1", "x2", "y2"), ("x", "y")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class PictureRegions:
    """One picture of a folder: its name there, its path, and its regions, one dictionary each.

    A region has "box" [x1, y1, x2, y2] or "point" [x, y] or both, or a "mask" in any form of `as_mask`, and what else is
    known of it, such as a table's further columns.
    """

    image: str
    path: Path
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prompts(self) -> list[RegionPrompt]:
        """What marks each region."""
        kinds = ({**region, "points": [region["point"]] if "point" in region else None} for region in self.regions)
        return [RegionPrompt.read({name: one.get(name) for name in ("box", "points", "mask")}) for one in kinds]


def pictures_of(folder: Path) -> list[PictureRegions]:
    """The pictures of a folder, by name, without regions."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with pictures.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not p.is_dir())
    if not paths:
        raise ValueError(f"{folder} holds no pictures: expected files that end in {', '.join(PICTURES)}.")
    return [PictureRegions(path.relative_to(folder).as_posix(), path) for path in paths]


def read_region_table(table: Path, folder: Path) -> list[PictureRegions]:
    """The pictures that a table names, in its order, with their regions; names are relative to `folder`.

    Everything is checked before it returns: columns, numbers, that pictures are there and boxes lie in them (in those whose
    size can be read). `ValueError` names the line.
    """
    found: dict[str, PictureRegions] = {}
    sizes: dict[str, tuple[int, int] | None] = {}
    for where, row in table_rows(table, _check_columns):
        if None in row or not row["image"] or None in row.values():
            raise ValueError(f"{where}: got {sum(v is not None for v in row.values())} cells or no image, "
                             f"expected {', '.join(name for name in row if name is not None)}.")  # fmt: skip
        image = row["image"]
        if image not in found:
            found[image] = PictureRegions(image, folder / image)
            sizes[image] = _seen_size(found[image].path, where)
        found[image].regions.append(_region_of_row(row, sizes[image], where))
    if not found:
        raise ValueError(f"{table} has no rows: expected one per region.")
    return list(found.values())


def table_rows(table: Path, check_columns: Callable[[Path, list[str]], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV, by the names in its first line, which are checked first; and where each is, as errors say it.

    As of csv.DictReader: cells that are missing are None, and those beyond the names are under the name None.
    """
    check_regular_file(table)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            check_columns(table, reader.fieldnames)
            for row in reader:
                yield f"{table}, line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{table} is not a valid CSV file: {error}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{table} is not UTF-8: save it as UTF-8.") from None


def _check_columns(table: Path, names: list[str]) -> None:
    has_box, has_point = (set(part) <= set(names) for part in (CORNERS, POINT))
    if "image" not in names or not (has_box or has_point) or len(set(names)) < len(names):
        raise ValueError(
            f"{table} has columns {', '.join(names)[:200] or 'none'}, expected image and x1,y1,x2,y2 or x,y, each once, in the "
            "first line."
        )
    if taken := sorted({"box", "point", "caption", "concepts", "score", "mask", "answer", "name"} & set(names)):
        if taken == ["answer"]:  # as in tables to train from, where it stays what a person wrote
            return
        raise ValueError(f"{table} has a column {taken[0]}, which the records use themselves: rename it.")


def _seen_size(path: Path, where: str) -> tuple[int, int] | None:
    """Width and height of a picture as one sees it, from its header; None if that is damaged."""
    if not path.is_file():
        raise ValueError(f"{where}: there is no picture {path}.")
    try:
        with open_image(path) as image:
            return upright_size(image)
    except Exception:  # whatever Pillow stumbles over: `write_records` names the picture when its turn has come
        return None


def _region_of_row(row: dict[str, str], size: tuple[int, int] | None, where: str) -> dict[str, Any]:
    region: dict[str, Any] = {}
    for kind, names in (("box", CORNERS), ("point", POINT)):
        cells = [row.get(name, "").strip() for name in names]
        if not any(cells):
            continue
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise ValueError(f"{where}: {kind} is {', '.join(cells)}, expected {len(names)} numbers.") from None
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{where}: {kind} is {', '.join(cells)}, expected finite numbers.")
        check = box_problems if kind == "box" else point_problems
        for problem in check(np.array([values]), (size[1], size[0]) if size else None).values():
            raise ValueError(f"{where}: {problem.words}")
        region[kind] = values
    if not region:
        raise ValueError(f"{where}: no box and no point, expected one of them.")
    kept = {name: value for name, value in row.items() if name not in (*CORNERS, *POINT, "image")}
    return {**region, **({"reference": kept.pop("answer")} if "answer" in kept else {}), **kept}


# --- records in JSON lines --------------------------------------------------------------------------------------------


Outcome = dict[str, Any] | str
"""What is said of a picture; or, if it cannot be read, why."""


def outcome(picture: PictureRegions, record: Callable[[PictureRegions, np.ndarray], dict[str, Any]]) -> Outcome:
    """What `record` gives for a picture and its pixels (H, W, 3)."""
    try:
        pixels = load_rgb(picture.path)
    except ValueError as error:
        return str(error)
    return record(picture, pixels)


def outcomes(
    record: Callable[[PictureRegions, np.ndarray], dict[str, Any]], pictures: Sequence[PictureRegions]
) -> Iterator[tuple[PictureRegions, Outcome]]:
    """What `record` gives for each picture, one after the other."""
    return ((picture, outcome(picture, record)) for picture in pictures)


def write_records(
    output: Path,
    pictures: Sequence[PictureRegions],
    settings: dict[str, Any],
    record: Callable[[PictureRegions, np.ndarray], dict[str, Any]],
    options: Any = None,
    skip_unreadable: bool = False,
) -> dict[str, str]:
    """Write one JSON line per picture, with what `record` gives for it and its pixels (H, W, 3).

    Lines grow in `output` + ".partial", which becomes `output`, in the order of `pictures`, when every picture has its line;
    a call that comes after an interruption goes on there. A picture that cannot be read is passed over, and its name is in
    the dictionary that comes back, with the reason. `output` is not there before such pictures are repaired or removed,
    unless `skip_unreadable` says to finish without them.

    Each line begins with the picture's name and `settings`; what else `record` depends on is `options`, which are not
    written. A partial file of other settings, options, pictures or regions is refused, and so is an `output` that exists.
    """
    return write_outcomes(
        output, pictures, settings, lambda waiting: outcomes(record, waiting), options, skip_unreadable
    )


def write_outcomes(
    output: Path,
    pictures: Sequence[PictureRegions],
    settings: dict[str, Any],
    outcomes_of: Callable[[Sequence[PictureRegions]], Iterable[tuple[PictureRegions, Outcome]]],
    options: Any = None,
    skip_unreadable: bool = False,
) -> dict[str, str]:
    """As `write_records`, with the outcomes of the pictures that have no line yet, in whatever order they come."""
    with only_writer(output):
        check_new(output)
        return _write(output, pictures, settings, outcomes_of, options, skip_unreadable)


def _write(
    output: Path,
    pictures: Sequence[PictureRegions],
    settings: dict[str, Any],
    outcomes_of: Callable[[Sequence[PictureRegions]], Iterable[tuple[PictureRegions, Outcome]]],
    options: Any,
    skip_unreadable: bool,
) -> dict[str, str]:
    partial = output.with_name(output.name + ".partial")
    given = {picture.image: digest_of([settings, options, picture.regions]) for picture in pictures}
    if len(given) < len(pictures):
        double = Counter(picture.image for picture in pictures).most_common(1)[0][0]
        raise ValueError(f"Got the picture {double} twice, expected each once: give all its regions together.")
    written = _written(partial, given)
    there = set(written)
    waiting = [picture for picture in pictures if picture.image not in there]
    unread: dict[str, str] = {}
    with (
        open(partial, "a", encoding="utf-8") as file,
        tqdm(initial=len(written), total=len(pictures), unit="picture", disable=None) as progress,
    ):
        for picture, found in outcomes_of(waiting):
            progress.update()
            if isinstance(found, str):
                unread[picture.image] = found
                continue
            line = {_GIVEN: given[picture.image], "image": picture.image, **settings, **found}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            written.append(picture.image)
    if skip_unreadable and not written:
        partial.unlink()
        raise ValueError(
            f"Got {counted(len(pictures), 'picture')}, none of which can be read: {next(iter(unread.values()))}"
        )
    unread = {picture.image: unread[picture.image] for picture in waiting if picture.image in unread}
    if not unread or skip_unreadable:
        _finish(partial, output, written, [picture.image for picture in pictures if picture.image not in unread])
    return unread


_GIVEN = "given"
"""In a partial file, what a line was made from: a digest of settings, options and the picture's regions."""


def digest_of(value: Any) -> str:
    """16 hex digits that identify a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _written(partial: Path, given: dict[str, str]) -> list[str]:
    """The pictures whose lines a partial file contains. A line that was cut off is removed from the file."""
    if not partial.exists():
        return []
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    names = []
    for i, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            as_begun = given[line["image"]] == line[_GIVEN]
        except (ValueError, TypeError, KeyError):
            as_begun = False
        if not as_begun:
            raise ValueError(
                f"{partial} was begun with other pictures, regions, models, options or questions (line {i}): continue "
                "with the same ones, or remove it."
            )
        names.append(line["image"])
    if len(whole) < len(content):
        with open(partial, "rb+") as file:
            file.truncate(len(whole))
    return names


def _finish(partial: Path, output: Path, written: list[str], wanted: list[str]) -> None:
    """Write the lines in the order of the pictures (repaired ones came later), without what only a partial file
    needs.
    """
    begin = len(json.dumps({_GIVEN: "0" * 16})) - 1
    sorted_lines = partial.with_name(partial.name + ".sorted")
    with open(partial, "rb") as lines, open(sorted_lines, "wb") as file:
        starts, place = {}, 0
        for name, line in zip(written, lines):
            starts[name], place = place, place + len(line)
        for name in wanted:
            lines.seek(starts[name])
            file.write(b"{" + lines.readline()[begin + 2 :])
    sorted_lines.replace(output)
    partial.unlink()
