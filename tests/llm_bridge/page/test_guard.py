"""The page's guard: hosts, other pages, bytes counted as they come, places in the queue."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import llm_bridge.page.guard as page_guard
from llm_bridge.page.guard import Hosts, PageGuard
from llm_bridge.page.turns import Places

LIMIT = 1000
JOIN = "/ask"


class App:
    """An ASGI app that reads its request whole and says that it was reached."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def asked(
    guard: PageGuard, method: str, path: str, parts: list[bytes], headers: dict[str, str], waits: bool = False
) -> tuple[int, str]:
    """Status and body of the answer to a request whose body comes in parts; with `waits`, it never comes to its end."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)]
    if not parts:
        coming = [{"type": "http.request", "body": b"", "more_body": False}]
    if waits:
        coming[-1]["more_body"] = True

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.sleep(60)
        return coming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    lines = {"host": "localhost:7860", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
    }
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setattr(page_guard, "REFUSAL_SECONDS", 0.0)
    return App()


@pytest.fixture
def guard(app: App) -> PageGuard:
    return PageGuard(app, LIMIT, {JOIN: Places(each=3, all=9)}, Hosts("127.0.0.1"))


def test_a_request_reaches_the_app_whole(guard: PageGuard, app: App) -> None:
    parts = [b"a" * 400, b"", b"b" * 600]
    assert asked(guard, "POST", "/state", parts, {"content-length": "1000"})[0] == 200
    assert app.bodies == [b"a" * 400 + b"b" * 600]
    assert asked(guard, "GET", "/", [], {})[0] == 200


def test_the_bytes_of_a_body_are_counted_as_they_arrive(guard: PageGuard, app: App) -> None:
    post = ("POST", "/state")
    assert asked(guard, *post, [b"x" * 600] * 100_000, {"content-length": "5"})[0] == 400
    assert asked(guard, *post, [b"x" * 600] * 100_000, {"content-length": "1000"})[0] == 400
    assert asked(guard, *post, [b"x"], {"content-length": "9" * 5000})[0] == 413
    assert asked(guard, *post, [b"x"], {"content-length": "1001"})[0] == 413
    assert asked(guard, *post, [b"x" * 600] * 9, {"content-length": "5", "transfer-encoding": "chunked"})[0] == 400
    assert asked(guard, *post, [b"x" * 600] * 9, {"transfer-encoding": "chunked"})[0] == 411
    for length in ("-1", "1e3", "0x10", "5, 5", ""):
        assert asked(guard, *post, [b"x" * 600] * 9, {"content-length": length})[0] == 411
    for method in ("PUT", "PATCH", "DELETE", "post", "SPAM"):
        assert asked(guard, method, "/", [b"x" * 600] * 9, {"content-length": "5"})[0] == 400
    assert app.bodies == []
    assert guard.bodies._on_their_way == 0


def test_a_body_that_never_comes_is_given_up(guard: PageGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_guard, "BODY_SECONDS", 0.05)
    status, words = asked(guard, "POST", "/state", [b"x"], {"content-length": "9"}, waits=True)
    assert status == 408
    assert "took longer" in words
    assert guard.bodies._on_their_way == 0


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:7860", True),
        ("https://127.0.0.1", True),
        ("http://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://localhost@evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_requests_of_other_pages_are_refused(guard: PageGuard, app: App, origin: str, is_allowed: bool) -> None:
    for method, body in (("GET", []), ("POST", [b"{}"])):
        headers = {"origin": origin, **({"content-length": "2"} if body else {})}
        assert asked(guard, method, "/state", body, headers)[0] == (200 if is_allowed else 403)
    assert len(app.bodies) == 2 * is_allowed


HOSTS = [
    ("127.0.0.1", [], ["localhost", "localhost:7860", "LOCALHOST", "127.0.0.1:80", "[::1]:7860", "localhost."],
     ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7860", "", "192.168.1.5", "localhost:x", "[::1]x",
      "127.0.0.1@evil.example", "[::1", "evil.example:localhost"]),
    ("192.168.1.5", [], ["192.168.1.5:7860", "localhost"], ["192.168.1.6", "evil.example"]),
    ("0.0.0.0", [], ["192.168.1.6:7860", "10.0.0.1", "localhost", "[fe80::1]:7860"], ["evil.example", "999.1.1.1"]),
    ("127.0.0.1", ["chat.example.org"], ["chat.example.org", "Chat.Example.org:443"], ["example.org"]),
]  # fmt: skip


@pytest.mark.parametrize(("listening", "others", "good", "bad"), HOSTS)
def test_only_allowed_host_names_are_answered(
    app: App, listening: str, others: list[str], good: list[str], bad: list[str]
) -> None:
    guard = PageGuard(app, LIMIT, {}, Hosts(listening, others))
    for host in good:
        assert asked(guard, "GET", "/", [], {"host": host})[0] == 200, host
    for host in bad:
        status, words = asked(guard, "GET", "/config", [], {"host": host})
        assert status == 421, host
        assert "--allowed_host" in words


def test_the_places_of_a_session_in_the_queue_are_limited(guard: PageGuard, app: App) -> None:
    def join(session: Any) -> int:
        body = json.dumps({"session": session}).encode()
        return asked(guard, "POST", JOIN, [body], {"content-length": str(len(body))})[0]

    assert [join("mine") for _ in range(5)] == [200, 200, 200, 503, 503]
    assert join("yours") == 200
    guard.places[JOIN].begin("mine")
    assert [join("mine"), join("mine")] == [200, 503]
    guard.places[JOIN].drop("mine")
    assert join("mine") == 200
    for wrong in (None, 5, "", "x" * 65, ["mine"]):
        assert join(wrong) == 400
    for broken in (b"", b"{", b"[" * 900, b"5", b"null", b'{"session"'):
        assert asked(guard, "POST", JOIN, [broken], {"content-length": "9"})[0] == 400
    assert len(app.bodies) == 6


def test_many_large_bodies_at_once_are_refused(guard: PageGuard) -> None:
    guard.bodies._on_their_way = page_guard.BODIES * LIMIT
    assert asked(guard, "POST", "/state", [b"x"], {"content-length": "1"})[0] == 503
    assert guard.bodies._on_their_way == page_guard.BODIES * LIMIT


def test_a_large_request_carries_a_picture_or_is_refused(app: App) -> None:
    guard = PageGuard(app, 2_000_000, {JOIN: Places(each=3, all=9)}, Hosts("127.0.0.1"))
    points = json.dumps({"data": [[[1.5, 2.5]] * 60_000], "session": "a"}).encode()
    status, words = asked(guard, "POST", JOIN, [points], {"content-length": str(len(points))})
    assert status == 413
    assert "paint less" in words
    picture = json.dumps({"data": [{"upload": "A" * len(points)}], "session": "a"}).encode()
    assert asked(guard, "POST", JOIN, [picture], {"content-length": str(len(picture))})[0] == 200


def test_refusals_are_delayed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(page_guard, "REFUSAL_SECONDS", 1.0)
    monkeypatch.setattr(page_guard.asyncio, "sleep", sleep)
    guard = PageGuard(app, LIMIT, {}, Hosts("127.0.0.1"))
    assert asked(guard, "GET", "/", [], {"host": "evil.example"})[0] == 421
    assert asked(guard, "GET", "/", [], {})[0] == 200
    assert waited == [1.0]
