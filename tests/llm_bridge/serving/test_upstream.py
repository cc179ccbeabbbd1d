"""With another server behind it that runs the language model, clients see the same wire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from typing import Any

import pytest
from http_answers import answering, served
from server_requests import MODEL, data_url, picture_file

from llm_bridge import RegionChat

REFUSALS = {
    "broken": (400, "no such thing"),
    "key": (401, "Unauthorized"),
    "gone": (404, "The model `lm` does not exist."),
    "width": (400, "expected hidden_size 64"),
    "full": (429, "Too many requests"),
    "starting": (503, "Service Unavailable"),
    "failed": (500, "EngineCore encountered an issue. See stack trace for the root cause."),
    "proxy": (504, "Gateway Time-out"),
}
"""What it says instead, by its reason."""

HALF = 'data: {"choices": [{"delta": {"content": " a"}}]}\n\n'
BROKEN = {
    "malformed": (502, HALF + 'data: {"choices": [{"delta"\n\n'),
    "a number": (502, HALF + "data: 5\n\n"),
    "choices that are none": (502, HALF + 'data: {"choices": [5]}\n\n'),
    "no delta": (502, HALF + 'data: {"choices": [{"text": "a"}]}\n\n'),
    "nested": (502, HALF + "data: " + "[" * 100_000 + "\n\n"),
    "aborted": (503, HALF + 'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n'),
    "an error": (503, HALF + 'data: {"error": {"message": "EngineDeadError"}}\n\n'),
    "an end": (503, HALF),
}
"""Streams that are no answers, and what our clients are told."""


class Upstream:
    """A server that says a few words, whatever it is asked, and keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reason, self.together = "stop", Barrier(1)
        self.words = (" a pink", " cloud", " above")
        models = {"object": "list", "data": [{"id": "lm", "max_model_len": 1024}]}
        self.http = answering(lambda request: (200, models), self._post)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _post(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        self.together.wait(20)
        if self.reason in REFUSALS:
            status, words = REFUSALS[self.reason]
            return status, {"error": {"message": words}}
        if self.reason in BROKEN:
            return 200, BROKEN[self.reason][1]
        choices: list[dict[str, Any]] = [{"delta": {"content": word}} for word in self.words]
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


def test_tap_does_one_thing_at_a_time_although_many_are_under_way(
    client: Any,
    upstream: Upstream,
    bundled_chat: RegionChat,
    messages: Any,
    demo_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream.words = (" region1", " and region3", " and region2")
    upstream.together = Barrier(6)  # all are answered at the same time
    boxes = [[177, 392, 271, 470], [40, 40, 200, 200], [10, 10, 300, 300], [100, 50, 400, 450]]

    def annotated(box: list[int]) -> Any:
        mark = {"type": "rectangle", "data": box}
        return client.post("/v1/predict", json={"model": MODEL, "image": demo_url, "params": {"marks": [mark]}}).json()

    expected = [annotated(box) for box in boxes]
    three = [{"type": "region", "box": box} for box in boxes[:3]]
    asked_of_three = [{"role": "user", "content": [messages[0]["content"][0], *three, {"type": "text", "text": "?"}]}]
    inside: list[int] = []
    most: list[int] = []

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def one_of_many(*given: Any, **named: Any) -> Any:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            try:
                return original(*given, **named)
            finally:
                inside.pop()

        return one_of_many

    from tap_tokenizer.region_decoder import RegionDecoder

    monkeypatch.setattr(RegionDecoder, "run", watched(RegionDecoder.run))
    monkeypatch.setattr(RegionDecoder, "masks", watched(RegionDecoder.masks))
    bundled_chat.processor.encoder._rows.clear()
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, client, asked_of_three) for _ in range(6)]
        assert list(pool.map(annotated, boxes)) == expected
        for answer in asked:
            named = answer.result().json()["choices"][0]["message"]["mentioned"]
            assert [one["name"] for one in named] == ["region1", "region3", "region2"]
            for one, box in zip(named, (boxes[0], boxes[2], boxes[1])):
                assert (one["box"], one["image"]) == (box, 0)
                assert one["mask"]["size"] == [512, 512]
    assert len(most) >= 15
    assert set(most) == {1}


def test_regions_that_an_answer_names_are_encoded_in_one_go(
    client: Any, upstream: Upstream, bundled_chat: RegionChat, messages: Any, demo_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upstream.words = ("region4, region2", " and region1 and region9")
    other = {"type": "image_url", "image_url": {"url": data_url(picture_file())}}
    small = [{"type": "region", "box": [5, 5, 30, 30]}, {"type": "region", "box": [9, 9, 40, 40]}]
    content = [*messages[0]["content"][:3], {"type": "region", "box": [40, 40, 200, 200]}, other, *small]
    count: list[int] = []
    encode = bundled_chat.region_tokenizer.encode

    def counted(*given: Any, **named: Any) -> Any:
        count.append(sum(map(len, named["prompts"])))
        return encode(*given, **named)

    monkeypatch.setattr(bundled_chat.region_tokenizer, "encode", counted)
    answer = ask(client, [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]).json()
    named = answer["choices"][0]["message"]["mentioned"]
    assert [(one["name"], one["image"], one["mask"]["size"]) for one in named] == [
        ("region4", 1, [48, 64]),
        ("region2", 0, [512, 512]),
        ("region1", 0, [512, 512]),
    ]
    assert [one["box"] for one in named] == [[9, 9, 40, 40], [40, 40, 200, 200], messages[0]["content"][2]["box"]]
    assert count[-1] == 3
    assert 3 not in count[:-1]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("key", 502, "upstream_error"),
        ("gone", 502, "upstream_error"),
        ("width", 502, "upstream_error"),
        ("full", 503, "upstream_unavailable"),
        ("starting", 503, "upstream_unavailable"),
        ("failed", 503, "upstream_unavailable"),
        ("proxy", 503, "upstream_unavailable"),
    ],
)
def test_what_its_operator_must_mend_is_not_told_to_clients_as_their_fault(
    client: Any,
    upstream: Upstream,
    messages: Any,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    status: int,
    code: str,
) -> None:
    upstream.reason = reason
    answer = ask(client, messages)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["type"] == "server_error"
    assert ("Retry-After" in answer.headers) == (status == 503)
    streamed = ask(client, messages, stream=True)  # which has begun by then
    assert f'"code": "{code}"' in streamed.text
    for got in (answer, streamed):
        assert REFUSALS[reason][1] not in got.text
    assert caplog.text.count(REFUSALS[reason][1]) == 2


@pytest.mark.parametrize("reason", BROKEN)
def test_a_stream_that_is_no_answer_is_not_told_as_the_clients_fault(
    client: Any, upstream: Upstream, messages: Any, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    status = BROKEN[reason][0]
    code = {502: "upstream_error", 503: "upstream_unavailable"}[status]
    upstream.reason = reason
    answer = ask(client, messages)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)
    streamed = ask(client, messages, stream=True)
    assert f'"code": "{code}"' in streamed.text
    for got in (answer, streamed):
        assert "EngineDeadError" not in got.text
        assert "127.0.0.1" not in got.text
    assert upstream.asked
    assert caplog.text.count("which is not OpenAI's form" if status == 502 else "broke off its answer") == 2


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
