"""Decides which requests reach the server: under which names, with which token, of what kind, with how many bytes.

`ServerGuard` is an ASGI middleware that reads a request, up to the limit, before any endpoint sees it.
`PatientProtocol` limits how long a client may take to send the headers before that, and to read what it is answered.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..page.guard import Bodies, Hosts, handed_on
from .errors import RequestError

HEADER_SECONDS = 10.0
"""How long a client may take to send a request's first line and headers."""

READ_SECONDS = 20.0
"""How long a client may take to read `READ_BYTES` of an answer, or what is left of it."""

READ_BYTES = 65_536
"""So much of an answer a client must read in `READ_SECONDS`: 3 KB a second."""

CODES = {400: "bad_request", 408: "too_slow", 411: "length_required", 413: "too_large", 503: "busy"}
"""Codes for what is wrong with a body."""

OPEN_PATHS = ("/health",)
"""What is answered without a token, so that whoever starts the server can wait for it."""


class ServerGuard:
    """Refuses foreign host names, requests without the token, bodies that are not JSON, and those over the limit.

    token: None if none is asked for. It is taken as a bearer token, as the password of a basic login, which Label Studio
    sends, or in the header Token, which X-AnyLabeling sends. seconds: how long a body may take to arrive.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        most_bytes: int,
        seconds: float,
        hosts: Hosts,
        token: str | None,
    ) -> None:
        self.app, self.seconds, self.hosts, self.token = app, seconds, hosts, token
        self.bodies = Bodies(most_bytes, "The server")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                receive = await self._read(scope, receive)
        except RequestError as error:
            headers = error.headers | ({"Connection": "close"} if error.status in (400, 408, 413) else {})
            await JSONResponse(error.body, error.status, headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, scope: dict[str, Any]) -> None:
        """Refuse a request because of its headers."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.hosts.allow(hosts[0].decode("latin-1")):
            raise RequestError(
                421, "wrong_host", "This server does not answer under that name: start it with --allowed_host NAME."
            )
        if self.token is not None and scope["path"] not in OPEN_PATHS and not self._is_known(scope["headers"]):
            raise RequestError(
                401,
                "invalid_api_key",
                "The token is missing or wrong: send Authorization: Bearer, with the server's token.",
            )

    def _is_known(self, headers: list[tuple[bytes, bytes]]) -> bool:
        assert self.token is not None
        given = [token for name, value in headers for token in _tokens(name, value)]
        return any(hmac.compare_digest(token, self.token.encode()) for token in given)

    async def _read(self, scope: dict[str, Any], receive: Any) -> Any:
        refusal = self.bodies.refusal(scope["headers"])
        if refusal is None:
            kinds = [value for name, value in scope["headers"] if name == b"content-type"]
            if len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() != b"application/json":
                raise RequestError(
                    415, "wrong_content_type", "The request is not JSON: send Content-Type: application/json."
                )
            refusal, body = await self.bodies.read(scope, receive, self.seconds)
        if refusal is not None:
            status, words = refusal
            raise RequestError(status, CODES[status], words, retry_after=1 if status == 503 else None)
        return handed_on(body, receive)


def _tokens(name: bytes, value: bytes) -> list[bytes]:
    """Tokens in one header."""
    if name == b"token":
        return [value]
    if name != b"authorization":
        return []
    scheme, _, given = value.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return [given.strip()]
    if scheme.lower() != b"basic":
        return []
    try:
        return [base64.b64decode(given.strip(), validate=True).partition(b":")[2]]
    except binascii.Error:
        return []


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which waits `HEADER_SECONDS` for the headers of a request, and no longer.

    So long it also waits for the rest of a body that nobody reads, because the request has been answered. A client that does
    not read its answer loses the connection: see `READ_SECONDS`.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of every byte that is not taken
        self._time_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._time_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._time_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reading_timer()
        super().connection_lost(exc)

    def _time_headers(self) -> None:
        """Run the clock while a request is expected, or has begun to arrive, and its headers are not complete.

        It runs on while the body of an answered request arrives: each byte ends uvicorn's own patience with the connection.
        """
        is_answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not is_answered:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_reading(self) -> None:
        """Look again after a while whether the client has read enough of what waits for it, which does not grow meanwhile."""
        self._stop_reading_timer()
        waiting = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(READ_SECONDS, self._end_slow_reading, waiting)

    def _end_slow_reading(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < READ_BYTES:
            self.transport.abort()  # closing it would wait until all has been read
        else:
            self._time_reading()

    def _stop_reading_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
