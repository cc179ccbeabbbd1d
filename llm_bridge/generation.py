"""Generates a language model's words: as whole texts, or in pieces while they come; and who else may say them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from threading import Event, Thread
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Cache,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .language_model import can_read_ahead, forward_arguments, ignores_padding
from .prompt_memory import PromptMemory, common_length, read_beginning, seen_alike, slides_within

_WORTH_A_STEP = 16
"""So many words that need not be read again are worth one more step of a language model, which loads all its weights."""
_LONG = 2**20
"""The longest answer, in tokens, where nothing says how long it may be."""


@dataclass
class Tally:
    """What is known of an answer: how many tokens it took, and whether max_new_tokens cut it off.

    gone: ends the answer once it is set, even between two pieces.
    """

    gone: Event = field(default_factory=Event)
    tokens: int = 0
    is_cut: bool = False


Ids = tuple[int, ...]
"""Ids with which an answer begins; none, right after the prompt."""
NextIds = dict[Ids, dict[int, float]]
"""By beginning and id: the logarithm of the probability of an id after a beginning."""


@runtime_checkable
class Speaker(Protocol):
    """Who answers in a conversation: a language model in this process, or one that a server runs.

    A prompt is what `read` makes of a conversation's messages, with `input_ids` (1, L) among its items. options: as for
    transformers' `generate`; greedy by default. With `seed`, a sampled answer can be had again.
    """

    @property
    def config(self) -> Any:
        """The configuration of the bridge or the language model."""

    @property
    def processor(self) -> Any:
        """What writes the prompts."""

    def read(self, messages: Sequence[dict[str, Any]], *, thinking: bool) -> Mapping[str, Any]:
        """A conversation that ends with a question → a prompt."""

    def read_each(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> Sequence[Mapping[str, Any]]:
        """Several conversations → their prompts, without thinking."""

    def say(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> str:
        """The answer, stripped of white space; tally: says of it, in the end, whether it was cut off."""

    def say_each(self, prompts: Sequence[Mapping[str, Any]], **options: Any) -> list[str]:
        """The answers to several prompts."""

    def stream(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> Iterator[str]:
        """The answer in pieces, white space and all. Whoever closes the iterator stops the generation.

        tally: kept while the pieces come.
        """

    def log_probabilities(self, prompt: Mapping[str, Any], wanted: Mapping[Ids, Collection[int]]) -> NextIds:
        """How probable ids are as the next ones after a prompt and the beginning of an answer.

        wanted: for each beginning, the ids in question. Returns natural logarithms, of the model's own distribution.
        """


@dataclass(frozen=True, eq=False)
class LocalSpeaker:
    """A language model in this process, and the processor that writes its prompts.

    memory: what the model has read for this and other speakers.
    """

    model: PreTrainedModel
    processor: Any
    memory: PromptMemory = field(default_factory=PromptMemory)

    @property
    def config(self) -> Any:
        return self.model.config

    def read(self, messages: Sequence[dict[str, Any]], *, thinking: bool) -> Mapping[str, Any]:
        """The batch that the processor makes, on the model's device."""
        moved: Mapping[str, Any] = question_inputs(self.processor, messages, thinking=thinking).to(self.model.device)
        return moved

    def read_each(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> Sequence[Mapping[str, Any]]:
        """All regions of all conversations are encoded in one go."""
        return separate(question_inputs(self.processor, conversations).to(self.model.device))

    def say(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> str:
        generate = partial(self.memory.generate, self.model, self)
        options = self._options(self._kept(tally, options))
        return generate_text(self.model, self.processor, prompt, generate=generate, **options)[0]

    def say_each(self, prompts: Sequence[Mapping[str, Any]], **options: Any) -> list[str]:
        read = partial(self.memory.read, self.model, self)
        return generate_each(self.model, self.processor, prompts, read=read, **self._options(options))

    def stream(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> Iterator[str]:
        generate = partial(self.memory.generate, self.model, self)
        options = self._options(self._kept(tally, options))
        return stream_text(self.model, self.processor, prompt, generate=generate, **options)

    def log_probabilities(self, prompt: Mapping[str, Any], wanted: Mapping[Ids, Collection[int]]) -> NextIds:
        rows = sorted(ids for ids in wanted if not any(len(o) > len(ids) and o[: len(ids)] == ids for o in wanted))
        scores: dict[Ids, Tensor] = {}
        read = partial(self.memory.read, self.model, self)
        for row, logits in zip(rows, logits_after(self.model, prompt, rows, read=read)):
            for length, own in enumerate(logits.double().log_softmax(dim=-1).cpu()):
                scores[row[:length]] = own
        return {ids: {one: float(scores[ids][one]) for one in ones} for ids, ones in wanted.items()}

    def _kept(self, tally: Tally | None, options: dict[str, Any]) -> dict[str, Any]:
        """Options with which the tally of the answer is kept, if there is one."""
        if tally is None:
            return options
        ends = self.model.generation_config.eos_token_id
        keeper = _TallyKeeper(tally, ends if isinstance(ends, list) else [ends], options.get("max_new_tokens"))
        given = options.get("stopping_criteria") or []
        return {**options, "stopping_criteria": StoppingCriteriaList([*given, keeper])}

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options for transformers, which stops at words only if it is given the tokenizer, and knows no seed."""
        if (seed := options.pop("seed", None)) is not None and options.get("do_sample"):
            generator = torch.Generator(self.model.device).manual_seed(seed)
            options = _drawing(options, self.model.generation_config, generator)
        return {"tokenizer": self.processor.tokenizer, **options} if "stop_strings" in options else options


def speaker_of(model: Any, processor: Any, memory: PromptMemory | None = None) -> Speaker:
    """Who answers: a model that is a `Speaker` itself, or else the model in this process, with a memory of what it has read."""
    if isinstance(model, Speaker):
        return model
    return LocalSpeaker(model, processor, PromptMemory() if memory is None else memory)


_SAMPLING = {
    "temperature": (1.0, 1.0, TemperatureLogitsWarper),
    "top_k": (50, 0, TopKLogitsWarper),
    "top_p": (1.0, 1.0, TopPLogitsWarper),
    "min_p": (None, None, MinPLogitsWarper),
}
"""transformers' options of sampling, in its order: the default, what changes nothing, and what applies others."""


def _drawing(options: dict[str, Any], config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Options of an answer that this generator draws. transformers has one for all threads, which disturb each other's draws.

    options: with do_sample. config: of the model's generation, for what they leave open.
    """
    names = ("num_beams", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
    if others := [name for name in names if options.get(name, getattr(config, name, None)) not in (None, 0, 1)]:
        raise ValueError(f"Got seed with {', '.join(others)}: leave seed out, and call torch.manual_seed instead.")
    left, warpers = dict(options), []
    for name, (default, idle, warper) in _SAMPLING.items():
        own = getattr(config, name, None)
        value = left.pop(name, default if own is None else own)
        if value not in (None, idle):
            warpers.append(warper(value))
    chosen = LogitsProcessorList([*(left.pop("logits_processor", None) or []), *warpers, _Draw(generator)])
    return {**left, "do_sample": False, "logits_processor": chosen}


class _Draw(LogitsProcessor):
    """Draws the next tokens, and leaves nothing else to choose from."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        chosen = torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0)  # type: ignore[return-value]


def question_inputs(processor: Any, conversation: Sequence[Any], *, thinking: bool = False, **options: Any) -> Any:
    """A conversation that ends with a question, or a list of them, → the batch that a model reads before it answers.

    thinking: whether a model that can think aloud may do so. options: as for the processor's `apply_chat_template`.
    """
    return processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        enable_thinking=thinking,
        **options,
    )


def separate(batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """A padded batch of prompts → each prompt as a batch of its own, without padding."""
    prompts = []
    for number in range(len(batch["input_ids"])):
        one = {name: value[number : number + 1] for name, value in batch.items()}
        words = one["attention_mask"][0].bool()
        one |= {name: one[name][:, words] for name in ("input_ids", "attention_mask")}
        if "region_mask" in one:
            rows = one["region_mask"][0].bool()
            one |= {name: one[name][:, rows] for name in ("region_features", "region_mask")}
            if not rows.any():
                one = {name: value for name, value in one.items() if not name.startswith("region_")}
        prompts.append(one)
    return prompts


def generate_text(
    model: PreTrainedModel,
    processor: Any,
    inputs: Mapping[str, Any],
    *,
    generate: Callable[..., Any] | None = None,
    **options: Any,
) -> list[str]:
    """Generate the words that `model` says after each prompt of a batch, stripped of white space; greedy by default.

    processor: the processor or tokenizer that encoded the prompts. inputs: what it returned, with `input_ids`, padded on the
    left, on the model's device. A language model that reads padding as words is given each prompt alone. generate: what to
    call instead of the model's own. options: for `generate`, including `max_new_tokens`.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and not bool(mask.all()) and not ignores_padding(model):
        prompts = separate(inputs)
        return [generate_text(model, processor, prompt, generate=generate, **options)[0] for prompt in prompts]
    options = {"do_sample": False, **options}
    ids = (generate or model.generate)(**inputs, **options)
    ends = options.get("eos_token_id", model.generation_config.eos_token_id)
    ends = set(ends if isinstance(ends, list) else [ends])
    said = [
        list(takewhile(lambda word: word not in ends, row))  # padding follows where other rows go on
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist()
    ]
    return [text.strip() for text in processor.batch_decode(said, skip_special_tokens=True)]


def generate_each(
    model: PreTrainedModel,
    processor: Any,
    prompts: Sequence[Any],
    *,
    read: Callable[[Any, int], Cache] | None = None,
    **options: Any,
) -> list[str]:
    """The words that `model` says after each of several prompts, each of which is a batch of its own.

    What all prompts have in common from the beginning is read once; then all are answered in one batch.
    read: gives a cache with so many ids of a prompt in it; by default, they are read now.
    """
    rows = [prompt["input_ids"][0] for prompt in prompts]
    if len({len(row) for row in rows}) > 1 and not ignores_padding(model):  # then none can stand beside longer ones
        return [generate_text(model, processor, prompt, **options)[0] for prompt in prompts]
    features = [prompt["region_features"][0] if "region_features" in prompt else None for prompt in prompts]
    shared = min(common_length(rows), min(map(len, rows)) - 1)  # of every prompt, something is left to read
    if (options.get("num_beams") or model.generation_config.num_beams or 1) > 1:
        shared = 0  # beams are copies of whole prompts
    if not can_read_ahead(getattr(model, "language_model", model)):
        shared = 0
    shared = seen_alike(rows[0][:shared], features, getattr(model.config, "region_token_id", -1))
    new = options.get("max_new_tokens") or model.generation_config.max_new_tokens or _LONG
    if shared * (len(rows) - 1) < _WORTH_A_STEP or slides_within(model, max(map(len, rows)) + new):
        shared = 0
    inputs = _joined(rows, shared, model.generation_config.pad_token_id or 0)
    if any(row is not None for row in features):
        inputs |= {name: value.to(model.device) for name, value in processor.pad_features(features).items()}
    if shared:
        longest = max(prompts, key=lambda prompt: prompt["input_ids"].shape[1])
        cache = (read or partial(read_beginning, model))(longest, shared)
        cache.batch_repeat_interleave(len(rows))
        options["past_key_values"] = cache
    return generate_text(model, processor, inputs, **options)


def stream_text(
    model: PreTrainedModel,
    processor: Any,
    inputs: Mapping[str, Any],
    *,
    generate: Callable[..., Any] | None = None,
    **options: Any,
) -> Iterator[str]:
    """The same for one prompt, in pieces, white space and all; generated in a thread whose errors are raised here.

    Whoever closes the iterator before its end stops the thread at its next token.
    """
    stop = Event()
    given = options.pop("stopping_criteria", None) or []
    criteria = StoppingCriteriaList([*given, _StopWhenSet(stop)])
    streamer = TextIteratorStreamer(processor, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asked = {"do_sample": False, **options, "stopping_criteria": criteria, "streamer": streamer}
            (generate or model.generate)(**inputs, **asked)
        except BaseException as error:  # handed to the asking thread below
            failure.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]


def trimmed(pieces: Iterator[str]) -> Iterator[str]:
    """Pieces of text without white space at the beginning and the end of the whole, and none that is empty."""
    waiting, begun = "", False
    for piece in pieces:
        text = waiting + piece if begun else (waiting + piece).lstrip()
        kept = text.rstrip()
        waiting = text[len(kept) :]
        if kept:
            begun = True
            yield kept


class _TallyKeeper(StoppingCriteria):
    """Keeps the tally of one answer, and ends it once nobody waits for it."""

    def __init__(self, tally: Tally, ends: Sequence[int | None], most: int | None) -> None:
        self.tally, self.ends, self.most = tally, ends, most

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        self.tally.tokens += 1
        self.tally.is_cut = self.tally.tokens == self.most and int(input_ids[0, -1]) not in self.ends
        return torch.full((len(input_ids),), self.tally.gone.is_set(), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def logits_after(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    rows: Sequence[Sequence[int]],
    *,
    read: Callable[[Any, int], Cache] | None = None,
) -> list[Tensor]:
    """Logits (len(row) + 1, V) of what comes after one prompt and each id of a row that goes on from it, for each row.

    inputs: the prompt, which does not end with a placeholder. read: gives a cache with so many ids of it in it, which is asked
    for once for every few rows; by default, they are read each time. A model that cannot go on from what it has read reads the
    prompt once for each row.
    """
    prompt = inputs["input_ids"][0]
    language_model = getattr(model, "language_model", model)
    together = 8 if can_read_ahead(language_model) else 1  # as many copies of what was read are in memory
    found: list[Tensor] = []
    for start in range(0, len(rows), together):
        group = [torch.cat([prompt, prompt.new_tensor(row)]) for row in rows[start : start + together]]
        shared = len(prompt) - 1 if together > 1 else 0
        ids, mask = (
            pad_sequence(part, batch_first=True) for part in (group, [row.new_ones(len(row)) for row in group])
        )
        keep = ids.shape[1] - len(prompt) + 1
        if shared:  # what follows the prompt shows no regions
            cache = (read or partial(read_beginning, model))(inputs, shared)
            cache.batch_repeat_interleave(len(group))
            before: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        else:
            before = {name: value for name, value in inputs.items() if name.startswith("region_")}
            before["use_cache"] = False
        arguments = forward_arguments(language_model, attention_mask=mask, logits_to_keep=keep, **before)
        logits = model(input_ids=ids[:, shared:], **arguments).logits[:, -keep:]
        found += [own[: len(row) - len(prompt) + 1] for row, own in zip(group, logits)]
    return found


class _StopWhenSet(StoppingCriteria):
    """Ends generation for every row once an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


# --- what prompts have in common --------------------------------------------------------------------------------------


def _joined(rows: Sequence[Tensor], shared: int, filler: int) -> dict[str, Tensor]:
    """Rows of ids as a batch, padded between what they share and what they do not."""
    longest = max(map(len, rows))
    ids, mask = rows[0].new_full((len(rows), longest), filler), rows[0].new_zeros(len(rows), longest)
    for row, own, seen in zip(rows, ids, mask):
        own[:shared], own[longest - len(row) + shared :] = row[:shared], row[shared:]
        seen[:shared], seen[longest - len(row) + shared :] = 1, 1
    return {"input_ids": ids, "attention_mask": mask}
