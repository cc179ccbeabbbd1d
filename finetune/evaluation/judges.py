"""Judges that score answers, and what a benchmark asks them: prompts of text, with pictures where the judge sees them.

A benchmark that is scored by a judge is a `JudgedBenchmark`: its file has its questions, its prompts, and what replies are
worth. Templates of prompts are ours; a benchmark's own can be given as a file, with the names of fields that its script has.
"""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from tap_tokenizer import load_pretrained

from ..data.json_files import JsonError, parse_json
from ..data.problems import Problems
from .items import Item
from .text_files import read_text

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments

LONGEST_REPLY = 10_000_000
"""Bytes of a server's reply that are read."""

Prompt: TypeAlias = str | Sequence[str | np.ndarray]
"""Text, or text and pictures (H, W, 3) or (H, W), bytes, in the order in which the judge reads them."""


class Judge(Protocol):
    """Answers one prompt, always in the same way."""

    name: str

    def __call__(self, prompt: Prompt) -> str: ...


class LocalJudge:
    """An instruct language model of transformers, greedy; it sees no pictures."""

    def __init__(self, source: str, device: str = "cpu", max_new_tokens: int = 300) -> None:
        self.name = source
        self.tokenizer = load_pretrained(AutoTokenizer, source)
        self.model = load_pretrained(AutoModelForCausalLM, source, dtype="auto").to(device).eval()
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, prompt: Prompt) -> str:
        if not isinstance(prompt, str):
            raise ValueError(f"The judge {self.name} cannot see pictures: give one on a server with judge_url.")
        text: Any = prompt
        if self.tokenizer.chat_template is not None:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=text is prompt).to(self.model.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = self.model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, pad_token_id=pad,
            max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


class ServerJudge:
    """A model behind an OpenAI-compatible server, at temperature 0. url: up to and with /v1. key: bearer token, if any.

    Pictures go as PNG in the message, which the server's model must be able to see.
    """

    def __init__(
        self, url: str, model: str, key: str | None = None, max_tokens: int = 300, timeout: float = 120
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"judge_url is {url}, expected an address such as http://localhost:8000/v1.")
        self.name, self.url, self.key = model, url.rstrip("/") + "/chat/completions", key
        self.max_tokens, self.timeout = max_tokens, timeout

    def __call__(self, prompt: Prompt) -> str:
        message = prompt if isinstance(prompt, str) else [_part(part) for part in prompt]
        content = {
            "model": self.name, "messages": [{"role": "user", "content": message}], "temperature": 0.0, "top_p": 1,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                said = parse_json(reply.read(LONGEST_REPLY))
            return str(said["choices"][0]["message"]["content"]).strip()
        except (OSError, HTTPException) as error:
            raise ValueError(f"The judge at {self.url} gave no answer ({error}): is it running?") from error
        except (KeyError, IndexError, TypeError, JsonError) as error:
            raise ValueError(f"The judge at {self.url} does not answer as an OpenAI-compatible server does.") from error


def _part(part: str | np.ndarray) -> dict[str, Any]:
    """A part of a message as OpenAI's servers take it."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


class JudgedBenchmark(ABC):
    """What a benchmark asks a judge about each answer, and what the judge's replies are worth."""

    sees = False
    """Whether the judge is shown the picture."""
    max_tokens = 300
    """Longest reply."""
    published: str
    """The judge of published numbers."""
    judge_prompt: str
    """Our wording of the judge's prompt."""
    fields: tuple[tuple[str, ...], ...]
    """Fields that a prompt must have; where one has several names, any of them."""

    def __init__(self, arguments: EvaluateArguments, items: Sequence[Item]) -> None:
        self.template = read_template(arguments.judge_prompt, self.judge_prompt, self.fields)

    def judged(self, items: Sequence[Item], problems: Problems) -> list[Item]:
        """The items that the judge is asked about; others are named in `problems`."""
        return list(items)

    def replies_to(self, item: Item) -> int:
        """How many prompts there are about an item's answer."""
        return 1

    @abstractmethod
    def prompts(self, item: Item, answer: str, picture: Callable[[], np.ndarray]) -> list[Prompt]:
        """What the judge is asked about an answer, in order; `picture` opens the item's picture."""

    @abstractmethod
    def score(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        """A row's numbers from the replies to each item's prompts, by item id; an item without replies is not there."""

    def wordings(self) -> list[tuple[str, bool]]:
        """Every template, and whether it was given in place of ours."""
        return [(self.template, self.template != self.judge_prompt)]


def read_template(path: str | None, ours: str, fields: Sequence[Sequence[str]]) -> str:
    """A prompt with fields from a file; ours if none is given. Raises `ValueError` if it lacks one of the fields.

    fields: each with its names, of which the file may have any.
    """
    text = ours if path is None else read_text(path)
    for names in fields:
        if not any(f"{{{name}}}" in text for name in names):
            wanted = " or ".join(f"{{{name}}}" for name in names)
            raise ValueError(
                f"{path} lacks {wanted}, which is filled in for every question: write it where it belongs in the prompt."
            )
    return text


def fill_template(template: str, fields: Mapping[str, str]) -> str:
    """A template with its fields filled in; what a field's text holds is no field."""
    return re.sub("|".join(re.escape(f"{{{name}}}") for name in fields), lambda m: fields[m[0][1:-1]], template)
