"""Ferret-Bench: an annotation written as text, a question without an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")

from small_files import SQUARE, read_whole, talk_of, write_json, write_picture

from finetune.data.ferret_bench import FerretBenchSource


def test_entries_become_questions_without_answers(tmp_path: Path) -> None:
    write_picture(tmp_path / "000000069138.jpg")
    annotation = {"bbox": [10.0, 10.0, 20.0, 20.0], "segmentation": SQUARE}
    entry = {"question_id": "0", "image": "000000069138.jpg", "category": "description",
             "text": "How does the object <region> interact?", "annotation": str(annotation)}  # fmt: skip
    path = write_json(tmp_path / "box_refer_caption.json", [entry])
    source = FerretBenchSource(annotations=path, images=str(tmp_path), output=str(tmp_path / "o.jsonl"))
    (sample,) = read_whole(source, tmp_path)
    assert talk_of(sample) == ["How does the object <region1> interact?"]
    assert (sample.width, sample.height) == (60, 40)
    assert sample.regions[0].box == [10, 10, 30, 30]
