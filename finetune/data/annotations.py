"""The annotations of a large file in COCO's layout ("images", "annotations", "categories"), by picture, in bounded memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .entries import EntryError, LeftOut, identity, is_crowd, mapping
from .json_files import iter_items


class AnnotationIndex:
    """Pictures and annotations of a COCO-style file, in a temporary database on disk instead of in memory.

    Ids are compared as text, so that 7 and "7" are the same. Entries that have none, or that are double, go to `left_out`;
    without it they are refused.
    """

    def __init__(self, path: str | Path, left_out: LeftOut | None = None) -> None:
        self.path = Path(path)
        self.left_out = left_out or LeftOut(strict=True)
        self._database = sqlite3.connect("")  # an unnamed database lies in a file that vanishes with the connection
        self._database.execute("CREATE TABLE image (place INTEGER PRIMARY KEY, id TEXT UNIQUE, content TEXT)")
        self._database.execute(
            "CREATE TABLE annotation (place INTEGER PRIMARY KEY, image TEXT, id TEXT, crowd INTEGER, content TEXT)"
        )
        try:
            self._fill_images()
            self._fill_annotations()
        except BaseException:
            self.close()
            raise
        self._database.execute("CREATE INDEX annotation_image ON annotation (image)")
        self._database.execute("CREATE INDEX annotation_id ON annotation (id)")

    def _fill_images(self) -> None:
        count = 0
        for count, item in enumerate(self._items("images"), 1):
            with self.left_out.entry(self.path, f"picture number {count}"):
                key = identity(mapping(item), "id")
                row = (count, key, json.dumps(item))
                if not self._database.execute("INSERT OR IGNORE INTO image VALUES (?, ?, ?)", row).rowcount:
                    raise EntryError("picture listed twice", f"its id, {key}, was given before: the first counts")
        if not count:
            raise ValueError(f'{self.path} holds no "images": expected a file in the layout of COCO.')

    def _fill_annotations(self) -> None:
        self._database.executemany("INSERT INTO annotation VALUES (?, ?, ?, ?, ?)", self._annotation_rows())

    def _annotation_rows(self) -> Iterator[tuple[int, str, str | None, bool, str]]:
        for place, item in enumerate(self._items("annotations"), 1):
            with self.left_out.entry(self.path, _annotation_name(item, place)):
                image = identity(mapping(item), "image_id")
                key = None if item.get("id") is None else identity(item, "id")
                yield place, image, key, is_crowd(item), json.dumps(item)

    def _items(self, name: str) -> Iterator[Any]:
        yield from tqdm(iter_items(self.path, f"{name}.item"), desc=f"reading {name}", unit="", leave=False)

    def images(self) -> Iterator[dict[str, Any]]:
        """The pictures' entries, in the order of the file."""
        for (content,) in self._database.execute("SELECT content FROM image ORDER BY place"):
            yield json.loads(content)

    def image(self, number: Any) -> dict[str, Any] | None:
        """The entry of the picture with this id."""
        return self._one("SELECT content FROM image WHERE id = ?", number)

    def annotations(self, image: Any) -> list[dict[str, Any]]:
        """The annotations of the picture with this id, in the order of the file."""
        return list(self.named_annotations(image).values())

    def named_annotations(self, image: Any) -> dict[str, dict[str, Any]]:
        """The same, each by what it is called when something is wrong with it; of those that are equal, the first."""
        query = "SELECT place, content FROM annotation WHERE image = ? ORDER BY place"
        found: dict[str, dict[str, Any]] = {}
        seen: set[str] = set()
        for place, content in self._database.execute(query, (identity({"id": image}, "id"),)):
            annotation = json.loads(content)
            name = _annotation_name(annotation, place)
            with self.left_out.entry(self.path, name):
                if content in seen:
                    raise EntryError("annotation given twice", "it is an exact copy of another one: the first counts")
                seen.add(content)
                found[name if name not in found else f"{name}, number {place} in the list"] = annotation
        return found

    def annotation(self, number: Any) -> dict[str, Any] | None:
        """The annotation with this id."""
        return self._one("SELECT content FROM annotation WHERE id = ?", number)

    def name_strays(self) -> None:
        """Leave out, by name, the annotations of pictures that are not listed."""
        query = "SELECT place, id, image FROM annotation WHERE image NOT IN (SELECT id FROM image) ORDER BY place"
        for place, key, image in self._database.execute(query):
            with self.left_out.entry(self.path, _annotation_name({"id": key}, place)):
                raise EntryError("picture not listed", f'its picture, {image!r:.60}, is not among the file\'s "images"')

    def crowd_share(self) -> float:
        """The share of annotations that are marked iscrowd."""
        crowds, count = self._database.execute("SELECT TOTAL(crowd), COUNT(*) FROM annotation").fetchone()
        return float(crowds / max(count, 1))

    def _one(self, query: str, key: Any) -> dict[str, Any] | None:
        row = self._database.execute(query, (identity({"id": key}, "id"),)).fetchone()
        return None if row is None else json.loads(row[0])

    def categories(self) -> dict[Any, dict[str, Any]]:
        """Categories by id, as the file writes it; of two with one id, the first."""
        found: dict[Any, dict[str, Any]] = {}
        seen: set[str] = set()
        for number, item in enumerate(self._items("categories"), 1):
            with self.left_out.entry(self.path, f"category number {number}"):
                key = identity(mapping(item), "id")
                if key in seen:
                    raise EntryError("category listed twice", f"its id, {key}, was given before: the first counts")
                seen.add(key)
                found[item["id"]] = item
        return found

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> AnnotationIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _annotation_name(annotation: Any, place: int) -> str:
    key = annotation.get("id") if isinstance(annotation, dict) else None
    return f"annotation number {place} in the list" if key is None else f"annotation {key!s:.60}"
