"""Configs: the paper's sizes, round trips, and sizes that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from tap_tokenizer import TapConfig, TapImageEncoderConfig, TapTextDecoderConfig


@pytest.mark.parametrize(
    ("preset", "width", "depth", "heads"),
    [("tap_vit_b", 768, 12, 12), ("tap_vit_l", 1024, 24, 16), ("tap_vit_h", 1280, 32, 16)],
)
def test_presets_have_the_papers_sizes(preset: str, width: int, depth: int, heads: int) -> None:
    config = getattr(TapConfig, preset)()
    encoder = config.image_encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads) == (width, depth, heads)
    assert encoder.intermediate_size == 4 * width
    assert config.image_size == 1024
    assert config.image_decoder_config.semantic_embed_size == 1024
    assert config.text_decoder_config.vocab_size == 32000


def test_config_survives_saving(tmp_path: Path) -> None:
    config = TapConfig(image_encoder_config={"image_size": 512}, fingerprint="0123")
    config.save_pretrained(tmp_path)
    for loaded in (TapConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, TapConfig)
        loaded.name_or_path = config.name_or_path
        assert loaded.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 1000}, "multiple of patch_size \\* window_size = 256"),
        ({"num_hidden_layers": 10}, "num_hidden_layers is 10"),
        ({"num_attention_heads": 7}, "7 attention heads"),
    ],
)
def test_impossible_encoders_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TapImageEncoderConfig(**sizes)


def test_a_caption_begins_with_a_word_of_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="bos_token_id is 1000000, expected 0 to 9"):
        TapTextDecoderConfig(vocab_size=10, bos_token_id=10**6)


def test_parts_must_agree_on_their_width() -> None:
    with pytest.raises(ValueError, match=r"image_decoder_config.hidden_size is 128, expected .* = 256"):
        TapConfig(image_decoder_config={"hidden_size": 128})


def test_types_are_checked() -> None:
    with pytest.raises(Exception, match="layer_norm_eps"):
        TapImageEncoderConfig(layer_norm_eps="small")
