"""Judges that score answers, the pictures that they are shown, and the templates of their prompts.

The templates are our own. A benchmark's template can be given as a file, with the field names of its script.
"""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_bridge import generate_text
from tap_tokenizer import box_of_mask, load_pretrained

from ..data.json_files import JsonError, parse_json, read_text
from ..records import Record, Region, decode_mask

LONGEST_REPLY = 10_000_000
"""The most bytes of a server's reply that are read."""

Prompt: TypeAlias = str | Sequence[str | np.ndarray]
"""Text, or text and pictures (H, W, 3) or (H, W), bytes, in the order in which the judge reads them."""


class Judge(Protocol):
    """Answers one prompt, always in the same way."""

    name: str

    def __call__(self, prompt: Prompt) -> str: ...


class LocalJudge:
    """An instruct language model in transformers, which answers greedily and sees no pictures."""

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
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        options = {"pad_token_id": pad, "max_new_tokens": self.max_new_tokens}
        return generate_text(self.model, self.tokenizer, asked, **options)[0]


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
    """A template with its fields filled in. Braces in the filled-in text are not fields."""
    return re.sub("|".join(re.escape(f"{{{name}}}") for name in fields), lambda m: fields[m[0][1:-1]], template)


LEAST = 56
"""The least width and height, in pixels, from which a region's surroundings are measured."""


def region_mask(record: Record, row: int) -> np.ndarray:
    """The mask (H, W) of a record's region, or its filled box if it has no mask."""
    region = record.regions[row]
    if region.mask:
        return decode_mask(region.mask, record.size)
    filled = np.zeros(record.size, dtype=bool)
    assert region.box is not None
    x1, y1, x2, y2 = (round(v) for v in region.box)
    filled[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return filled


def surroundings(picture: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What lies within three times a mask's box, and the mask there as bytes 0 and 255; the whole of an empty mask.

    The cut is that of the scripts of GAR-Bench and ParaDLC-Bench.
    """
    left, top, right, bottom = box_of_mask(mask)
    if not right:
        return picture, mask.astype(np.uint8) * 255
    height, width = max(bottom - top, LEAST), max(right - left, LEAST)
    y, x = int((top + bottom) / 2 - height / 2), int((left + right) / 2 - width / 2)
    part = (slice(max(y - height, 0), y + 2 * height), slice(max(x - width, 0), x + 2 * width))
    return picture[part], mask[part].astype(np.uint8) * 255


def with_numbers(picture: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """The picture, a little darker, with regions drawn as green boxes or points and their numbers from 1."""
    drawn = Image.fromarray((picture * 0.8).astype(np.uint8))
    brush = ImageDraw.Draw(drawn)
    for number, region in enumerate(regions, 1):
        if region.box is not None:
            x1, y1, x2, y2 = region.box
            brush.rectangle((x1, y1, x2, y2), outline=(0, 255, 0), width=2)
        else:
            assert region.points is not None
            x1, y1 = region.points[0]
            brush.ellipse((x1 - 4, y1 - 4, x1 + 4, y1 + 4), fill=(0, 255, 0))
        place = (x1 + 4, y1 + 4)
        brush.rectangle(brush.textbbox(place, str(number)), fill=(0, 0, 0))
        brush.text(place, str(number), fill=(255, 255, 255))
    return np.asarray(drawn)
