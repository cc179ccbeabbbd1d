"""What the page's requests do: each takes a session and what a browser sent, checked here, and gives what it shows."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tap_tokenizer import RegionPrompt, RegionTokens, load_rgb

from .conversation import said
from .input import read_picture
from .scene import Scene
from .sessions import PageConversations

logger = logging.getLogger(__name__)
EXAMPLES = Path(__file__).parent / "examples"
QUEUED = ("load", "encode", "look", "ask", "everything", "find")
"""Requests that wait their turn, and so take a place in the queue."""

POINTED = ("glance", "record", "drawing")
"""Requests of which TAP sees what is marked or pointed at, at once; they have a queue of their own."""


class RefusedError(ValueError):
    """A request that is refused in the page's words, with a status of HTTP."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def examples() -> list[dict[str, Any]]:
    """The example pictures: file, what it shows, a question, and a point on each region of the question."""
    return json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))


class Handlers:
    """The page's requests by the names of their paths."""

    def __init__(self, conversations: PageConversations) -> None:
        self.conversations = conversations

    # --- pictures -----------------------------------------------------------------------------------------------------

    def load(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Begin with a picture: {"upload": data URL} or {"example": number}."""
        begun = time.monotonic()
        self.conversations.places.begin(session)
        try:
            return self.conversations.show(session, self._picture(sent)).state()
        finally:
            self.conversations.turns.charge(session, time.monotonic() - begun)

    def _picture(self, sent: dict[str, Any]) -> np.ndarray:
        if "example" not in sent:
            return read_picture(sent.get("upload"), self.conversations.limits)
        known, number = examples(), sent["example"]
        if type(number) is not int or not 0 <= number < len(known):
            raise ValueError("There is no such example: reload the page.")
        return load_rgb(EXAMPLES / known[number]["file"])

    def encode(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Let TAP encode the picture, so that masks can be shown while the user points."""
        return self._in_turn(session, lambda scene: {"encoded": scene.encode() is not None})

    def state(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """What a page that was loaded again shows; {} if there is no conversation."""
        return self.conversations.of(session).state()

    def again(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Begin again with the same picture."""
        mine = self.conversations.of(session)
        mine.forget()
        return mine.state()

    # --- regions ------------------------------------------------------------------------------------------------------

    def glance(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Masks of regions that are being pointed at."""
        return {"regions": self._pointed(session, sent, Scene.glance)[2]}

    def _pointed(
        self, session: str, sent: dict[str, Any], look: Callable[[Scene, list[RegionPrompt]], Any]
    ) -> tuple[Scene, list[RegionPrompt], Any]:
        """A session's scene, regions that were marked in it and not asked about yet, and what a look at them gives.

        It waits for others who point, but never for answers.
        """
        conversations = self.conversations
        try:
            scene, prompts = conversations.of(session).prompts(sent.get("regions"))
            if prompts and scene.features is None:
                raise RefusedError(409, "TAP has not looked at the picture yet: wait a moment.")
            with conversations.pointing.turn(session, lambda: False):
                begun = time.monotonic()
                seen = look(scene, prompts)
            conversations.turns.charge(session, time.monotonic() - begun)
            return scene, prompts, seen
        finally:
            conversations.glances.begin(session)

    def look(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """What TAP says of regions that were marked and not asked about yet."""

        def work(scene: Scene) -> dict[str, Any]:
            _, prompts = self.conversations.of(session).prompts(sent.get("regions"))
            return said([], scene.look(scene.see(prompts), first=len(scene.prompts) + 1) if prompts else [])

        return self._in_turn(session, work)

    def everything(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """All objects that TAP finds by itself."""
        return self._in_turn(session, lambda scene: {"regions": scene.everything()})

    def find(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """The regions that a phrase means: {"words": phrase}."""
        words, most = sent.get("words"), self.conversations.limits.characters
        problem = None
        if self.conversations.chat.finding_limitation is not None:
            problem = "This model was not taught to find regions by name: point at one."
        elif not isinstance(words, str) or not words.strip() or len(words) > most:
            problem = f"There is nothing to find: write a few words, at most {most} characters."
        if problem is not None:
            self.conversations.places.begin(session)
            raise ValueError(problem)
        return self._in_turn(session, lambda scene: {"regions": scene.find(str(words))})

    def _in_turn(self, session: str, work: Callable[[Scene], dict[str, Any]]) -> dict[str, Any]:
        """What is done with a session's scene in its turn; {} if it was stopped or has another picture by then."""
        places, mine = self.conversations.places, self.conversations.of(session)
        joined = places.oldest(session) or math.inf
        try:
            scene = mine.has_scene()
            with self.conversations.turns.turn(
                session, lambda: mine.scene is not scene or mine.is_stopped(joined)
            ) as has_turn:
                return work(scene) if has_turn else {}
        finally:
            places.begin(session)

    # --- the talk -----------------------------------------------------------------------------------------------------

    def ask(self, session: str, sent: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The steps of an answer: {"asked"} once, {"looks"} and {"answer"} as far as they have come, then how it ended."""
        places, turns = self.conversations.places, self.conversations.turns
        mine, joined = self.conversations.of(session), places.oldest(session) or math.inf
        known, before = len(mine.looks), mine.turns
        shown: Any = None
        try:
            with mine.asking, turns.turn(session, gives_up=lambda: mine.is_stopped(joined)) as has_turn:
                places.begin(session)
                for messages, looks in mine.ask(sent.get("question"), sent.get("regions"), joined):
                    (role, words), is_begun = messages[-1], shown is not None
                    step: dict[str, Any] = {"answer": words} if role == "assistant" else {"asked": words}
                    if looks is not shown:
                        step |= {"looks": said([], looks)["looks"]}
                    yield step
                    shown = looks
                    if has_turn and is_begun and role == "user":  # TAP still describes regions, no answer has begun
                        turns.give_way(session)
        except Exception as error:
            yield {"error": told(error)}
            return
        if mine.turns > before:
            yield {"done": True} | ({"regions": mine.has_scene().known()} if len(mine.looks) > known else {})
        else:
            yield {"stopped": "Stopped before there was an answer. You can ask the question again."}

    def take_back(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """Forget the last question and its answer, and give back what it was asked with."""
        return self.conversations.of(session).take_back()

    def stop(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """End the answer that is being written, and what waits."""
        self.conversations.of(session).stop()
        return {}

    def leave(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """The tab was closed, or is being loaded again."""
        self.conversations.leave(session)
        return {}

    # --- what is taken away -------------------------------------------------------------------------------------------

    def record(self, session: str, sent: dict[str, Any]) -> dict[str, Any]:
        """The conversation for a script, with what was marked and not asked about yet: {"regions": …}."""
        scene, prompts, marked = self._pointed(session, sent, _see)
        return scene.record(prompts, marked)

    def drawing(self, session: str, sent: dict[str, Any]) -> bytes:
        """The picture with its regions and marks as a PNG; the browser writes the talk beneath it."""
        scene, _, marked = self._pointed(session, sent, _see)
        file = io.BytesIO()
        scene.drawing(marked).save(file, "PNG")
        return file.getvalue()


def _see(scene: Scene, prompts: list[RegionPrompt]) -> RegionTokens | None:
    """Regions that were marked, with masks of the picture's own size; None if there are none."""
    return scene.see(prompts) if prompts else None


def told(error: Exception) -> str:
    """What a user is told of an error; one that no check of ours foresaw is written to the server's log."""
    if isinstance(error, ValueError):
        return str(error)
    logger.error("A request of the page failed.", exc_info=error)
    return "Something went wrong; the server's log says what. Try again, or reload the page."
