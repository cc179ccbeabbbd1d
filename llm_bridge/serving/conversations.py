"""Messages as clients send them → messages as the processor reads them: pictures decoded, regions checked and numbered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from threading import Event
from typing import Any, Literal

import numpy as np

from tap_tokenizer import RegionPrompt, counted, prompts_in_picture

from ..chat_markup import spoken_numbers, user_content
from ..page.input import Check, decode_picture, read_picture
from .chat_requests import ImageItem, Message, RegionItem, TextItem
from .errors import RequestError
from .limits import ServerLimits


def read_conversation(messages: Sequence[Message], limits: ServerLimits, gone: Event) -> list[dict[str, Any]]:
    """Messages for `RegionBridgeProcessor.apply_chat_template`, with pictures as arrays (H, W, 3).

    If the text of a user's message contains `<region>`, the message's region items go there, in order; otherwise each
    stays where it was given. If there are only as many places as new regions, those that are mentioned again stay where they
    were given. The names region1, region2, … in a text mean regions of the conversation. gone: ends the reading once it is
    set. Raises `RequestError` for anything that exceeds the limits, and for pictures and regions that cannot be read.
    """
    reader = _Reader(limits, gone)
    for number, message in enumerate(messages):
        try:
            reader.read(message, f"messages.{number}")
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "invalid_value", str(error), param=f"messages.{number}") from None
    return reader.messages


def check_words(text: str) -> None:
    """Refuse halves of characters, which no text tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("The text holds half of a character (a lone surrogate): send whole characters.") from None


def read_data_url(url: str, limits: ServerLimits, param: str, check: Check | None = None) -> np.ndarray:
    """A picture (H, W, 3); `RequestError` for an address that would have to be fetched, and for anything but a picture."""
    _check_data_url(url, param)
    try:
        return read_picture(url, limits, check)
    except ValueError as error:
        raise RequestError(400, "invalid_image", str(error), param=param) from None


def _check_data_url(url: str, param: str) -> None:
    if not url.startswith("data:"):
        words = f"{param} is {url!r:.60}, expected a data URL: data:image/png;base64,…. Addresses are not fetched."
        raise RequestError(400, "invalid_image_url", words, param=param)


class _Reader:
    """Reads one message after the other, and counts pictures, regions, pixels and characters."""

    def __init__(self, limits: ServerLimits, gone: Event) -> None:
        self.limits, self.gone = limits, gone
        self.messages: list[dict[str, Any]] = []
        self.images: list[np.ndarray] = []
        self.regions = 0
        self.pixels = 0
        self.characters = 0

    def read(self, message: Message, where: str) -> None:
        texts = [item.text for item in message.content if isinstance(item, TextItem)]
        for text in texts:
            check_words(text)
        self.characters += sum(map(len, texts))
        if self.characters > self.limits.characters:
            raise RequestError(400, "too_long", f"The messages have more than {self.limits.characters:,} characters.")
        if message.role == "user":
            self.messages.append({"role": "user", "content": self._user(message, where)})
            return
        if len(texts) < len(message.content):
            raise ValueError(f"{where}: pictures and regions belong in the user's messages.")
        role = "system" if message.role == "developer" else message.role
        self.messages.append({"role": role, "content": "\n".join(texts)})

    def _user(self, message: Message, where: str) -> list[dict[str, Any]]:
        """A user's message as content items: its pictures, then its words and regions."""
        pictures: list[dict[str, Any]] = []
        places: dict[str, int] = {}
        prompts: list[RegionPrompt] = []
        known = self.regions
        parts: list[tuple[Literal["words", "new", "mention"], str]] = []  # what it is, and its words or its marker
        for number, item in enumerate(message.content):
            if self.gone.is_set():
                raise RequestError(499, "client_left", "Nobody waits for the answer any more.")
            own = f"{where}.content.{number}"
            if isinstance(item, TextItem):
                parts.append(("words", item.text))
            elif isinstance(item, ImageItem):
                pictures.append({"type": "image", "image": self._picture(item, own)})
            elif _is_new(item):
                image = self._place(item, own)
                prompts.append(self._prompt(item, self.images[image], own))
                name = f"region{self.regions}"
                if item.name not in (None, name):
                    raise ValueError(
                        f"{own}: the region is named {item.name!r:.40}, but is {name}: leave out its name."
                    )
                places[name] = image
                parts.append(("new", f"<{name}>"))
            else:
                parts.append(("mention", self._mention(item, own)))
        question = _question(parts, known)
        content = user_content(question, prompts, known=known)
        for spoken in content:
            if spoken.get("name") in places:
                spoken["image"] = places[spoken["name"]]
        return [*pictures, *content]

    def _picture(self, item: ImageItem, where: str) -> np.ndarray:
        if len(self.images) == self.limits.images:
            raise RequestError(
                400, "too_many_images", f"A request may have {counted(self.limits.images, 'picture')}.", param=where
            )
        self.images.append(read_data_url(item.image_url.url, self.limits, f"{where}.image_url.url", self._count))
        return self.images[-1]

    def _count(self, size: tuple[int, int]) -> None:
        """Count the pixels of a picture or mask of (height, width) `size`, before they are read."""
        self.pixels += size[0] * size[1]
        if self.pixels > self.limits.request_pixels:
            words = f"The pictures and masks of a request may have {self.limits.request_pixels / 1e6:g} million pixels in all: "
            raise RequestError(400, "too_many_pixels", words + "make them smaller, or give regions as boxes.")

    def _place(self, item: RegionItem, where: str) -> int:
        """The number of a region's picture."""
        if not self.images:
            raise ValueError(f"{where}: a region comes before any picture: give the image_url item first.")
        image = len(self.images) - 1 if item.image is None else item.image
        if not 0 <= image < len(self.images):
            raise ValueError(
                f"{where}: a region of picture {image}, but there are pictures 0 to {len(self.images) - 1}."
            )
        return image

    def _prompt(self, item: RegionItem, picture: np.ndarray, where: str) -> RegionPrompt:
        self.regions += 1
        if self.regions > self.limits.regions:
            raise RequestError(
                400, "too_many_regions", f"A request may have {counted(self.limits.regions, 'region')}.", param=where
            )
        height, width = picture.shape[:2]

        def check(size: tuple[int, int]) -> None:
            if size != (height, width):
                raise ValueError(
                    f"{where}: the mask has {size[1]} × {size[0]} pixels, expected {width} × {height}, as its picture has."
                )
            self._count(size)

        values: dict[str, Any] = item.model_dump(include={"box", "points", "point_labels"}, exclude_none=True)
        if isinstance(item.mask, str):
            _check_data_url(item.mask, f"{where}.mask")
            values["mask"] = decode_picture(item.mask, self.limits, check)
        elif item.mask is not None:
            check((item.mask.size[0], item.mask.size[1]))
            values["mask"] = item.mask.model_dump()
        return read_prompt(values, picture, self.limits, f"{where}: Region", self.regions)

    def _mention(self, item: RegionItem, where: str) -> str:
        if item.name is None:
            raise ValueError(
                f"{where}: a region without a prompt: give its box, points or mask, or the name of an earlier one."
            )
        if not re.fullmatch(r"region[1-9]\d{0,5}", item.name):
            raise ValueError(f"{where}: a region with the name {item.name!r:.40}, expected region1, region2, ….")
        return f"<{item.name}>"


def _question(parts: Sequence[tuple[Literal["words", "new", "mention"], str]], known: int) -> str:
    """The words and markers of a message as one text, in which every region stands where it is meant to.

    known: how many regions there were before. What fits no place is left for `user_content` to refuse.
    """
    words = " ".join(text for kind, text in parts if kind == "words")
    places = words.count("<region>")
    markers = [text for kind, text in parts if kind != "words"]
    if places and places == len(markers):
        filling = iter(markers)
        return re.sub("<region>", lambda place: next(filling), words)
    is_spoken = places or any(number > known for number in spoken_numbers(words))
    return " ".join(text for kind, text in parts if kind != "new" or not is_spoken)


def _is_new(item: RegionItem) -> bool:
    return any(value is not None for value in (item.box, item.points, item.point_labels, item.mask))


def read_prompt(
    values: dict[str, Any], picture: np.ndarray, limits: ServerLimits, name: str, number: int
) -> RegionPrompt:
    """A region's prompt in pixels of its picture (H, W, 3); `ValueError` names the region by `name` and `number`."""
    if len(values.get("points") or ()) > limits.points:
        raise ValueError(f"{name} {number} has more than {counted(limits.points, 'point')}: mark it with fewer.")
    prompt = RegionPrompt.read(values, f"{name} {number}")
    height, width = picture.shape[:2]
    where = name.removesuffix("Region")
    return prompts_in_picture([prompt], (height, width), where, first=number)[0]
