"""PixelRefer: a marker for each mask in order; videos are passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("ijson")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.pixelrefer import PixelReferSource


def test_markers_are_numbered(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    talk = [{"from": "human", "value": "<image>\nWhat is <region> beside <region>?"}, {"from": "gpt", "value": "A dog."},
            {"from": "human", "value": "And <region>?"}, {"from": "gpt", "value": "A cat."}]  # fmt: skip
    path = write_json(tmp_path / "p.json", [
        {"video": "a.mp4", "conversations": talk, "annotation": [{"3": {"segmentation": rle}}]},
        {"image": "a.jpg", "conversations": talk, "masks": [rle, rle, rle]},
        {"image": "a.jpg", "conversations": talk, "masks": [SQUARE] * 3, "width": 60, "height": 40}])  # fmt: skip
    source = PixelReferSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"))
    one, two = read_whole(source, tmp_path)
    assert talk_of(one) == ["What is <region1> beside <region2>?", "A dog.", "And <region3>?", "A cat."]
    assert talk_of(two) == talk_of(one)
