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
from .coordinates import box_problems, clip_boxes
from .counts import counted
from .foreign_files import check_regular_file, stays_inside
from .image_processing_tap import open_image, upright_size
from .masks import as_mask
from .output_files import write_whole
from .picture_folders import PictureRegions
from .region_tokens import RegionTokens

_NOT_IN_RESULTS = ("id", "area", "iscrowd", "caption")
"""What COCO's tools give results by themselves; and what has them take results for captions of whole pictures."""


@dataclass
class CocoDetections:
    """The entries of a file in COCO's layout, picture by picture, and what the file says of pictures and categories.

    pictures: each with its regions: "mask" (run lengths or polygons) or "box" (xyxy in pixels), "category" if it is listed, and
    under "coco" the entry itself. A picture that is listed under several ids is one picture. left_out: each entry that cannot
    be used, with the reason. unused: those of them that are annotations; `write` writes them as they are.
    """

    pictures: list[PictureRegions]
    left_out: dict[str, str]
    head: dict[str, Any] = field(repr=False)
    unused: list[dict[str, Any]] = field(default_factory=list, repr=False)
    are_results: bool = False

    @classmethod
    def read(cls, annotations: str | Path, folder: str | Path, results: str | Path | None = None) -> CocoDetections:
        """Read the annotations of a file, or a detector's `results` for its pictures, which lie in `folder`.

        A segmentation is the prompt where an entry has one, else its bbox, clipped to the picture. Entries of unlisted
        pictures, of pictures that are not there, with masks that do not fit the picture, and with boxes that are empty or
        entirely outside are left out and named. Raises `ValueError` for files of another layout, and for two pictures with
        one id.
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
        categories = content.get("categories") or []
        if not isinstance(categories, list):
            raise ValueError(f"{annotations} has categories of type {type(categories).__name__}, expected a list.")
        names = {_key(one.get("id")): one.get("name") for one in categories if isinstance(one, dict)}
        _check_ids(content["images"], annotations)
        found = cls([], {}, head, are_results=results is not None)
        places = found._read_pictures(content["images"], Path(folder))
        for number, entry in enumerate(entries, 1):
            try:
                picture, size = _place_of(entry, places)
                picture.regions.append(_region_of(entry, size, names))
            except ValueError as error:
                found._leave_out("result" if results is not None else "annotation", entry, number, str(error))
                found.unused += [entry] if results is None and isinstance(entry, dict) else []
        return found

    def _leave_out(self, kind: str, entry: Any, number: int, reason: str) -> None:
        """Note the entry at this place of the file by its id, or, if there is none or it is not the first, by its place."""
        own = entry.get("id") if isinstance(entry, dict) else None
        what = f"{kind} {own!s:.60}" if own is not None else f"{kind} number {number}"
        self.left_out[f"{what}, number {number}" if what in self.left_out else what] = reason

    def _read_pictures(self, images: Sequence[Any], folder: Path) -> dict[Any, tuple[PictureRegions, tuple[int, int]]]:
        """Pictures and their (height, width) by id."""
        places: dict[Any, tuple[PictureRegions, tuple[int, int]]] = {}
        pictures: dict[Path, PictureRegions] = {}
        for number, image in enumerate(images, 1):
            try:
                name, size = _picture_of(image, folder)
            except (ValueError, OSError, UnidentifiedImageError) as error:
                self._leave_out("picture", image, number, str(error))
                continue
            picture = pictures.setdefault(folder / name, PictureRegions(name, folder / name))
            places[image["id"]] = picture, size
        self.pictures += pictures.values()
        return places

    def annotations_of(
        self,
        picture: PictureRegions,
        regions: RegionTokens,
        *,
        captions: Sequence[str] | None = None,
        concepts: Sequence[Sequence[tuple[str, float]]] | None = None,
        replace_masks: bool = False,
    ) -> list[dict[str, Any]]:
        """The picture's regions as COCO's annotations, in the order of its entries, all of whose fields they keep.

        regions: what `encode` gave for `picture.prompts`. TAP's mask, as run lengths, and its area are written where an entry
        has no segmentation, or, with `replace_masks`, instead of it. "predicted_iou", "caption" and "concepts" are added; and
        what an entry lacks: bbox is the region's box, area that of its own segmentation, score the predicted IoU.
        """
        if len(regions) != len(picture.regions):
            raise ValueError(
                f"Got {counted(len(regions), 'region')} for {picture.image}, expected one for each of its "
                f"{counted(len(picture.regions), 'entry', 'entries')}."
            )
        rows = zip(picture.regions, regions.boxes.tolist(), regions.quality.tolist(), regions.coco_rle())
        made = []
        for i, (given, box, quality, mask) in enumerate(rows):
            entry = given["coco"]
            keeps_mask = bool(entry.get("segmentation")) and not replace_masks
            own: dict[str, Any] = {"iscrowd": 0, "score": round(quality, 4), **entry}
            shape = coco_shape(box, mask)
            if keeps_mask and not entry.get("area"):
                height, width = mask["size"]
                shape["area"] = int(as_mask(entry["segmentation"], (height, width)).sum())
            for name, value in shape.items():
                if not entry.get(name) or (name != "bbox" and not keeps_mask):
                    own[name] = value
            own["predicted_iou"] = round(quality, 4)
            if captions is not None:
                own["caption"] = captions[i]
            if concepts is not None:
                own["concepts"] = [{"name": name, "score": round(score, 4)} for name, score in concepts[i]]
            made.append(own)
        return made

    def pass_over(self, picture: PictureRegions) -> None:
        """Have `write` write a picture's annotations as they are; a detector's results for it are left out."""
        if not self.are_results:
            self.unused += [region["coco"] for region in picture.regions]

    def as_results(self, annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Annotations as entries of COCO's list of results, which its tools for evaluation read."""
        return [{name: one[name] for name in one if name not in _NOT_IN_RESULTS} for one in annotations]

    def write(self, path: str | Path, annotations: Iterable[dict[str, Any]]) -> None:
        """Write a file in COCO's layout with these annotations, completely or not at all; those without an id are numbered.

        Annotations that could not be used come last, as they are.
        """
        listed = [*annotations, *self.unused]
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


def _key(value: Any) -> int | str | None:
    """An id, or None for what is none."""
    return value if isinstance(value, (int, str)) else None


def _check_ids(images: Sequence[Any], path: str | Path) -> None:
    """Refuse two pictures with one id: nobody knows which of them an annotation means."""
    names: dict[int | str, Any] = {}
    for image in images:
        own = _key(image.get("id")) if isinstance(image, dict) else None
        if own is not None and names.setdefault(own, image.get("file_name")) != image.get("file_name"):
            raise ValueError(
                f"{path} has two pictures with the id {own}, {names[own]} and {image.get('file_name')}: give each an id of "
                "its own."
            )


def _picture_of(image: Any, folder: Path) -> tuple[str, tuple[int, int]]:
    """A listed picture's name and (height, width). Raises `ValueError` or `OSError` for one that cannot be used."""
    name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(name, str) or not stays_inside(name):
        raise ValueError(f"its file_name is {name!r:.80}, expected a path in the folder of pictures")
    if _key(image.get("id")) is None:
        raise ValueError(f"its id is {image.get('id')!r:.60}, expected a number or a text")
    with open_image(folder / name) as opened:
        width, height = upright_size(opened)
    listed = (image.get("width", width), image.get("height", height))
    if listed != (width, height):
        raise ValueError(f"{name} is {width} × {height} pixels, the file says {listed[0]} × {listed[1]}")
    return name, (height, width)


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
    region: dict[str, Any] = {"coco": entry}
    category = names.get(_key(entry.get("category_id")))
    if isinstance(category, str):
        region["category"] = category
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
    boxes = np.array([box])
    for problem in box_problems(boxes, size, may_overshoot=True).values():
        raise ValueError(problem.words)
    return {"box": clip_boxes(boxes, size)[0].tolist(), **region}
