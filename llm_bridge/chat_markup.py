"""The grammar of `<region>`, `<regionN>` and `<image>`, in texts and in chats; nothing else reads or replaces them.

What people and records write: `<region>` is the next region that has not been shown, `<region2>` shows the second,
region2 names it, and `<image>` is a picture. What the language model's tokenizer reads: names and placeholders, one for
each row of features, as in "region1 <|region|>", so that an answer can speak of a region by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tap_tokenizer import RegionPrompt, counted

from .configuration_bridge import REGION_TOKEN

_MARKER = re.compile(r"<image>(\n?)|<region(\d*)>")
_IMAGE = re.compile(r"<image>\n?")
_NUMBERED = re.compile(r"<region(\d+)>|\b[Rr]egion(\d+)\b")
_SPOKEN = re.compile(r"<region(\d*)>|\bregion ?(\d+)\b", re.IGNORECASE)
"""A region in a question: its marker, or its name among the words, which people write with a space, too."""
_LIST = r"(?:(?:,? (?:and|or|&) |, ?)\d+\b)"
_NAMED = re.compile(
    rf"<region(\d+)>|\bregions ?(\d+\b{_LIST}*)|"
    rf"\bregion ?(\d+\b(?:{_LIST}+(?= (?:and|or|&) |[;:!?)]|[.,](?!\d)|\s*$))?)",
    re.IGNORECASE,
)
"""Regions in an answer, which people also list: "regions 2, 3 and 5". What follows the number of one may count other things."""


# --- regions in the texts of records ----------------------------------------------------------------------------------


def region_numbers(text: str, *, names: bool = False) -> list[int]:
    """Numbers of the regions that a text shows (`<region2>`), each once, in the order of its words.

    names: also of those that it only names (region2).
    """
    found = ((match, _number(match)) for match in _NUMBERED.finditer(text))
    return list(dict.fromkeys(number for match, number in found if names or match[1]))


def replace_regions(text: str, replace: Callable[[int, bool], str | None]) -> str:
    """A text with each `<regionN>` and regionN replaced by `replace(N, is_shown)`; None leaves it as it is.

    is_shown: True of `<regionN>`, False of the bare name, which keeps its capital at the beginning of a sentence.
    """

    def replaced(match: re.Match[str]) -> str:
        words = replace(_number(match), match[1] is not None)
        if words is None:
            return match[0]
        return words[:1].upper() + words[1:] if match[0].startswith("R") else words

    return _NUMBERED.sub(replaced, text)


def number_regions(text: str, start: int = 0) -> tuple[str, int]:
    """`<region>`, `<region>` → `<region1>`, `<region2>`, after `start` regions before; and how many there are by now."""
    first, *others = text.split("<region>")
    numbered = "".join(f"<region{number}>{part}" for number, part in enumerate(others, start + 1))
    return first + numbered, start + len(others)


def _number(match: re.Match[str]) -> int:
    return int((match[1] or match[2])[:18])  # more digits name no region, either, and Python may refuse to read them


MOST_MEANT = 4
"""Regions of a question that the next one may mean without naming any, as in "What colour is it?"."""


def with_meant_regions(question: str, before: Sequence[int]) -> str:
    """A question that names no region, such as "What colour is it?", with those that it means; others stay as they are.

    before: numbers of the regions that the question before was about; a question is hardly about more than `MOST_MEANT` of
    them. They come first: a language model reads a region's token where the question is, and seldom looks further back.
    """
    if not 0 < len(before) <= MOST_MEANT or _SPOKEN.search(question) or _NAMED.search(question):
        return question
    start = re.match(rf"(?:{_IMAGE.pattern})*", question).end()  # type: ignore[union-attr]  # it matches nothing, too
    return question[:start] + "".join(f"<region{number}> " for number in before) + question[start:]


# --- texts with markers → texts with placeholders ---------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How many placeholders an image and a region take."""

    image_slots: int
    region_slots: int


@dataclass(frozen=True)
class Shown:
    """What the placeholders of a sample stand for, ("image", i) or ("region", i), and what its last question is about.

    asked: the regions that are shown by the last text of the user's that shows any. All counted from 0.
    """

    order: list[tuple[str, int]]
    asked: list[int]


class MarkerExpander:
    """Replaces markers by names and placeholders, text after text of one sample, and counts them.

    `<region>` is the next region that has not been shown; `<regionN>` is region N, from 1. Each text shows a region at its
    first mention and only names it afterwards: the language model need not look for it in an earlier turn, where others
    lie between. A text that names none is about the regions of the text before (`with_meant_regions`), and shows those.
    Errors begin with `name`, which says whose text it is.
    """

    def __init__(self, layout: Layout, images: int, regions: int, name: str) -> None:
        self.layout, self.images, self.regions, self.name = layout, images, regions, name
        self.order: list[tuple[str, int]] = []
        """What the placeholders stand for so far."""
        self._asked: list[int] = []
        self._spoken_of: list[int] = []
        self._mentioned: list[int] = []
        self._shown_here: list[int] = []
        self._images_seen = 0

    def expand(self, text: str, again: bool = True) -> str:
        """One text with its markers replaced; unless `again`, a region that an earlier text has shown is only named."""
        if again:
            text = with_meant_regions(text, self._spoken_of)
        self._shown_here = [] if again else list(self._mentioned)
        if REGION_TOKEN in text:
            raise ValueError(
                f"{self.name} holds the placeholder {REGION_TOKEN} itself: write <region> and give its box, points or mask."
            )
        words = _MARKER.sub(self._replace, text)
        if again and self._shown_here:
            self._asked = [number - 1 for number in self._shown_here]
        if again:
            named = (number for number in region_numbers(words, names=True) if number in self._mentioned)
            self._spoken_of = list(named) or self._spoken_of
        return words

    def _replace(self, match: re.Match[str]) -> str:
        if match[0].startswith("<image>"):
            self._images_seen += 1
            if not self.layout.image_slots:
                return ""
            self.order.append(("image", self._images_seen - 1))
            return REGION_TOKEN * self.layout.image_slots + match[1]
        number = int(match[2][:9]) if match[2] else max(self._mentioned, default=0) + 1
        if not number or len(match[2]) > 9:
            raise ValueError(
                f"{self.name}: Found {match[0][:40]}, but regions are numbered from 1: correct the number."
            )
        if number in self._shown_here:
            return f"region{number}"
        self._shown_here.append(number)
        if number not in self._mentioned:
            self._mentioned.append(number)
        self.order.append(("region", number - 1))
        return f"region{number} {REGION_TOKEN * self.layout.region_slots}".rstrip()

    def finish(self) -> Shown:
        """What was shown, once every image and region that was given has been."""
        found = len(self._mentioned)
        if found != self.regions:
            raise ValueError(
                f"{self.name}: Found {counted(found, '<region> placeholder')} but {counted(self.regions, 'region')}: give "
                "one box, points or mask per <region>, in order."
            )
        if self._mentioned and max(self._mentioned) > self.regions:
            raise ValueError(
                f"{self.name}: Found region{max(self._mentioned)} among {counted(self.regions, 'region')}: number them from 1."
            )
        if self._images_seen != self.images:
            raise ValueError(
                f"{self.name}: Found {counted(self._images_seen, '<image> placeholder')} but {counted(self.images, 'image')}: "
                "give one per <image>."
            )
        return Shown(self.order, self._asked)


def place_images(messages: Sequence[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Messages whose images are shown by the user's last text: where it says so itself, else before its words.

    What an image shows is chosen, and stands, around the regions of the last question, which so finds it in the same place
    however much was said before. `images` stand there if no text holds `<image>`; markers of earlier texts move there, too.
    """
    placed = [dict(message) for message in messages]
    spoken = [message for message in placed if "content" in message]
    if not spoken:
        return placed
    last = next((message for message in reversed(spoken) if message["role"] == "user"), spoken[0])
    moved = 0 if any("<image>" in message["content"] for message in spoken) else images
    for message in spoken[: spoken.index(last)]:
        moved += message["content"].count("<image>")
        message["content"] = _IMAGE.sub("", message["content"])
    if moved:
        last["content"] = "<image>" * moved + "\n" + last["content"]
    return placed


# --- chats whose content is a list of items ---------------------------------------------------------------------------


@dataclass
class ChatPrompts:
    """A conversation with its items taken out: plain messages, pictures, and each region with its picture's number."""

    messages: list[dict[str, Any]]
    images: list[Any] = field(default_factory=list)
    numbered: dict[int, tuple[int, RegionPrompt]] = field(default_factory=dict)
    """Each region's picture and prompt, by its number from 1."""

    @property
    def regions(self) -> list[tuple[int, RegionPrompt]]:
        """Each region's picture and prompt, in the order of their numbers."""
        return [self.numbered[number] for number in sorted(self.numbered)]


_REGION_KEYS = tuple(kind.name for kind in fields(RegionPrompt))
_ITEM_KEYS = {"type", "name", "image", *_REGION_KEYS}


def read_chat(messages: Sequence[dict[str, Any]], sample: str) -> ChatPrompts:
    """Messages whose content is a string or a list of items → messages whose content is text with markers.

    Items: {"type": "text", "text": …}; {"type": "image", "image" | "url" | "path": …}; {"type": "region", "box" | "points"
    (with "point_labels" if not all are on the region) | "mask": …}, which belongs to the last image before it, or to image
    number "image". A region item with a "name" ("region2") is that region; without a prompt, it is spoken of again.
    Others are numbered as they come.
    """
    _check_messages(messages, sample)
    chat = ChatPrompts([])
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, str):
            chat.messages.append({**message, "content": content})
            continue
        parts: list[str] = []
        for item in content:
            kind = item.get("type")
            if kind == "text":
                parts.append(item["text"])
            elif kind == "image":
                chat.images.append(_picture(item, sample))
                parts.append("<image>")
            elif kind == "region":
                parts.append(_region_marker(item, chat, sample))
            else:
                raise ValueError(f"{sample}: content item of type {kind!r}, expected text, image or region.")
        chat.messages.append({**message, "content": _join(parts)})
    if sorted(chat.numbered) != list(range(1, len(chat.numbered) + 1)):
        found = ", ".join(f"region{number}" for number in sorted(chat.numbered))
        raise ValueError(f"{sample}: regions are {found}: number them from 1 without gaps.")
    return chat


def _check_messages(messages: Any, sample: str) -> None:
    """Refuse what is not a list of messages, each with a role and with words or a list of items."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{sample} is {messages!r:.80}, expected a list of at least one message.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"{sample}: message {number} is {message!r:.80}, expected a dictionary with role and content."
            )
        content = message.get("content")
        if isinstance(content, str) or (content is None and "tool_calls" in message):
            continue
        if not isinstance(content, (list, tuple)):
            raise ValueError(
                f"{sample}: the content of message {number} is {content!r:.80}, expected words or a list of items."
            )
        for item in content:
            if not isinstance(item, dict):
                raise ValueError(
                    f'{sample}: content item {item!r:.80}, expected {{"type": "text", "text": …}} or the like.'
                )
            if item.get("type") == "text" and not isinstance(item.get("text"), str):
                raise ValueError(f"{sample}: text item with {item.get('text')!r:.80} as its text, expected words.")


def _picture(item: dict[str, Any], sample: str) -> Any:
    for key in ("image", "url", "path", "base64"):
        if item.get(key) is not None:
            return item[key]
    raise ValueError(f"{sample}: image item without a picture, expected 'image', 'path' or 'url'.")


def _region_marker(item: dict[str, Any], chat: ChatPrompts, sample: str) -> str:
    if unknown := sorted(set(item) - _ITEM_KEYS):
        raise ValueError(f"{sample}: region item with {', '.join(unknown)}, expected {', '.join(sorted(_ITEM_KEYS))}.")
    name = re.fullmatch(r"region([1-9]\d*)", str(item.get("name") or ""))
    if item.get("name") and not name:
        raise ValueError(f"{sample}: region item with the name {item['name']!r}, expected region1, region2, ….")
    if all(item.get(key) is None for key in _REGION_KEYS):
        if name:
            return f"<{name[0]}>"
        raise ValueError(f"{sample}: region item without a prompt, expected 'box', 'points' or 'mask'.")
    image = item.get("image", len(chat.images) - 1)
    if "image" not in item and not chat.images:
        raise ValueError(f"{sample}: a region item stands before any image item: give the picture first.")
    if not isinstance(image, int) or isinstance(image, bool) or not 0 <= image < len(chat.images):
        raise ValueError(
            f"{sample}: region item for image {image}, but {counted(len(chat.images), 'image')} came before it."
        )
    number = int(name[1]) if name else max(chat.numbered, default=0) + 1
    if number in chat.numbered:
        raise ValueError(f"{sample}: region{number} has a prompt twice: give it once, and name it afterwards.")
    chat.numbered[number] = (image, RegionPrompt.read(item, f"{sample}: region{number}"))
    return f"<region{number}>"


def user_content(
    question: str, prompts: Sequence[RegionPrompt], image: Any = None, known: int = 0
) -> list[dict[str, Any]]:
    """A question as content items: the picture if it is new, words, and regions where the question speaks of them.

    `known` regions were shown in earlier turns; the prompts are those of the next ones. `<region>` is the next region that
    has not been shown, `<regionN>`, regionN or region N is that region, which is an item at its first mention and a word
    afterwards. A question with prompts that speaks of none of them is asked of all of them, which then come first.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"The question is {question!r}, expected words, with <region> for every region.")
    if "<image>" in question:
        raise ValueError("The question holds <image>: leave it out, the picture is shown by itself.")
    content: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
    spoken = _spoken(question, known, known + len(prompts))
    new = [number for number in dict.fromkeys(number for _, number in spoken) if number > known]
    if prompts and not new and "<region" not in question:
        new = list(range(known + 1, known + len(prompts) + 1))
        content += [{"type": "region", "name": f"region{n}", **prompts[n - known - 1].as_dict()} for n in new]
    if len(new) != len(prompts):
        if "<region" not in question:
            raise ValueError(
                f"The question speaks of {len(new)} of the {counted(len(prompts), 'region')} that came with it: give only "
                "those that it speaks of, or ask about all of them first."
            )
        raise ValueError(
            f"Found {counted(len(new), '<region> placeholder')} but {counted(len(prompts), 'region')}: give one box, points or "
            "mask per <region>, in order."
        )
    position, text, shown = 0, "", [item.get("name") for item in content]
    for match, number in spoken:
        name = f"region{number}"
        text += question[position : match.start()]
        position = match.end()
        if name in shown:
            text += name
            continue
        shown.append(name)
        if text.strip():
            content.append({"type": "text", "text": text.strip()})
        text = ""
        shown_as = prompts[number - known - 1].as_dict() if number > known else {}
        content.append({"type": "region", "name": name, **shown_as})
    if text := (text + question[position:]).strip():
        content.append({"type": "text", "text": text})
    return content


def spoken_numbers(question: str) -> list[int]:
    """Numbers of the regions that a question shows or names, as people write them; not of `<region>`, which has none."""
    return [int(number) for match in _SPOKEN.finditer(question) if (number := match[1] or match[2])]


def named_places(answer: str) -> Iterator[tuple[int, int]]:
    """Where an answer names regions, alone or in a list: (character, number) of each number, in order."""
    for match in _NAMED.finditer(answer):
        kind = match.lastindex or 0
        for number in re.finditer(r"\d+", match[kind]):
            yield match.start(kind) + number.start(), int(number[0][:18])  # more digits name no region, either


def _spoken(question: str, known: int, last: int) -> list[tuple[re.Match[str], int]]:
    """Where a question speaks of regions, and of which; `<region>` may count past the `last` one, a number may not."""
    spoken: list[tuple[re.Match[str], int]] = []
    highest = known
    for match in _SPOKEN.finditer(question):
        given = match[1] or match[2]
        number = int(given) if given else highest + 1
        if given and not 1 <= number <= last:
            there = "are no regions" if not last else "is only region1" if last == 1 else f"are regions 1 to {last}"
            raise ValueError(
                f"Found {match[0]}, but there {there}: give its box, points or mask, or correct the number."
            )
        highest = max(highest, number)
        spoken.append((match, number))
    return spoken


def _join(parts: Sequence[str]) -> str:
    """Parts of one message side by side; a picture's marker gets a line of its own, words get a space."""
    text = ""
    for part in parts:
        if text and not text[-1].isspace() and part and not part[0].isspace():
            text += "\n" if text.endswith("<image>") else " " if part[0] not in ",.;:!?')" else ""
        text += part
    return text


def words_of(content: Any) -> str:
    """Content without its picture, regions by their names."""
    if isinstance(content, str):
        return content
    words = [item["name"] if item["type"] == "region" else item.get("text", "") for item in content]
    return re.sub(r" (?=[.,;:!?')])", "", " ".join(word for word in words if word))
