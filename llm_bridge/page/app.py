"""The web page: pictures, regions, what TAP sees and the language model's streamed answer, side by side.

    region-chat app

Serves a page without a framework, and the requests of `handlers` as JSON, over Starlette and uvicorn, which are imported
only when a page is served. Pictures and downloads travel inside messages, so that nothing is written on the server and no
path of it reaches a browser. `guard` stands before it.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tap_tokenizer import MARKING_SCRIPT, region_colour

from ..chat import RegionChat
from ..default_bridge import SMALL_BRIDGE
from .guard import Hosts, PageGuard, session_of
from .handlers import EXAMPLES, POINTED, QUEUED, Handlers, RefusedError, examples, told
from .input import PageLimits
from .sessions import PageConversations

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PARTS = Path(__file__).parent
ASSETS = (PARTS / "page.css", *sorted(PARTS.glob("*.js")), MARKING_SCRIPT)
FIRST_PORT, PORTS = 7860, 100
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""What every answer says to the browser: nothing comes from elsewhere, no script stands in the page itself."""


class PageServer:
    """A page that is being served, in a thread of its own.

    address: where. conversations: what is known of its users.
    """

    def __init__(self, server: Any, listening: socket.socket, conversations: PageConversations) -> None:
        host, port = listening.getsockname()[:2]
        self.host, self.conversations = host, conversations
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._server = server
        self._thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the page has been closed; Ctrl+C interrupts it."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """End it; answers that are being written stop."""
        self.conversations.stop_all()
        self._server.should_exit = True
        self._thread.join(10)


def serve(
    chat: RegionChat,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: PageLimits | None = None,
    allowed_hosts: Sequence[str] = (),
) -> PageServer:
    """Serve the page, beside what else the process does, until it is closed.

    chat: whose model and processor answer everyone; its own conversation is left alone.
    host: the address to listen at; only this machine can reach the default. port: the first free one from 7860 if None.
    allowed_hosts: names, beside `host` and the loopback names, under which browsers may ask for the page: a proxy's, or this
    machine's in its network. Raises `OSError` if the port is not available.
    """
    check_server()
    import uvicorn

    limits = limits or PageLimits()
    conversations = PageConversations(chat, limits)
    listening = _listen(host, port)
    guarded = PageGuard(
        build_app(conversations),
        most_bytes=limits.file_bytes * 4 // 3 + 200_000,
        places={f"/{name}": conversations.places for name in QUEUED}
        | {f"/{name}": conversations.glances for name in POINTED},
        hosts=Hosts(host, allowed_hosts),
    )
    config = uvicorn.Config(
        guarded, http="h11", ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    return PageServer(uvicorn.Server(config), listening, conversations)


def build_app(conversations: PageConversations) -> Starlette:
    """The page's ASGI app, without its guard."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    handlers = Handlers(conversations)
    page = _page(conversations).encode()

    def document(request: Request) -> Response:
        return Response(page, media_type="text/html", headers=HEADERS)

    def file(content: bytes, name: str) -> Callable[[Request], Response]:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        kind = "text/javascript" if name.endswith(".js") else "image/webp" if name.endswith(".webp") else kind
        return lambda request: Response(content, media_type=kind, headers=HEADERS)

    def endpoint(name: str) -> Callable[[Request], Awaitable[Any]]:
        handler = getattr(handlers, name)

        async def answer(request: Request) -> Any:
            session, sent = await _sent(request)
            if session is None:
                return JSONResponse({"error": "The request does not name a session: reload the page."}, 400)
            if name == "ask":
                return _Stream(handler(session, sent), lambda: handlers.leave(session, {}))
            try:
                found = await run_in_threadpool(handler, session, sent)
            except Exception as error:
                status = (
                    error.status if isinstance(error, RefusedError) else 400 if isinstance(error, ValueError) else 500
                )
                return JSONResponse({"error": told(error)}, status)
            if isinstance(found, bytes):
                return Response(found, media_type="image/png", headers=HEADERS)
            return JSONResponse(found, headers=HEADERS)

        return answer

    names = (*QUEUED, *POINTED, "state", "again", "take_back", "stop", "leave")
    files = {f"/parts/{path.name}": path for path in ASSETS}
    files |= {f"/examples/{example['file']}": EXAMPLES / example["file"] for example in examples()}
    return Starlette(
        routes=[
            Route("/", document),
            *(Route(path, file(where.read_bytes(), where.name)) for path, where in files.items()),
            *(Route(f"/{name}", endpoint(name), methods=["POST"]) for name in names),
        ],
        lifespan=lambda _: _Threads(2 * conversations.limits.queue + 20),
    )


async def _sent(request: Request) -> tuple[str | None, dict[str, Any]]:
    """The session that a request names, and what it says."""
    body = await request.body()
    session = session_of(body)
    return session, json.loads(body) if session is not None else {}


class _Threads:
    """While the app runs, allow this many threads for what waits and works: each question holds one while it waits."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def __aenter__(self) -> None:
        from anyio.to_thread import current_default_thread_limiter

        current_default_thread_limiter().total_tokens = self.count

    async def __aexit__(self, *_: object) -> None:
        return None


class _Stream:
    """An answer in lines of JSON, as they come.

    leave: called if the browser goes away, so that the steps end early, which is waited for.
    """

    def __init__(self, steps: Iterator[dict[str, Any]], leave: Callable[[], Any]) -> None:
        self.steps, self.leave = steps, leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.concurrency import iterate_in_threadpool

        async def hear() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.leave()

        headers = {**HEADERS, "Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": listed})
        hearing = asyncio.create_task(hear())
        try:
            async for step in iterate_in_threadpool(self.steps):
                line = json.dumps(step, ensure_ascii=False).encode() + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            hearing.cancel()
        await send({"type": "http.response.body", "body": b""})


def _page(conversations: PageConversations) -> str:
    """The page's HTML, with what its scripts must know."""
    chat, limits = conversations.chat, conversations.limits
    offered = examples() if chat.region_tokenizer.fingerprint == _fingerprint_of_examples() else []
    settings = {
        "colours": ["rgb({},{},{})".format(*region_colour(i)) for i in range(limits.regions)],
        "regions": limits.regions,
        "fileBytes": limits.file_bytes,
        "characters": limits.characters,
        "limitation": chat.limitation,
        "model": Path(chat.model.config.name_or_path).name or type(chat.model).__name__,
        "findsByName": chat.finding_limitation is None,
        "examples": [{key: example[key] for key in ("file", "shows", "question", "points")} for example in offered],
    }
    written = json.dumps(settings, ensure_ascii=False).replace("<", "\\u003c")
    return (PARTS / "page.html").read_text(encoding="utf-8").replace("{{settings}}", written)


def _fingerprint_of_examples() -> str:
    """That of the bundled bridges' region tokenizer, which knows what the examples show; others need not."""
    config = PARTS.parent / "pretrained" / SMALL_BRIDGE / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["fingerprint"]


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at a port, or at the first free one."""
    family = socket.getaddrinfo(host, port or FIRST_PORT, type=socket.SOCK_STREAM)[0][0]
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return socket.create_server((host, number), family=family, backlog=512)
        except OSError:
            continue
    raise OSError(f"Port {port or f'from {FIRST_PORT} on'} of {host} is not available.")


def check_server() -> None:
    """Refuse, with what to install, where what serves the page is missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ImportError(
            "The page needs starlette and uvicorn, the extra app of tap-bridge: pip install 'starlette>=1' 'uvicorn>=0.34'."
        ) from None
