"""A folder of pictures and a table of boxes, one row per region: the shortest way from your own pictures to records.

    image,x1,y1,x2,y2,answer
    kitchen/1.jpg,40,60,310,420,a red kettle

The table may have a column `question`; otherwise `--question` is asked about every region. A question without `<region>` is
asked as "<region>: …". The rows of a picture may be anywhere in the table.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import knob
from ..records import Record, Region
from .entries import EntryError, number, shown, sound_region, sound_talk, text
from .source import LABEL_QUESTION, RegionQuestionSource, question_about

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *CORNERS, "answer", "question")


@dataclass(kw_only=True)
class BoxesCsvSource(RegionQuestionSource):
    """Pictures and a CSV: image, x1, y1, x2, y2 in pixels, answer; question optional."""

    boxes: str = knob(help="the CSV file")
    question: str = knob(default=LABEL_QUESTION, help="what is asked about a region that has no question in the table")
    source: str | None = knob(default=None, help="what to call the data; default: the CSV's name")
    license: str | None = knob(default=None, help="licence of the data")

    def records(self) -> Iterator[Record]:
        self.require(self.boxes)
        with closing(sqlite3.connect("")) as table:
            self._fill(table)
            for (image,) in table.execute("SELECT image FROM row GROUP BY image ORDER BY MIN(line)"):
                rows = table.execute(
                    "SELECT line, x1, y1, x2, y2, answer, question FROM row WHERE image = ? ORDER BY line", (image,)
                )
                yield from self._records(image, rows.fetchall())

    def _fill(self, table: sqlite3.Connection) -> None:
        table.execute("CREATE TABLE row (line INTEGER PRIMARY KEY, image, x1, y1, x2, y2, answer, question)")
        try:
            self._read_rows(table)
        except csv.Error as error:
            raise ValueError(f"{self.boxes} is not a valid CSV file: {error}.") from None
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
                    f"{self.boxes} has columns {', '.join(names)[:200] or 'none'}, expected {', '.join(COLUMNS)} (question "
                    "optional), separated by commas: rename them in the first line."
                )
            for row in reader:
                with self.left_out.entry(self.boxes, f"line {reader.line_num}"):
                    table.execute("INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._values(row, reader.line_num))

    def _values(self, row: dict[str, Any], line: int) -> tuple[Any, ...]:
        if None in row:
            raise EntryError("more cells than columns", f"more cells than columns, of which there are {len(row) - 1}")
        if not row["image"]:
            raise EntryError("no image", "no image, whose column is empty")
        corners = [number(row[name]) for name in CORNERS]
        if None in corners:
            words = f"the box is {shown([row[name] for name in CORNERS])}, expected four numbers in pixels"
            raise EntryError("wrong box", words)
        return line, row["image"], *corners, text(row, "answer"), row.get("question") or self.question

    def _records(self, image: str, rows: list[tuple[Any, ...]]) -> Iterator[Record]:
        found: list[tuple[Region, str, str]] = []
        size = (0, 0)
        for line, *box, answer, question in rows:
            with self.left_out.entry(self.boxes, f"line {line}"):
                size = size if found else self.size_on_disk(image)
                asked = question if "<region>" in question else f"<region>: {question}"
                region = sound_region(Region(box), size)
                sound_talk(question_about(asked, 1, answer), 1)
                found.append((region, asked, answer))
        if found:
            name = self.source or Path(self.boxes).name
            yield from self.records_of(self.picture(image), size, found, name, self.license)
