"""Loads the language model of a bridge by name, takes it out of a multimodal model, and tries it out before it is used.

No architecture is known by name: the code asks the model itself about everything that differs between architectures.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tap_tokenizer import load_pretrained, model_from_config

from .configuration_bridge import HUB_OPTIONS

_CAUSAL = AutoModelForCausalLM._model_mapping
_SEEING = AutoModelForImageTextToText._model_mapping
_BY_SIGNATURE = ("attention_mask", "position_ids", "logits_to_keep")
"""Arguments that transformers' `generate` gives a model only if its forward names them."""
QUANTIZATION_ATTRIBUTES = (
    "is_quantized",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "hf_quantizer",
    "quantization_method",
)
"""Attributes that peft and transformers look for on the outermost model if it is quantized."""
_WORDS, _PADDING = 16, 5
"""Lengths of the prompt that tries out a language model, and of the padding in front of a part of it."""
_IGNORE_PADDING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
"""What is known of plain language models, none of which says so in its config."""


@dataclass(frozen=True)
class Manner:
    """How a language model takes a prompt, as `try_out` found it.

    size: width of its input embeddings. scale: their root mean square. reads_ids: it needs the ids of a prompt as well as
    the embeddings. ignores_padding: padding in front of a prompt does not change the logits.
    """

    size: int
    scale: float
    reads_ids: bool
    ignores_padding: bool


# --- where it comes from ----------------------------------------------------------------------------------------------


def load_language_model(source: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model by name or folder, or the one inside a multimodal model, with the options of loading."""
    options = {"trust_remote_code": False, **options}
    shared = {key: options[key] for key in (*HUB_OPTIONS, "trust_remote_code") if key in options}
    config = load_pretrained(AutoConfig, source, **shared)
    if type(config) in _CAUSAL or "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return text_side(load_pretrained(AutoModelForCausalLM, source, **options))
    if type(config) not in _SEEING or config.is_encoder_decoder:
        raise ValueError(
            f"{source} is a {config.model_type}, not a causal language model: give one for AutoModelForCausalLM."
        )
    _text_config(config, source)  # before the weights are loaded
    return text_side(load_pretrained(AutoModelForImageTextToText, source, **options))


def text_side(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model inside a multimodal one, with the same weights; any other model unchanged."""
    text_config = _text_config(model.config, type(model).__name__)
    if text_config is model.config:
        return model
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if isinstance(decoder, _CAUSAL[type(text_config)]):
        text = decoder
    else:
        with torch.device("meta"):
            text = model_from_config(AutoModelForCausalLM, text_config)
        if type(decoder) is not type(text.base_model) or head is None:
            raise ValueError(
                f"{type(model).__name__} is multimodal, and its text side is not a {type(text).__name__}: give a language "
                "model that reads only text."
            )
        setattr(text, text.base_model_prefix, decoder)
        text.set_output_embeddings(head)
    text.generation_config = model.generation_config
    for attribute in QUANTIZATION_ATTRIBUTES:
        if hasattr(model, attribute):
            setattr(text, attribute, getattr(model, attribute))
    if hasattr(model.config, "quantization_config"):
        text.config.quantization_config = model.config.quantization_config
    text.config.name_or_path = model.config.name_or_path
    return text.train(model.training)


def _text_config(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """The config of a model's text side: the model's own, unless the model is multimodal."""
    if config.is_encoder_decoder or config.get_text_config(decoder=True) is config:
        return config
    text_config = config.get_text_config(decoder=True)
    if type(text_config) not in _CAUSAL or text_config.is_encoder_decoder:
        raise ValueError(
            f"{name} is multimodal, and transformers has no causal language model for its text side "
            f"({text_config.model_type}): give a language model that reads only text."
        )
    return text_config


# --- what it takes ----------------------------------------------------------------------------------------------------


def plain(language_model: Any) -> PreTrainedModel:
    """The language model without its peft adapter, if it has one."""
    return language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model


def forward_arguments(language_model: Any, **arguments: Any) -> dict[str, Any]:
    """The given arguments, without those that `generate` would not pass to this language model."""
    left_out = [name for name in _BY_SIGNATURE if not _takes(plain(language_model), name)]
    return {name: value for name, value in arguments.items() if value is not None and name not in left_out}


def can_read_ahead(language_model: Any) -> bool:
    """Whether the model can read the common beginning of several prompts once, into a `DynamicCache`."""
    model = plain(language_model)
    return _takes(model, "past_key_values") and model._supports_default_dynamic_cache() and not model._is_stateful


def _takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether a model's forward names an argument, or has been wrapped so that it names none."""
    named = inspect.signature(model.forward).parameters
    return argument in named or "input_ids" not in named


def filler_id(config: PreTrainedConfig) -> int:
    """The id at a placeholder, for a language model that reads ids: its padding id, if that is within its vocabulary."""
    text = config.get_text_config()
    pad = getattr(text, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < text.vocab_size else 0


@contextmanager
def replaced_embeddings(table: nn.Module, positions: Tensor, rows: Tensor) -> Iterator[None]:
    """While the block runs, `table` returns `rows` (N, D) for the ids at the N `positions` (B, L), in this thread."""
    thread, asked = get_ident(), 0

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        nonlocal asked
        if get_ident() != thread:
            return None
        asked += 1
        if asked > 1 or output.shape[:-1] != positions.shape:
            raise ValueError(
                "The language model looks up its words more than once, or looks up words that it was not given."
            )
        return output.masked_scatter(positions.unsqueeze(-1), rows.to(output.device, output.dtype))

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_at(language_model: Any, positions: Tensor | None) -> Iterator[None]:
    """While the block runs, the output head reads the hidden states at `positions` (B, L, boolean) alone, in this thread.

    The logits that come out are (1, N, V). Nothing changes without positions, or if the model has no head or gives it other
    hidden states than one for each word.
    """
    head = None if positions is None else language_model.get_output_embeddings()
    if positions is None or head is None:
        yield
        return
    thread = get_ident()

    def choose(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = inputs
        if get_ident() != thread or hidden.shape[:-1] != positions.shape:
            return None
        return (hidden[positions.to(hidden.device)].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


# --- whether it can serve ---------------------------------------------------------------------------------------------


def check_kind(language_model: PreTrainedModel, text_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a class that is not a causal language model, and a text tokenizer that belongs to another model."""
    name = type(language_model).__name__
    if language_model.config.is_encoder_decoder or not language_model.can_generate():
        raise ValueError(f"{name} is not a causal language model: give one that AutoModelForCausalLM loads.")
    rows = language_model.get_input_embeddings().weight.shape[0]
    if text_tokenizer.vocab_size > rows:
        raise ValueError(
            f"The text tokenizer has {text_tokenizer.vocab_size} tokens, but {name} embeds only {rows}: give the tokenizer "
            "that belongs to the language model."
        )


@torch.no_grad()
def try_out(language_model: PreTrainedModel) -> Manner:
    """Have a language model read a few words in several ways, and refuse it if it cannot be shown a region.

    It must write from left to right. In front of an embedding that belongs to no word, words must have the logits that they
    have among words: through `inputs_embeds`, or through ids whose embedding the table replaces.
    """
    name, table = type(language_model).__name__, language_model.get_input_embeddings()
    known = table(torch.arange(min(4096, table.weight.shape[0]), device=table.weight.device)).float()
    size, scale = known.shape[-1], float(known.square().mean().sqrt())
    words = _words(language_model, _WORDS + 1)
    whole = torch.stack([words[:-1], torch.cat([words[:-2], words[-1:]])])  # they differ in the last word
    padded = _padded(language_model, words[:-1])
    at_the_end = torch.zeros_like(padded, dtype=torch.bool)
    at_the_end[:, -1] = True
    no_word = (table(padded[:, -1]) + table(whole[:, -1])).mul(0.5)
    training = language_model.training
    language_model.eval()
    try:
        prompt = language_model.prepare_inputs_for_generation(whole, use_cache=False)["input_ids"]
        alone = _read(language_model, whole, input_ids=whole)
        causal = torch.equal(prompt, whole) and _same(language_model, alone[0, :-1], alone[1, :-1], 1e-5, 0.05)
        reads_ids = False
        try:
            embeddings = table(padded).masked_scatter(at_the_end.unsqueeze(-1), no_word)
            shown = _read(language_model, padded, inputs_embeds=embeddings)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            reads_ids = True  # without which it cannot read
        if causal and (reads_ids or not _same(language_model, shown[0, :-1], alone[0, :-1])):
            reads_ids = True
            with replaced_embeddings(table, at_the_end, no_word):
                shown = _read(language_model, padded, input_ids=padded)
            causal = _same(language_model, shown[0, :-1], alone[0, :-1])
        language_model(whole[:1], **forward_arguments(language_model, use_cache=True))  # as generation begins
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be shown a region, because it does not read a prompt as one embedding for each word, or "
            f"cannot keep what it has read: {error}"
        ) from error
    finally:
        language_model.train(training)
    if not causal:
        raise ValueError(
            f"{name} does not write from left to right, because what follows a word changes how the word is read: give a "
            "causal language model."
        )
    return Manner(size, scale, reads_ids, _has_ignored_padding(language_model, shown))


@torch.no_grad()
def ignores_padding(model: PreTrainedModel) -> bool:
    """Whether padding in front of a prompt does not change what a bridge or a plain language model answers.

    A bridge knows it from `try_out`. A plain language model is tried out in the same way, at the first time it is asked.
    """
    known = getattr(model.config, "ignores_padding", None)
    if known is not None:
        return bool(known)
    language_model = plain(model)
    if language_model not in _IGNORE_PADDING:
        ids = _padded(language_model, _words(language_model, _WORDS))
        _IGNORE_PADDING[language_model] = _has_ignored_padding(
            language_model, _read(language_model, ids, input_ids=ids)
        )
    return _IGNORE_PADDING[language_model]


def _words(language_model: PreTrainedModel, count: int) -> Tensor:
    """The ids of some words, all different if there are enough."""
    table = language_model.get_input_embeddings().weight
    rows = min(4096, table.shape[0])
    return torch.linspace(rows // 4, rows - 1, count, device=table.device).long()


def _padded(language_model: PreTrainedModel, words: Tensor) -> Tensor:
    """Two prompts: the words, and as many of them as there is room for behind padding."""
    pad = words.new_full((_PADDING,), filler_id(language_model.config))
    return torch.stack([words, torch.cat([pad, words[:-_PADDING]])])


def _has_ignored_padding(language_model: PreTrainedModel, logits: Tensor) -> bool:
    """Whether words behind padding got the logits that they have at the beginning, apart from the last one of each prompt."""
    return _same(language_model, logits[1, _PADDING:-1], logits[0, : -_PADDING - 1])


def _read(language_model: PreTrainedModel, ids: Tensor, **prompt: Tensor) -> Tensor:
    """Logits of two prompts; the second one has padding in front if their first words differ."""
    mask = torch.ones_like(ids)
    mask[1, :_PADDING] = int(ids[0, 0] == ids[1, 0])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    arguments = forward_arguments(language_model, attention_mask=mask, position_ids=positions, use_cache=False)
    return language_model(**prompt, **arguments).logits.float()


def _same(
    language_model: PreTrainedModel, found: Tensor, wanted: Tensor, precise: float = 1e-3, rough: float = 0.2
) -> bool:
    """Whether logits are the same, by a share of the largest: `rough` for half precision and packed weights."""
    is_rough = language_model.dtype in (torch.float16, torch.bfloat16) or getattr(language_model, "is_quantized", False)
    return float((found - wanted).abs().max()) <= (rough if is_rough else precise) * float(wanted.abs().max())


# --- which one it is --------------------------------------------------------------------------------------------------


@torch.no_grad()
def embedding_sums(language_model: Any) -> list[float]:
    """Sums over sixteen rows of the input embeddings with alternating signs: the same up to rounding in every dtype."""
    embeddings = language_model.get_input_embeddings()
    rows = torch.linspace(0, min(embeddings.weight.shape[0], 4096) - 1, 16).long()
    found = embeddings(rows.to(embeddings.weight.device)).float().cpu()
    return [round(value, 4) for value in (found * _signs(found.shape[1])).sum(dim=1).tolist()]


@torch.no_grad()
def weight_sums(language_model: Any) -> dict[str, list[float]]:
    """Four such sums for each of up to 96 weights from first to last layer, over a few rows, by name; no packed weights."""
    weights = _weights(language_model)
    names = list(weights)
    chosen = torch.linspace(0, len(names) - 1, min(len(names), 96)).long().tolist()
    return {names[i]: [float(f"{total:.6g}") for total, _ in _sums(weights[names[i]])] for i in chosen}


@torch.no_grad()
def differing_weights(language_model: Any, kept: dict[str, list[float]]) -> list[str]:
    """Names of weights whose sums differ from the `kept` ones by more than rounding; unknown names are skipped."""
    weights = _weights(language_model)
    return [
        name
        for name, totals in kept.items()
        if name in weights
        and any(
            abs(found - total)
            > 0.008 * size + 1e-6  # rounding to bfloat16 moves such a sum by about 0.001 of that size
            for total, (found, size) in zip(totals, _sums(weights[name]))
        )
    ]


def _weights(language_model: Any) -> dict[str, Tensor]:
    """The language model's own weights that can be read as numbers, by the names that they have without an adapter."""
    weights = {}
    for name, weight in plain(language_model).named_parameters():
        name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        readable = weight.dtype in (torch.float32, torch.bfloat16, torch.float16) and type(weight) is nn.Parameter
        if (
            readable
            and weight.numel()
            and not weight.is_meta
            and ".lora_" not in name
            and ".modules_to_save." not in name
        ):
            weights[name] = weight
    return weights


def _sums(weight: Tensor) -> list[tuple[float, float]]:
    """Sums over the quarters of eight rows with alternating signs, each beside the size that random signs would give it."""
    rows = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), 8)).long().to(rows.device)
    quarters = rows[chosen].float().cpu().flatten().tensor_split(4)
    return [(float((part * _signs(len(part))).sum()), float(part.norm())) for part in quarters]


def _signs(count: int) -> Tensor:
    return 1 - 2 * (torch.arange(count) % 2)
