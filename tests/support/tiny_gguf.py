"""A GGUF file of a tiny random language model, and the weights that it stands for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize, quants
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WORDS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he"]
PACKED = "mlp.down_proj.weight"
"""Weights that are stored as Q4_1; the others are float32."""

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def write_gguf(
    path: Path, *, seed: int = 0, layers: int = 2, context: int = 512, template: str = CHAT_TEMPLATE
) -> dict[str, Tensor]:
    """Write the file; its weights by the names of transformers, as they come back from it. layers: as the file says."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(64)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word in SPECIAL else 1 for word in WORDS])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_chat_template(template)
    weights = {}
    for name, weight in LlamaForCausalLM(config).state_dict().items():
        values = (4 * weight if weight.ndim > 1 else weight).numpy()
        if name.endswith(PACKED):
            packed = quants.quantize(values, GGMLQuantizationType.Q4_1)
            values = dequantize(packed, GGMLQuantizationType.Q4_1)
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(_gguf_name(name), _as_rotated(name, values))
        weights[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _gguf_name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _as_rotated(name: str, values: np.ndarray) -> np.ndarray:
    """The order of rows that GGUF has for queries and keys, whose halves are rotated in pairs."""
    heads = 4 if ".q_proj" in name else 2
    if ".q_proj" not in name and ".k_proj" not in name:
        return values
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
