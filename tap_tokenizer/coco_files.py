"""COCO's annotations and results, in and out: what a file says of each picture → prompts, and regions → annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from .coco_masks import coco_shape
from .coordinates import box_problems
from .counts import counted
from .foreign_files import check_regular_file
from .image_processing_tap import open_image, upright_size
from .masks import as_mask
from .output_files import write_whole
from .picture_folders import PictureRegions
from .region_tokens import RegionTokens

_KEPT = ("id", "image_id", "category_id", "score", "iscrowd", "track_id")
"""What annotations keep of the entries that they were made from."""


@dataclass
class CocoDetections:
    """The entries of a file in COCO's layout, picture by picture, and what the file says of pictures and categories.

    pictures: each with its regions: "mask" (run lengths or polygons) or "box" (xyxy in pixels), "category" if it is listed, and
    under "coco" what is kept of the entry, such as its id and score. left_out: each entry that cannot be used, with the reason.
    """

    pictures: list[PictureRegions]
    left_out: dict[str, str]
    head: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, annotations: str | Path, folder: str | Path, results: str | Path | None = None) -> CocoDetections:
        """Read the annotations of a file, or a detector's `results` for its pictures, which lie in `folder`.

        A segmentation is the prompt where an entry has one, else its bbox. Entries of unlisted pictures, of pictures that are
        not there, and with boxes or masks that do not fit the picture are left out and named. Raises `ValueError` for files of
        another layout.
        """
        content = _read_json(annotations)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError(
                f'{annotations} has no list "images", expected COCO\'s layout: images, annotations, categories.'
            )
        entries = _read_json(results) if results is not None else content.get("annotations")
        if not isinstance(entries, list):
            raise ValueError(
                f"{results} is not a list, expected COCO's results: a list of image_id, category_id, bbox, score."
                if results is not None
                else f'{annotations} has no list "annotations": give one, or a detector\'s results beside it.'
            )
        head = {name: value for name, value in content.items() if name != "annotations"}
        names = {one.get("id"): one.get("name") for one in content.get("categories", []) if isinstance(one, dict)}
        found = cls([], {}, head)
        places = found._read_pictures(content["images"], Path(folder))
        for number, entry in enumerate(entries, 1):
            what = f"{'result' if results is not None else 'annotation'} {_id_of(entry, number)}"
            try:
                picture, size = _place_of(entry, places)
                picture.regions.append(_region_of(entry, size, names))
            except ValueError as error:
                found.left_out[what] = str(error)
        return found

    def _read_pictures(self, images: Sequence[Any], folder: Path) -> dict[Any, tuple[PictureRegions, tuple[int, int]]]:
        """Pictures and their (height, width) by id."""
        places: dict[Any, tuple[PictureRegions, tuple[int, int]]] = {}
        for number, image in enumerate(images, 1):
            name = image.get("file_name") if isinstance(image, dict) else None
            what = f"picture {_id_of(image, number)}"
            if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
                self.left_out[what] = f"its file_name is {name!r:.80}, expected a path in the folder of pictures"
                continue
            try:
                with open_image(folder / name) as opened:
                    width, height = upright_size(opened)
            except (ValueError, OSError, UnidentifiedImageError) as error:
                self.left_out[what] = str(error)
                continue
            listed = (image.get("width", width), image.get("height", height))
            if listed != (width, height):
                self.left_out[what] = f"{name} is {width} × {height} pixels, the file says {listed[0]} × {listed[1]}"
                continue
            picture = PictureRegions(name, folder / name)
            places[image.get("id")] = picture, (height, width)
            self.pictures.append(picture)
        return places

    def annotations_of(
        self,
        picture: PictureRegions,
        regions: RegionTokens,
        *,
        captions: Sequence[str] | None = None,
        concepts: Sequence[Sequence[tuple[str, float]]] | None = None,
    ) -> list[dict[str, Any]]:
        """The picture's regions as COCO's annotations, in the order of its entries, whose ids and scores they keep.

        regions: what `encode` gave for `picture.prompts`. segmentation is TAP's mask as run lengths, bbox the region's box;
        score is the detector's or, without one, the predicted IoU, which is always under "predicted_iou".
        """
        if len(regions) != len(picture.regions):
            raise ValueError(
                f"Got {counted(len(regions), 'region')} for {picture.image}, expected one for each of its "
                f"{counted(len(picture.regions), 'entry', 'entries')}."
            )
        rows = zip(picture.regions, regions.boxes.tolist(), regions.quality.tolist(), regions.coco_rle())
        made = []
        for i, (given, box, quality, mask) in enumerate(rows):
            own: dict[str, Any] = {"iscrowd": 0, "score": round(quality, 4), **given["coco"]}
            own |= {**coco_shape(box, mask), "predicted_iou": round(quality, 4)}
            if captions is not None:
                own["caption"] = captions[i]
            if concepts is not None:
                own["concepts"] = [{"name": name, "score": round(score, 4)} for name, score in concepts[i]]
            made.append(own)
        return made

    def write(self, path: str | Path, annotations: Iterable[dict[str, Any]]) -> None:
        """Write a file in COCO's layout with these annotations, completely or not at all; those without an id are numbered."""
        listed = list(annotations)
        free = max((one["id"] for one in listed if isinstance(one.get("id"), int)), default=0) + 1
        for number, one in enumerate((one for one in listed if "id" not in one), free):
            one["id"] = number
        write_whole(path, json.dumps({**self.head, "annotations": listed}, ensure_ascii=False))


def _read_json(path: str | Path) -> Any:
    check_regular_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): copy or write it again.") from None


def _id_of(entry: Any, number: int) -> str:
    """What an entry is called: its id, or its place in the file."""
    found = entry.get("id") if isinstance(entry, dict) else None
    return f"{found!s:.60}" if found is not None else f"number {number}"


def _place_of(
    entry: Any, places: dict[Any, tuple[PictureRegions, tuple[int, int]]]
) -> tuple[PictureRegions, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise ValueError(f"it is {entry!r:.60}, expected an object")
    image = entry.get("image_id")
    if not isinstance(image, (int, str)) or image not in places:
        raise ValueError(f"its picture {image!r:.60} is not listed, or is left out")
    return places[image]


def _region_of(entry: dict[str, Any], size: tuple[int, int], names: dict[Any, Any]) -> dict[str, Any]:
    """An entry's region of a picture of (height, width) `size`. Raises `ValueError` for one that does not fit it."""
    region: dict[str, Any] = {"coco": {name: entry[name] for name in _KEPT if name in entry}}
    if isinstance(names.get(entry.get("category_id")), str):
        region["category"] = names[entry["category_id"]]
    if entry.get("segmentation"):
        as_mask(entry["segmentation"], size)
        return {"mask": entry["segmentation"], **region}
    try:
        x, y, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its bbox is {entry.get('bbox')!r:.60}, expected x, y, width, height") from None
    box = [x, y, x + width, y + height]
    if not np.isfinite(box).all():
        raise ValueError(f"its bbox is {entry['bbox']!r:.60}, expected finite numbers")
    if width <= 0 or height <= 0:
        raise ValueError(f"its bbox is {entry['bbox']!r:.60}, expected x, y, width, height with a size above 0")
    for problem in box_problems(np.array([box]), size).values():
        raise ValueError(problem.words)
    return {"box": box, **region}
