"""Decides which requests from the network reach the page: under which host names, from which pages, with how many bytes.

`PageGuard` is an ASGI middleware around the page's app. It reads a request, up to the limit, before the app sees any of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from .turns import Places

BODY_SECONDS = 60.0
"""How long a request may take to send its body."""

BODIES = 8
"""How many of the largest bodies may be on their way at once, of all clients together."""


REFUSAL_SECONDS = 1.0
"""How long a refusal waits before it is sent, so that whoever repeats refused requests takes little of the server's time."""

QUESTION_BYTES = 400_000
"""How large a request may be that carries no picture."""


class Hosts:
    """The host names under which the page answers.

    listening: the address that the page listens on. On a loopback address, that address and the loopback names are allowed.
    On all addresses ("0.0.0.0", "::"), so are numeric addresses and this machine's own names; only a name can be made to
    resolve to this machine by somebody else. others: further names, for example a proxy's.
    """

    def __init__(self, listening: str, others: Sequence[str] = ()) -> None:
        self.names = {"localhost", "127.0.0.1", "::1", listening.lower(), *(name.lower() for name in others)}
        self.any_address = listening in ("0.0.0.0", "::", "")
        if self.any_address:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def allow(self, host: str) -> bool:
        """Whether a request's Host header names one of them; its port does not matter."""
        found = _HOST.fullmatch(host.strip().lower())
        if found is None:
            return False
        name = found["address"] or found["name"].removesuffix(".")
        if name in self.names:
            return True
        return self.any_address and _is_address(name)


_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@]+))(?::\d+)?")
"""A Host header: an address of IPv6 in brackets or a name, and perhaps a port."""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Bodies:
    """Reads the bodies of requests within limits, counted as they arrive, whatever the headers say.

    most_bytes: limit of one body. name: what is busy where too many are on their way at once: "The page".
    """

    def __init__(self, most_bytes: int, name: str) -> None:
        self.most_bytes, self.name = most_bytes, name
        self._on_their_way = 0

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """What is wrong with a request's length as far as its headers, in lower case, tell: a status and a sentence."""
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            return 411, "The request does not say how long it is: send exactly one Content-Length."
        if any(name == b"transfer-encoding" for name, _ in headers):
            return 400, "The request has both a Content-Length and a Transfer-Encoding: send only the Content-Length."
        if len(lengths[0]) > 20 or int(lengths[0]) > self.most_bytes:
            return 413, f"The request is larger than {self.most_bytes / 1e6:.1f} MB: choose a smaller picture."
        return None

    async def read(self, scope: dict[str, Any], receive: Any, seconds: float) -> tuple[tuple[int, str] | None, bytes]:
        """The body of a request whose headers `refusal` has passed, or a refusal, if it does not arrive within `seconds`."""
        parts: list[bytes] = []
        size, said = 0, int(dict(scope["headers"])[b"content-length"])
        end = time.monotonic() + seconds
        more = True
        try:
            while more:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
                if message["type"] == "http.disconnect":
                    return (400, "The request ended early: send it again."), b""
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._on_their_way += len(parts[-1])
                if size > said:
                    return (400, f"The request is longer than the {said} bytes that it announced."), b""
                if self._on_their_way > BODIES * self.most_bytes:
                    return (503, f"{self.name} is busy: try again in a moment."), b""
                more = message.get("more_body", False)
        except asyncio.TimeoutError:
            return (408, f"The request took longer than {seconds:.0f} s to arrive: try again."), b""
        finally:
            self._on_their_way -= size
        return None, b"".join(parts)


class PageGuard:
    """Refuses unknown host names, requests of other pages, bodies over the limit, and sessions with too many places in a queue.

    most_bytes: limit of a request's body, counted as it arrives, whatever its headers say. places: those of the queues that
    requests enter, by their paths. hosts: names under which the page answers. Without that check, somebody else's web page
    could make its own name resolve to this machine and read the conversation (DNS rebinding).
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], most_bytes: int, places: Mapping[str, Places], hosts: Hosts
    ) -> None:
        self.app, self.places, self.hosts = app, places, hosts
        self.bodies = Bodies(most_bytes, "The page")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            refusal, receive = await self._read(scope, receive)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        await asyncio.sleep(REFUSAL_SECONDS)
        status, words = refusal
        body = json.dumps({"detail": words}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status in (400, 408):  # who sends such requests is not read any further
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        """What is wrong with a request as far as its first lines tell: a status and a sentence."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self.hosts.allow(hosts[0].decode("latin-1")):
            return (
                421,
                "This page does not answer under that name: start it with --allowed_host NAME to allow the name.",
            )
        if any(name == b"origin" and not self._is_ours(value) for name, value in headers):
            return 403, "Another web page sent this request: open the page itself."
        return None if scope["method"] in ("GET", "HEAD", "OPTIONS") else self.bodies.refusal(headers)

    def _is_ours(self, origin: bytes) -> bool:
        """Whether the page that sent a request lies under one of the allowed names."""
        return self.hosts.allow(urlsplit(origin.decode("latin-1")).netloc)

    async def _read(self, scope: dict[str, Any], receive: Any) -> tuple[tuple[int, str] | None, Any]:
        """Read a request's body within the limits; gives a refusal or None, and what hands the body on."""
        refusal, body = await self.bodies.read(scope, receive, BODY_SECONDS)
        if refusal is not None:
            return refusal, receive
        if len(body) > QUESTION_BYTES and b'"upload"' not in body:
            return (
                413,
                f"The question is larger than {QUESTION_BYTES / 1e3:.0f} kB: mark fewer regions, or paint less.",
            ), receive
        if scope["path"] in self.places and (refusal := _no_place(body, self.places[scope["path"]])):
            return refusal, receive
        return None, handed_on(body, receive)


def _no_place(body: bytes, places: Places) -> tuple[int, str] | None:
    """Take a place in a queue for a request that would enter it; a refusal if there is none for its session."""
    session = session_of(body)
    if session is None:
        return 400, "The request does not name a session: reload the page."
    if not places.join(session):
        return 503, "Too many questions are waiting already: wait for their answers."
    return None


def session_of(body: bytes) -> str | None:
    """The session that a request's body names; None if it names none."""
    try:
        session = json.loads(body)["session"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return session if isinstance(session, str) and 0 < len(session) <= 64 else None


def handed_on(body: bytes, receive: Any) -> Any:
    """An ASGI `receive` that gives a body that was read before, and then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def hand_on() -> Any:
        return waiting.pop() if waiting else await receive()

    return hand_on
