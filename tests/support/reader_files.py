"""A small file for every reader of published data: a good entry, and the same twice with something in the second changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_files import SQUARE, write_json, write_picture

from finetune.data.coco import CocoPanopticSource, CocoSource, LvisSource
from finetune.data.ferret_bench import FerretBenchSource
from finetune.data.gar_bench import GarBenchSource
from finetune.data.osprey import OspreySource
from finetune.data.pixelrefer import PixelReferSource
from finetune.data.refcoco import RefCocoSource
from finetune.data.source import PictureSource
from finetune.data.visual_genome import GritSource, VisualGenomeSource

RLE = {"size": [40, 60], "counts": [100, 50, 2250]}
TALK = [{"from": "human", "value": "What is <region1>?"}, {"from": "gpt", "value": "A dog."}]
MARKED = [{"from": "human", "value": "<image>\nWhat is <region>?"}, {"from": "gpt", "value": "A dog."}]
SIZE = {"height": 40, "width": 60}
CATEGORIES = [{"id": 1, "name": "dog", "isthing": 1}]


@dataclass
class ReaderFiles:
    """entry: a good one, numbered 1; write: entries → a folder that the reader reads, as the source of that."""

    entry: dict[str, Any]
    write: Callable[[Path, list[Any]], PictureSource]

    def second(self) -> dict[str, Any]:
        """The same entry with the number 2 for whatever is 1."""
        return dict(_renumbered(self.entry))


def _renumbered(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: 2 if k in ("id", "image_id", "ann_id", "ref_id") and v == 1 else _renumbered(v) for k, v in value.items()
        }
    if isinstance(value, list):
        return [_renumbered(v) for v in value]
    return "b.jpg" if value == "a.jpg" else value


def _annotations(cls: type[PictureSource], image: dict[str, Any]) -> Callable[[Path, list[Any]], PictureSource]:
    def write(folder: Path, entries: list[Any]) -> PictureSource:
        images = [{"id": i, **SIZE, **_renumbered_image(image, i)} for i in (1, 2)]
        content = {"images": images, "annotations": entries, "categories": CATEGORIES}
        return cls(**_common(folder), annotations=write_json(folder / "file.json", content))  # type: ignore[call-arg]

    return write


def _renumbered_image(image: dict[str, Any], number: int) -> dict[str, Any]:
    return {k: str(v).replace("a.jpg", "ab"[number - 1] + ".jpg") for k, v in image.items()}


def _pictures(folder: Path, entries: list[Any]) -> PictureSource:
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": SQUARE} for i in (1, 2)
    ]
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES}
    return CocoSource(**_common(folder), annotations=write_json(folder / "file.json", content))


def _segments(folder: Path, entries: list[Any]) -> PictureSource:
    for name in "ab":
        (folder / "segments").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), 7, np.uint8)).save(folder / "segments" / f"{name}.png")
    images = [{"id": i, "file_name": f"{name}.jpg", **SIZE} for i, name in ((1, "a"), (2, "b"))]
    content = {"images": images, "annotations": entries, "categories": CATEGORIES}
    path = write_json(folder / "file.json", content)
    return CocoPanopticSource(**_common(folder), annotations=path, segments=str(folder / "segments"))


def _list(cls: type[PictureSource], **knobs: str) -> Callable[[Path, list[Any]], PictureSource]:
    def write(folder: Path, entries: list[Any]) -> PictureSource:
        path = write_json(folder / "file.json", entries)
        return cls(**_common(folder), annotations=path, **knobs)  # type: ignore[call-arg]

    return write


def _references(folder: Path, entries: list[Any]) -> PictureSource:
    images = [{"id": i, "file_name": f"{name}.jpg", **SIZE} for i, name in ((1, "a"), (2, "b"))]
    annotations = [{"id": i, "image_id": i, "bbox": [10, 10, 20, 20], "segmentation": SQUARE} for i in (1, 2)]
    instances = write_json(folder / "instances.json", {"images": images, "annotations": annotations})
    return RefCocoSource(**_common(folder), references=write_json(folder / "file.json", entries), annotations=instances)


def _descriptions(folder: Path, entries: list[Any]) -> PictureSource:
    images = [{"image_id": i, "url": f"https://host/VG/{name}.jpg", **SIZE} for i, name in ((1, "a"), (2, "b"))]
    path = write_json(folder / "image_data.json", images)
    return VisualGenomeSource(**_common(folder), annotations=write_json(folder / "file.json", entries), image_data=path)


def _image_data(folder: Path, entries: list[Any]) -> PictureSource:
    region = {"phrase": "a dog", "x": 1, "y": 2, "width": 20, "height": 20}
    described = [{"id": i, "regions": [{"region_id": i, "image_id": i, **region}]} for i in (1, 2)]
    path = write_json(folder / "region_descriptions.json", described)
    return VisualGenomeSource(**_common(folder), annotations=path, image_data=write_json(folder / "file.json", entries))


def _common(folder: Path) -> dict[str, str]:
    for name in "ab":
        write_picture(folder / "pictures" / f"{name}.jpg")
    return {"images": str(folder / "pictures"), "output": str(folder / "o.jsonl")}


_OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": SQUARE}
_SEGMENT = {"id": 7 + 256 * 7 + 65536 * 7, "category_id": 1, "bbox": [0, 0, 60, 40]}
_BOX = {"bbox": [10, 10, 20, 20], "segmentation": SQUARE}
_OSPREY = {"file_name": "a.jpg", **SIZE, "annotation": [{"segmentation": SQUARE}]}

READERS: dict[str, ReaderFiles] = {
    "coco": ReaderFiles(_OBJECT, _annotations(CocoSource, {"file_name": "a.jpg"})),
    "coco, RLE": ReaderFiles({**_OBJECT, "segmentation": RLE}, _annotations(CocoSource, {"file_name": "a.jpg"})),
    "coco's pictures": ReaderFiles({"id": 1, "file_name": "a.jpg", **SIZE}, _pictures),
    "coco_panoptic": ReaderFiles({"image_id": 1, "file_name": "a.png", "segments_info": [_SEGMENT]}, _segments),
    "ferret_bench": ReaderFiles(
        {"question_id": 1, "image": "a.jpg", "category": "refer_desc", "text": "What is <region>?", "annotation": _BOX},
        _list(FerretBenchSource),
    ),
    "gar_bench": ReaderFiles(
        {"image": "a.jpg", "mask_rles": [RLE], "question": "What is <Prompt0>?", "choices": ["A. dog", "B. cat"],
         "answer": "A", "type": "color"},
        _list(GarBenchSource),
    ),
    "grit": ReaderFiles(
        {"id": 1, "image_id": 1, "bbox": [10, 10, 20, 20], "caption": "a dog"},
        _annotations(GritSource, {"file_name": "a.jpg"}),
    ),
    "lvis": ReaderFiles(_OBJECT, _annotations(LvisSource, {"coco_url": "http://host/val2017/a.jpg"})),
    "osprey": ReaderFiles({**_OSPREY, "conversations": TALK}, _list(OspreySource, kind="conversation")),
    "osprey's details": ReaderFiles(
        {**_OSPREY, "description": ["<region1>: a dog"]}, _list(OspreySource, kind="detail_description")
    ),
    "pixelrefer": ReaderFiles({"image": "a.jpg", "conversations": MARKED, "masks": [RLE]}, _list(PixelReferSource)),
    "pixelrefer, polygons": ReaderFiles(
        {"image": "a.jpg", **SIZE, "conversations": MARKED, "masks": [SQUARE]}, _list(PixelReferSource)
    ),
    "videorefer": ReaderFiles(
        {"image": "a.jpg", "conversations": MARKED, "annotation": [{"0": {"segmentation": RLE}}]}, _list(PixelReferSource)
    ),
    "refcoco": ReaderFiles(
        {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "train", "sentences": [{"sent": "the dog"}]}, _references
    ),
    "visual_genome": ReaderFiles(
        {"id": 1, "regions": [{"region_id": 1, "image_id": 1, "phrase": "a dog", "x": 1, "y": 2, **SIZE}]}, _descriptions
    ),
    "visual_genome's pictures": ReaderFiles({"image_id": 1, "url": "https://host/VG/a.jpg", **SIZE}, _image_data),
}  # fmt: skip


def changed(entry: dict[str, Any], values: list[Any]) -> Iterator[tuple[str, Any]]:
    """(what was changed, the entry) with each thing in it missing once, and once in place of it each of these values."""
    for path in _paths(entry):
        for value in ("MISSING", *values):
            other = copy.deepcopy(entry)
            holder: Any = other
            for step in path[:-1]:
                holder = holder[step]
            if value == "MISSING":
                del holder[path[-1]]
            else:
                holder[path[-1]] = copy.deepcopy(value)
            yield f"{'.'.join(map(str, path))} {value!r:.40}", other


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for step in steps:
        yield (*before, step)
        yield from _paths(value[step], (*before, step))
