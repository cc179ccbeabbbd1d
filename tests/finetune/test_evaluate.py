"""Answers and numbers from a checkpoint: resumable, unedited, of what they say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from finetune import evaluate
from finetune.data.converting import convert
from finetune.data.glyph_records import GlyphScenesSource


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "val.jsonl"
    convert(GlyphScenesSource(output=str(path), scenes=5, split="val", turns=3, families="colour,size", workers=1))
    return path


def run(records: Path, output: Path, *flags: str) -> dict[str, Any]:
    evaluate.main(["--model", "region-chat-tiny", "--data", str(records), "--output", str(output), *flags])
    return json.loads((output / "metrics.json").read_text())


def test_answers_of_the_bundled_model(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = run(records, tmp_path / "alone", "--history", "none")
    assert alone["questions"] == 15
    assert alone["exact"] > 0.8 > alone["majority"]
    assert f"| all | 15 | {alone['exact']:.3f} |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "alone" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["record"], line["question"]) for line in lines] == [(r, q) for r in range(5) for q in range(3)]
    assert set(alone["by_source"]) == {"GlyphScenes"}
    assert alone["environment"]["torch"]


def test_a_stopped_run_goes_on(records: Path, tmp_path: Path) -> None:
    whole = run(records, tmp_path / "whole")
    expected = (tmp_path / "whole" / "predictions.jsonl").read_text()
    lines = expected.splitlines(keepends=True)
    (tmp_path / "whole" / "metrics.json").unlink()
    (tmp_path / "whole" / "predictions.jsonl").write_text("".join(lines[:7]) + '{"record": 2, "torn')
    assert run(records, tmp_path / "whole") == whole
    assert (tmp_path / "whole" / "predictions.jsonl").read_text() == expected
    with pytest.raises(ValueError, match="other history"):
        run(records, tmp_path / "whole", "--history", "none")


def test_a_cache_of_other_records_is_refused(records: Path, tmp_path: Path) -> None:
    from finetune import cache_regions

    cache_regions.main(
        ["--data", str(records), "--output", str(tmp_path / "cache"), "--workers", "0", "--dtype", "float32"]
    )
    other = tmp_path / "other.jsonl"
    other.write_text("".join(records.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match="made from other records"):
        run(other, tmp_path / "a", "--cache", str(tmp_path / "cache"))
    cached = run(records, tmp_path / "b", "--cache", str(tmp_path / "cache"))
    fresh = run(records, tmp_path / "c")
    assert {key: cached[key] for key in ("exact", "questions")} == {key: fresh[key] for key in ("exact", "questions")}


def test_records_without_answers_are_refused(tmp_path: Path, records: Path) -> None:
    sample = json.loads(records.read_text().splitlines()[0])
    sample["conversations"] = sample["conversations"][:1]
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(sample) + "\n")
    with pytest.raises(ValueError, match="no answered questions"):
        run(path, tmp_path / "out")
