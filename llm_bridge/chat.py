"""`RegionChat`: a conversation about regions of one picture.

Holds a bridge, its processor and what has been said; knows no more about models than `generate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import AutoConfig, TextIteratorStreamer

from tap_tokenizer import ImageInput, RegionTokens, TapRegionTokenizer

from .modeling_bridge import RegionBridgeForConditionalGeneration
from .processing_bridge import RegionBridgeProcessor
from .region_prompt import MARKER, prompt_columns, with_labels

BUNDLED = Path(__file__).parent / "pretrained"


@dataclass
class RegionBaseline:
    """What TAP itself says of one region: its native caption (None without a vocabulary) and its best concepts."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]] = field(default_factory=list)


class RegionChat:
    """Ask a language model about regions of a picture.

    >>> chat = RegionChat.from_pretrained("region-chat-tiny")
    >>> chat.ask("What is <region>, and where is it?", image="picture.png", boxes=[[40, 60, 310, 420]])
    >>> chat.ask("What colour is region1?")  # later turns speak of regions by name

    Regions are numbered through the conversation: region1, region2, …. A new picture begins a new conversation.
    """

    def __init__(self, model: RegionBridgeForConditionalGeneration, processor: RegionBridgeProcessor) -> None:
        processor.check_bridge(model.config)
        self.model = model.eval()
        self.processor = processor
        self.image: Any = None
        self.messages: list[dict[str, Any]] = []
        self._regions: list[dict[str, Any]] = []

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        region_tokenizer: TapRegionTokenizer | str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> RegionChat:
        """Load a bridge and its processor: the name of the bundled one, a folder, or a Hub repository.

        region_tokenizer: use this one, or load it from there, instead of the one that was saved with the bridge.
        dtype: of the language model; the region tokenizer keeps float32. device: of both.
        """
        path = bundled_or_given(source)
        AutoConfig.for_model("region_bridge")  # registered on import; fails early and clearly if it is not
        model = RegionBridgeForConditionalGeneration.from_pretrained(path, dtype=dtype or torch.float32, **kwargs)
        processor = RegionBridgeProcessor.from_pretrained(path, region_tokenizer=region_tokenizer, device=device)
        return cls(model.to(device) if device is not None else model, processor)

    @property
    def region_tokenizer(self) -> TapRegionTokenizer:
        """The region tokenizer through which the conversation sees."""
        return self.processor._region_tokenizer()

    @property
    def history(self) -> list[tuple[str, str]]:
        """What was said so far, as (role, words); regions by their names."""
        number = count(1)
        return [(message["role"], _as_words(message["content"], number)) for message in self.messages]

    def reset(self) -> None:
        """Forget the conversation and its picture."""
        self.image, self.messages, self._regions = None, [], []

    def ask(
        self,
        question: str,
        *,
        image: ImageInput | None = None,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        stream: bool = False,
        max_new_tokens: int = 64,
        **generate_options: Any,
    ) -> str | Iterator[str]:
        """The answer to a question; with `stream`, an iterator over pieces of it as they come.

        question: words, in which each `<region>` stands for the next of the regions that come with it; a question with
        regions but no `<region>` is asked of all of them. Earlier regions are spoken of as region1, region2, ….
        image: the picture; needed in the first question with a region, and beginning anew when it is another.
        boxes, points, point_labels, masks: as for `TapRegionTokenizer.encode`, in pixels of the picture.
        generate_options: of transformers' `generate` (do_sample, num_beams, …); greedy by default.

        Nothing is remembered of a question that was refused or whose answer broke off.
        """
        if image is not None and image is not self.image:
            self.reset()
        picture = image if image is not None else self.image
        new = _region_prompts(boxes, points, point_labels, masks)
        if new and picture is None:
            raise ValueError("Got regions but no picture: give image=… with the first question.")
        turn = {"role": "user", "content": self._content(question, new, picture)}
        inputs = self.processor.apply_chat_template(
            [*self.messages, turn], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        ).to(self.model.device)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **generate_options}
        pieces = self._stream(inputs, options)
        if stream:
            return self._remembering(pieces, picture, turn, new)
        return "".join(self._remembering(pieces, picture, turn, new)).strip()

    def _content(self, question: str, new: list[dict[str, Any]], picture: Any) -> list[dict[str, Any]]:
        """A question as content items: the picture when it is new, words, and regions where their markers stand."""
        content: list[dict[str, Any]] = []
        if picture is not None and self.image is None:
            content.append({"type": "image", "image": picture})
        waiting = list(new)
        known = len(self._regions)
        markers = list(MARKER.finditer(question))
        asked = [m for m in markers if m[0] == "<region>" or (m[2] and int(m[2]) > known)]
        if not asked:
            content += [{"type": "region", **prompt} for prompt in waiting]
            waiting = []
        elif len(asked) != len(new):
            raise ValueError(
                f"Found {len(asked)} <region> placeholders but {len(new)} regions: give one box, points or mask per "
                "<region>, in order."
            )
        position = 0
        for match in asked:
            if text := question[position : match.start()].strip():
                content.append({"type": "text", "text": text})
            content.append({"type": "region", **waiting.pop(0)})
            position = match.end()
        if text := question[position:].strip():
            content.append({"type": "text", "text": text})
        return content

    def _stream(self, inputs: Any, options: dict[str, Any]) -> Iterator[str]:
        """Pieces of the answer, generated in a thread of its own; an error there is raised here."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def run() -> None:
            try:
                self.model.generate(**inputs, **options, streamer=streamer)
            except BaseException as error:  # handed to the asking thread below
                failure.append(error)
                streamer.end()

        thread = Thread(target=run, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failure:
            raise failure[0]

    def _remembering(
        self, pieces: Iterator[str], picture: Any, turn: dict[str, Any], new: list[dict[str, Any]]
    ) -> Iterator[str]:
        """Pass pieces on; when the last has come, the turn belongs to the conversation."""
        answer = ""
        for piece in pieces:
            answer += piece
            yield piece
        self.image = picture
        self._regions += new
        self.messages += [turn, {"role": "assistant", "content": answer.strip()}]

    # --- what TAP itself says -----------------------------------------------------------------------------------------

    def regions(self) -> RegionTokens:
        """Region tokens of all regions of the conversation, in order."""
        if not self._regions:
            raise ValueError("No region was asked about yet.")
        return self.region_tokenizer.encode(self.image, **prompt_columns(self._regions))

    def baseline(self, top_k: int = 3) -> list[RegionBaseline]:
        """For each region of the conversation, TAP's own caption and concepts: what the language model must beat."""
        regions, tokenizer = self.regions(), self.region_tokenizer
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
        concepts = tokenizer.classify(regions, top_k) if tokenizer.concepts is not None else [[] for _ in captions]
        return [RegionBaseline(f"region{i}", c, best) for i, (c, best) in enumerate(zip(captions, concepts), start=1)]


def bundled_or_given(source: str | Path) -> str:
    """The folder of a bundled bridge, or the folder or repository that was named."""
    folder = BUNDLED / str(source)
    return str(folder) if folder.is_dir() and not Path(source).is_dir() else str(source)


def _region_prompts(boxes: Any, points: Any, point_labels: Any, masks: Any) -> list[dict[str, Any]]:
    """Prompts by kind → one prompt per region."""
    given = {"box": boxes, "points": points, "point_labels": point_labels, "mask": masks}
    lists = {key: value for key, value in given.items() if value is not None}
    counts = {key: len(value) for key, value in lists.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{n} × {key}" for key, n in counts.items())
        raise ValueError(f"Got {found}: give the same number of each, None where a region lacks one.")
    return [
        with_labels({key: value[i] for key, value in lists.items() if value[i] is not None})
        for i in range(next(iter(counts.values()), 0))
    ]


def _as_words(content: Any, number: Iterator[int]) -> str:
    """Content without its picture, regions by their names; `number` counts them."""
    if isinstance(content, str):
        return content
    words = [f"region{next(number)}" if item["type"] == "region" else item.get("text", "") for item in content]
    return re.sub(r" (?=[.,;:!?])", "", " ".join(word for word in words if word))
