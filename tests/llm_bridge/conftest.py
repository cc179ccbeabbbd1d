"""Tiny random language models of many families, and bridges on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor
from tap_tokenizer import TapRegionTokenizer

WORDS = [
    "what", "is", "where", "the", "a", "red", "blue", "cat", "dog", "on", "left", "of", "it", "User:", "Assistant:", "yes",
    "no", "describe", "region1", "region2", "region3", "?", "and",
]  # fmt: skip
VOCABULARY = 48

_ROPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_ROPE, "num_key_value_heads": 2},
    "qwen3": {**_ROPE, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {**_ROPE, "num_key_value_heads": 2, "sliding_window": 16},
    "gemma3_text": {**_ROPE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},  # scaled, tied embeddings
    "phi": {**_ROPE},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},  # learned positions
    "gpt_neox": {**_ROPE},
    "qwen3_moe": {  # a mixture of experts
        **_ROPE, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "phi3": {**_ROPE, "num_key_value_heads": 2, "pad_token_id": 0},  # fused projections
}  # fmt: skip
"""Sizes by model type: differing in ties, positions, scaling, windows, experts and fused weights."""

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + eos_token + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def make_text_tokenizer(*, pad: bool = True, template: bool = True) -> PreTrainedTokenizerFast:
    """A word tokenizer; without a padding token or a chat template if asked."""
    names = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = ["<|user|>", "<|assistant|>", "<|system|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=roles
    )
    if pad:
        fast.pad_token = "<pad>"
    if template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_language_model(family: str = "llama", seed: int = 0, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(family, **{**common, **FAMILIES[family], **sizes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if "embed" not in name else 2)  # random models that say different things
    return model


@pytest.fixture(autouse=True)
def small_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands answer with the small bridge, which is fast, unless a test names another; see test_model_flags."""
    monkeypatch.setattr("llm_bridge.model_flags.DEFAULT_BRIDGE", "region-chat-tiny")
    monkeypatch.setattr("llm_bridge.model_flags._absence", lambda: None)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def language_model() -> Callable[..., PreTrainedModel]:
    return make_language_model


@pytest.fixture
def text_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return make_text_tokenizer


@pytest.fixture
def make_bridge(
    tiny_tokenizer: TapRegionTokenizer,
) -> Callable[..., tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]]:
    """A bridge and its processor on a tiny language model of a family."""

    def make(
        family: str = "llama", *, region_tokenizer: TapRegionTokenizer | None = None, pad: bool = True,
        template: bool = True, **options: Any,
    ) -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:  # fmt: skip
        tokenizer = region_tokenizer or tiny_tokenizer
        words = make_text_tokenizer(pad=pad, template=template)
        torch.manual_seed(1)
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            make_language_model(family), region_tokenizer=tokenizer, text_tokenizer=words, **options
        )
        return bridge, RegionBridgeProcessor.for_bridge(bridge.config, words, tokenizer)

    return make
