"""Records from the command line: the same however often it was stopped, and whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("matplotlib")

from finetune.data.__main__ import ConvertArguments, convert, main
from finetune.data.sample import load_samples, open_image, region_prompts


def arguments(output: Path, scenes: int = 5, **changes: object) -> ConvertArguments:
    return ConvertArguments(output=str(output), scenes=scenes, long_side=96, workers=1, **changes)  # type: ignore[arg-type]


def test_records_are_whole(tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "records.jsonl"
    convert(arguments(output))
    samples = load_samples(output)
    assert len(samples) == 5
    for sample in samples:
        assert open_image(sample, tmp_path).shape == (sample["height"], sample["width"], 3)
        assert len(region_prompts(sample)["boxes"]) == len(sample["regions"])
        text = " ".join(turn["content"] for turn in sample["conversations"])
        for number in range(1, len(sample["regions"]) + 1):
            assert f"<region{number}>" in text
    assert [path.name for path in output.parent.iterdir()] == ["records.jsonl"]


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    convert(arguments(whole))
    import finetune.data.__main__ as script

    plain = script.glyph_record

    def stop(index: int, **rest: object) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return plain(index, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(script, "glyph_record", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(arguments(cut))
    assert not cut.exists()
    (partial,) = tmp_path.glob("cut.jsonl*.partial")
    with partial.open("a") as file:
        file.write('{"image": "torn')  # as a kill may leave it
    drawn: list[int] = []
    monkeypatch.setattr(script, "glyph_record", lambda index, **rest: drawn.append(index) or plain(index, **rest))
    convert(arguments(cut))
    assert drawn == [3, 4]
    assert cut.read_bytes() == whole.read_bytes()


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.jsonl").write_text("mine\n")
    for flags, words in (
        (["--output", str(tmp_path / "there.jsonl")], "exists already"),
        (["--output", str(tmp_path / "new.jsonl"), "--families", "kind,smell"], "smell"),
        (["--output", str(tmp_path / "new.jsonl"), "--split", "exam"], "exam"),
    ):
        assert main(["convert", *flags]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "there.jsonl").read_text() == "mine\n"
    assert main([]) == 2
    assert "convert" in capsys.readouterr().err
