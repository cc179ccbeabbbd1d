"""A server in this process, its clients, and a picture to send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from server_requests import BOX, MODEL, data_url

from llm_bridge import RegionChat
from llm_bridge.configuration_bridge import BUNDLED


@pytest.fixture(scope="session")
def demo_url() -> str:
    """The demo's picture as a data URL."""
    return data_url((BUNDLED / MODEL / "demo.png").read_bytes())


@pytest.fixture(scope="session")
def bundled_chat() -> RegionChat:
    return RegionChat.from_pretrained(MODEL)


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """What builds the server, or a skip where the extra serve is missing."""
    pytest.importorskip("starlette", reason="needs the extra serve")
    pytest.importorskip("contourpy", reason="needs the extra serve")
    from llm_bridge.serving.server import build_app

    return build_app


@pytest.fixture(scope="session")
def client(build: Callable[..., Any], bundled_chat: RegionChat) -> Any:
    """A client of a server in this process, which raises what the server does not answer."""
    from starlette.testclient import TestClient

    return TestClient(build(bundled_chat, MODEL), base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="session")
def listening() -> Callable[..., Any]:
    """A context in which an app is served at a port of this machine; gives the port."""

    @contextmanager
    def listen(app: Any) -> Iterator[int]:
        from llm_bridge.serving.server import build_server

        server = build_server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)

    return listen


@pytest.fixture
def messages(demo_url: str) -> list[dict[str, Any]]:
    """A question about the cloud on the demo's picture."""
    return [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": demo_url}},
                {"type": "text", "text": "What is"},
                {"type": "region", "box": BOX},
                {"type": "text", "text": "?"},
            ],
        }
    ]
