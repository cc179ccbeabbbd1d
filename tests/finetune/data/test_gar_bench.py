"""GAR-Bench-VQA: lists that are written as text, masks counted from 0, choices that speak of masks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import read_whole, talk_of, write_json, write_picture

from finetune.data.gar_bench import GarBenchSource


def test_all_masks_are_shown_before_the_choices(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "vqa_0.png")
    rle = {"size": [40, 60], "counts": [100, 50, 2250]}
    entry = {"image_path": "/elsewhere/1582.jpg", "image": "images/vqa_0.png", "mask_rles": str([rle] * 3),
             "question": "Is <Prompt0> in the mirror?", "choices": str(["A. Yes", "B. Only <Prompt1>"]), "answer": "B",
             "type": "mirror"}  # fmt: skip
    path = write_json(tmp_path / "GAR-Bench-VQA.json", [entry])
    source = GarBenchSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"))
    (sample,) = read_whole(source, tmp_path)
    question, answer = talk_of(sample)
    assert question.startswith("The picture has <region1>, <region2>, <region3>.\nIs <region1> in the mirror?")
    assert "B. Only <region2>" in question
    assert answer == "B"
    assert sample.source == "GAR-Bench-VQA mirror"
