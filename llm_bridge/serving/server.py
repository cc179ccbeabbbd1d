"""The server: what is answered where, for OpenAI's clients, X-AnyLabeling and Label Studio.

    region-chat serve

`build_app` wires the endpoints; `serve` listens.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..chat import RegionChat
from ..page.guard import Hosts
from . import completions, label_studio, x_anylabeling
from .errors import RequestError
from .guard import PatientProtocol, ServerGuard
from .label_studio_files import LabelStudioFiles
from .limits import ServerLimits
from .service import Service

CONNECTIONS = 256
"""How many connections may be open at once; more are answered 503 at once."""

Endpoint = Callable[[Request], Awaitable[Response]]

ROUTES = {
    "GET /": "this page",
    "GET /health": "whether the server is up, and how many requests wait; needs no token",
    "GET /v1/models": "the model, for OpenAI's clients, and for X-AnyLabeling's, which send the header Token",
    "GET /v1/models/{name}": "the model by its name",
    "POST /v1/chat/completions": "answers, for OpenAI's clients; a region is a content item after its picture's",
    "POST /v1/predict": "X-AnyLabeling: masks, captions and answers for marks",
    "POST /setup": "Label Studio: whether a project's configuration leaves this server something to do",
    "POST /predict": "Label Studio: masks and texts for marks",
    "POST /webhook": "Label Studio: what it tells, which has no effect",
}
"""What is answered where."""


def build_app(
    chat: RegionChat,
    name: str,
    *,
    limits: ServerLimits | None = None,
    hosts: Hosts | None = None,
    token: str | None = None,
    files: LabelStudioFiles | None = None,
) -> Starlette:
    """The server as an ASGI application.

    chat: whose model and processor answer; its own conversation is left alone. name: what clients call the model. hosts: under
    which names it answers; the loopback ones by default. token: which every request must bring. files: where Label Studio's
    pictures are fetched; nowhere by default.
    """
    limits = limits or ServerLimits()
    service = Service(chat, name, limits)
    files = files or LabelStudioFiles(None, None, limits.file_bytes)
    created = int(time.time())

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "UP", "model_class": "RegionChat", "queue": service.worker.taken})

    async def models(request: Request) -> Response:
        if "token" in request.headers:
            return JSONResponse(x_anylabeling.models(service), headers={"Vary": "Token"})
        card = completions.model_card(service, created)
        return JSONResponse({"object": "list", "data": [card]}, headers={"Vary": "Token"})

    async def model(request: Request) -> Response:
        service.check_model(request.path_params["name"])
        return JSONResponse(completions.model_card(service, created))

    async def front(request: Request) -> Response:
        return PlainTextResponse(_front(service))

    endpoints: dict[str, Endpoint] = {
        "GET /": front,
        "GET /health": health,
        "GET /v1/models": models,
        "GET /v1/models/{name}": model,
        "POST /v1/chat/completions": lambda request: completions.complete(service, request),
        "POST /v1/predict": lambda request: x_anylabeling.predict(service, request),
        "POST /setup": lambda request: label_studio.setup(service, request),
        "POST /predict": lambda request: label_studio.predict(service, files, request, is_open=token is None),
        "POST /webhook": lambda request: label_studio.webhook(service, request),
    }
    routes = []
    for name_of_route in ROUTES:
        method, path = name_of_route.split()
        routes.append(Route(path, _endpoint(endpoints[name_of_route]), methods=[method]))
    guard = Middleware(
        ServerGuard,
        most_bytes=limits.body_bytes,
        seconds=limits.body_seconds,
        hosts=hosts or Hosts("127.0.0.1"),
        token=token,
    )
    app = Starlette(
        routes=routes,
        middleware=[guard],
        exception_handlers={RequestError: _refused, HTTPException: _not_found, Exception: _failed},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def _endpoint(endpoint: Endpoint) -> Endpoint:
    """An endpoint as a coroutine function, by which the framework knows what to await."""

    async def answered(request: Request) -> Response:
        return await endpoint(request)

    return answered


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, error.status, error.headers)


def _front(service: Service) -> str:
    """What whoever opens the server's address is told."""
    width = max(map(len, ROUTES))
    table = "".join(f"  {route:{width}}  {words}\n" for route, words in ROUTES.items())
    return (
        f"This is `region-chat serve`: it answers questions about regions of pictures, with the model {service.name}.\n"
        f"It is made for programs. For a page to look at, run `region-chat app`.\n\n{table}\n"
        "docs/server.md of the project tap-bridge shows how to ask, and how to connect the annotation tools.\n"
        + (f"\n{service.chat.limitation}\n" if service.chat.limitation else "")
    )


async def _not_found(request: Request, error: Exception) -> Response:
    """No such path, or another method than its own."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    known = ", ".join(route for route in ROUTES if route != "GET /")
    words = f"{request.method} {request.url.path[:80]!r}: {error.detail}. There are {known}; GET / says what each does."
    return JSONResponse(RequestError(error.status_code, code, words).body, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """What no check of ours foresaw; the framework writes it to the server's log."""
    failed = RequestError(500, "server_error", "Something went wrong; the server's log says what.")
    return JSONResponse(failed.body, 500)


def serve(
    chat: RegionChat,
    name: str,
    *,
    host: str,
    port: int,
    limits: ServerLimits,
    allowed_hosts: Sequence[str] = (),
    token: str | None = None,
    files: LabelStudioFiles | None = None,
) -> None:
    """Serve until it is interrupted; arguments as for `build_app`."""
    app = build_app(chat, name, limits=limits, hosts=Hosts(host, allowed_hosts), token=token, files=files)
    try:
        with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
            build_server(app, host, port).run()
    finally:
        app.state.service.worker.close()


def build_server(app: Starlette, host: str, port: int) -> uvicorn.Server:
    """What listens for an app, with the limits of connections and headers."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        limit_concurrency=CONNECTIONS,
        server_header=False,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
