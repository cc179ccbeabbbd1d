"""Concept banks: scores, files, and vectors from a CLIP-like text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from tap_tokenizer import ConceptBank


@pytest.fixture
def bank() -> ConceptBank:
    return ConceptBank.from_vectors(["cat", "dog", "tree"], torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 0, 1]]), 5.0)


def test_scores_are_a_softmax_of_cosines(bank: ConceptBank) -> None:
    embeds = torch.tensor([[3.0, 4.0, 0.0]])
    want = torch.softmax(5 * torch.tensor([[0.6, 0.8, 0.0]]), dim=-1)
    torch.testing.assert_close(bank.scores(embeds), want)
    assert [name for name, _ in bank.top(embeds, 2)[0]] == ["dog", "cat"]


def test_half_precision_embeddings_are_scored_in_float32(bank: ConceptBank) -> None:
    assert bank.scores(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_saving(bank: ConceptBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    loaded = ConceptBank.load(tmp_path / "bank.safetensors")
    assert loaded.names == bank.names
    assert torch.equal(loaded.weights, bank.weights)
    assert loaded.digest == bank.digest
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["a"], torch.zeros(3, 2), "Got 1 concept names and weights of shape"),
        ([], torch.zeros(3, 0), "Got no concepts"),
        (["a", "a"], torch.zeros(3, 2), "distinct"),
        (["a", ""], torch.zeros(3, 2), "distinct, non-empty"),
        (["a", "b"], torch.full((3, 2), torch.nan), "NaN"),
    ],
)
def test_bad_banks_are_refused(names: list[str], weights: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptBank(tuple(names), weights)


def test_bad_questions_are_refused(bank: ConceptBank) -> None:
    with pytest.raises(ValueError, match="have width 4, this concept bank 3"):
        bank.scores(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="top_k is 0, expected 1 to 3"):
        bank.top(torch.ones(1, 3), 0)


def test_a_file_that_is_not_a_concept_bank_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a concept bank"):
        ConceptBank.load(tmp_path / "other.safetensors")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "cat": 2, "dog": 3, "</s>": 4, "<unk>": 5}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


TEXT: dict[str, Any] = {
    "vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 8, "projection_dim": 12, "eos_token_id": 4, "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def test_vectors_from_clip(words: PreTrainedTokenizerFast) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=12)).eval()
    bank = ConceptBank.from_text_encoder(["cat", "dog"], model, words, batch_size=1)
    assert bank.weights.shape == (12, 2)
    torch.testing.assert_close(bank.weights.norm(dim=0), model.logit_scale.exp().detach().expand(2))


def test_vectors_from_a_text_model_with_projection(words: PreTrainedTokenizerFast) -> None:
    model = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)).eval()
    with pytest.raises(ValueError, match="has no logit_scale"):
        ConceptBank.from_text_encoder(["cat"], model, words)
    bank = ConceptBank.from_text_encoder(["cat", "dog"], model, words, template="a {}", logit_scale=7.0)
    with torch.no_grad():
        want = model(**words(["a cat", "a dog"], return_tensors="pt", padding=True)).text_embeds
    torch.testing.assert_close(bank.weights, 7 * F.normalize(want, dim=-1).T)
