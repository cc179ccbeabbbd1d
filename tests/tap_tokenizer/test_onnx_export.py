"""Exported graphs give PyTorch's numbers, in onnxruntime and in transformers.js, and are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tap_tokenizer import (
    ConceptBank,
    TapConfig,
    TapModel,
    TapOutput,
    TapRegionTokenizer,
    export_onnx,
    load_rgb,
    onnx_export,
)
from tap_tokenizer.cli import main

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "llm_bridge" / "pretrained" / "region-chat-tiny" / "demo.png"
DECODED = ("iou_scores", "pred_masks", "semantic_tokens", "semantic_embeds", "expert")
BOX, POINT = [361.0, 233.0, 436.0, 307.0], [224.0, 431.0]


def narrow_tap_b() -> TapRegionTokenizer:
    """TAP-B's frame, windows, decoder and experts around a narrow encoder; its weights are random, and none is 0 or 1."""
    torch.manual_seed(0)
    config = TapConfig(
        image_encoder_config={
            "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96,
        },
        text_decoder_config={"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1, "pad_token_id": 19},
    )  # fmt: skip
    model = TapModel(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "coord_matrix" not in name:
            noise = 0.05 * torch.randn(tensor.shape)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return TapRegionTokenizer(model)


class Exported:
    """A region tokenizer, its folder, and its graphs in onnxruntime."""

    def __init__(self, tokenizer: TapRegionTokenizer, folder: Path, suffix: str = "") -> None:
        runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        self.tokenizer, self.folder = tokenizer, folder
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.encoder, self.decoder = (
            runtime.InferenceSession(folder / "onnx" / f"{name}{suffix}.onnx", options) for name in onnx_export.GRAPHS
        )

    def pixel_values(self, *pictures: np.ndarray) -> np.ndarray:
        """As SAM's processor makes them: resized bytes in the order RGB, normalised, then padded with zeros."""
        told = json.loads((self.folder / "preprocessor_config.json").read_text())
        frames = np.zeros((len(pictures), 3, told["pad_size"]["height"], told["pad_size"]["width"]), np.float32)
        mean, std = np.float32(told["image_mean"]), np.float32(told["image_std"])
        for frame, picture in zip(frames, pictures):
            resized = self.tokenizer.processor.image_processor._resize(picture)
            pixels = (resized * np.float32(told["rescale_factor"]) - mean) / std
            frame[:, : len(resized), : resized.shape[1]] = pixels.transpose(2, 0, 1)
        return frames

    def encode(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        names = [output.name for output in self.encoder.get_outputs()]
        return dict(zip(names, self.encoder.run(names, {"pixel_values": pixel_values})))

    def decode(self, seen: dict[str, np.ndarray], points: Any, labels: Any) -> dict[str, np.ndarray]:
        """Prompts (B, R, P, 2) and (B, R, P), in pixels of the model frame."""
        prompts = {"input_points": np.float32(points), "input_labels": np.int64(labels)}
        return dict(zip(DECODED, self.decoder.run(DECODED, {**seen, **prompts})))


@pytest.fixture(scope="module", params=["tap-tiny", "narrow TAP-B"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra onnx")
    is_tiny = request.param == "tap-tiny"
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny") if is_tiny else narrow_tap_b()
    folder = tmp_path_factory.mktemp("onnx") / "folder"
    export_onnx(tokenizer, folder)
    return Exported(tokenizer, folder)


@pytest.fixture
def pictures(picture: Image.Image, other_picture: Image.Image) -> list[np.ndarray]:
    """A wide one and a high one, both of which are padded."""
    return [load_rgb(picture), load_rgb(other_picture)]


def assert_same(found: dict[str, np.ndarray], output: TapOutput) -> None:
    """1e-4 on every output; of mask logits, which go beyond 100, the last digits of float32 beside."""
    for name in DECODED:
        expected = output[name]
        rtol = 5e-6 if name == "pred_masks" else 0.0
        got = torch.from_numpy(found[name]).flatten(0, 1)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=rtol, msg=lambda words, name=name: f"{name}: {words}")
    differ = (torch.from_numpy(found["pred_masks"]).flatten(0, 1) > 0) != (output.pred_masks > 0)
    assert differ.float().mean() < 1e-3


@pytest.mark.slow
def test_encoder_gives_pytorchs_embeddings_of_pictures_as_sams_processor_makes_them(
    exported: Exported, pictures: list[np.ndarray]
) -> None:
    seen = exported.encode(exported.pixel_values(*pictures))
    features = exported.tokenizer.embed_image(pictures)
    torch.testing.assert_close(
        torch.from_numpy(seen["image_embeddings"]), features.embeddings.float(), atol=1e-4, rtol=0
    )
    assert seen["image_positional_embeddings"].shape == seen["image_embeddings"].shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompts",
    [
        {"boxes": [[10, 5, 60, 50]]},
        {"points": [[[30, 20]], [[10, 50]]]},
        {"points": [[[30, 20], [20, 30], [5, 5], [12, 40]]], "point_labels": [[1, 1, 0, 1]]},
        {"boxes": [[3, 4, 33, 36], None, [1, 1, 20, 59]], "points": [[[20, 20]], [[8, 8], [9, 30]], None]},
    ],
    ids=["a box", "points", "many points", "box, points, both"],
)
def test_decoder_gives_pytorchs_numbers_for_any_prompts(
    exported: Exported, picture: Image.Image, prompts: dict[str, Any]
) -> None:
    tokenizer = exported.tokenizer
    inputs = tokenizer.processor(picture, **prompts)
    with torch.no_grad():
        output = tokenizer.model(**{name: inputs[name] for name in ("pixel_values", "input_points", "input_labels",
                                                                    "prompt_mask", "image_index")})  # fmt: skip
    labels = inputs["input_labels"].masked_fill(inputs["input_labels"] == 4, -1)
    seen = exported.encode(exported.pixel_values(load_rgb(picture)))
    assert_same(exported.decode(seen, inputs["input_points"][None], labels[None]), output)


@pytest.mark.slow
def test_each_picture_of_a_batch_has_its_own_regions(exported: Exported, pictures: list[np.ndarray]) -> None:
    boxes = [[[10, 5, 60, 50], [0, 0, 20, 20]], [[2, 2, 30, 30], [5, 40, 35, 75]]]
    inputs = exported.tokenizer.processor(pictures, boxes=boxes)
    with torch.no_grad():
        output = exported.tokenizer.model(**{name: inputs[name] for name in (
            "pixel_values", "input_points", "input_labels", "prompt_mask", "image_index")})  # fmt: skip
    found = exported.decode(
        exported.encode(exported.pixel_values(*pictures)),
        inputs["input_points"].unflatten(0, (2, 2)),
        inputs["input_labels"].unflatten(0, (2, 2)),
    )
    assert_same(found, output)


@pytest.mark.slow
@pytest.mark.parametrize("absent", [-1, -10, 4])
def test_points_that_fill_up_a_prompt_change_nothing(
    exported: Exported, pictures: list[np.ndarray], absent: int
) -> None:
    """SAM's own graphs take -1 for it, transformers -10, and TAP 4; where they stand does not matter."""
    seen = exported.encode(exported.pixel_values(pictures[0]))
    for points, labels in (([[60, 40]], [1]), ([[20, 20], [90, 80]], [2, 3])):
        alone = exported.decode(seen, [[points]], [[labels]])
        filled = exported.decode(seen, [[[[7, 7], *points, [0, 0]]]], [[[absent, *labels, absent]]])
        for name in DECODED:
            np.testing.assert_allclose(filled[name], alone[name], atol=1e-4, rtol=5e-6, err_msg=name)


@pytest.mark.slow
def test_tokenizer_sees_the_same_after_an_export(exported: Exported, picture: Image.Image) -> None:
    tokenizer = exported.tokenizer
    output = exported.decode(
        exported.encode(exported.pixel_values(load_rgb(picture))),
        tokenizer.processor(picture, boxes=[[10, 5, 60, 50]])["input_points"][None],
        [[[2, 3]]],
    )
    regions = tokenizer.encode(picture, boxes=[[10, 5, 60, 50]])
    np.testing.assert_allclose(output["semantic_tokens"][0, :, 0], regions.semantic_tokens[:, 0].float(), atol=1e-4)
    assert not tokenizer.model.training


@pytest.mark.slow
def test_command_writes_bytes_that_nearly_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra onnx")
    folder = tmp_path / "new" / "tap-tiny-onnx"
    assert main(["export", "tap-tiny", "--onnx", str(folder), "--precision", "int8"]) == 0
    said = capsys.readouterr()
    assert "misreads photographs" in said.err
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(re.findall(r"^  (\S+): [\d.]+ [kM]B$", said.out, re.MULTILINE)) == {
        "config.json", "preprocessor_config.json", "concepts.safetensors", "onnx/vision_encoder_quantized.onnx",
        "onnx/prompt_encoder_mask_decoder_quantized.onnx",
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["tap-tiny-onnx"]
    assert json.loads((folder / "config.json").read_text())["transformers.js_config"] == {"dtype": "q8"}
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    assert ConceptBank.load(folder / "concepts.safetensors").digest == tokenizer.concepts.digest
    quantized = Exported(tokenizer, folder, "_quantized")
    pixels = load_rgb(DEMO)
    found = quantized.decode(
        quantized.encode(quantized.pixel_values(pixels)),
        tokenizer.processor(pixels, boxes=[BOX])["input_points"][None],
        [[[2, 3]]],
    )
    regions = tokenizer.encode(pixels, boxes=[BOX], with_masks=True)
    embed = torch.from_numpy(found["semantic_embeds"][0, 0, :1])
    assert tokenizer.concepts.top(embed, 1)[0][0][0] == tokenizer.classify(regions, 1)[0][0][0]
    (masks,) = tokenizer.processor.image_processor.post_process_masks(
        [torch.from_numpy(found["pred_masks"][0])], torch.tensor([[512, 512]]), torch.tensor([[256, 256]])
    )
    assert iou(masks[0, 0].numpy(), regions.masks[0].numpy()) > 0.95


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


# --- in Node ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def node_folder(tmp_path: Path) -> Path:
    """A folder in which Node finds transformers.js, from the `node_modules` that NODE_PATH names."""
    places = [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    packages = next((place for place in places if (place / "@huggingface" / "transformers").is_dir()), None)
    if shutil.which("node") is None or packages is None:
        pytest.skip("needs Node, and NODE_PATH, a node_modules folder with @huggingface/transformers")
    (tmp_path / "node_modules").symlink_to(packages.resolve())
    return tmp_path


@pytest.mark.slow
def test_transformers_js_sees_what_pytorch_sees(exported: Exported, node_folder: Path) -> None:
    """The documentation's own example, which then writes its tensors to files."""
    if exported.tokenizer.concepts is None:
        pytest.skip("the example names what it sees, and random weights know no names")
    (code,) = re.findall(r"^```js\n(.*?)^```$", (ROOT / "docs" / "onnx.md").read_text(), re.MULTILINE | re.DOTALL)
    code += """
import { writeFile } from "node:fs/promises";
const tensors = { pixel_values: inputs.pixel_values, input_points: inputs.input_points, mask: masks[0], ...found };
for (const [name, { data, dims }] of Object.entries(tensors)) {
  await writeFile(`${name}.bin`, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  await writeFile(`${name}.json`, JSON.stringify(dims));
}
"""
    (node_folder / "example.mjs").write_text(code)
    shutil.copyfile(DEMO, node_folder / "picture.png")
    shutil.copytree(exported.folder, node_folder / "tap-tiny-onnx")
    done = subprocess.run(
        ["node", "example.mjs"], cwd=node_folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr

    def tensor(name: str, dtype: str = "<f4") -> np.ndarray:
        shape = json.loads((node_folder / f"{name}.json").read_text())
        return np.fromfile(node_folder / f"{name}.bin", dtype).reshape(shape)

    tokenizer = exported.tokenizer
    found = {name: tensor(name, "<i8" if name == "expert" else "<f4") for name in DECODED}
    with torch.no_grad():
        output = tokenizer.model(
            torch.from_numpy(tensor("pixel_values")).flip(1),
            input_points=torch.from_numpy(tensor("input_points"))[0],
            input_labels=torch.tensor([[2, 3], [1, 4]]),
        )
    assert_same(found, output)
    # Its own resizing differs from Pillow's, so that from the file on, the two agree nearly.
    regions = tokenizer.encode(DEMO, boxes=[BOX, None], points=[None, [POINT]], with_masks=True)
    masks = tensor("mask", "u1").astype(bool)
    for number, (region, names) in enumerate(zip(done.stdout.splitlines(), tokenizer.classify(regions, 1))):
        assert region.startswith(names[0][0])
        assert iou(masks[number, found["expert"][0, number]], regions.masks[number].numpy()) > 0.95


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were installed."""
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: object())


def test_precisions_of_the_command_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "tap-tiny", "--onnx", "new", "--precision", "int4"])
    (choices,) = re.findall(r"choose from (.*)\)", capsys.readouterr().err)
    assert [choice.strip("' ") for choice in choices.split(",")] == list(onnx_export.PRECISIONS)


@pytest.mark.usefixtures("libraries")
def test_what_cannot_be_exported_is_refused_before_work(
    tiny_tokenizer: TapRegionTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_write_graph", lambda *inputs: pytest.fail("began to work"))
    with pytest.raises(ValueError, match="exists: give a new folder"):
        export_onnx(tiny_tokenizer, tmp_path)
    with pytest.raises(ValueError, match="precision is 'int4', expected float32 or int8"):
        export_onnx(tiny_tokenizer, tmp_path / "new", precision="int4")
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="an ONNX file holds at most"):
        export_onnx(tiny_tokenizer, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_absent_library_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert main(["export", "no such source", "--onnx", str(tmp_path / "new")]) == 2
    assert 'not installed (onnxscript): pip install "tap-bridge[onnx]"' in capsys.readouterr().err


@pytest.mark.usefixtures("libraries")
def test_export_that_fails_leaves_nothing_behind(
    make_tokenizer: Callable[..., TapRegionTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.model.half()

    def fail(path: Path, *inputs: Any) -> Iterator[None]:
        path.write_text("half a graph")
        raise OSError("disk full")

    monkeypatch.setattr(onnx_export, "_write_graph", fail)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(tokenizer, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    assert tokenizer.dtype == torch.float16
