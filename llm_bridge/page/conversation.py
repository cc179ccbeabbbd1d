"""What the page keeps for each of its users: a picture, a conversation about it, and what TAP saw there. It writes no
file and does not depend on the web framework.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

import numpy as np
from PIL import Image

from tap_tokenizer import (
    ImageFeatures,
    RegionPrompt,
    RegionTokens,
    box_of_mask,
    draw_regions,
    mask_to_rle,
    region_colour,
)

from ..chat import RegionChat
from ..chat_markup import spoken_numbers, user_content, words_of
from ..prompt_checks import ContextFullError
from .input import PageLimits, read_regions
from .turns import Places, Turns

SHOWN_SIDE = 1280
"""The longest side, in pixels, of the picture that a browser is sent to draw on."""

REGIONS_AT_ONCE = 4
"""How many regions TAP describes between two looks at whether the user wants it to stop."""


@dataclass
class Look:
    """What TAP says of one region, and its mask cut out of the picture, as the address of a small JPEG."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]]
    cutout: str


@dataclass
class Scene:
    """A picture and all that was said and seen of it; another picture or a new beginning is another scene."""

    picture: np.ndarray
    chat: RegionChat
    features: ImageFeatures | None = None
    boxes: list[list[float]] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    """Of the conversation's regions as TAP sees them, eight pixels a byte."""
    looks: list[Look] = field(default_factory=list)
    prompts: list[RegionPrompt] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """How much memory the scene holds, in bytes: the picture, what TAP made of it, and masks."""
        arrays = [self.picture, self.chat.image, *self.masks]
        held = sum({id(array): array.nbytes for array in arrays if array is not None}.values())
        return held + (self.features.embeddings.nbytes if self.features is not None else 0)

    def see(self, prompts: list[RegionPrompt]) -> RegionTokens:
        """Regions by their prompts, with masks; the picture was encoded when it was first asked about."""
        tokenizer = self.chat.region_tokenizer
        if self.features is None:
            self.features = self.chat.processor.embed_image(self.picture)
        return tokenizer.encode(features=self.features, with_masks=True, prompts=prompts)

    def look(self, regions: RegionTokens, first: int) -> list[Look]:
        """What TAP says of regions, the first of which has the number `first` in the conversation."""
        tokenizer = self.chat.region_tokenizer
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
        concepts = tokenizer.classify(regions, 3) if tokenizer.concepts is not None else [[] for _ in captions]
        return [
            Look(f"region{i}", caption, best, cutout(self.picture, mask.numpy()))
            for i, (caption, best, mask) in enumerate(zip(captions, concepts, regions.masks.cpu()), start=first)
        ]

    def drawing(self, longest: int | None = None) -> Image.Image:
        """The picture with its regions, at its own size or with at most `longest` as the longer side."""
        picture = Image.fromarray(self.picture)
        scale = 1.0 if longest is None else min(1.0, longest / max(picture.size))
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        if scale < 1:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        if not self.masks:
            return picture
        masks = [np.asarray(Image.fromarray(self._mask(i)).resize(size, 0)) for i in range(len(self.masks))]
        stretch = np.array([size[0] / self.picture.shape[1], size[1] / self.picture.shape[0]] * 2)
        boxes = (np.array(self.boxes) * stretch).tolist()
        return draw_regions(picture, masks=np.stack(masks), boxes=boxes, opacity=0.3)

    def _mask(self, index: int) -> np.ndarray:
        """The mask (H, W) of one of the conversation's regions."""
        height, width = self.picture.shape[:2]
        return np.unpackbits(self.masks[index], count=height * width).reshape(height, width).astype(bool)

    def record(self) -> dict[str, Any]:
        """The conversation for a script: picture, models, regions with masks as COCO RLE, and what was said."""
        height, width = self.picture.shape[:2]
        rles = [mask_to_rle(self._mask(i)) for i in range(len(self.masks))]
        return {
            "picture": {"width": width, "height": height},
            "region_tokenizer": self.chat.region_tokenizer.fingerprint,
            "mode": self.chat.mode,
            "regions": [
                {
                    "name": look.name,
                    "prompt": prompt.as_dict() if prompt.mask is None else {"mask": "painted"},
                    "box": [round(x, 2) for x in box],
                    "caption": look.caption,
                    "concepts": [{"name": name, "score": round(score, 4)} for name, score in look.concepts],
                    "mask": rle,
                }
                for look, prompt, box, rle in zip(self.looks, self.prompts, self.boxes, rles)
            ],
            "messages": [{"role": role, "content": words} for role, words in self.chat.history],
        }


def _check_spoken(question: str, known: int, new: int) -> None:
    """Refuse a question that does not fit its regions: `known` ones of the conversation, and `new` ones that were marked."""
    if "<image>" in question:
        raise ValueError("The question has an <image>: leave it out, because the picture is always shown.")
    numbers = spoken_numbers(question)
    if strangers := sorted({n for n in numbers if not 1 <= n <= known + new}):
        there = "no region is marked yet" if not known + new else "there is only region1"
        if known + new > 1:
            there = f"the regions are 1 to {known + new}"
        raise ValueError(f"The question mentions region{strangers[0]}, but {there}: mark it, or correct the number.")
    spoken = question.count("<region>") + len({n for n in numbers if n > known})
    if spoken > new:
        marked = f"{new} new {'region is' if new == 1 else 'regions are'} marked" if new else "no new region is marked"
        raise ValueError(
            f"The question has {spoken} <region>, but {marked}: mark the missing ones on the picture. To ask again about an "
            "earlier region, write its name, as in region1."
        )
    if 0 < spoken < new:
        raise ValueError(
            f"{new} regions are marked, but the question mentions only {spoken}: write <region> once for each, or remove the "
            "others."
        )


class PageConversation:
    """One user's scene. Calls of `ask` must not overlap; everything else may come at any time, in the middle of an answer.

    asking: to be held during `ask`, where it may be called from several threads.
    """

    def __init__(self, chat: RegionChat, limits: PageLimits, lost: bool = False) -> None:
        self.model, self.processor, self.limits = chat.model, chat.processor, limits
        self.scene: Scene | None = None
        self.asking, self.stopped = Lock(), Event()
        self._stopped_at = -math.inf
        self._lost = lost

    def show(self, picture: np.ndarray) -> None:
        """Begin with a picture (H, W, 3)."""
        self.stop()
        self.scene = Scene(picture, RegionChat(self.model, self.processor))
        self.scene.chat.warns_of_limitation = False  # the page shows it below the answers

    def forget(self) -> None:
        """Begin again with the same picture."""
        if self.scene is not None:
            features = self.scene.features
            self.show(self.scene.picture)
            self.scene.features = features

    def stop(self) -> None:
        """End the answer that is being written, and every question that waits, if there are any."""
        self._stopped_at = time.monotonic()
        self.stopped.set()

    def is_stopped(self, joined: float) -> bool:
        """Whether a question that was sent at this time of the monotonic clock has been stopped since."""
        return joined <= self._stopped_at

    def ask(
        self, question: Any, drawn: Any, joined: float = math.inf
    ) -> Iterator[tuple[list[tuple[str, str]], list[Look]]]:
        """Ask about regions that were drawn; gives what has been said, as (role, words), and looks, piece by piece.

        drawn: as `read_regions` takes them. joined: when the question was sent, on the monotonic clock; one that was sent
        before the last `stop` is stopped, too. `ValueError` for what cannot be asked. An answer that `stop` ends is not
        remembered, nor are its regions.
        """
        self.stopped.clear()
        if self.is_stopped(joined):
            self.stopped.set()
        scene = self._scene("choose one, paste one, or use the example")
        prompts = self._checked(question, drawn, scene)
        known = len(scene.prompts)
        before = scene.chat.history
        asked = [*before, ("user", words_of(user_content(question, prompts, known=known)))]
        looks, boxes, masks = [*scene.looks], [*scene.boxes], [*scene.masks]
        answer: str = ""
        pieces: Iterator[str] = iter(())
        yield asked, looks
        try:
            if not self.stopped.is_set():
                pieces = self._answer(scene, question, prompts)
            for start in range(0, len(prompts), REGIONS_AT_ONCE):
                if self.stopped.is_set():
                    break
                regions = scene.see(prompts[start : start + REGIONS_AT_ONCE])
                looks = [*looks, *scene.look(regions, first=len(looks) + 1)]
                boxes += regions.boxes.tolist()
                masks += [np.packbits(mask.numpy()) for mask in regions.masks.cpu()]
                yield asked, looks
            while not self.stopped.is_set() and (piece := next(pieces, None)) is not None:
                answer += piece
                yield [*asked, ("assistant", answer)], looks
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        if self.stopped.is_set():
            yield [*asked, ("assistant", f"{answer} … (stopped)".lstrip())], scene.looks
            return
        scene.looks, scene.boxes, scene.masks, scene.prompts = looks, boxes, masks, [*scene.prompts, *prompts]
        if scene.chat.image is not None:
            scene.picture = scene.chat.image  # the same pixels: one copy is enough

    def _answer(self, scene: Scene, question: str, prompts: list[RegionPrompt]) -> Iterator[str]:
        """The pieces of an answer; what the chat refuses in Python's words is refused in the page's."""
        image = scene.picture if scene.chat.image is None else None
        limit = self.limits.new_tokens
        try:
            pieces = scene.chat.ask(question, image=image, prompts=prompts, stream=True, max_new_tokens=limit)
        except ContextFullError:
            raise ValueError(
                "The conversation has become too long for the language model: start a new chat, or ask about fewer regions."
            ) from None
        assert not isinstance(pieces, str)
        return pieces

    def _scene(self, advice: str) -> Scene:
        if self.scene is None and self._lost:
            raise ValueError("Your conversation was idle and had to make room for others: choose the picture again.")
        if self.scene is None:
            raise ValueError(f"There is no picture yet: {advice}.")
        return self.scene

    def _checked(self, question: Any, drawn: Any, scene: Scene) -> list[RegionPrompt]:
        """The prompts of a question's regions; everything that is wrong is said in the page's own words."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError("There is no question yet: write one, for example: What is <region>?")
        if len(question) > self.limits.characters:
            raise ValueError(f"The question has {len(question)} characters, expected at most {self.limits.characters}.")
        height, width = scene.picture.shape[:2]
        prompts = read_regions(drawn, (height, width), self.limits, len(scene.prompts))
        known, new = len(scene.prompts), len(prompts)
        if known + new > self.limits.regions:
            raise ValueError(f"A conversation has at most {self.limits.regions} regions: start a new chat.")
        if not known + new and not scene.chat.sees_pictures:
            raise ValueError("No region is marked yet: mark one on the picture first.")
        _check_spoken(question, known, new)
        return prompts

    # --- what is shown and taken away ---------------------------------------------------------------------------------

    @property
    def turns(self) -> int:
        """How many messages the conversation holds; an answer that is still coming is not among them."""
        return len(self.scene.chat.history) if self.scene is not None else 0

    @property
    def looks(self) -> list[Look]:
        """What TAP says of the conversation's regions."""
        return self.scene.looks if self.scene is not None else []

    def board(self) -> dict[str, Any]:
        """What the browser needs to draw on: the picture with its known regions, its size, and how many they are."""
        scene = self.scene
        if scene is None:
            return {}
        height, width = scene.picture.shape[:2]
        address = data_address(scene.drawing(SHOWN_SIDE))
        return {"picture": address, "width": width, "height": height, "known": len(scene.prompts)}

    def picture_address(self) -> str:
        """The picture with its regions, numbered, as the address of a PNG."""
        return data_address(self._scene("there is nothing to save").drawing(), "PNG")

    def record_address(self) -> str:
        """`Scene.record` as the address of a JSON file."""
        text = json.dumps(self._scene("there is nothing to save").record(), ensure_ascii=False, indent=1)
        return "data:application/json;base64," + base64.b64encode(text.encode()).decode()


class PageConversations:
    """The conversations of all users, by session, within bounds that no single user can exhaust for the others.

    A session costs nothing before it has a picture. When there is no room for another conversation, those in which nothing
    was asked go first, then those that have been idle longest; their owners are told at their next question. One with an
    answer in it that was used within `PageLimits.idle_seconds`, or with a question that waits, never goes.
    """

    def __init__(self, chat: RegionChat, limits: PageLimits) -> None:
        self.chat, self.limits = chat, limits
        self.places, self.turns = Places(each=limits.places, all=limits.queue), Turns()
        self._by_session: OrderedDict[str, PageConversation] = OrderedDict()
        self._used: dict[str, float] = {}
        """When each conversation was used last."""
        self._dropped: OrderedDict[str, None] = OrderedDict()
        """Sessions whose conversations made room for others, and who have not been told."""
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._by_session)

    def of(self, session: str) -> PageConversation:
        """The conversation of a session; a blank one, which is not kept, if it has none."""
        with self._lock:
            mine = self._by_session.get(session)
            if mine is None:
                return PageConversation(self.chat, self.limits, lost=session in self._dropped)
            self._by_session.move_to_end(session)
            self._used[session] = time.monotonic()
            return mine

    def show(self, session: str, picture: np.ndarray) -> PageConversation:
        """Begin a session's conversation with a picture (H, W, 3); `ValueError` if there is no room for it."""
        mine = self.of(session)
        with self._lock:
            self._make_room(session, picture.nbytes)
            self._by_session[session] = mine
            self._by_session.move_to_end(session)
            self._used[session] = time.monotonic()
            self._dropped.pop(session, None)
            mine.show(picture)
        return mine

    def _make_room(self, session: str, needed: int) -> None:
        """Drop conversations until there is room for one more and so many bytes; `ValueError` if none may go."""
        held = {key: own.scene.memory if own.scene else 0 for key, own in self._by_session.items() if key != session}
        idle_since = time.monotonic() - self.limits.idle_seconds
        blank = [key for key in held if not self._by_session[key].turns and not self.places.waits(key)]
        idle = [key for key in held if key not in blank and self._used[key] <= idle_since]
        gone: list[str] = []
        for key in [*blank, *idle]:  # in each list, the one that was used last comes last
            if len(held) < self.limits.users and sum(held.values()) + needed <= self.limits.memory:
                break
            gone.append(key)
            del held[key]
        if len(held) >= self.limits.users or sum(held.values()) + needed > self.limits.memory:
            raise ValueError("The page is full, and everybody is using it: try again in a few minutes.")
        for key in gone:
            self._by_session.pop(key).stop()
            self._used.pop(key)
            self._dropped[key] = None
        while len(self._dropped) > 1000:
            self._dropped.popitem(last=False)

    def drop(self, session: str) -> None:
        """Forget a session, whose tab was closed; an answer that is being written for it stops."""
        with self._lock:
            gone = self._by_session.pop(session, None)
            self._used.pop(session, None)
            self._dropped.pop(session, None)
        self.places.drop(session)
        if gone is not None:
            gone.stop()


# --- what goes to a browser -------------------------------------------------------------------------------------------


def data_address(image: Image.Image, kind: str = "JPEG") -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def cutout(picture: np.ndarray, mask: np.ndarray) -> str:
    """A picture where a mask is, with some of what surrounds it, faded, as the address of a small JPEG."""
    x1, y1, x2, y2 = box_of_mask(mask)
    if x2:
        pad = 4 + (max(x2 - x1, y2 - y1) - 1) // 10
        part = slice(max(0, y1 - pad), y2 + pad), slice(max(0, x1 - pad), x2 + pad)
        picture, mask = picture[part], mask[part]
    step = max(1, max(mask.shape) // 384)  # the rest is for a small picture
    picture, mask = picture[::step, ::step], mask[::step, ::step]
    faded = np.where(mask[..., None], picture, 255 - (255 - picture) // 5)
    cut = Image.fromarray(faded.astype(np.uint8))
    cut.thumbnail((96, 96))
    return data_address(cut)


def as_html(words: str) -> str:
    """What was said, to be shown as it was written: the chat of the page takes text for HTML."""
    return html.escape(words, quote=False)


def table_of(looks: list[Look]) -> str:
    """What TAP says of each region, as an HTML table."""
    if not looks:
        return '<p class="empty">Masks, captions and concepts of the regions you ask about appear here.</p>'
    rows = []
    for i, look in enumerate(looks):
        red, green, blue = region_colour(i)
        concepts = ", ".join(f"{html.escape(name)} {score:.0%}" for name, score in look.concepts) or "–"
        rows.append(
            f'<tr><th scope="row"><span class="swatch" style="background:rgb({red},{green},{blue})"></span>{look.name}</th>'
            f'<td><img src="{look.cutout}" alt="mask of {look.name}"></td>'
            f"<td>{html.escape(look.caption or '–')}</td><td>{concepts}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("region", "mask", "caption", "concepts"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
