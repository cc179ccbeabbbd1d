"""The threads in which the models work, one unless a server answers for them, and the bounded queue before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event, Lock
from typing import Any, Generic, TypeVar

from tap_tokenizer import interruptible

from .errors import RequestError

T = TypeVar("T")

FIRST_GUESS = 1.0
"""How long a request takes, in seconds, before any has been answered."""


class ModelWorker:
    """Does work in the order in which it came, one piece at a time, and refuses what would wait behind too much.

    places: work that waits or is being done. seconds: how long one may take in all, waiting included. threads: how many pieces
    of work are done at a time.
    """

    def __init__(self, places: int, seconds: float, threads: int = 1) -> None:
        self.places, self.seconds, self.threads = places, seconds, threads
        self._thread = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="models")
        self._taken = 0
        self._recent = FIRST_GUESS
        self._lock = Lock()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._taken

    @property
    def retry_after(self) -> int:
        """In how many seconds there should be a place, from 1 to 60."""
        return min(60, max(1, round(self._taken * self._recent / self.threads)))

    async def pieces(
        self, work: Callable[[Event], Iterator[T]], leaves: Coroutine[Any, Any, None] | None = None
    ) -> AsyncGenerator[T, None]:
        """What `work` yields in the models' thread, piece by piece.

        work: gets an event that is set as soon as nobody waits for its pieces any more: when this iterator is closed, or its
        time is up, even while a piece is on its way to a client that reads slowly. Its next step then raises an error; see
        `interruptible`. leaves: raises an error, which is raised here, when the client has left. `RequestError` 429 if no
        place is free, 503 if the time is up; errors of `work` are raised here, too.
        """
        try:
            self._take_place()
        except RequestError:
            if leaves is not None:
                leaves.close()
            raise
        job = _Job(work, asyncio.get_running_loop())
        watch = None if leaves is None else asyncio.ensure_future(leaves)
        if watch is not None:
            watch.add_done_callback(job.leave)
        future = self._thread.submit(self._run, job)
        future.add_done_callback(self._give_back)
        end = time.monotonic() + self.seconds
        alarm = job.loop.call_later(self.seconds, job.gone.set)
        try:
            while True:
                try:
                    kind, value = await asyncio.wait_for(job.sent.get(), max(0.0, end - time.monotonic()))
                except (asyncio.TimeoutError, TimeoutError):
                    raise RequestError(
                        503,
                        "timeout",
                        f"The request took longer than {self.seconds:g} s: try again later, or ask for less.",
                        retry_after=self.retry_after,
                    ) from None
                if kind == "piece":
                    yield value
                elif kind == "error":
                    raise value
                else:
                    return
        finally:
            job.gone.set()
            alarm.cancel()
            future.cancel()
            if watch is not None:
                watch.cancel()

    def close(self) -> None:
        """Take no more work; what waits is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take_place(self) -> None:
        with self._lock:
            if self._taken >= self.places:
                raise RequestError(
                    429,
                    "queue_full",
                    f"{self._taken} requests are waiting already: try again later.",
                    retry_after=self.retry_after,
                )
            self._taken += 1

    def _give_back(self, future: Future[None]) -> None:
        with self._lock:
            self._taken -= 1

    def _run(self, job: _Job[Any]) -> None:
        if job.gone.is_set():
            return
        begun = time.monotonic()
        job.run()
        self._recent = 0.8 * self._recent + 0.2 * (time.monotonic() - begun)


class _Job(Generic[T]):
    """Work, who waits for it, and what it has sent so far."""

    def __init__(self, work: Callable[[Event], Iterator[T]], loop: asyncio.AbstractEventLoop) -> None:
        self.work, self.loop = work, loop
        self.sent: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.gone = Event()

    def leave(self, watch: asyncio.Future[None]) -> None:
        """Pass on that the client has left, unless the watch itself was ended."""
        if not watch.cancelled() and (error := watch.exception()) is not None:
            self.sent.put_nowait(("error", error))

    def run(self) -> None:
        try:
            with interruptible(self._check), closing(self.work(self.gone)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    if self.gone.is_set():
                        return
                    self._send("piece", piece)
            self._send("end", None)
        except BaseException as error:  # raised where the pieces are awaited
            self._send("error", error)

    def _check(self) -> None:
        """End the work, wherever it is between two steps, if nobody waits for it."""
        if self.gone.is_set():
            raise RequestError(499, "client_left", "Nobody waits for the answer any more.")

    def _send(self, kind: str, value: Any) -> None:
        if not self.gone.is_set() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.sent.put_nowait, (kind, value))
