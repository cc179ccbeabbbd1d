"""Semantic IoU in three normalisations, and semantic similarity."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.tasks.labels import (
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


def test_two_empty_texts_have_semantic_iou_zero() -> None:
    assert semantic_iou("", "", "wow-seg") == 0
    with pytest.raises(ValueError, match="expected one of osprey"):
        semantic_iou("a", "a", "other")


def test_answering_base_names_scores_as_published(shared: Path) -> None:
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


LVIS_V1 = {(1, 2): 60, (1, 3): 33, (1, 4): 7, (1, 5): 2, (1, 6): 1, (2, 3): 2, (2, 4): 1, (2, 6): 1}
"""How many of LVIS v1's 1203 names have a bracket, by (words before it, words in all); but for one, see below."""


def names_like_lvis() -> list[str]:
    """1203 names of ours, as long as LVIS v1's and with brackets of the same lengths."""
    names = ["gauge_(wall_fixture) wall_gauge"]  # one has words after its bracket, and says one of the bracket's again
    for (before, words), count in LVIS_V1.items():
        for number in range(count):
            base = "_".join(f"base{i}" for i in range(before))
            names.append(f"{base}{number}_({'_'.join(f'more{i}' for i in range(words - before))})")
    return names + [f"plain_name_{i}" for i in range(1203 - len(names))]


def test_answering_base_names_of_1203_categories_scores_as_on_lvis() -> None:
    """Base names score 94.84, 94.86 and 100, as those of LVIS v1 do."""
    names = names_like_lvis()
    assert len(set(names)) == 1203
    oracle = [re.sub(r"_?\(.*?\)", "", name).replace("_", " ") for name in names]
    scores = {
        kind: 100 * mean_by_class([semantic_iou(a, b, kind) for a, b in zip(oracle, names)], names)
        for kind in NORMALISATIONS
    }
    assert {kind: f"{score:.2f}" for kind, score in scores.items()} == {
        "osprey": "94.84", "pixelrefer": "94.86", "wow-seg": "100.00",
    }  # fmt: skip


def test_the_mean_by_class_gives_classes_equal_weight() -> None:
    assert mean_by_class([1, 1, 1, 0], ["a", "a", "a", "b"]) == 0.5


def save_encoder(folder: Path, words: list[str]) -> None:
    """A small random encoder with its words."""
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def letters(texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors of how often each sign stands in a text; what is cleaned is therefore seen."""
    counts = torch.zeros(len(texts), 128)
    for row, text in zip(counts, texts):
        for sign in " ".join(text.split()):
            row[ord(sign)] += 1
    return torch.nn.functional.normalize(counts, dim=-1)


@pytest.mark.parametrize(
    ("prediction", "category", "alike"),
    [
        ("baseball glove", "baseball_glove", {"osprey", "pixelrefer", "wow-seg"}),
        ("Baseball glove.", "Baseball_glove", {"osprey", "pixelrefer"}),  # WOW-Seg's script leaves full stops
        ("baseball_glove", "baseball_glove", {"pixelrefer", "wow-seg"}),  # Osprey's leaves an answer's underscores
        ("It is: a cup, red.", "a cup red", {"osprey"}),  # what stands before a colon goes in Osprey's alone
        ("apple fruit", "apple_(fruit)", {"pixelrefer"}),
        ("apple", "apple_(fruit)", {"wow-seg"}),
        ("APPLE", "apple", {"pixelrefer"}),  # the others leave capitals to the encoder
        ("chair leg", "chair:leg", {"osprey", "pixelrefer", "wow-seg"}),
    ],
)
def test_similarity_is_measured_on_cleaned_texts(prediction: str, category: str, alike: set[str]) -> None:
    for name in NORMALISATIONS:
        (value,) = semantic_similarity([prediction], [category], letters, name)
        assert (value > 0.99999) == (name in alike), name
    assert semantic_similarity([prediction], [category], letters) == semantic_similarity(
        [prediction], [category], letters, "osprey"
    )
    with pytest.raises(ValueError, match="expected one of osprey"):
        semantic_similarity(["a"], ["a"], letters, "other")


def test_base_names_of_lvis_differ_only_by_brackets(shared: Path) -> None:
    """Of the 977 annotations, those whose name has no bracket are the same text once both sides are cleaned."""
    content = json.loads((shared / "data" / "lvis_sample" / "lvis_val_100.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    true = [names[a["category_id"]] for a in content["annotations"]]
    said = [name.split("_(")[0].replace("_", " ") for name in true]
    values = semantic_similarity(said, true, letters)
    assert len(true) == 977
    assert [value > 0.99999 for value in values] == ["(" not in name for name in true]


def test_an_encoder_cuts_sentences_where_its_own_library_does(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cup", "dog"]
    save_encoder(tmp_path, words)
    whole = SentenceEncoder(str(tmp_path))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 4, "do_lower_case": false}')
    cut = SentenceEncoder(str(tmp_path))
    long, short = "red cup dog dog", "red cup"
    assert torch.allclose(cut([long]), whole([short]), atol=1e-6)
    assert not torch.allclose(whole([long]), whole([short]), atol=1e-3)


def test_similarity_by_any_encoder(tmp_path: Path) -> None:
    save_encoder(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cup", "dog"])
    encoder = SentenceEncoder(str(tmp_path))
    same, other = semantic_similarity(["red cup", "dog"], ["red cup", "red cup"], encoder)
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.999
    assert semantic_similarity(["red cup"], ["dog"], encoder) == pytest.approx(
        semantic_similarity(["red cup", "dog red cup dog red"], ["dog", "dog"], encoder)[:1], abs=1e-5
    )  # padding changes nothing
