"""With another server behind it that runs the language model, clients see the same wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
from http_answers import answering, served
from server_requests import MODEL

from llm_bridge import RegionChat


class Upstream:
    """A server that says a few words, whatever it is asked, and keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reason, self.together = "stop", Barrier(1)
        models = {"object": "list", "data": [{"id": "lm", "max_model_len": 1024}]}
        self.http = answering(lambda request: (200, models), self._post)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _post(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        self.together.wait(20)
        if self.reason == "broken":
            return 400, {"error": {"message": "no such thing"}}
        choices: list[dict[str, Any]] = [{"delta": {"content": word}} for word in (" a pink", " cloud", " above")]
        choices.append({"delta": {}, "finish_reason": self.reason})
        chunks: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
        chunks.append({"choices": [], "usage": {"completion_tokens": 7}})
        return 200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    with served(made.http):
        yield made


@pytest.fixture
def client(build: Callable[..., Any], upstream: Upstream, bundled_chat: RegionChat) -> Any:
    from starlette.testclient import TestClient

    chat = RegionChat.from_server(upstream.address, bridge=(bundled_chat.model, bundled_chat.processor))
    return TestClient(build(chat, MODEL), base_url="http://127.0.0.1:8000")


def ask(client: Any, messages: Any, **options: Any) -> Any:
    return client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **options})


def test_its_words_reach_the_client_with_what_they_cost(client: Any, upstream: Upstream, messages: Any) -> None:
    answer = ask(client, messages, temperature=0.5, seed=3, max_tokens=9).json()
    assert answer["choices"][0]["message"]["content"] == "a pink cloud above"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 7
    (sent,) = upstream.asked
    assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0.5, 3, 9)
    kinds = [part["type"] for part in sent["messages"][0]["content"]]
    assert kinds == ["text", "prompt_embeds", "text"]
    assert answer["usage"]["prompt_tokens"] == 12  # as the bridge itself counts them


def test_a_cut_answer_and_a_stop_are_told(client: Any, upstream: Upstream, messages: Any) -> None:
    upstream.reason = "length"
    assert ask(client, messages).json()["choices"][0]["finish_reason"] == "length"
    stopped = ask(client, messages, stop=["cloud"]).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("a pink", "stop")


def test_several_are_under_way_at_once(client: Any, upstream: Upstream, messages: Any) -> None:
    upstream.together = Barrier(4)  # which none passes alone
    got: list[int] = []
    threads = [Thread(target=lambda: got.append(ask(client, messages).status_code)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [200] * 4


def test_its_faults_are_told_without_its_address(client: Any, upstream: Upstream, messages: Any) -> None:
    upstream.reason = "broken"
    refused = ask(client, messages)
    assert refused.status_code == 400
    upstream.http.shutdown()
    upstream.http.server_close()
    gone = ask(client, messages)
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "upstream_unavailable")
    for answer in (refused, gone):
        assert "127.0.0.1" not in answer.text
