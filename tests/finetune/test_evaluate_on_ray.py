"""Evaluations whose answers actors of Ray give: the bytes of one process, whoever dies, and however it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from killed_actor import one_actor_killed
from ray_stand_in import without_ray

from finetune import evaluate
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource

FILES = ("predictions.jsonl", "metrics.json", "table.md", "about.json")


def flags(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), "--batch_size", "1", "--rows", "caption decoder;language model",
            "--max_new_tokens", "8", "--device", "cpu", "--model", "region-chat-tiny", *more]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of two workers, on this machine."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'tap-bridge[ray]'")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Records of six scenes, and their evaluation as one process makes it."""
    folder = tmp_path_factory.mktemp("scenes")
    source = GlyphScenesSource(
        output=str(folder / "records.jsonl"), scenes=6, split="val", turns=2, long_side=96, workers=1
    )
    convert(source)
    evaluate.main(flags(folder / "records.jsonl", folder / "one"))
    return folder / "records.jsonl", folder / "one"


def test_what_is_sent_to_actors_is_all_they_need(
    scenes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, one = scenes
    without_ray(monkeypatch, evaluate)
    evaluate.main(flags(data, tmp_path / "two", "--ray", "2"))
    for file in FILES:
        assert (tmp_path / "two" / file).read_bytes() == (one / file).read_bytes(), file
    run, written = evaluate.run_chunks, data.read_bytes()

    def changed(*given: Any, **named: Any) -> Any:
        data.write_bytes(written + written.splitlines(keepends=True)[0])
        try:
            yield from run(*given, **named)
        finally:
            data.write_bytes(written)

    def missing(make: Any, *given: Any, **named: Any) -> Any:
        yield from run(replace(make, about={**make.about, "candidates_checksum": "5"}), *given, **named)

    monkeypatch.setattr(evaluate, "run_chunks", missing)
    with pytest.raises(ValueError, match="has other candidates_checksum: have all machines read the same files"):
        evaluate.main(flags(data, tmp_path / "three", "--ray", "2"))
    monkeypatch.setattr(evaluate, "run_chunks", changed)
    with pytest.raises(ValueError, match="has other data_checksum: have all machines read the same files"):
        evaluate.main(flags(data, tmp_path / "three", "--ray", "2"))


@pytest.mark.slow
def test_two_actors_answer_as_one_process_although_one_is_killed(
    cluster: None, scenes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, one = scenes
    shutil.copytree(one.parent, tmp_path / "here", ignore=shutil.ignore_patterns("one"))
    monkeypatch.chdir(tmp_path / "here")  # where the actors must find what is named from there
    with one_actor_killed(lambda: any(Path("two", "parts").glob("*.jsonl"))):
        evaluate.main(flags(Path(data.name), Path("two"), "--ray", "2"))
    for file in FILES[:-1]:
        assert Path("two", file).read_bytes() == (one / file).read_bytes(), file
    assert not Path("two", "parts").exists()


@pytest.mark.slow
def test_an_evaluation_goes_on_with_ray_where_one_process_was_stopped(
    cluster: None, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    data, one = scenes
    output = tmp_path / "cut"
    (output / "parts").mkdir(parents=True)
    shutil.copy(one / "about.json", output)
    lines = [json.loads(line) for line in (one / "predictions.jsonl").read_text().splitlines()]
    first = [{**line, "answer": "kept"} for line in lines if line["id"].split("/")[0] == "0"]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in first)
    (output / "parts" / "000000.jsonl").write_text(text)
    evaluate.main(flags(data, output, "--ray", "2"))
    found = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert found == [*first, *lines[len(first) :]]
    assert json.loads((output / "environment.json").read_text())["processes"] == 2


def test_flags_of_ray_that_make_no_sense_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Got --ray_address auto without --ray: say how many"):
        evaluate.main(flags(tmp_path / "none.jsonl", tmp_path / "out", "--ray_address", "auto"))
    with monkeypatch.context() as patch:
        patch.setattr("tap_tokenizer.cluster.find_spec", lambda name: True)
        with pytest.raises(ValueError, match="Got ray with predictions, which are answers already"):
            evaluate.main(flags(tmp_path / "none.jsonl", tmp_path / "out", "--ray", "2", "--predictions", "a.jsonl"))
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr("tap_tokenizer.cluster.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Got --ray, which needs Ray: pip install 'tap-bridge\[ray\]'"):
        evaluate.main(flags(tmp_path / "none.jsonl", tmp_path / "out", "--ray", "2"))
    assert not (tmp_path / "out").exists()
