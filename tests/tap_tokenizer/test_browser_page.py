"""The folder of the page holds all that the page loads, is written whole or not at all, and refuses what would not work."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tap_tokenizer import (
    ConceptBank,
    TapRegionTokenizer,
    browser_page,
    export_browser_page,
    onnx_export,
    region_colour,
)
from tap_tokenizer.browser_page import PAGE, RUNTIME
from tap_tokenizer.cli import main


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of a few bytes, as if the extra were installed: what they say is tested elsewhere."""
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: object())
    monkeypatch.setattr(onnx_export, "_write_graph", lambda path, *inputs: path.write_bytes(path.name.encode()))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that stand for the runtime's."""
    folder, files = tmp_path / "dist", {}
    folder.mkdir()
    for part, (name, _, _) in RUNTIME.items():
        (folder / name).write_text(part)
        files[part] = (name, len(part), base64.b64encode(hashlib.sha384(part.encode()).digest()).decode())
    monkeypatch.setattr(browser_page, "RUNTIME", files)
    return folder


def referred(folder: Path) -> set[str]:
    """What the page's own files name as files beside them."""
    names = set(re.findall(r'(?:href|src)="([\w./-]+)"', (folder / "index.html").read_text()))
    for script in folder.glob("*.js"):
        code = script.read_text()
        names |= set(re.findall(r'from "\./([\w.]+)"', code) + re.findall(r'new URL\("([\w.]+)"', code))
    return names


@pytest.mark.parametrize(("precision", "suffix"), [("int8", "_quantized"), ("float32", "")])
def test_folder_holds_all_that_the_page_loads(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path, runtime: Path, precision: str, suffix: str
) -> None:
    folder = tmp_path / "new" / "page"
    sizes = export_browser_page(tiny_tokenizer, folder, precision=precision, runtime=runtime)
    assert sizes == {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert [path.name for path in folder.parent.iterdir()] == ["page"]
    assert {path.name for path in PAGE.iterdir()} - {"example.webp"} <= set(sizes)
    assert referred(folder) == {path.name for path in PAGE.iterdir()} - {"index.html", "example.webp"}
    settings = json.loads((folder / "tap.json").read_text())
    for file in (*settings["model"].values(), *settings["runtime"].values()):
        assert file == {"path": file["path"], "bytes": sizes[file["path"]]}
    assert settings["model"]["encoder"]["path"] == f"model/onnx/vision_encoder{suffix}.onnx"
    assert settings["examples"] == [{"path": "examples/1.webp", "name": "example"}]
    assert (folder / "examples" / "1.webp").read_bytes() == (PAGE / "example.webp").read_bytes()
    processor = tiny_tokenizer.processor.image_processor
    assert settings["image_size"] == processor.image_size == 64
    assert settings["mean"] == processor.image_mean[::-1]
    assert settings["fingerprint"] == tiny_tokenizer.fingerprint
    assert settings["colours"][3] == [*region_colour(3)]  # those of the pictures that Python draws
    bank = ConceptBank.load(folder / "model" / "concepts.safetensors")
    assert bank.names == tiny_tokenizer.concepts.names
    torch.testing.assert_close(bank.weights, tiny_tokenizer.concepts.weights, rtol=1e-3, atol=1e-6)  # of float16
    assert sizes["model/concepts.safetensors"] < 2 * bank.weights.numel() + 1000


def test_runtime_that_is_not_copied_is_named_with_its_digest(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "page"
    export_browser_page(tiny_tokenizer, folder)
    assert not (folder / "runtime").exists()
    for part, file in json.loads((folder / "tap.json").read_text())["runtime"].items():
        name, size, digest = RUNTIME[part]
        assert (
            file["path"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{browser_page.RUNTIME_VERSION}/dist/{name}"
        )
        assert (file["bytes"], file["integrity"]) == (size, f"sha384-{digest}")


def test_page_of_a_tokenizer_without_concepts_says_that_there_are_none(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    export_browser_page(TapRegionTokenizer(tiny_tokenizer.model), tmp_path / "page")
    assert json.loads((tmp_path / "page" / "tap.json").read_text())["model"]["concepts"] is None


def test_examples_are_the_pictures_that_were_given(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path, picture: Image.Image
) -> None:
    picture.save(tmp_path / "My cat #1.PNG")
    picture.save(tmp_path / "dog.jpeg")
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[picture])
    given = [tmp_path / "My cat #1.PNG", tmp_path / "dog.jpeg", tmp_path / "phone.jpg"]
    export_browser_page(tiny_tokenizer, tmp_path / "page", pictures=given)
    examples = json.loads((tmp_path / "page" / "tap.json").read_text())["examples"]
    assert examples == [
        {"path": "examples/1.png", "name": "My cat #1"},
        {"path": "examples/2.jpg", "name": "dog"},
        {"path": "examples/3.jpg", "name": "phone"},
    ]
    assert [(tmp_path / "page" / one["path"]).read_bytes() for one in examples] == [path.read_bytes() for path in given]


def test_page_runs_no_code_but_its_files() -> None:
    """Its own policy forbids scripts and styles within the page, so there are none."""
    page = (PAGE / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert not re.search(r'<style|style="|\son\w+="|<script(?![^>]* src=)', page)


def test_what_cannot_become_a_page_is_refused_before_work(
    tiny_tokenizer: TapRegionTokenizer,
    tmp_path: Path,
    runtime: Path,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_export, "_write_graph", lambda *inputs: pytest.fail("began to work"))
    picture.save(tmp_path / "picture.bmp")

    def refused(words: str, folder: str = "new", **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            export_browser_page(tiny_tokenizer, tmp_path / folder, **options)

    refused("exists: give a new folder", folder="dist")
    refused("precision is 'int4', expected float32 or int8", precision="int4")
    refused("picture.bmp is a BMP picture, which not every browser shows", pictures=[tmp_path / "picture.bmp"])
    refused("Found no image file at", pictures=[tmp_path / "none.png"])
    refused("has no ort.wasm.bundle.min.mjs, expected the dist folder of the npm package", runtime=tmp_path)
    (runtime / "ort-wasm-simd-threaded.wasm").write_text("WASM")
    refused("is not that of onnxruntime-web", runtime=runtime)
    assert {path.name for path in tmp_path.iterdir()} == {"dist", "picture.bmp"}


def test_page_that_fails_leaves_nothing_behind(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*inputs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(browser_page, "write_whole", fail)
    with pytest.raises(OSError, match="disk full"):
        export_browser_page(tiny_tokenizer, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_command_writes_a_page_in_bytes_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "tap-tiny", "--browser", str(tmp_path / "page")]) == 0
    said = capsys.readouterr()
    assert "misreads photographs" in said.err
    assert f"python -m http.server --directory {tmp_path / 'page'}" in said.out
    settings = json.loads((tmp_path / "page" / "tap.json").read_text())
    assert (settings["name"], settings["precision"]) == ("tap-tiny", "int8")
    assert "misreads photographs" in settings["limitation"]
    assert "model/onnx/vision_encoder_quantized.onnx" in said.out


def test_command_refuses_flags_of_a_page_without_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "no such source", "--onnx", str(tmp_path / "new"), "--runtime", str(tmp_path)]) == 2
    assert "--runtime and --picture are for a page: give --browser FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "tap-tiny", "--onnx", "one", "--browser", "two"])
