"""Linear layers in int8 are close to those in float32, row by row; the image encoder uses them on request."""

from __future__ import annotations

import argparse
import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tap_tokenizer import TapRegionTokenizer
from tap_tokenizer.int8_linear import Int8Linear, largest_weight
from tap_tokenizer.tokenizer_flags import add_model_flags, load_tokenizer


@torch.no_grad()
def test_a_layer_is_close_to_float32() -> None:
    torch.manual_seed(0)
    layer, rows = nn.Linear(96, 160), torch.randn(3, 50, 96)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 1, 160)[:, None])  # rows of weights of very different sizes
    rows *= torch.logspace(-4, 2, 50)[:, None]  # and rows that come in, too
    found, wanted = Int8Linear(layer)(rows) - layer.bias, layer(rows) - layer.bias
    assert found.shape == wanted.shape
    error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    wider = 127 / largest_weight()
    assert float(error.max()) < 0.03 * wider
    assert 1e-4 < float(error.mean()) < 0.01 * wider  # it is not the layer in float32


LAYERS_OF_LARGE_SUMS = """
import torch
from torch import nn
from tap_tokenizer.int8_linear import Int8Linear, largest_weight

print(largest_weight())
with torch.no_grad():
    layer = nn.Linear(256, 64)
    layer.weight.fill_(1)
    layer.weight[32:] = -1
    for sign in (1, -1):
        found, wanted = (compute(torch.full((32, 256), float(sign))) for compute in (Int8Linear(layer), layer))
        print(float((found - wanted).abs().max()))
"""


@pytest.mark.parametrize("instructions", ["", "AVX2", "AVX512_CORE"])
def test_the_largest_sums_are_exact_without_instructions_for_int8(instructions: str) -> None:
    """On x86, where oneDNN is kept from what this machine has; elsewhere the setting says nothing."""
    root = str(Path(__file__).parents[2])
    own = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | ({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {})
    command = [sys.executable, "-c", LAYERS_OF_LARGE_SUMS]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, check=True, timeout=300)
    largest, *errors = map(float, done.stdout.split())
    assert largest in (64, 127)
    if not instructions:
        assert largest == largest_weight()
    elif platform.machine() == "x86_64":
        assert largest == 64
    assert max(errors) < 1e-3  # of sums of 256: rounding in float32


@torch.no_grad()
@pytest.mark.parametrize("largest", [64, 127])
def test_whole_numbers_of_weights_are_as_small_as_their_sums_need(
    monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr("tap_tokenizer.int8_linear.largest_weight", lambda: largest)
    assert int(Int8Linear(nn.Linear(96, 160)).weight.abs().max()) == largest


@torch.no_grad()
@pytest.mark.parametrize(("largest", "mean", "most"), [(127, 0.012, 0.026), (64, 0.017, 0.039)])
def test_tap_tinys_layers_are_as_close_as_the_documentation_says(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch, largest: int, mean: float, most: float
) -> None:
    if largest > largest_weight():
        pytest.skip("needs a CPU with instructions for int8")
    monkeypatch.setattr("tap_tokenizer.int8_linear.largest_weight", lambda: largest)
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    seen: dict[nn.Linear, torch.Tensor] = {}
    for layer in tokenizer.model.image_encoder.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda own, rows, _: seen.update({own: rows[0].flatten(0, -2)}))
    tokenizer.model.is_plain = True
    tokenizer.embed_image(picture)
    errors = []
    for layer, rows in seen.items():
        wanted = layer(rows) - layer.bias
        errors.append(float((Int8Linear(layer)(rows) - layer.bias - wanted).norm() / wanted.norm()))
    assert len(errors) == 4 * len(tokenizer.model.image_encoder.layers)
    # what was found, and a tenth more
    assert sum(errors) / len(errors) < 1.1 * mean
    assert max(errors) < 1.1 * most


@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    layer, rows = Int8Linear(nn.Linear(64, 32)), torch.randn(40, 64)
    rows[7] *= 1000
    together = layer(rows)
    assert all(torch.equal(layer(rows[i : i + 1])[0], together[i]) for i in range(len(rows)))


@torch.no_grad()
def test_rows_and_weights_of_zeros_give_the_bias() -> None:
    layer = nn.Linear(8, 4)
    assert torch.equal(Int8Linear(layer)(torch.zeros(2, 8)), layer.bias.expand(2, -1))
    layer.weight.zero_()
    assert torch.equal(Int8Linear(layer)(torch.randn(2, 8)), layer.bias.expand(2, -1))


def test_the_encoder_in_int8_is_close_and_changes_no_weight(picture: Image.Image) -> None:
    exact, tokenizer = (
        TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision=precision) for precision in ("float32", "int8")
    )
    fingerprint = tokenizer.model.compute_fingerprint()
    wanted, found = exact.embed_image(picture).embeddings, tokenizer.embed_image(picture).embeddings
    assert 1e-4 < float((found - wanted).norm() / wanted.norm()) < 0.05
    assert tokenizer.model.compute_fingerprint() == fingerprint == exact.fingerprint
    assert torch.equal(copy.deepcopy(tokenizer).embed_image(picture).embeddings, found)
    tokenizer.model.encoder_precision = "float32"
    assert torch.equal(tokenizer.embed_image(picture).embeddings, wanted)


def test_weights_that_have_changed_are_rounded_again(picture: Image.Image) -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int8")
    before = tokenizer.embed_image(picture).embeddings
    with torch.no_grad():
        for layer in tokenizer.model.image_encoder.layers:
            layer.mlp[2].weight.mul_(-1)
    after = tokenizer.embed_image(picture).embeddings
    assert float((after - before).norm() / before.norm()) > 0.1
    exact = TapRegionTokenizer(tokenizer.model)
    exact.model.encoder_precision = "float32"
    wanted = exact.embed_image(picture).embeddings
    assert float((after - wanted).norm() / wanted.norm()) < 0.05


def test_int8_is_refused_where_it_cannot_be_had(tiny_tokenizer: TapRegionTokenizer) -> None:
    with pytest.raises(ValueError, match="encoder_precision is 'int4', expected 'float32' or 'int8'"):
        TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int4")  # type: ignore[arg-type]
    model = copy.deepcopy(tiny_tokenizer.model).to(torch.bfloat16)
    with pytest.raises(ValueError, match="weights are in bfloat16 on cpu, expected float32 on cpu"):
        model.encoder_precision = "int8"
    assert model.encoder_precision == "float32"


def test_int8_is_refused_beside_eager_attention() -> None:
    with pytest.raises(ValueError, match="Got encoder_precision 'int8' and attn_implementation 'eager'"):
        TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int8", attn_implementation="eager")
    model = TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int8").model
    with pytest.raises(ValueError, match="expected 'sdpa' with it: leave out one of them"):
        model.set_attn_implementation("eager")
    model.encoder_precision = "float32"
    model.set_attn_implementation("eager")


def test_weights_that_leave_float32_are_reported_and_warned_of_once(
    picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int8")
    before = tokenizer.embed_image(picture).embeddings
    assert not caplog.records
    tokenizer.to(dtype=torch.bfloat16)
    assert tokenizer.model.encoder_precision == "float32"
    for _ in range(2):
        assert tokenizer.embed_image(picture).embeddings.dtype == torch.bfloat16
    (told,) = [record.getMessage() for record in caplog.records if "encoder_precision" in record.getMessage()]
    assert "the weights are now in bfloat16 on cpu" in told
    tokenizer.to(dtype=torch.float32)
    assert tokenizer.model.encoder_precision == "int8"
    again = tokenizer.embed_image(picture).embeddings
    assert float((again - before).norm() / before.norm()) < 0.05


def test_features_of_another_precision_are_refused(picture: Image.Image) -> None:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny", encoder_precision="int8")
    rounded = tokenizer.embed_image([picture])
    assert rounded[0].encoder_precision == "int8"
    tokenizer.model.encoder_precision = "float32"
    with pytest.raises(ValueError, match="were encoded in int8, and encoder_precision is now 'float32': embed"):
        tokenizer.encode(features=rounded, boxes=[[[1, 1, 20, 20]]])
    with pytest.raises(ValueError, match="one encoder_precision"):
        type(rounded).concatenate([rounded, tokenizer.embed_image([picture])])


def test_the_shell_can_ask_for_it() -> None:
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    assert load_tokenizer(parser.parse_args(["--encoder_precision", "int8"])).model.encoder_precision == "int8"
    assert load_tokenizer(parser.parse_args([])).model.encoder_precision == "float32"
