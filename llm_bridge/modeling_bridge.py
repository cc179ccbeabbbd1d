"""`RegionBridgeForConditionalGeneration`: any causal language model that reads projected region tokens in its prompt.

The bridge takes ids with placeholders and region features, never pictures; the region tokenizer is part of the
processor. No line names an architecture: `generate` is transformers' own loop, and the language model decides what a
step reads and keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import (
    AutoTokenizer,
    Cache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from tap_tokenizer import (
    TapRegionTokenizer,
    check_findable,
    check_model_size,
    check_source,
    in_fast_dtype,
    load_pretrained,
    misfits_told,
)

from .adapter_folder import (
    find_adapter,
    forget_adapter,
    frozen_weights,
    load_adapter_folder,
    put_adapter_weights,
    save_adapter_folder,
)
from .adapters import has_adapter
from .bridge_parts import RegionBridgePreTrainedModel, WithoutHead, config_for
from .configuration_bridge import (
    HUB_OPTIONS,
    RegionBridgeConfig,
    bundled_or_given,
)
from .language_model import (
    filler_id,
    forward_arguments,
    head_at,
    load_language_model,
    plain,
    replaced_embeddings,
    text_side,
)
from .model_card import bridge_card
from .prompt_checks import check_context, check_counts, check_features, check_padding, check_text_only
from .uploading import push_folder


@dataclass
class RegionBridgeOutput(ModelOutput):
    """What the language model returned: loss if labels were given, logits (B, L, V), cache, and hidden states on request.

    Whatever else it returned (a cache under another name, router logits) keeps its own name.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RegionBridgeForConditionalGeneration(RegionBridgePreTrainedModel, GenerationMixin):
    """A language model that reads projected region tokens in its prompt."""

    def __init__(self, config: RegionBridgeConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config, language_model)
        self._is_generating = False
        self.post_init()

    @classmethod
    def from_language_model(
        cls,
        language_model: str | PreTrainedModel,
        *,
        region_tokenizer: TapRegionTokenizer | str,
        text_tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> RegionBridgeForConditionalGeneration:
        """A bridge with a fresh projector from a causal language model and a region tokenizer.

        language_model: "smollm2-135m", a Hub name, a folder, a GGUF file, or a loaded model, which is used as it is and not
        copied. If the model also reads pictures, only its text side is used.
        region_tokenizer: the region tokenizer, or where to load it from.
        text_tokenizer: its tokenizer; default: the one saved under the language model's name.
        dtype: of a language model that is loaded here; default: as it was saved, or float32 instead of a bfloat16 that the CPU
        does not multiply.
        trust_remote_code: run the Python code that lies beside the language model, if it needs any. Otherwise none is run.
        options: fields of `RegionBridgeConfig` (experts, use_position, image_grid, …), or, for a language model that is
        loaded here, arguments of its `from_pretrained` (quantization_config, device_map, …).

        >>> bridge = RegionBridgeForConditionalGeneration.from_language_model(
        ...     "Qwen/Qwen3-0.6B", region_tokenizer=region_tokenizer, image_grid=4
        ... )
        """
        config_options = {name: options.pop(name) for name in CONFIG_OPTIONS if name in options}
        if isinstance(language_model, str):
            check_findable(language_model, options, may_lack_owner=True)
            name: str | None = language_model
            language_model = load_language_model(
                language_model, dtype=dtype or "auto", trust_remote_code=trust_remote_code, **options
            )
            language_model = in_fast_dtype(language_model, dtype)
        else:
            name = language_model.config.name_or_path or None
            if options:
                raise ValueError(
                    f"Got {sorted(options)}, which are neither fields of RegionBridgeConfig nor of use here."
                )
        if text_tokenizer is None:
            if name is None:
                raise ValueError("The language model has no name to find its tokenizer by: give text_tokenizer=….")
            text_tokenizer = load_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
        if isinstance(region_tokenizer, str):
            region_tokenizer = TapRegionTokenizer.from_pretrained(region_tokenizer)
        if isinstance(language_model, cls):
            raise ValueError("The language model is already a bridge: give bridge.language_model, or load the bridge.")
        language_model = text_side(language_model)
        config = config_for(language_model, name, text_tokenizer, region_tokenizer, **config_options)
        attention = language_model.config._attn_implementation
        bridge = cls(config, language_model)
        config.text_config = language_model.config  # one config, so that a change shows in both places
        config._attn_implementation = attention
        bridge.adopt_language_model()
        return bridge.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, language_model: Any = None, **kwargs: Any
    ) -> RegionBridgeForConditionalGeneration:
        """Load a bridge that was saved whole, or an adapter folder together with the language model that it names.

        language_model: for an adapter folder, another name, folder or loaded copy of the same language model.
        trust_remote_code=True: run the Python code that lies beside the language model of an adapter folder, if it needs any.
        Whatever the folder itself says about this is ignored.
        dtype: default: as it was saved, with a warning where that is a bfloat16 that the CPU does not multiply, and there is
        nothing but the CPU; "auto": the same without it.
        """
        given = str(pretrained_model_name_or_path)
        pretrained_model_name_or_path = bundled_or_given(pretrained_model_name_or_path)
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        folder = find_adapter(pretrained_model_name_or_path, **hub)
        if folder is not None:
            for name in ("config", "adapter_kwargs"):  # which the Auto classes add
                kwargs.pop(name, None)
            bridge = load_adapter_folder(cls, folder, language_model, **kwargs)
            bridge.config.name_or_path = str(pretrained_model_name_or_path)
            _warn_of_bfloat16(bridge, kwargs)
            return bridge
        if language_model is not None:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds its own language model: leave language_model=… out."
            )
        path = pretrained_model_name_or_path
        check_source(path, **hub)
        check_model_size(path, lambda: cls(RegionBridgeConfig.from_pretrained(path)))
        with misfits_told(path):
            loaded = super().from_pretrained(path, *args, use_safetensors=True, **kwargs)
        whole = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        whole.config.language_model = given  # which holds the language model, if no one else does
        _warn_of_bfloat16(whole, kwargs)
        return loaded

    def save_pretrained(self, save_directory: str | Path, *, whole: bool | None = None, **kwargs: Any) -> None:
        """Save the bridge: whole, or as an adapter folder that names its language model.

        whole: by default, a bridge with an adapter on its language model is saved as an adapter folder, and any other bridge
        whole. An adapter folder holds the projector, peft's files if there is an adapter, the config and a model card, and
        the language model only if that has no name (`config.language_model`).
        """
        if not (not has_adapter(self) if whole is None else whole):
            save_adapter_folder(self, Path(save_directory), kwargs.get("state_dict"))
            return
        if has_adapter(self):
            raise ValueError(
                "The language model has an adapter on it: merge_lora(bridge) first, or save with whole=False."
            )
        super().save_pretrained(save_directory, **kwargs)
        forget_adapter(Path(save_directory))

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch; also takes the files of an adapter folder, from which transformers' Trainer resumes."""
        if put_adapter_weights(self, state_dict):
            return _IncompatibleKeys([], [])
        return super().load_state_dict(state_dict, *args, **kwargs)

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """What transformers' Trainer does not miss in a checkpoint: the language model below an adapter."""
        return frozen_weights(self) if has_adapter(self) else self._never_saved

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, names: set[str]) -> None:
        self._never_saved = names

    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str | None = "50GB", whole: bool | None = None, **options: Any
    ) -> str:
        """Upload what `save_pretrained` writes, with a model card. Returns the address of the commit.

        options: as in transformers' `push_to_hub`. A card that the repository already has is kept. `push_to_hub` of the
        processor to the same repository makes it complete.
        """
        entire = not has_adapter(self) if whole is None else whole

        def save(folder: Path) -> None:
            self.save_pretrained(folder, whole=entire, max_shard_size=max_shard_size)

        return push_folder(save, repo_id, card=bridge_card(self, repo_id, entire), **options)

    # --- what transformers asks of a model ----------------------------------------------------------------------------

    @property
    def base_model(self) -> nn.Module:
        """The bridge without its output head. trl calls it for losses that compute only the logits they need."""
        return WithoutHead(self)

    # --- seeing through the prompt ------------------------------------------------------------------------------------

    def embed(
        self,
        input_ids: Tensor,
        region_features: Tensor,
        region_mask: Tensor,
        region_positions: Tensor | None = None,
        region_source: Tensor | None = None,
    ) -> Tensor:
        """Input embeddings (B, L, hidden_size): the language model's own, with projected regions at the placeholders.

        region_features (B, S, F) and region_mask (B, S): a row of features for each placeholder, True where there is one.
        region_positions (B, L): where the placeholders are, if `input_ids` do not show it.
        region_source (B,): fingerprints of the tokenizers that made the features, as numbers.
        """
        positions, projected = self._project(input_ids, region_features, region_mask, region_positions, region_source)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(positions, 0))
        return embeddings.masked_scatter(positions.unsqueeze(-1), projected.to(embeddings.device, embeddings.dtype))

    def _project(
        self,
        input_ids: Tensor,
        region_features: Tensor,
        region_mask: Tensor,
        region_positions: Tensor | None,
        region_source: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Where the placeholders are (B, L), and what comes to stand there (N, hidden_size)."""
        positions = input_ids == self.config.region_token_id if region_positions is None else region_positions
        region_mask = region_mask.bool()
        if not torch.compiler.is_compiling():
            check_counts(positions, region_mask)
            check_features(self.config, region_features, region_source)
        return positions, self.projector(region_features[region_mask])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        region_positions: Tensor | None = None,
        region_source: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> RegionBridgeOutput:
        """The language model's forward, after filling placeholders; see `embed` for the region arguments.

        Without region features, the language model gets exactly what was given. `labels` (B, L) are its own labels.
        logits_to_keep: as the language model takes it, or a boolean mask (B, L): logits are then (N, V), those of the N
        positions where it is True, row by row, and no others are computed.
        """
        if not torch.compiler.is_compiling() and not self._is_generating:
            check_padding(self.config, type(plain(self.language_model)).__name__, attention_mask)
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) and logits_to_keep.dtype == torch.bool else None
        arguments = forward_arguments(
            self.language_model,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep if kept is None else None,
            labels=labels,
            **kwargs,
        )
        regions = (region_features, region_mask, region_positions, region_source)
        with head_at(self.language_model, kept):
            output = self._read(input_ids, inputs_embeds, *regions, **arguments)
        result = RegionBridgeOutput()
        for name, value in output.items():
            result[name] = value
        if kept is not None:
            result["logits"] = result["logits"][kept if result["logits"].shape[:-1] == kept.shape else 0]
        return result

    def _read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        region_features: Tensor | None,
        region_mask: Tensor | None,
        region_positions: Tensor | None,
        region_source: Tensor | None,
        **arguments: Any,
    ) -> Any:
        """What the language model returns of a prompt whose placeholders are filled."""
        if region_features is not None and inputs_embeds is None:
            if input_ids is None or region_mask is None:
                raise ValueError(
                    "Got region_features without input_ids or region_mask: give what the processor returned."
                )
            regions = (region_features, region_mask, region_positions, region_source)
            if self.config.reads_ids:
                positions, projected = self._project(input_ids, *regions)
                filled = input_ids.masked_fill(positions, filler_id(self.config))
                with replaced_embeddings(self.get_input_embeddings(), positions, projected):
                    return self.language_model(input_ids=filled, **arguments)
            return self.language_model(inputs_embeds=self.embed(input_ids, *regions), **arguments)
        if input_ids is not None and not self._is_generating and not torch.compiler.is_compiling():
            check_text_only(self.config, input_ids)
        return self.language_model(input_ids=input_ids, inputs_embeds=inputs_embeds, **arguments)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate` on the processor's output.

        While it runs, placeholders are marked by position and not by id, because the id may lie outside the language
        model's vocabulary, where logits processors would look it up; the returned prompt holds them again.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None or kwargs.get("region_features") is None:
            if input_ids is not None:
                check_text_only(self.config, input_ids)
            return self._generate(input_ids, *args, **kwargs)
        positions = input_ids == self.config.region_token_id
        check_counts(positions, kwargs["region_mask"].bool())
        check_features(self.config, kwargs["region_features"], kwargs.get("region_source"))
        check_context(self.config, input_ids.shape[1], kwargs.get("max_new_tokens") or 1)
        filled = input_ids.masked_fill(positions, filler_id(self.config))
        output = self._generate(filled, *args, region_positions=positions, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompt = sequences[:, : input_ids.shape[1]]
        prompt.copy_(input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0))
        return output

    def _generate(self, input_ids: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """transformers' own; the placeholder's id, should the language model come to write it, is then just a word."""
        check_padding(self.config, type(plain(self.language_model)).__name__, kwargs.get("attention_mask"))
        self._is_generating = True
        try:
            return super().generate(input_ids, *args, **kwargs)
        finally:
            self._is_generating = False

    # transformers' loop asks the following of a model. Each is the language model's own: it knows its cache and its steps.

    @property
    def _is_stateful(self) -> bool:
        return self.language_model._is_stateful

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> None:
        self.language_model._prepare_cache_for_generation(*args, **kwargs)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.language_model._update_model_kwargs_for_generation(*args, **kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        own = {name: value for name, value in model_kwargs.items() if not name.startswith("region_")}
        self.language_model._validate_model_kwargs(own)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the language model reads next, with the regions if it is a part of the prompt."""
        regions = {name: kwargs.pop(name, None) for name in REGION_ARGUMENTS}
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        prepared = self.language_model.prepare_inputs_for_generation(input_ids, **kwargs)
        ids = prepared.get("input_ids")
        if regions["region_features"] is None or ids is None:
            return prepared
        positions, mask = regions["region_positions"], regions["region_mask"]
        start = input_ids.shape[1] - ids.shape[1]  # what lies before is in the cache
        if start:
            if positions is None or mask is None or start >= positions.shape[1]:
                return prepared  # answers only: no prompt is left to be read
            known = positions[:, :start].sum(dim=1, keepdim=True)
            mask = mask.bool() & (torch.arange(mask.shape[1], device=known.device) >= known)
            positions = positions[:, start:]
        if positions is not None and positions.shape[1] < ids.shape[1]:  # no cache: answers join the ids
            positions = nn.functional.pad(positions, (0, ids.shape[1] - positions.shape[1]))
        return {**prepared, **regions, "region_positions": positions, "region_mask": mask}


CONFIG_OPTIONS = ("experts", "use_semantic_embeds", "use_position", "image_grid", "image_regions", "projector_type",
                  "projector_hidden_size", "position_frequencies", "accept_any_tokenizer")  # fmt: skip
"""Fields of the config that whoever builds a bridge may choose."""
REGION_ARGUMENTS = ("region_features", "region_mask", "region_positions", "region_source")
"""What `embed` takes beside the ids."""


def _warn_of_bfloat16(bridge: RegionBridgeForConditionalGeneration, options: dict[str, Any]) -> None:
    """Warn of slow products where nobody has named a dtype in the options of loading, and no GPU can be meant."""
    if options.get("dtype") is None and not torch.cuda.is_available():
        in_fast_dtype(bridge, "unknown")
