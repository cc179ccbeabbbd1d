"""Decides who comes next on the page: places in its queue, and turns with the model.

`Places` keeps one session from filling the queue. `Turns` gives the model to whoever has used it least recently, so that
one user with expensive questions costs the others little more than one turn.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import Condition, Lock

STALE_SECONDS = 600.0
"""A place in the queue is given back after this time, in case its request was dropped without notice."""

REMEMBERED_SECONDS = 60.0
"""For how long the time that a session used counts against it."""


class Places:
    """The places in the queue, and which session holds how many.

    `join` takes a place when a request enters the queue, `begin` gives it back when its turn has come.
    each: places that one session may hold; all: that all may.
    """

    def __init__(self, each: int, all: int) -> None:
        self.each, self.all = each, all
        self._joined: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = Lock()

    def join(self, session: str) -> bool:
        """Take a place; False if there is none, or none for this session."""
        with self._lock:
            self._forget_stale()
            if sum(map(len, self._joined.values())) >= self.all or len(self._joined.get(session, ())) >= self.each:
                return False
            self._joined[session].append(time.monotonic())
            return True

    def oldest(self, session: str) -> float | None:
        """When the session took the oldest of its places, on the monotonic clock; None if it holds none."""
        with self._lock:
            joined = self._joined.get(session)
            return joined[0] if joined else None

    def begin(self, session: str) -> None:
        """Give the session's oldest place back, if it holds one."""
        with self._lock:
            if session in self._joined:
                self._joined[session].popleft()
                if not self._joined[session]:
                    del self._joined[session]

    def drop(self, session: str) -> None:
        """Give all places of a session back."""
        with self._lock:
            self._joined.pop(session, None)

    def waits(self, session: str) -> bool:
        """Whether a session waits in the queue."""
        with self._lock:
            self._forget_stale()
            return session in self._joined

    def _forget_stale(self) -> None:
        oldest = time.monotonic() - STALE_SECONDS
        for session in list(self._joined):
            joined = self._joined[session]
            while joined and joined[0] < oldest:
                joined.popleft()
            if not joined:
                del self._joined[session]


class Turns:
    """The model works for one session at a time; the next one is whoever has used least of its time in the last minute."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_taken = False
        self._begun = 0.0
        self._waiting: dict[int, str] = {}
        """Sessions that wait, by tickets, which count up."""
        self._tickets = count()
        self._taken: defaultdict[str, deque[tuple[float, float]]] = defaultdict(deque)
        """When each session took time, and how much."""

    @contextmanager
    def turn(self, session: str, gives_up: Callable[[], bool]) -> Iterator[bool]:
        """Wait for a turn and have it while the block runs; gives False, without a turn, once `gives_up` does not wait on."""
        if not self._wait(session, gives_up):
            yield False
            return
        try:
            yield True
        finally:
            self._end(session)

    def give_way(self, session: str) -> None:
        """In a turn: let others go first that have had less."""
        with self._changed:
            own = self._seconds(session) + time.monotonic() - self._begun
            is_next = all(self._seconds(other) >= own for other in self._waiting.values())
        if not is_next:
            self._end(session)
            self._wait(session, lambda: False)

    def charge(self, session: str, seconds: float) -> None:
        """Put time that was taken outside a turn down to a session's account."""
        with self._changed:
            self._put_down(session, seconds)

    def _wait(self, session: str, gives_up: Callable[[], bool]) -> bool:
        with self._changed:
            ticket = next(self._tickets)
            self._waiting[ticket] = session
            try:
                while self._is_taken or self._next() != ticket:
                    if gives_up():
                        return False
                    self._changed.wait(0.2)
                self._is_taken, self._begun = True, time.monotonic()
                return True
            finally:
                del self._waiting[ticket]
                self._changed.notify_all()

    def _end(self, session: str) -> None:
        with self._changed:
            self._put_down(session, time.monotonic() - self._begun)
            self._is_taken = False
            self._changed.notify_all()

    def _put_down(self, session: str, seconds: float) -> None:
        """Add to a session's account, and take from all accounts what was long ago."""
        now = time.monotonic()
        self._taken[session].append((now, seconds))
        for other in list(self._taken):
            taken = self._taken[other]
            while taken and taken[0][0] < now - REMEMBERED_SECONDS:
                taken.popleft()
            if not taken:
                del self._taken[other]

    def _next(self) -> int:
        """The ticket whose turn it is."""
        return min(self._waiting, key=lambda ticket: (self._seconds(self._waiting[ticket]), ticket))

    def _seconds(self, session: str) -> float:
        """How much time a session has taken of late."""
        oldest = time.monotonic() - REMEMBERED_SECONDS
        return sum(seconds for when, seconds in self._taken.get(session, ()) if when >= oldest)
