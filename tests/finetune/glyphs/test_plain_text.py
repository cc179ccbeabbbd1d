"""What an adapter costs its language model, in words that it finds likely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("peft")

from finetune.glyphs.free_questions import load_words
from finetune.glyphs.plain_text import SHARES, text_lines
from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat, add_lora
from tap_tokenizer import TapRegionTokenizer


def chat_of(stage: Path) -> RegionChat:
    tokenizer = TapRegionTokenizer.from_pretrained(str(stage / "tap0"))
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(stage / "lm" / "model"), region_tokenizer=tokenizer
    )
    return RegionChat(bridge.eval(), RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer))


@pytest.mark.slow
def test_an_adapter_is_compared_with_the_model_without_it(stage: Path) -> None:
    chat = chat_of(stage)
    assert list(text_lines(chat, "test", 0)) == []  # nothing to compare
    add_lora(chat.model, r=2, alpha=4)
    chat.model.eval()
    before = list(text_lines(chat, "test", 0))
    assert all(line["nats"][0] == line["nats"][1] for line in before)  # it has learned nothing yet
    for name, weight in chat.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(0))
    after = list(text_lines(chat, "test", 0))
    assert [line["nats"][1] for line in after] == [line["nats"][1] for line in before]
    assert all(abs(line["nats"][0] - line["nats"][1]) > 0.01 for line in after)
    assert all(line["nats"][1] > line["tokens"] > 100 for line in after)


@pytest.mark.slow
def test_the_seeds_share_the_passages(stage: Path) -> None:
    chat = chat_of(stage)
    add_lora(chat.model, r=2, alpha=4)
    counted = [line["tokens"] for seed in range(SHARES) for line in text_lines(chat, "test", seed)]
    tokenizer = chat.processor.tokenizer
    assert sorted(counted) == sorted(len(tokenizer(text)["input_ids"]) - 1 for text in load_words("plain_text"))
