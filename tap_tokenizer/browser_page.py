"""A region tokenizer → the folder of a web page on which it runs in the browser alone: masks under the pointer, and concepts.

The page lies in `browser/`. Any server of files can serve the folder; no other server is needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .image_processing_tap import open_image
from .onnx_export import GRAPHS, PRECISIONS, check_export, export_onnx
from .output_files import only_writer, save_tensors, write_whole
from .pretrained_files import CONCEPTS_FILE
from .region_tokenizer import TapRegionTokenizer
from .visualization import region_colour

PAGE = Path(__file__).parent / "browser"
MARKING_SCRIPT = PAGE / "marking.js"
"""What is marked on a picture, which the page of llm_bridge shares."""

COLOURS = 24
"""How many regions have a colour of their own on the page."""

EXAMPLE = "example.webp"
"""What the page offers as an example, unless other pictures are given."""

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "GIF": ".gif"}
"""Pictures that every browser shows. MPO is Pillow's name for a JPEG of several pictures, as phones take them."""

RUNTIME_VERSION = "1.30.0"
RUNTIME_ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"
RUNTIME = {
    "module": ("ort.wasm.bundle.min.mjs", 73_054, "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    "wasm": (
        "ort-wasm-simd-threaded.wasm",
        14_239_897,
        "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    ),
}
"""The files of onnxruntime-web that the page needs: name, bytes, and SHA-384 in base64."""


def export_browser_page(
    tokenizer: TapRegionTokenizer,
    folder: str | Path,
    *,
    precision: str = "int8",
    runtime: str | Path | None = None,
    pictures: Sequence[str | Path] = (),
) -> dict[str, int]:
    """Write a folder that any server of files serves as a web page; returns its files with their sizes in bytes.

    precision: as in `export_onnx`, which writes the subfolder `model`; the concept bank lies there in float16. runtime: the
    folder `dist` of the npm package onnxruntime-web, whose files are copied; without it, browsers load them from jsDelivr
    and check them. pictures: examples on the page, instead of a drawing. What the page needs to know stands in `tap.json`.
    The folder is written completely or not at all.

    Raises `ValueError` for an unknown precision, a folder that exists, a runtime of another version, or a picture that
    browsers do not show, and `ImportError` without the extra `onnx`.
    """
    folder, runtime = Path(folder), None if runtime is None else Path(runtime)
    check_page(folder, precision, runtime, pictures)
    with only_writer(folder):
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # what a process left that was killed
        try:
            partial.mkdir()
            export_onnx(tokenizer, partial / "model", precision=precision)
            bank = tokenizer.concepts
            if bank is not None:
                weights = bank.weights.to(torch.float16).contiguous()
                save_tensors(partial / "model" / CONCEPTS_FILE, {"weights": weights}, {"names": json.dumps(bank.names)})
            for path in PAGE.iterdir():
                if path.name != EXAMPLE:
                    shutil.copyfile(path, partial / path.name)
            if runtime is not None:
                for name, _, _ in RUNTIME.values():
                    (partial / "runtime").mkdir(exist_ok=True)
                    shutil.copyfile(runtime / name, partial / "runtime" / name)
            settings = _settings(tokenizer, precision, partial, is_local=runtime is not None)
            settings["examples"] = _copy_pictures(pictures or [PAGE / EXAMPLE], partial)
            write_whole(partial / "tap.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def check_page(folder: Path, precision: str, runtime: Path | None, pictures: Sequence[str | Path]) -> None:
    """Refuse what `export_browser_page` cannot do, before a model is loaded."""
    check_export(folder, precision)
    for picture in pictures:
        with open_image(picture) as opened:
            if opened.format not in FORMATS:
                raise ValueError(
                    f"{picture} is a {opened.format} picture, which not every browser shows: give one of the kinds "
                    f"{', '.join(name for name in FORMATS if name != 'MPO')}."
                )
    for name, _, digest in RUNTIME.values() if runtime is not None else ():
        path = runtime / name  # type: ignore[operator]
        if not path.is_file():
            raise ValueError(
                f"{runtime} has no {name}, expected the dist folder of the npm package onnxruntime-web {RUNTIME_VERSION}: "
                f"npm install onnxruntime-web@{RUNTIME_VERSION}"
            )
        if base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode() != digest:
            raise ValueError(
                f"{path} is not that of onnxruntime-web {RUNTIME_VERSION}, which the page was tested with: "
                f"npm install onnxruntime-web@{RUNTIME_VERSION}"
            )


def _settings(tokenizer: TapRegionTokenizer, precision: str, folder: Path, *, is_local: bool) -> dict[str, Any]:
    """What the page reads first: what the model is, how a picture is prepared for it, and which files to load."""
    processor, source = tokenizer.processor.image_processor, tokenizer.source
    encoder, decoder = (f"model/onnx/{name}{PRECISIONS[precision].suffix}.onnx" for name in GRAPHS)
    files = {"encoder": encoder, "decoder": decoder, "concepts": f"model/{CONCEPTS_FILE}"}
    return {
        "name": Path(source.get("variant") or source.get("source", "TAP")).name,
        "precision": precision,
        "fingerprint": tokenizer.fingerprint,
        "limitation": tokenizer.limitation,
        "colours": [region_colour(i) for i in range(COLOURS)],
        "image_size": processor.image_size,
        "mean": processor.image_mean[::-1],  # red, green, blue, of bytes
        "std": processor.image_std[::-1],
        "model": {
            name: {"path": path, "bytes": (folder / path).stat().st_size} if (folder / path).is_file() else None
            for name, path in files.items()
        },
        "runtime": {
            part: {"path": f"runtime/{name}", "bytes": size}
            if is_local
            else {"path": RUNTIME_ADDRESS + name, "bytes": size, "integrity": f"sha384-{digest}"}
            for part, (name, size, digest) in RUNTIME.items()
        },
    }


def _copy_pictures(pictures: Sequence[str | Path], folder: Path) -> list[dict[str, str]]:
    """Copy examples under numbers, as browsers may stumble over their names; their path on the page and their name."""
    (folder / "examples").mkdir()
    copied = []
    for number, picture in enumerate(map(Path, pictures), 1):
        with open_image(picture) as opened:
            path = f"examples/{number}{FORMATS[str(opened.format)]}"
        shutil.copyfile(picture, folder / path)
        copied.append({"path": path, "name": picture.stem})
    return copied
