"""The server's guard: who is let in, with which token."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from server_requests import MODEL

from llm_bridge import RegionChat

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def closed(build: Callable[..., Any], bundled_chat: RegionChat) -> Any:
    """A client of a server that asks for a token."""
    from starlette.testclient import TestClient

    return TestClient(build(bundled_chat, MODEL, token=TOKEN), base_url="http://127.0.0.1:8000")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer  {TOKEN} "},
        {"Authorization": basic("label studio", TOKEN)},
        {"Token": TOKEN},
    ],
)
def test_a_token_opens(closed: Any, headers: dict[str, str]) -> None:
    assert closed.get("/v1/models", headers=headers).status_code == 200
    assert closed.post("/setup", json={}, headers=headers).json() == {"model_version": MODEL}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
        {"Authorization": f"Digest {TOKEN}"},
        {"Authorization": basic(TOKEN, "")},
        {"Authorization": "Basic @@@@"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"Token": ""},
        {"Token": f"Bearer {TOKEN}"},
        {"Cookie": f"token={TOKEN}"},
        {"X-Api-Key": TOKEN},
    ],
)
def test_nothing_else_opens(closed: Any, headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/predict"),
        ("GET", "/nowhere"),
    ):
        answer = closed.request(method, path, headers=headers, params={"token": TOKEN})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_health_is_open_to_whoever_waits_for_the_server(closed: Any) -> None:
    answer = closed.get("/health")
    assert answer.json() == {"status": "UP", "model_class": "RegionChat", "queue": 0}
    assert closed.get("/health/../v1/models").status_code == 401
