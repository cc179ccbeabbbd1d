"""`RegionBridgePreTrainedModel`: a language model and a projector, and what transformers asks of a model of two parts."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init

from tap_tokenizer import model_from_config

from .chat_template import add_stop_tokens
from .configuration_bridge import RegionBridgeConfig
from .language_model import QUANTIZATION_ATTRIBUTES
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
