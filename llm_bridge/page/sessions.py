"""The conversations of all users of the page, by session, within bounds that no single user can exhaust for the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock

import numpy as np

from ..chat import RegionChat
from .conversation import PageConversation
from .input import PageLimits
from .turns import Places, Turns


class PageConversations:
    """What is kept for users, who has a place in the queue, and whose turn it is.

    places and turns: of those who wait for the language model or a picture's encoding. glances and pointing: of those who
    point at a picture or save it, which takes little and must not wait for answers.

    A session costs nothing before it has a picture. When there is no room for another conversation, those in which nothing
    was asked go first, then those that have been idle longest; their owners are told at their next question. One with an
    answer in it that was used within `PageLimits.idle_seconds`, or with a question that waits, never goes.
    """

    def __init__(self, chat: RegionChat, limits: PageLimits) -> None:
        self.chat, self.limits = chat, limits
        self.places, self.turns = Places(each=limits.places, all=limits.queue), Turns()
        self.glances, self.pointing = Places(each=3, all=limits.queue), Turns()
        self._by_session: OrderedDict[str, PageConversation] = OrderedDict()
        self._used: dict[str, float] = {}
        """When each conversation was used last."""
        self._dropped: OrderedDict[str, None] = OrderedDict()
        """Sessions whose conversations made room for others, and who have not been told."""
        self._left: dict[str, float] = {}
        """When the tabs of sessions were closed, or loaded again, which looks the same."""
        self._lock = Lock()

    def __len__(self) -> int:
        self._forget_left()
        return len(self._by_session)

    def of(self, session: str) -> PageConversation:
        """The conversation of a session; a blank one, which is not kept, if it has none."""
        self._forget_left(back=session)
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

    def stop_all(self) -> None:
        """End all answers that are being written, and what waits."""
        with self._lock:
            everyone = [*self._by_session.values()]
        for mine in everyone:
            mine.stop()

    def leave(self, session: str) -> None:
        """Stop what is being done for a session whose tab was closed, and forget it unless it is soon back.

        A page that is loaded again leaves and comes back, within `PageLimits.return_seconds`.
        """
        self._forget_left()
        with self._lock:
            mine = self._by_session.get(session)
            if mine is not None:
                self._left[session] = time.monotonic()
        self.places.drop(session)
        if mine is not None:
            mine.stop()

    def _forget_left(self, back: str | None = None) -> None:
        """Forget the sessions that left and did not come back in time; `back` is here again."""
        long_ago = time.monotonic() - self.limits.return_seconds
        with self._lock:
            self._left.pop(back or "", None)
            gone = [session for session, when in self._left.items() if when <= long_ago]
        for session in gone:
            self.drop(session)

    def drop(self, session: str) -> None:
        """Forget a session; an answer that is being written for it stops."""
        with self._lock:
            self._left.pop(session, None)
            gone = self._by_session.pop(session, None)
            self._used.pop(session, None)
            self._dropped.pop(session, None)
        self.places.drop(session)
        self.glances.drop(session)
        if gone is not None:
            gone.stop()
