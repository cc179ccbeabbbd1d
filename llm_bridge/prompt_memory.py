"""`PromptMemory`: what a language model has read of the latest prompts, so that one that begins like them is not read again.

A question about the same picture and regions begins as the one before did, and a follow-up goes on where the answer ended.
Only what is new is read then, unless the model's cache cannot be cut to what both have in common.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMode

from .language_model import can_read_ahead, forward_arguments

_STEP_BY_STEP = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that can be shared and cut: they hold keys and values, and put new tensors in their place."""
_CHANGES_WITH_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings with which the keys of a prompt's beginning depend on how long the whole is."""
_NO_WORD = -1


@dataclass(eq=False)
class _Read:
    """Words that a model has read: ids (L,), feature rows (S, F) of the regions among them, and their keys and values.

    asked: how many of the ids were a prompt; an answer follows. weights: the state of the model that read them.
    """

    cache: Cache
    owner: object
    weights: object
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    rows: Tensor | None = None
    asked: int = 0

    @property
    def bytes(self) -> int:
        """How much memory the keys and values take."""
        kept = [value for layer in self.cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
        return sum(value.numel() * value.element_size() for value in kept)


class PromptMemory:
    """Keys and values of the latest prompts and answers, for one language model; any number of threads may use it.

    most_bytes: how much memory they may take; the least recently used are forgotten first. With 0, nothing is kept.

    Of each owner, such as a conversation, only the latest prompt is kept. What a model has read is dropped once its weights
    have changed.
    """

    def __init__(self, most_bytes: int = 2**28) -> None:
        self.most_bytes = most_bytes
        self._kept: list[_Read] = []
        self._lock = Lock()

    def __len__(self) -> int:
        """How many prompts are kept."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """How much memory the kept keys and values take."""
        with self._lock:
            return sum(read.bytes for read in self._kept)

    def forget(self, owner: object) -> None:
        """Drop what was kept for an owner."""
        with self._lock:
            self._kept = [read for read in self._kept if read.owner is not owner]

    def generate(self, model: PreTrainedModel, owner: object, **arguments: Any) -> Any:
        """What `model.generate` returns for the same arguments; of the prompt, only what is new is read.

        All is read as ever for beams, for several prompts, and by a model that cannot go on from what it has read.
        """
        if not (self.most_bytes and _is_word_by_word(model, arguments) and _can_go_on(model)):
            return model.generate(**arguments)
        read = self._take(model, owner, arguments)
        output = model.generate(**arguments, past_key_values=read.cache)
        sequences = output if isinstance(output, Tensor) else output.sequences
        self._keep(model, read, arguments, sequences[0])
        return output

    def read(self, model: PreTrainedModel, owner: object, inputs: Mapping[str, Any], length: int) -> Cache:
        """Keys and values of the first `length` ids of one prompt, for the caller alone."""
        if not self.most_bytes or not _can_go_on(model):
            return read_beginning(model, inputs, length)
        read = self._take(model, owner, inputs, length)
        read_on(model, inputs, read.cache, len(read.ids), length)
        own = _copied(read.cache)
        self._keep(model, read, inputs, inputs["input_ids"][0, :length])
        return own

    def _take(
        self, model: PreTrainedModel, owner: object, inputs: Mapping[str, Any], length: int | None = None
    ) -> _Read:
        """The kept prompt that has most in common with this one, or with its first `length` ids, cut to what that is.

        Something of the prompt is always left to be read. Out of the memory goes what was kept for the same owner, and a
        prompt of which this one is the continuation.
        """
        ids, rows = inputs["input_ids"][0], _rows_of(inputs)
        most = len(ids) - 1 if length is None else length
        weights = _state_of(model)
        marker = getattr(model.config, "region_token_id", _NO_WORD)
        with self._lock:
            self._kept = [read for read in self._kept if read.weights == weights and read.ids.device == ids.device]
            found, shared = None, 0
            for read in self._kept:
                common = common_length([read.ids, ids[:most]])
                common = seen_alike(ids[:common], [read.rows, rows], marker)
                if common > shared and (common == len(read.ids) or _can_be_cut(read.cache)):
                    found, shared = read, common
            self._kept = [
                read for read in self._kept if read.owner is not owner and not (read is found and shared >= read.asked)
            ]
        if found is None:
            return _Read(_new_cache(model), owner, weights)
        cache = _copied(found.cache)
        for layer in _layers(cache):
            if shared < len(found.ids):
                layer.crop(shared - len(found.ids))
        return _Read(cache, owner, weights, ids[:shared])

    def _keep(self, model: PreTrainedModel, read: _Read, inputs: Mapping[str, Any], sequence: Tensor) -> None:
        """Keep what was read of a sequence: a prompt, or its beginning, and perhaps an answer."""
        length = read.cache.get_seq_length()
        asked = min(inputs["input_ids"].shape[1], length)
        ids = sequence[:length].clone()
        answer = ids[asked:]
        answer[answer == getattr(model.config, "region_token_id", _NO_WORD)] = _NO_WORD  # a word, where it stands
        read.ids, read.rows, read.asked = ids, _rows_of(inputs), asked
        with self._lock:
            self._kept.append(read)
            sizes = [kept.bytes for kept in self._kept]
            while sum(sizes) > self.most_bytes:
                del self._kept[0], sizes[0]


def read_beginning(model: PreTrainedModel, inputs: Mapping[str, Any], length: int) -> Cache:
    """Keys and values of the first `length` ids of one prompt."""
    cache = _new_cache(model)
    read_on(model, inputs, cache, 0, length)
    return cache


@torch.no_grad()
def read_on(model: PreTrainedModel, inputs: Mapping[str, Any], cache: Cache, start: int, length: int) -> None:
    """Read a prompt's ids from `start`, before which all is in the cache, up to `length`, into the cache."""
    if start == length:
        return
    ids = inputs["input_ids"]
    regions = {}
    if "region_features" in inputs:
        places = (ids[0] == model.config.region_token_id).cumsum(0)
        first, last = (int(places[end - 1]) if end else 0 for end in (start, length))
        regions = {name: inputs[name][:, first:last] for name in ("region_features", "region_mask") if last > first}
    arguments = forward_arguments(
        getattr(model, "language_model", model), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    model(input_ids=ids[:, start:length], **arguments, **regions)


def common_length(rows: Sequence[Tensor]) -> int:
    """How many ids all rows begin with."""
    shortest = min(map(len, rows))
    same = torch.stack([row[:shortest] == rows[0][:shortest] for row in rows]).all(dim=0)
    return shortest if bool(same.all()) else int(same.int().argmin())


def seen_alike(ids: Tensor, features: Sequence[Tensor | None], region_token_id: int) -> int:
    """How many of the `ids` that prompts begin with show the same, too: context stands around what is asked."""
    own = [row for row in features if row is not None]
    for number, place in enumerate((ids == region_token_id).nonzero()[:, 0].tolist()):
        if any(not torch.equal(row[number], own[0][number]) for row in own):
            return place
    return len(ids)


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _copied(cache: Cache) -> Cache:
    """A cache that grows by itself; the tensors are shared, because layers put new ones in the place of theirs."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def _rows_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The feature rows (S, F) of one prompt."""
    if "region_features" not in inputs:
        return None
    rows: Tensor = inputs["region_features"][0][inputs["region_mask"][0].bool()]
    return rows


def _layers(cache: Cache) -> list[Any]:
    """The layers that hold keys and values of their own; others may look at theirs."""
    return [layer for layer in cache.layers if type(layer) in _GROWING and layer.is_initialized]


def _can_be_cut(cache: Cache) -> bool:
    """Whether a cache can be cut anywhere; one whose windows have moved on no longer holds what lay before them."""
    return not any(layer.is_sliding and layer.get_seq_length() >= layer.sliding_window for layer in _layers(cache))


def _is_word_by_word(model: PreTrainedModel, arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of `generate` ask for one answer to one prompt, word by word, with the usual cache."""
    mask = arguments.get("attention_mask")
    if len(arguments["input_ids"]) != 1 or not (mask is None or bool(mask.all())):
        return False
    generation: GenerationConfig = copy.copy(arguments.get("generation_config") or model.generation_config)
    generation.update(**arguments)
    return (
        generation.get_generation_mode(arguments.get("assistant_model")) in _STEP_BY_STEP
        and (generation.num_return_sequences or 1) == 1
        and generation.use_cache is not False
        and generation.cache_implementation is None
        and not {"past_key_values", "custom_generate"} & set(arguments)
    )


def _can_go_on(model: PreTrainedModel) -> bool:
    """Whether the model reads on, several words at once, from keys and values that it has read before."""
    text = model.config.get_text_config(decoder=True)
    return (
        can_read_ahead(getattr(model, "language_model", model))
        and all(type(layer) in _GROWING or type(layer).__name__ == "DummyLayer" for layer in _new_cache(model).layers)
        and not any(kind in _CHANGES_WITH_LENGTH for kind in _rope_types(text))
    )


def _rope_types(config: Any) -> list[str]:
    """The kinds of rotary embeddings of a language model, which may differ between its layers."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(own for own in given.values() if isinstance(own, dict))]
    return [kind["rope_type"] for kind in kinds if kind.get("rope_type")]


def _state_of(model: PreTrainedModel) -> object:
    """Changes when a weight is moved, cast, loaded or trained, and when an adapter is turned on or off."""
    weights = [
        (weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version)
        for weight in model.parameters()
    ]
    adapters = [
        (tuple(module.active_adapters), module.disable_adapters)
        for module in model.modules()
        if hasattr(type(module), "active_adapters") and isinstance(module.disable_adapters, bool)  # peft's layers
    ]
    return weights, adapters
