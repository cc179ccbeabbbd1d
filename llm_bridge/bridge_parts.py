"""`RegionBridgePreTrainedModel`: a language model and a projector, and what transformers asks of a model of two parts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init

from tap_tokenizer import TapRegionTokenizer, model_from_config

from .chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplate, add_stop_tokens
from .configuration_bridge import FeatureLayout, RegionBridgeConfig, region_token_id
from .language_model import QUANTIZATION_ATTRIBUTES, check_kind, try_out
from .projector import make_projector


class RegionBridgePreTrainedModel(PreTrainedModel):
    """A language model and a projector, whatever is done with them."""

    config_class = RegionBridgeConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = ["past_key_values"]
    _tied_weights_keys: dict[str, str] = {}  # the language model ties its own
    _never_saved: set[str] = set()

    def __init__(self, config: RegionBridgeConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.language_model = language_model or model_from_config(AutoModelForCausalLM, config.text_config)
        self.projector = make_projector(config)

    def adopt_language_model(self) -> None:
        """Put the projector where the language model is, in its dtype unless it is quantized, and share its settings."""
        self.projector.to(self.language_model.device)
        if not getattr(self.language_model, "is_quantized", False):
            self.projector.to(self.language_model.dtype)
        for attribute in QUANTIZATION_ATTRIBUTES:  # peft and transformers look for these on the outermost model
            if hasattr(self.language_model, attribute):
                setattr(self, attribute, getattr(self.language_model, attribute))
        self.generation_config = self.language_model.generation_config
        add_stop_tokens(self, self.config.eos_token_id)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def is_custom_code(self) -> bool:
        """As of the language model: for custom code, transformers would leave some of its buffers empty on loading."""
        return bool(self.language_model.is_custom_code())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # the projector's: the language model sees to its own
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.constant_(module.weight, self.config.embedding_scale)


def config_for(
    language_model: PreTrainedModel,
    name: str | None,
    text_tokenizer: PreTrainedTokenizerBase,
    region_tokenizer: TapRegionTokenizer,
    **options: Any,
) -> RegionBridgeConfig:
    """The config of a bridge: of a language model, which is tried out, under its name, and of a region tokenizer.

    options: further fields of the config. Raises `ValueError` for a language model that no bridge can be built on.
    """
    check_kind(language_model, text_tokenizer)
    manner = try_out(language_model)
    layout = FeatureLayout.of(region_tokenizer.model.config)
    template = ChatTemplate(
        text_tokenizer,
        text_tokenizer.get_chat_template() if text_tokenizer.chat_template else DEFAULT_CHAT_TEMPLATE,
        language_model.generation_config.eos_token_id,
    )
    return RegionBridgeConfig(
        text_config=deepcopy(language_model.config),
        language_model=name,
        region_token_id=region_token_id(text_tokenizer),
        eos_token_id=template.stop_token_ids,
        token_size=layout.token_size,
        embed_size=layout.embed_size,
        num_experts=layout.num_experts,
        fingerprint=region_tokenizer.fingerprint,
        concept_space=region_tokenizer.concepts.digest if region_tokenizer.concepts else None,
        embedding_scale=manner.scale,
        embedding_size=manner.size,
        reads_ids=manner.reads_ids,
        ignores_padding=manner.ignores_padding,
        **options,
    )


class WithoutHead(nn.Module):
    """Takes what the bridge takes, and gives what its language model's layers give, last_hidden_state (B, L, D) among it."""

    _tp_plan = _pp_plan = None  # transformers asks a base model for them

    def __init__(self, bridge: RegionBridgePreTrainedModel) -> None:
        super().__init__()
        self._bridge = (bridge,)  # in a tuple, or it would become a submodule of its own part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (bridge,) = self._bridge
        language_model = bridge.language_model
        if hasattr(language_model, "get_base_model"):  # below an adapter
            language_model = language_model.get_base_model()
        seen: list[Any] = []
        hook = language_model.get_decoder().register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            type(bridge).forward(bridge, *args, **{**kwargs, "logits_to_keep": 1})
        finally:
            hook.remove()
        return seen[-1]
