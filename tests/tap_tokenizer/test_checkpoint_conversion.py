"""The original's checkpoints: read from their shapes, renamed one to one, and refused when anything is amiss."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tap_tokenizer import ConceptBank, TapRegionTokenizer
from tap_tokenizer.checkpoint_conversion import config_from_shapes, load_original, load_original_concepts, rename


def saved(path: Path, weights: dict[str, Any]) -> Path:
    path.write_bytes(pickle.dumps(weights))
    return path


def test_sizes_follow_from_shapes(original_checkpoint: Path, original_numbers: dict[str, Any]) -> None:
    sizes = original_numbers["sizes"]
    config = load_original(original_checkpoint).config
    encoder, decoder, text = config.image_encoder_config, config.image_decoder_config, config.text_decoder_config
    assert (encoder.image_size, encoder.patch_size, encoder.window_size) == (sizes["image_size"], 16, 16)
    assert (encoder.hidden_size, encoder.num_hidden_layers) == (sizes["dim"], sizes["depth"])
    assert (encoder.num_attention_heads, encoder.num_cross_window_layers) == (sizes["heads"], 4)
    assert (decoder.hidden_size, decoder.num_attention_heads, decoder.num_experts) == (sizes["out"], 2, 4)
    assert (decoder.intermediate_size, decoder.semantic_embed_size) == (2048, sizes["sem"])
    assert (text.vocab_size, text.num_attention_heads, text.pad_token_id) == (sizes["vocab"], 2, sizes["vocab"] - 1)


def test_no_two_weights_get_the_same_name(original_numbers: dict[str, Any]) -> None:
    names = original_numbers["weights"]
    assert len({rename(name) for name in names}) == len(names)


def test_conversion_keeps_every_value(original_checkpoint: Path, original_weights: dict[str, np.ndarray]) -> None:
    state = load_original(original_checkpoint).state_dict()
    for name, value in original_weights.items():
        if name.startswith("pixel") or name.endswith((".index", "num_batches_tracked")):
            continue
        np.testing.assert_array_equal(state[rename(name)].numpy(), value)


def test_half_precision_and_tensors_are_checkpoints_too(
    tmp_path: Path, original_weights: dict[str, np.ndarray]
) -> None:
    half = {name: torch.from_numpy(np.array(value)).half() for name, value in original_weights.items()}
    model = load_original(saved(tmp_path / "half.pkl", half))
    assert model.dtype == torch.float32
    weight = original_weights["image_encoder.patch_embed.proj.weight"]
    np.testing.assert_array_equal(
        model.image_encoder.patch_embed.weight.detach(), weight.astype(np.float16).astype(np.float32)
    )


def test_missing_and_surplus_names_are_listed(tmp_path: Path, original_weights: dict[str, np.ndarray]) -> None:
    weights = dict(original_weights)
    del weights["image_decoder.iou_pred.layers.1.bias"]
    weights["image_decoder.extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(
        ValueError,
        match=r"1 missing weights \(image_decoder.iou_head.2.bias\); 1 surplus weights \(image_decoder.extra",
    ):
        load_original(saved(tmp_path / "x.pkl", weights))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "image_decoder.iou_pred.layers.1.bias",
            np.zeros(7, np.float32),
            r"1 wrong shapes \(image_decoder.iou_head.2.bias: \(7,\), expected \(64,\)",
        ),
        ("image_encoder.norm.bias", np.full(32, np.nan, np.float32), "NaN or infinite values in image_encoder.norm.bias"),
        ("image_encoder.norm.bias", np.full(32, np.inf, np.float32), "NaN or infinite"),
        ("image_encoder.norm.bias", "zero", "entries that are not arrays: 'image_encoder.norm.bias': str"),
        ("image_encoder.patch_embed.proj.weight", np.zeros((32, 3), np.float32), "shapes are not those of a TAP"),
        ("image_encoder.pos_embed.weight", np.zeros((7, 32), np.float32), "shapes are not those of a TAP"),
        ("pixel_mean", np.zeros(3, np.float32), "was trained with pixel_mean"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(
    tmp_path: Path, original_weights: dict[str, np.ndarray], name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_original(saved(tmp_path / "x.pkl", {**original_weights, name: value}))


@pytest.mark.parametrize("content", [[1, 2], {}, "text", {"a": np.zeros(2)}])
def test_other_pickles_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"x\.pkl"):
        load_original(saved(tmp_path / "x.pkl", content))


def test_concept_files(original_concepts: Path, tmp_path: Path) -> None:
    bank = load_original_concepts(original_concepts)
    assert (len(bank), bank.embed_size) == (12, 32)
    for wrong in ([1], {"a": 1}, ["names", "weights"]):
        with pytest.raises(ValueError, match=r"x\.pkl"):
            load_original_concepts(saved(tmp_path / "x.pkl", wrong))  # type: ignore[arg-type]


def test_config_from_shapes_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"lacks image_encoder.patch_embed.weight: expected a complete TAP checkpoint"):
        config_from_shapes({})


def test_the_command_writes_a_folder_that_loads(
    original_checkpoint: Path, original_concepts: Path, original_image: np.ndarray, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "tap_tokenizer",
        "convert",
        str(original_checkpoint),
        str(tmp_path / "tap"),
    ]
    done = subprocess.run(
        [*command, "--concepts", str(original_concepts)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tap" in done.stdout
    direct = TapRegionTokenizer.from_pretrained(original_checkpoint, concepts=original_concepts)
    loaded = TapRegionTokenizer.from_pretrained(tmp_path / "tap")
    assert loaded.fingerprint == direct.fingerprint
    one, other = (t.encode(original_image, boxes=[[5, 5, 60, 70]]) for t in (direct, loaded))
    assert torch.equal(one.semantic_tokens, other.semantic_tokens)
    assert loaded.classify(other) == direct.classify(one)
    assert isinstance(loaded.concepts, ConceptBank)


@pytest.mark.parametrize("name", ["tap_tokenizer convert", "tap_tokenizer.checkpoint_conversion"])
def test_the_command_has_two_names_and_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", *name.split(), "nowhere.pkl", str(tmp_path / "tap")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Found nothing at nowhere.pkl" in done.stderr
    assert not (tmp_path / "tap").exists()
