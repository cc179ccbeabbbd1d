"""The server as a whole: what it keeps of pictures, and how many wait."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from server_requests import MODEL, data_url, picture_file

from llm_bridge import RegionChat


@pytest.fixture
def encoded(bundled_chat: RegionChat, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the image encoder had."""
    calls: list[int] = []
    embed = bundled_chat.region_tokenizer.embed_image

    def counted(images: Any) -> Any:
        calls.append(len(images))
        return embed(images)

    monkeypatch.setattr(bundled_chat.region_tokenizer, "embed_image", counted)
    return calls


def test_a_picture_is_encoded_once_whoever_asks_about_it(
    build: Callable[..., Any], bundled_chat: RegionChat, messages: Any, demo_url: str, encoded: list[int]
) -> None:
    from starlette.testclient import TestClient

    client = TestClient(build(bundled_chat, MODEL), base_url="http://127.0.0.1:8000")
    mark = {"type": "point", "data": [224, 430], "label": 1}
    for _ in range(2):
        assert client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages}).status_code == 200
        body = {"model": MODEL, "image": demo_url, "params": {"marks": [mark]}}
        assert client.post("/v1/predict", json=body).status_code == 200
    assert encoded == [1]
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture_file(90, 90))}},
        {"type": "region", "box": [5, 5, 50, 50]},
        {"type": "text", "text": "What?"},
    ]
    other = [{"role": "user", "content": content}]
    assert client.post("/v1/chat/completions", json={"model": MODEL, "messages": other}).status_code == 200
    assert encoded == [1, 1]


def test_what_is_kept_of_pictures_has_a_limit_in_bytes(
    build: Callable[..., Any], bundled_chat: RegionChat, demo_url: str, encoded: list[int]
) -> None:
    from starlette.testclient import TestClient

    from llm_bridge.serving.limits import ServerLimits

    one = bundled_chat.region_tokenizer.embed_image([picture_array()]).embeddings.nbytes
    encoded.clear()
    app = build(bundled_chat, MODEL, limits=ServerLimits(cache_bytes=2 * one))
    client = TestClient(app, base_url="http://127.0.0.1:8000")

    def click(shade: int) -> None:
        url = data_url(picture_file(64, 48, colour=(shade, shade, shade)))
        params = {"marks": [{"type": "rectangle", "data": [5, 5, 40, 40]}]}
        assert client.post("/v1/predict", json={"model": MODEL, "image": url, "params": params}).status_code == 200

    for shade in (1, 2, 1, 3, 1, 2):  # 2 was used longest ago when 3 came
        click(shade)
    assert len(encoded) == 4


def test_what_is_kept_of_prompts_has_a_limit_and_may_be_nothing(
    build: Callable[..., Any], bundled_chat: RegionChat, messages: Any
) -> None:
    from starlette.testclient import TestClient

    from llm_bridge.serving.limits import ServerLimits

    for limits, kept in ((ServerLimits(), 1), (ServerLimits(memory_bytes=0), 0)):
        chat = RegionChat(bundled_chat.model, bundled_chat.processor)
        client = TestClient(build(chat, MODEL, limits=limits), base_url="http://127.0.0.1:8000")
        assert client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages}).status_code == 200
        assert chat.memory.most_bytes == limits.memory_bytes
        assert len(chat.memory) == kept


def picture_array() -> Any:
    import numpy as np

    return np.zeros((48, 64, 3), np.uint8)


def test_a_full_queue_is_told_when_to_come_again(
    build: Callable[..., Any], bundled_chat: RegionChat, messages: Any, listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.error
    import urllib.request

    from llm_bridge.serving import completions
    from llm_bridge.serving.limits import ServerLimits

    go = threading.Event()
    answer = completions.answer

    def held(*given: Any, **named: Any) -> Any:
        assert go.wait(20)
        return answer(*given, **named)

    monkeypatch.setattr(completions, "answer", held)
    app = build(bundled_chat, MODEL, limits=ServerLimits(queue=2))
    got: list[int] = []
    waits: list[int] = []
    with listening(app) as port:

        def ask() -> None:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps({"model": MODEL, "messages": messages}).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    got.append(answer.status)
            except urllib.error.HTTPError as error:
                got.append(error.code)
                waits.append(int(error.headers["Retry-After"]))

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        while len(got) < 3 and any(thread.is_alive() for thread in threads):
            threads[0].join(0.02)
        assert got == [429] * 3
        go.set()
        for thread in threads:
            thread.join(60)
    assert sorted(got) == [200, 200, 429, 429, 429]
    assert len(waits) == 3
    assert all(1 <= wait <= 60 for wait in waits)


def test_what_nobody_foresaw_is_told_without_details(
    build: Callable[..., Any], bundled_chat: RegionChat, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from llm_bridge.serving import completions

    def broken(*given: Any) -> Any:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(completions, "answer", broken)
    client = TestClient(build(bundled_chat, MODEL), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    for stream in (False, True):
        answer = client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in answer.text
    assert client.get("/health").status_code == 200


def test_both_lists_of_models_name_the_same_model(client: Any) -> None:
    ours = client.get("/v1/models")
    theirs = client.get("/v1/models", headers={"Token": ""})
    assert [model["id"] for model in ours.json()["data"]] == list(theirs.json()["data"]) == [MODEL]
    assert ours.headers["vary"] == theirs.headers["vary"] == "Token"


def test_the_server_says_what_it_is_and_what_it_answers_where(client: Any) -> None:
    """Every route that its page names is there, and every other path is answered with their names."""
    page = client.get("/")
    assert page.headers["Content-Type"].startswith("text/plain")
    assert "This is `region-chat serve`" in page.text
    assert f"with the model {MODEL}" in page.text
    routes = re.findall(r"^  (GET|POST) (/\S*)  ", page.text, re.MULTILINE)
    assert len(routes) == len(client.app.routes) == 9
    for method, path in routes:
        answer = client.request(method, path.replace("{name}", MODEL), json={})
        assert answer.status_code not in (404, 405), path
        assert client.request("DELETE", path, json={}).status_code == 405
    told = client.post("/v1/completions", json={}).json()["error"]
    assert told["code"] == "not_found"
    assert "POST '/v1/completions': Not Found. There are GET /health, " in told["message"]
    told = client.get("/v1/chat/completions").json()["error"]
    assert "Method Not Allowed. There are " in told["message"]
    for method, path in routes[1:]:
        assert f"{method} {path}" in told["message"]
