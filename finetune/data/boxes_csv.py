"""A folder of pictures and a table of boxes, one row per region: the shortest way from one's own pictures to records.

    image,x1,y1,x2,y2,answer
    kitchen/1.jpg,40,60,310,420,a red kettle

`question` may be a column, too, else the knob is asked; one without `<region>` is asked as "<region>: …". Rows of a picture
may lie anywhere in the table.
"""

from __future__ import annotations

import csv
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tap_tokenizer import open_image, upright_size

from ..arguments import knob
from .sample import Sample
from .source import LABEL_QUESTION, PictureSource, groups, record

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *CORNERS, "answer", "question")


@dataclass(kw_only=True)
class BoxesCsvSource(PictureSource):
    """Pictures and a CSV: image, x1, y1, x2, y2 in pixels, answer; question optional."""

    boxes: str = knob(help="the CSV file")
    question: str = knob(default=LABEL_QUESTION, help="asked where the table has no question")
    regions_per_record: int = knob(default=16, help="a picture with more regions gives several records")
    source: str | None = knob(default=None, help="what to call the data; default: the CSV's name")
    license: str | None = knob(default=None, help="its terms")

    def records(self) -> Iterator[Sample]:
        self.require(self.boxes)
        with closing(sqlite3.connect("")) as table:
            self._fill(table)
            for (image,) in table.execute("SELECT image FROM row GROUP BY image ORDER BY MIN(line)"):
                rows = table.execute(
                    "SELECT x1, y1, x2, y2, answer, question FROM row WHERE image = ? ORDER BY line", (image,)
                )
                yield from self._records(image, rows.fetchall())

    def _fill(self, table: sqlite3.Connection) -> None:
        table.execute("CREATE TABLE row (line INTEGER PRIMARY KEY, image, x1, y1, x2, y2, answer, question)")
        try:
            self._read_rows(table)
        except csv.Error as error:
            raise ValueError(f"{self.boxes} is no CSV: {error}.") from None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.boxes} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8."
            ) from None
        table.execute("CREATE INDEX row_image ON row (image)")

    def _read_rows(self, table: sqlite3.Connection) -> None:
        with open(self.boxes, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            missing = [name for name in COLUMNS[:-1] if name not in names]
            unknown = [name for name in names if name not in COLUMNS]
            if missing or unknown:
                raise ValueError(
                    f"{self.boxes} has columns {', '.join(names) or 'none'}, expected {', '.join(COLUMNS)} (question "
                    "optional), separated by commas: rename them in the first line."
                )
            for row in reader:
                if None in row or not row["image"]:
                    wrong = "more cells than columns" if None in row else "no image"
                    raise ValueError(f"{self.boxes}, line {reader.line_num}: {wrong}, expected {', '.join(names)}.")
                try:
                    corners = [float(row[name]) for name in CORNERS]
                    if not all(map(math.isfinite, corners)):
                        raise ValueError
                except (TypeError, ValueError):
                    raise ValueError(
                        f"{self.boxes}, line {reader.line_num}: the box is {[row[name] for name in CORNERS]}, expected "
                        "four numbers in pixels."
                    ) from None
                values = (reader.line_num, row["image"], *corners, row["answer"], row.get("question") or self.question)
                table.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _records(self, image: str, rows: list[tuple[Any, ...]]) -> Iterator[Sample]:
        try:
            with open_image(Path(self.images) / image) as picture:
                width, height = upright_size(picture)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.boxes} names {image}, which cannot be opened in {self.images}: {error}") from None
        for some in groups(rows, self.regions_per_record):
            turns = []
            for number, (*_, answer, question) in enumerate(some, 1):
                asked = question if "<region>" in question else f"<region>: {question}"
                turns += [
                    {"role": "user", "content": asked.replace("<region>", f"<region{number}>")},
                    {"role": "assistant", "content": answer},
                ]
            regions = [{"box": list(row[:4])} for row in some]
            name = self.source or Path(self.boxes).name
            yield record(self.picture(image), (height, width), regions, turns, name, self.license)
