"""What every endpoint of the server works with: the models, their one worker, the limits, and clients that leave."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from threading import Event
from typing import TypeVar

from starlette.requests import Request

from ..chat import RegionChat
from ..pictures import PictureCache
from .client import ServedModel, UpstreamError, UpstreamFailedError
from .errors import RequestError
from .limits import ServerLimits
from .worker import ModelWorker

logger = logging.getLogger(__name__)
T = TypeVar("T")

UPSTREAM_AT_ONCE = 16
"""How many requests are under way at once where a server behind this one answers, which batches them."""

MOST_PICTURES = 10_000
"""How many pictures are kept at most, however small they are."""


class Service:
    """Models that answer all requests, one at a time, unless another server runs the language model.

    chat: whose model and processor are used; its own conversation is left alone. name: what clients call the model.
    """

    def __init__(self, chat: RegionChat, name: str, limits: ServerLimits) -> None:
        self.chat, self.name, self.limits = chat, name, limits
        self.upstream = chat.model.address if isinstance(chat.model, ServedModel) else None
        self.worker = ModelWorker(limits.queue, limits.seconds, UPSTREAM_AT_ONCE if self.upstream else 1)
        encoder = chat.processor.encoder
        encoder.cache = PictureCache(encoder.tokenizer, encoder.context, MOST_PICTURES, limits.cache_bytes)
        chat.memory.most_bytes = limits.memory_bytes

    def check_model(self, name: str) -> None:
        """Refuse another model's name."""
        if name != self.name:
            words = f"There is no model {name!r:.80}, only {self.name!r}."
            raise RequestError(404, "model_not_found", words, param="model")

    async def pieces(self, request: Request, work: Callable[[Event], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What `work` yields in the worker, until its client leaves; `ValueError`s are told to the client as 400.

        What is wrong with a server behind this one is told as 502 or 503, and its words are for the log.
        """
        async with aclosing(self.worker.pieces(work, _leaves(request))) as stream:
            try:
                async for piece in stream:
                    yield piece
            except UpstreamError as error:
                logger.error("%s", error)
                words = "The server behind this one does not fit the model; the log of this server says why."
                raise RequestError(502, "upstream_error", words) from None
            except ValueError as error:
                words = str(error).replace(self.upstream or "\0", "the server behind this one")
                raise RequestError(400, "invalid_value", words) from None
            except UpstreamFailedError as error:
                logger.error("%s", error)
                words = "The server behind this one failed at the answer: try again later."
                raise RequestError(503, "upstream_unavailable", words, retry_after=10) from None
            except (ConnectionError, TimeoutError) as error:
                logger.error("%s", error)
                words = "The server behind this one does not answer: try again later."
                raise RequestError(503, "upstream_unavailable", words, retry_after=10) from None

    async def result(self, request: Request, work: Callable[[Event], T]) -> T:
        """What `work` returns in the worker."""

        def once(gone: Event) -> Iterator[T]:
            yield work(gone)

        async with aclosing(self.pieces(request, once)) as stream:
            return await anext(stream)


async def _leaves(request: Request) -> None:
    """Ends with `RequestError` when the client has closed the connection; the request's body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise RequestError(499, "client_left", "The client has closed the connection.")
