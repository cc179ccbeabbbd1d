"""PixelRefer: a marker for each mask in order; videos are passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

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
    assert source.left_out.unwanted == {"video, for a record is one picture": 1}


def test_masks_of_videorefer_are_read(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    talk = [{"from": "human", "value": "What is <region>?"}, {"from": "gpt", "value": "A dog."}]
    forms: list[object] = [
        [{"0": {"segmentation": rle}}], [{"17": {"segmentation": SQUARE}}], [{"segmentation": rle}], [rle], [SQUARE],
    ]  # fmt: skip
    entries: list[dict[str, object]] = [{"image": "a.jpg", "conversations": talk, "annotation": form} for form in forms]
    entries.append({"image": "a.jpg", "conversations": talk, "masks": None, "annotation": forms[0]})
    faulty: list[object] = [None, [], [None], [{}], [{"0": {}}], [{"0": None}], {"0": {"segmentation": rle}},
                            [{"0": {"segmentation": rle}, "4": {"segmentation": rle}}]]  # fmt: skip
    bad = [{"id": i, "image": "a.jpg", "conversations": talk, "annotation": form} for i, form in enumerate(faulty)]
    bad.append({"id": 8, "image": "a.jpg", "conversations": talk})
    path = write_json(tmp_path / "p.json", [*entries, *bad])
    source = PixelReferSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"), show_all=True)
    assert len(read_whole(source, tmp_path)) == 6
    named = "\n".join(source.left_out.named)
    assert all(f"(id {i}): " in named for i in range(9))
    assert "entry number 15 (id 8): it lacks masks" in named


def test_one_entry_without_masks_does_not_stop_the_others(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    talk = [{"from": "human", "value": "What is <region>?"}, {"from": "gpt", "value": "A dog."}]
    whole = {"image": "a.jpg", "conversations": talk, "masks": [rle]}
    wrong = [{"image": "a.jpg", "conversations": talk}, {**whole, "masks": None}, {**whole, "masks": [rle, rle]}]
    path = write_json(tmp_path / "p.json", [whole, *wrong, whole])
    source = PixelReferSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"))
    assert len(list(source.limited())) == 3  # what no text shows is told in front
    assert source.left_out.faults == {"no masks": 2}
