"""One user's conversation on the page: what may be asked, what is answered piece by piece, and what stops it.

It writes no file and does not depend on the web framework.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from threading import Event, Lock
from typing import Any

import numpy as np

from tap_tokenizer import RegionPrompt, counted

from ..chat import RegionChat
from ..chat_markup import spoken_numbers, user_content, words_of
from ..prompt_checks import ContextFullError
from .input import PageLimits, read_regions
from .scene import Look, Scene

REGIONS_AT_ONCE = 4
"""How many regions TAP describes between two looks at whether the user wants it to stop."""

NO_PICTURE = "There is no picture yet: choose one, paste one, or take an example."


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
        self.model, self.processor, self.memory, self.limits = chat.model, chat.processor, chat.memory, limits
        self.scene: Scene | None = None
        self.asking, self.stopped = Lock(), Event()
        self._stopped_at = -math.inf
        self._lost = lost

    def show(self, picture: np.ndarray) -> None:
        """Begin with a picture (H, W, 3)."""
        self.stop()
        if self.scene is not None:
            self.memory.forget(self.scene.chat.speaker)
        self.scene = Scene(picture, RegionChat(self.model, self.processor, self.memory))
        self.scene.chat.warns_of_limitation = False  # the page shows it where it matters

    def forget(self) -> None:
        """Begin again with the same picture."""
        if self.scene is not None:
            features = self.scene.features
            self.show(self.scene.picture)
            self.scene.features = features

    def take_back(self) -> dict[str, Any]:
        """Forget the last question and its answer; gives the question, its regions as marks, and what is left to show.

        `ValueError` if there is none, or while an answer is being written.
        """
        scene = self.has_scene()
        if not self.asking.acquire(blocking=False):
            raise ValueError("An answer is being written: stop it first.")
        try:
            if not scene.chat.messages:
                raise ValueError("There is no question to take back yet.")
            question, prompts = scene.chat.take_back()
            kept = slice(len(scene.prompts) - len(prompts))
            scene.looks, scene.prompts = scene.looks[kept], scene.prompts[kept]
            scene.boxes, scene.masks = scene.boxes[kept], scene.masks[kept]
        finally:
            self.asking.release()
        marks = [prompt.as_dict() for prompt in prompts]
        return {"question": question, "marks": marks, "regions": scene.known(), **said(scene.chat.history, scene.looks)}

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
        scene = self.has_scene()
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

    def has_scene(self) -> Scene:
        """The scene; `ValueError` says what to do if there is none."""
        if self.scene is None and self._lost:
            raise ValueError("Your conversation was idle and had to make room for others: choose the picture again.")
        if self.scene is None:
            raise ValueError(NO_PICTURE)
        return self.scene

    def prompts(self, drawn: Any) -> tuple[Scene, list[RegionPrompt]]:
        """Regions that were drawn but not asked about yet, within the limits; and the scene that they belong to."""
        scene = self.has_scene()
        prompts = read_regions(drawn, scene.size, self.limits, len(scene.prompts))
        if len(scene.prompts) + len(prompts) > self.limits.regions:
            raise ValueError(f"A conversation has at most {counted(self.limits.regions, 'region')}: start a new chat.")
        return scene, prompts

    def _checked(self, question: Any, drawn: Any, scene: Scene) -> list[RegionPrompt]:
        """The prompts of a question's regions; everything that is wrong is said in the page's own words."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError("There is no question yet: write one, for example: What is <region>?")
        if len(question) > self.limits.characters:
            raise ValueError(f"The question has {len(question)} characters, expected at most {self.limits.characters}.")
        _, prompts = self.prompts(drawn)
        known, new = len(scene.prompts), len(prompts)
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

    def state(self) -> dict[str, Any]:
        """All that a browser needs to show the conversation, for a new picture and for a page that was loaded again."""
        scene = self.scene
        if scene is None:
            return {}
        height, width = scene.size
        shown_height, shown_width = scene.shown_size
        return {
            "picture": scene.shown_picture(),
            "width": width,
            "height": height,
            "shown_width": shown_width,
            "shown_height": shown_height,
            "encoded": scene.features is not None,
            "regions": scene.known(),
            **said(scene.chat.history, scene.looks),
        }


def said(messages: Sequence[tuple[str, str]], looks: Sequence[Look]) -> dict[str, Any]:
    """What was said, as (role, words), and what TAP says of the regions, as the page shows it."""
    return {
        "messages": [{"role": role, "content": words} for role, words in messages],
        "looks": [look.as_dict() for look in looks],
    }
