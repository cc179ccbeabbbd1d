"""One piece of work at a time, in order, none behind too many, and none for somebody who has left."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from llm_bridge.serving.errors import RequestError
from llm_bridge.serving.worker import ModelWorker
from tap_tokenizer import before_step


async def gathered(worker: ModelWorker, work: Any) -> list[Any]:
    return [piece async for piece in worker.pieces(work)]


def test_pieces_come_in_order_from_one_thread() -> None:
    worker = ModelWorker(places=8, seconds=30)
    running: list[int] = []

    def work(gone: Event) -> Iterator[str]:
        running.append(1)
        assert len(running) == 1, "two at once"
        yield threading.current_thread().name
        yield "done"
        running.pop()

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*(gathered(worker, work) for _ in range(8)))

    names = asyncio.run(main())
    assert {name for name, _ in names} == {"models_0"}
    assert worker.taken == 0
    worker.close()


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    worker = ModelWorker(places=2, seconds=30)
    go = Event()

    def work(gone: Event) -> Iterator[int]:
        assert go.wait(20)
        yield 1

    async def main() -> None:
        waiting = [asyncio.ensure_future(gathered(worker, work)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError) as full:
            await gathered(worker, work)
        assert (full.value.status, full.value.code) == (429, "queue_full")
        assert 1 <= int(full.value.headers["Retry-After"]) <= 60
        go.set()
        assert await asyncio.gather(*waiting) == [[1], [1]]
        assert await gathered(worker, work) == [1]

    asyncio.run(main())
    worker.close()


def test_who_leaves_stops_what_was_asked() -> None:
    worker = ModelWorker(places=4, seconds=30)
    stopped, never = Event(), Event()

    def endless(gone: Event) -> Iterator[int]:
        try:
            while True:
                yield 1
                gone.wait(0.01)
        finally:
            stopped.set()

    def queued(gone: Event) -> Iterator[int]:
        never.set()
        yield 1

    async def main() -> None:
        pieces = worker.pieces(endless)
        assert await anext(pieces) == 1
        behind = asyncio.ensure_future(gathered(worker, queued))
        await asyncio.sleep(0.05)
        behind.cancel()
        await asyncio.wait({behind})
        assert worker.taken == 1
        await pieces.aclose()
        while worker.taken:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert stopped.is_set()
    assert not never.is_set()
    worker.close()


def test_time_is_up_for_what_waits_and_for_what_works() -> None:
    worker = ModelWorker(places=4, seconds=0.2)

    def slow(gone: Event) -> Iterator[int]:
        gone.wait(20)
        yield 1

    async def main() -> None:
        both = await asyncio.gather(*(gathered(worker, slow) for _ in range(2)), return_exceptions=True)
        assert [(error.status, error.code) for error in both if isinstance(error, RequestError)] == [
            (503, "timeout")
        ] * 2
        while worker.taken:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    worker.close()


def test_work_ends_at_its_next_step_however_slowly_its_pieces_are_taken() -> None:
    worker = ModelWorker(places=4, seconds=0.2)
    steps: list[int] = []

    def steady(gone: Event) -> Iterator[int]:
        yield 1
        for step in range(200):  # which takes ten seconds
            before_step()
            steps.append(step)
            time.sleep(0.05)
        yield 2

    async def main() -> None:
        pieces = worker.pieces(steady)
        assert await anext(pieces) == 1
        await asyncio.sleep(0.6)  # a client that takes its time
        assert worker.taken == 0
        with pytest.raises(RequestError) as late:
            await anext(pieces)
        assert (late.value.status, late.value.code) == (503, "timeout")

    asyncio.run(main())
    assert len(steps) < 20
    worker.close()


def test_errors_are_raised_where_the_pieces_are_awaited() -> None:
    worker = ModelWorker(places=1, seconds=30)

    def broken(gone: Event) -> Iterator[int]:
        yield 1
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(gathered(worker, broken))
    assert worker.taken == 0
    worker.close()
