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
from starlette.responses import JSONResponse, Response
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

    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": lambda request: completions.complete(service, request),
        "/v1/predict": lambda request: x_anylabeling.predict(service, request),
        "/predict": lambda request: label_studio.predict(service, files, request),
        "/setup": lambda request: label_studio.setup(service, request),
        "/webhook": lambda request: label_studio.webhook(service, request),
    }
    gets: dict[str, Endpoint] = {"/health": health, "/v1/models": models, "/v1/models/{name}": model}
    routes = [
        Route(path, _endpoint(endpoint), methods=[method])
        for method, paths in (("GET", gets), ("POST", posts))
        for path, endpoint in paths.items()
    ]
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


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    words = f"{request.method} {request.url.path[:80]!r}: {error.detail}."
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
