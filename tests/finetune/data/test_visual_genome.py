"""Visual Genome as its authors publish it, and in the COCO-style layout of GRiT."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import read_whole, talk_of, write_json, write_picture

from finetune.data.validation import problems_of
from finetune.data.visual_genome import GritSource, VisualGenomeSource

SHARED = Path(__file__).parents[4] / "shared" / "data"


def test_the_original_layout_is_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "VG_100K_2" / "1.jpg")
    write_picture(tmp_path / "VG_100K" / "2.jpg")
    rest = {"image_id": 1, "width": 20, "height": 15}
    regions = [
        {"region_id": 900100184613, "phrase": " the  clock is green ", "x": 10, "y": 5, **rest},
        {"region_id": 2, "phrase": "leaves the picture", "x": 50, "y": -3, **rest},
        {"region_id": 3, "phrase": "all outside", "x": 61, "y": 0, **rest},
        {"region_id": 4, "phrase": " ", "x": 1, "y": 1, **rest},
    ]
    common = {
        "annotations": write_json(tmp_path / "region_descriptions.json", [
            {"id": 1, "regions": regions}, {"id": 2, "regions": [{**regions[0], "image_id": 2}]}, {"id": 3, "regions": []}]),
        "image_data": write_json(tmp_path / "image_data.json", [
            {"image_id": i, "width": 60, "height": 40, "url": f"https://cs.stanford.edu/people/rak248/{folder}/{i}.jpg"}
            for i, folder in ((1, "VG_100K_2"), (2, "VG_100K"))]),
        "images": str(tmp_path), "output": str(tmp_path / "o.jsonl"),
    }  # fmt: skip
    one, two = read_whole(VisualGenomeSource(**common), tmp_path)
    assert (one.image, two.image) == ("VG_100K_2/1.jpg", "VG_100K/2.jpg")
    assert talk_of(one)[1::2] == ["the clock is green", "leaves the picture"]
    assert one.regions[1].box == [50, 0, 60, 12]
    splits = write_json(tmp_path / "splits.json", {"train": [1], "val": [2], "test": []})
    (kept,) = read_whole(VisualGenomeSource(**common, splits=splits, split="val"), tmp_path)
    assert kept.image == two.image


def test_grits_layout_is_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    path = write_json(tmp_path / "train.json", {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 5, "bbox": [1, 2, 10, 10], "caption": "a red door"},
                        {"id": 2, "image_id": 5, "bbox": [1, 2, 10, 10], "caption": "ignored", "ignore": 1}]})  # fmt: skip
    source = GritSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"))
    (sample,) = read_whole(source, tmp_path)
    assert talk_of(sample) == ["Describe <region1> in a few words.", "a red door"]


def test_pictures_that_are_not_listed_or_come_twice_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "VG_100K" / "1.jpg")
    region = {"region_id": 5, "image_id": "1", "phrase": "a clock", "x": 10, "y": 5, "width": 20, "height": 15}
    described = [{"id": 1, "regions": [7, {**region, "x": None}, region]}, {"id": 1, "regions": [region]},
                 {"id": 9, "regions": [{**region, "image_id": 9}]}, {"id": 3, "regions": []}]  # fmt: skip
    url = "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg"
    images = [{"image_id": 1, "width": 60, "height": 40, "url": url}, {"image_id": 2, "width": 60, "url": url}]
    source = VisualGenomeSource(
        annotations=write_json(tmp_path / "region_descriptions.json", described),
        image_data=write_json(tmp_path / "image_data.json", images),
        images=str(tmp_path),
        output=str(tmp_path / "o.jsonl"),
    )
    (sample,) = read_whole(source, tmp_path)
    assert talk_of(sample)[1::2] == ["a clock"]
    assert source.left_out.faults == {"no height": 1, "no object": 1, "no x": 1, "picture described twice": 1,
                                      "picture not listed": 1}  # fmt: skip
    assert source.left_out.unwanted == {"picture without descriptions": 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real files of ../shared/data")
def test_published_files_are_converted(tmp_path: Path) -> None:
    folder, output = SHARED / "visual_genome_sample", str(tmp_path / "o.jsonl")
    common = {"annotations": str(folder / "region_descriptions.json"), "image_data": str(folder / "image_data.json"),
              "images": str(folder), "output": output}  # fmt: skip
    samples = list(VisualGenomeSource(**common).limited())
    assert sum(len(sample.regions) for sample in samples) == 7278
    assert not [problem for sample in samples for problem in problems_of(sample.to_dict(), tmp_path, "skip")]
    splits = str(folder / "densecap_splits.json")
    parts = [
        list(VisualGenomeSource(**common, splits=splits, split=name).limited()) for name in ("train", "val", "test")
    ]
    assert 0 < sum(len(part) for part in parts) <= len(samples)
    folder = SHARED / "region_captions"
    for name, count in (("train", 195), ("test", 42)):
        source = GritSource(annotations=str(folder / f"{name}.json"), images=str(folder / "images"), output=output)
        assert sum(len(sample.regions) for sample in read_whole(source, tmp_path)) == count
