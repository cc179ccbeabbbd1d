"""Phrases to be found in pictures of a folder: their table, and what was found, as lines or in COCO's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tap_tokenizer import PictureRegions, coco_shape, only_writer, pictures_of, table_rows, write_whole

from .grounding import FoundRegions, find_question
from .region_records import region_records


def read_phrases(table: Path, folder: Path) -> dict[str, list[str]]:
    """The phrases of each picture that a CSV names: columns image, relative to `folder`, and phrase, a row per phrase.

    Everything is checked before it returns. `ValueError` names the line.
    """
    found: dict[str, list[str]] = {}
    for where, row in table_rows(table, _check_columns):
        if None in row or None in row.values() or not row["image"]:
            raise ValueError(f"{where}: expected a picture and a phrase; quote a phrase that holds commas.")
        if not (folder / row["image"]).is_file():
            raise ValueError(f"{where}: there is no picture {folder / row['image']}.")
        try:
            find_question(row["phrase"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        phrases = found.setdefault(row["image"], [])
        if row["phrase"] in phrases:
            raise ValueError(f"{where}: {row['phrase']!r} is asked about {row['image']} twice.")
        phrases.append(row["phrase"])
    if not found:
        raise ValueError(f"{table} has no rows: expected one per phrase.")
    return found


def _check_columns(table: Path, names: list[str]) -> None:
    if sorted(names) != ["image", "phrase"]:
        raise ValueError(f"{table} has columns {', '.join(names)[:200] or 'none'}, expected image and phrase.")


def pictures_to_search(
    folder: Path, phrases: dict[str, list[str]] | str, candidates: Sequence[PictureRegions] | None
) -> tuple[list[PictureRegions], dict[str, list[str]]]:
    """The pictures of a folder in which something is to be found, with their candidates if a table has some, and what.

    phrases: of each picture, or one for all pictures (with candidates: for all that have some).
    """
    pictures = list(candidates) if candidates is not None else pictures_of(folder)
    if isinstance(phrases, str):
        return pictures, {picture.image: [phrases] for picture in pictures}
    if candidates is None:
        return [PictureRegions(image, folder / image) for image in phrases], phrases
    having = {picture.image: picture for picture in pictures}
    if lacking := [image for image in phrases if image not in having]:
        raise ValueError(f"The table has no regions of {lacking[0]}, which a phrase is to be found in: add some.")
    return [having[image] for image in phrases], phrases


def found_record(found: FoundRegions) -> dict[str, Any]:
    """What was found of one phrase, for JSON: each region with box, probability and mask, the best first."""
    regions = [
        {**record, "candidate": row, "probability": round(share, 4)}
        for record, row, share in zip(
            region_records(found.names, found), found.rows, found.probabilities.tolist(), strict=True
        )
    ]
    return {
        "candidates": len(found.candidate_probabilities), "rounds": found.rounds, "answer": found.answer,
        "none_probability": round(found.none_probability, 4), "regions": regions,
    }  # fmt: skip


def write_coco(lines: Path, output: Path) -> None:
    """Turn the lines of a folder into COCO's layout, and remove them.

    Phrases are the categories, and regions the annotations, with their probability as `score`. A picture's
    `neg_category_ids` are the phrases that were not found in it, as in LVIS.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for number, line in enumerate(_read(lines), 1):
        absent = []
        for entry in line["found"]:
            category = categories.setdefault(entry["phrase"], len(categories) + 1)
            if not entry["regions"]:
                absent.append(category)
            for region in entry["regions"]:
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
                shape = coco_shape(region["box"], region["mask"])
                annotations.append({**ids, **shape, "iscrowd": 0, "score": region["probability"]})
        size = {"width": line["width"], "height": line["height"]}
        images.append({"id": number, "file_name": line["image"], **size, "neg_category_ids": absent})
    named = [{"id": number, "name": phrase} for phrase, number in categories.items()]
    content = {"images": images, "annotations": annotations, "categories": named}
    with only_writer(output):
        write_whole(output, json.dumps(content, ensure_ascii=False))
    lines.unlink()


def _read(lines: Path) -> Iterator[dict[str, Any]]:
    with open(lines, encoding="utf-8") as file:
        yield from map(json.loads, file)
