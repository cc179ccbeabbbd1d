"""Words → vectors by a tiny CLIP: kept, saved with a region tokenizer, and refused where they cannot be right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
)

from tap_tokenizer import ConceptBank, TapRegionTokenizer, TextEncoder, text_encoder

WORDS = ["<pad>", "<s>", "<unk>", "</s>", "a", "cat", "dog", "red", "photo", "of"]


def make_words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_clip(width: int = 16) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=width, eos_token_id=3, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of this test alone."""

    def place(*parts: str) -> Path:
        folder = tmp_path.joinpath("cache", *parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(text_encoder, "cached_assets_path", place)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TextEncoder(make_clip(), make_words()).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_vectors_are_those_of_the_model_whatever_else_is_encoded() -> None:
    model, words = make_clip(), make_words()
    encoder = TextEncoder(model, words, template="photo of a {}")
    both = encoder.encode(["cat", "red dog"])
    with torch.no_grad():
        want = [model(**words(f"photo of a {name}", return_tensors="pt")).text_embeds[0] for name in ("cat", "red dog")]
    torch.testing.assert_close(both, F.normalize(torch.stack(want), dim=-1))
    assert torch.equal(encoder.encode(["red dog", "cat", "cat"]), both[[1, 0, 0]])


@pytest.mark.usefixtures("cache")
def test_a_bank_of_words_in_one_call(folder: Path) -> None:
    bank = ConceptBank.from_words(["cat", "dog"], folder, logit_scale=7.0)
    want = ConceptBank.from_text_encoder(["cat", "dog"], make_clip(), make_words(), logit_scale=7.0)
    torch.testing.assert_close(bank.weights, want.weights)
    assert bank.logit_scale == pytest.approx(7.0)
    with pytest.raises(ValueError, match="Got the names 'cat', expected a list"):
        ConceptBank.from_words("cat", folder)


def test_an_encoder_is_not_even_loaded_for_words_that_were_encoded_before(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextEncoder.from_pretrained(folder).encode(["cat", "dog"])
    assert list(cache.rglob("*.safetensors"))
    monkeypatch.setattr(TextEncoder, "_loaded", lambda self: pytest.fail("loaded"))
    assert torch.equal(TextEncoder.from_pretrained(folder).encode(["cat", "dog"]), first)


@pytest.mark.usefixtures("cache")
def test_what_was_kept_of_other_weights_or_another_template_is_not_used(folder: Path) -> None:
    before = TextEncoder.from_pretrained(folder).encode(["cat"])
    assert not torch.allclose(TextEncoder.from_pretrained(folder, template="photo of a {}").encode(["cat"]), before)
    model = make_clip()
    torch.nn.init.normal_(model.text_projection.weight)
    TextEncoder(model, make_words()).save_pretrained(folder)
    assert not torch.allclose(TextEncoder.from_pretrained(folder).encode(["cat"]), before)


def test_a_template_is_saved(tmp_path: Path) -> None:
    TextEncoder(make_clip(), make_words(), template="red {}").save_pretrained(tmp_path)
    assert TextEncoder.from_pretrained(tmp_path).template == "red {}"
    for template in ("no place", "{} {}", 3):
        with pytest.raises(ValueError, match=r"expected words with one \{\}"):
            TextEncoder(make_clip(), make_words(), template=template)  # type: ignore[arg-type]


def test_a_whole_clip_is_an_encoder_and_a_bert_is_none(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # so that what it says is seen here
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=make_clip().config.to_dict(), vision_config=vision, projection_dim=12))
    whole = TextEncoder(clip.eval(), make_words())
    whole.save_pretrained(tmp_path / "whole")
    encoder = TextEncoder.from_pretrained(tmp_path / "whole")
    assert encoder.encode(["cat"]).shape == (1, 12)
    torch.testing.assert_close(encoder.encode(["cat"]), whole.encode(["cat"]))
    assert not [name for name, _ in encoder._loaded()[0].named_parameters() if "vision" in name or "visual" in name]
    assert "UNEXPECTED" not in caplog.text  # of the half that sees pictures
    encoder.save_pretrained(tmp_path / "half")
    again = TextEncoder.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(again.encode(["cat"]), whole.encode(["cat"]))
    bert = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a BertModel, which makes no vectors of texts"):
        TextEncoder.from_pretrained(tmp_path / "bert")


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["red bird"], r"does not know the word 'bird' .* choose other words \(it knows .*red"),
        ([""], "Got the phrase ''"),
    ],
)
def test_words_that_the_encoder_does_not_know_are_refused(phrases: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoder(make_clip(), make_words()).encode(phrases)


# --- with a region tokenizer -----------------------------------------------------------------------------------------


def test_names_are_classified_when_an_encoder_is_known(
    make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image
) -> None:
    tokenizer = make_tokenizer()
    regions = tokenizer.encode(picture, boxes=[[5, 6, 40, 50]])
    with pytest.raises(ValueError, match="loaded with text_encoder=… takes lists of names"):
        tokenizer.classify(regions, concepts=["cat", "dog"])
    tokenizer.text_encoder = TextEncoder(make_clip(), make_words())
    bank = ConceptBank.from_words(["cat", "dog"], tokenizer.text_encoder, logit_scale=10.0)
    (best,) = tokenizer.classify(regions, concepts=["cat", "dog"])
    assert best == tokenizer.classify(regions, concepts=bank)[0]
    assert sum(score for _, score in best) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("cache")
def test_an_encoder_is_saved_and_found_with_its_tokenizer(
    make_tokenizer: Callable[..., TapRegionTokenizer], tmp_path: Path, folder: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.text_encoder = TextEncoder.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = TapRegionTokenizer.from_pretrained(tmp_path / "saved")
    assert torch.allclose(loaded.phrase_vectors(["red cat"]), tokenizer.phrase_vectors(["red cat"]))
    other = TapRegionTokenizer.from_pretrained(tmp_path / "saved", text_encoder=folder)
    assert other.source["text_encoder"] == str(folder)


def test_vectors_of_another_width_are_refused(make_tokenizer: Callable[..., TapRegionTokenizer]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.text_encoder = TextEncoder(make_clip(12), make_words())
    with pytest.raises(ValueError, match="makes vectors of width 12, the model's semantic embeddings have 16"):
        tokenizer.phrase_vectors(["cat"])


def test_without_an_encoder_names_of_the_bank_are_known(tiny_tokenizer: TapRegionTokenizer) -> None:
    assert tiny_tokenizer.concepts is not None
    vectors = tiny_tokenizer.phrase_vectors(["thing 3"])
    torch.testing.assert_close(vectors[0], F.normalize(tiny_tokenizer.concepts.weights[:, 3], dim=0))
    with pytest.raises(ValueError, match=r"Its 8 names lack 'cat'\. Load the region tokenizer with text_encoder=…"):
        tiny_tokenizer.phrase_vectors(["thing 3", "cat"])


@pytest.mark.usefixtures("cache")
def test_the_bundled_encoder_says_what_the_world_says() -> None:
    language = pytest.importorskip("finetune.glyphs.language")
    encoder = TapRegionTokenizer.from_pretrained("tap-tiny").text_encoder
    assert encoder is not None
    phrases = ["umbrella", "a small red umbrella", "blue"]
    want = torch.stack([torch.from_numpy(language.concept_vector(phrase)) for phrase in phrases])
    assert (encoder.encode(phrases) - want).abs().max() < 1e-4  # it is saved in float16
    assert (language.build_text_encoder().encode(phrases) - want).abs().max() < 1e-6
