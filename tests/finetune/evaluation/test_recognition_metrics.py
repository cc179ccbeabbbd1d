"""Semantic IoU in three normalisations, and semantic similarity."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.evaluation.recognition_metrics import (
    NORMALISATIONS,
    SentenceEncoder,
    mean_by_class,
    semantic_iou,
    semantic_similarity,
)


@pytest.mark.parametrize(
    ("prediction", "category", "osprey", "pixelrefer", "wow"),
    [
        ("bat", "bat_(animal)", 1 / 2, 1 / 2, 1),
        ("bat animal", "bat_(animal)", 1 / 3, 1, 1 / 2),
        ("Air Conditioner.", "air_conditioner", 1, 1, 1 / 3),
        ("object: cup", "cup", 1, 1 / 2, 1 / 2),
        ("", "cup", 0, 0, 0),
        ("chair:leg", "chair:leg", 1 / 2, 1, 1),
    ],
)
def test_normalisations_differ(prediction: str, category: str, osprey: float, pixelrefer: float, wow: float) -> None:
    for name, value in (("osprey", osprey), ("pixelrefer", pixelrefer), ("wow-seg", wow)):
        assert semantic_iou(prediction, category, name) == pytest.approx(value), name


def test_nothing_against_nothing_is_nothing() -> None:
    assert semantic_iou("", "", "wow-seg") == 0
    with pytest.raises(ValueError, match="expected one of osprey"):
        semantic_iou("a", "a", "other")


def test_an_oracle_of_base_names(shared: Path) -> None:
    """Base names of LVIS v0.5's 1230 categories; of v1's 1203 the same code gives 94.84, 94.86 and 100."""
    names = [
        c["name"] for c in json.loads((shared / "data" / "lvis_sample" / "lvis_val_100.json").read_text())["categories"]
    ]
    oracle = [re.sub(r"_?\(.*?\)", "", name).replace("_", " ") for name in names]
    scores = {
        kind: 100 * mean_by_class([semantic_iou(a, b, kind) for a, b in zip(oracle, names)], names)
        for kind in NORMALISATIONS
    }
    assert scores == pytest.approx({"osprey": 94.80, "pixelrefer": 94.81, "wow-seg": 100.0}, abs=0.005)


def test_an_oracle_as_large_as_lvis() -> None:
    """As many names as LVIS v1 has with one bracketed word (108 of 1203, here all alike) and without."""
    names = [f"thing_{i}" for i in range(1095)] + [f"kind{i}_(sort)" for i in range(108)]
    oracle = [re.sub(r"_?\(.*?\)", "", name).replace("_", " ") for name in names]
    for kind, each in (("osprey", 0.5), ("pixelrefer", 0.5), ("wow-seg", 1.0)):
        score = mean_by_class([semantic_iou(a, b, kind) for a, b in zip(oracle, names)], names)
        assert score == pytest.approx((1095 + 108 * each) / 1203)


def test_mean_by_class_weighs_classes_alike() -> None:
    assert mean_by_class([1, 1, 1, 0], ["a", "a", "a", "b"]) == 0.5


def test_similarity_by_any_encoder(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cup", "dog"]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    encoder = SentenceEncoder(str(tmp_path))
    same, other = semantic_similarity(["red cup", "dog"], ["red cup", "red cup"], encoder)
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.999
    assert semantic_similarity(["red cup"], ["dog"], encoder) == pytest.approx(
        semantic_similarity(["red cup", "dog red cup dog red"], ["dog", "dog"], encoder)[:1], abs=1e-5
    )  # padding changes nothing
