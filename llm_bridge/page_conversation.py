"""What the page knows of each of its users: a picture, a conversation about it, and what TAP saw there.

What comes from a browser is checked in `page_input`. Knows pictures and conversations; nothing of the web framework, and it
writes no file.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

import numpy as np
from PIL import Image

from tap_tokenizer import ImageFeatures, RegionTokens, draw_regions, region_colour

from .chat import RegionChat, words_of
from .page_input import PageLimits, read_picture, read_regions
from .region_prompt import prompt_columns, user_content

SHOWN_SIDE = 1280
"""The longest side, in pixels, of the picture that a browser is sent to draw on."""


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
    seen: RegionTokens | None = None
    """The conversation's regions as TAP sees them, with masks."""
    looks: list[Look] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)

    def see(self, columns: dict[str, Any]) -> RegionTokens:
        """Regions by their prompts, with masks; the picture is encoded once."""
        tokenizer = self.chat.region_tokenizer
        if self.features is None:
            self.features = tokenizer.embed_image(self.picture)
        return tokenizer.encode(features=self.features, with_masks=True, **columns)

    def look(self, regions: RegionTokens) -> list[Look]:
        """What TAP says of regions that come after those of the conversation."""
        tokenizer = self.chat.region_tokenizer
        captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
        concepts = tokenizer.classify(regions, 3) if tokenizer.concepts is not None else [[] for _ in captions]
        first = len(self.prompts) + 1
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
        if self.seen is None:
            return picture
        masks = [np.asarray(Image.fromarray(mask.numpy()).resize(size, 0)) for mask in self.seen.masks.cpu()]
        stretch = np.array([size[0] / self.picture.shape[1], size[1] / self.picture.shape[0]] * 2)
        boxes = self.seen.boxes.cpu().numpy() * stretch
        return draw_regions(picture, masks=np.stack(masks), boxes=boxes.tolist(), opacity=0.3)

    def record(self) -> dict[str, Any]:
        """The conversation for a script: picture, models, regions with masks as COCO RLE, and what was said."""
        height, width = self.picture.shape[:2]
        rles = self.seen.coco_rle() if self.seen is not None else []
        boxes = self.seen.boxes.tolist() if self.seen is not None else []
        return {
            "picture": {"width": width, "height": height},
            "region_tokenizer": self.chat.region_tokenizer.fingerprint,
            "mode": self.chat.mode,
            "regions": [
                {
                    "name": look.name,
                    "prompt": {key: value for key, value in prompt.items() if key != "mask"} or {"mask": "painted"},
                    "box": [round(x, 2) for x in box],
                    "caption": look.caption,
                    "concepts": [{"name": name, "score": round(score, 4)} for name, score in look.concepts],
                    "mask": rle,
                }
                for look, prompt, box, rle in zip(self.looks, self.prompts, boxes, rles)
            ],
            "messages": [{"role": role, "content": words} for role, words in self.chat.history],
        }


class PageConversation:
    """One user's scene. Calls of `ask` must not overlap; everything else may come at any time, in the middle of an answer."""

    def __init__(self, chat: RegionChat, limits: PageLimits) -> None:
        self.model, self.processor, self.limits = chat.model, chat.processor, limits
        self.scene: Scene | None = None
        self.stopped = Event()

    def load(self, address: Any) -> None:
        """Begin anew with a picture that comes as a data URL; `ValueError` says what is wrong with it."""
        self.show(read_picture(address, self.limits))

    def show(self, picture: np.ndarray) -> None:
        """Begin anew with a picture (H, W, 3)."""
        self.stop()
        self.scene = Scene(picture, RegionChat(self.model, self.processor))
        self.scene.chat.warns_of_limitation = False  # the page shows it below the answers

    def forget(self) -> None:
        """Begin anew with the same picture."""
        if self.scene is not None:
            features = self.scene.features
            self.show(self.scene.picture)
            self.scene.features = features

    def stop(self) -> None:
        """End the answer that is being written, if there is one."""
        self.stopped.set()

    def ask(self, question: Any, drawn: Any) -> Iterator[tuple[list[tuple[str, str]], list[Look]]]:
        """Ask about regions that were drawn; gives what has been said, as (role, words), and looks, piece by piece.

        drawn: as `read_regions` takes them. `ValueError` for what cannot be asked. An answer that `stop` ends is not
        remembered, nor are its regions.
        """
        scene = self._scene("choose one, paste one, or take the example")
        prompts = self._checked(question, drawn, scene)
        self.stopped.clear()
        columns = prompt_columns(prompts)
        turn = words_of(user_content(question, prompts, known=len(scene.prompts)))
        before, limit = scene.chat.history, self.limits.new_tokens
        image = scene.picture if scene.chat.image is None else None
        pieces = scene.chat.ask(question, image=image, stream=True, max_new_tokens=limit, **columns)
        new = scene.see(columns) if prompts else None
        looks = [*scene.looks, *scene.look(new)] if new is not None else scene.looks
        answer = ""
        yield [*before, ("user", turn)], looks
        try:
            for piece in pieces:
                if self.stopped.is_set():
                    yield [*before, ("user", turn), ("assistant", f"{answer} … (stopped)")], looks
                    return
                answer += piece
                yield [*before, ("user", turn), ("assistant", answer)], looks
        finally:
            pieces.close()  # type: ignore[union-attr]
        parts = [part for part in (scene.seen, new) if part is not None]
        scene.seen = RegionTokens.concatenate(parts, same_images=True) if parts else None
        scene.looks, scene.prompts = looks, [*scene.prompts, *prompts]

    def _scene(self, advice: str) -> Scene:
        if self.scene is None:
            raise ValueError(f"There is no picture yet: {advice}.")
        return self.scene

    def _checked(self, question: Any, drawn: Any, scene: Scene) -> list[dict[str, Any]]:
        """The prompts of a question's regions."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError("There is no question yet: write one, for example: What is <region>?")
        if len(question) > self.limits.characters:
            raise ValueError(f"The question has {len(question)} characters, expected at most {self.limits.characters}.")
        height, width = scene.picture.shape[:2]
        prompts = read_regions(drawn, (height, width))
        if len(scene.prompts) + len(prompts) > self.limits.regions:
            raise ValueError(f"A conversation has at most {self.limits.regions} regions: begin a new one.")
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
    """The conversations of all users, by session; a bounded number of them."""

    def __init__(self, chat: RegionChat, limits: PageLimits) -> None:
        self.chat, self.limits = chat, limits
        self._by_session: OrderedDict[str, PageConversation] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._by_session)

    def of(self, session: str) -> PageConversation:
        """The conversation of a session, begun at its first call."""
        with self._lock:
            if session not in self._by_session:
                self._by_session[session] = PageConversation(self.chat, self.limits)
            self._by_session.move_to_end(session)
            while len(self._by_session) > self.limits.users:
                self._by_session.popitem(last=False)[1].stop()
            return self._by_session[session]

    def drop(self, session: str) -> None:
        """Forget a session, whose tab was closed; an answer that is being written for it stops."""
        with self._lock:
            gone = self._by_session.pop(session, None)
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
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if len(rows):
        pad = 4 + max(rows[-1] - rows[0], columns[-1] - columns[0]) // 10
        part = slice(max(0, rows[0] - pad), rows[-1] + pad + 1), slice(max(0, columns[0] - pad), columns[-1] + pad + 1)
        picture, mask = picture[part], mask[part]
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
