"""Long work that ends between two of its steps, once whoever started it has no use for it any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CHECK: ContextVar[Callable[[], None] | None] = ContextVar("_CHECK", default=None)


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each step of the work in this context and thread; an error that it raises ends the work.

    A step is a batch of pictures, regions or captions, or one question to a language model.
    """
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def before_step() -> None:
    """Says that work is at a place where it may end: nothing is held there that would be left half done."""
    check = _CHECK.get()
    if check is not None:
        check()
