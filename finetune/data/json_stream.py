"""Large JSON files in bounded memory: item by item, and annotations grouped by picture.

Knows the outline of COCO's files ("images", "annotations", "categories"), not what an annotation says.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ijson
from tqdm.auto import tqdm


def iter_items(path: str | Path, prefix: str = "item") -> Iterator[Any]:
    """Items of an array inside a JSON file: "item" for an array at the top, "images.item" for one under a name."""
    with Path(path).open("rb") as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path} is no whole JSON file: {error}") from None


class AnnotationIndex:
    """Pictures and annotations of a COCO-style file, in a temporary database on disk instead of in memory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._database = sqlite3.connect("")  # an unnamed database lies in a file that vanishes with the connection
        self._database.execute("CREATE TABLE image (place INTEGER PRIMARY KEY, id TEXT, content TEXT)")
        self._database.execute("CREATE TABLE annotation (place INTEGER PRIMARY KEY, image TEXT, id TEXT, content TEXT)")
        self._fill("image", "images.item", ("id",))
        self._fill("annotation", "annotations.item", ("image_id", "id"))
        self._database.execute("CREATE INDEX image_id ON image (id)")
        self._database.execute("CREATE INDEX annotation_image ON annotation (image)")
        self._database.execute("CREATE INDEX annotation_id ON annotation (id)")
        if not self._database.execute("SELECT COUNT(*) FROM image").fetchone()[0]:
            self.close()
            raise ValueError(f'{path} holds no "images": expected a file in the layout of COCO.')

    def _fill(self, table: str, prefix: str, keys: tuple[str, ...]) -> None:
        items = tqdm(iter_items(self.path, prefix), desc=f"reading {prefix.split('.')[0]}", unit="", leave=False)
        marks = ", ".join("?" for _ in range(len(keys) + 1))
        columns = {"image_id": "image", "id": "id"}
        names = ", ".join([*(columns[key] for key in keys), "content"])
        with closing(self._database.cursor()) as cursor:
            rows = ((*(str(item.get(key)) for key in keys), json.dumps(item)) for item in items)
            cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)

    def images(self) -> Iterator[dict[str, Any]]:
        """The pictures' entries, in the order of the file."""
        for (content,) in self._database.execute("SELECT content FROM image ORDER BY place"):
            yield json.loads(content)

    def image(self, number: Any) -> dict[str, Any] | None:
        """The entry of the picture with this id."""
        return self._one("SELECT content FROM image WHERE id = ?", number)

    def annotations(self, image: Any) -> list[dict[str, Any]]:
        """The annotations of the picture with this id, in the order of the file."""
        rows = self._database.execute("SELECT content FROM annotation WHERE image = ? ORDER BY place", (str(image),))
        return [json.loads(content) for (content,) in rows]

    def annotation(self, number: Any) -> dict[str, Any] | None:
        """The annotation with this id."""
        return self._one("SELECT content FROM annotation WHERE id = ?", number)

    def _one(self, query: str, key: Any) -> dict[str, Any] | None:
        row = self._database.execute(query, (str(key),)).fetchone()
        return None if row is None else json.loads(row[0])

    def categories(self) -> dict[Any, dict[str, Any]]:
        """Categories by id."""
        return {item["id"]: item for item in iter_items(self.path, "categories.item")}

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> AnnotationIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
