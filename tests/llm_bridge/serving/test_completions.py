"""OpenAI's own client gets the answers that `RegionChat` gives, with usage, reasons and errors in its form."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from server_requests import BOX, MODEL, data_url, picture_file

from llm_bridge import RegionChat
from llm_bridge.configuration_bridge import BUNDLED

DEMO = BUNDLED / MODEL / "demo.png"
OTHER = [40, 40, 200, 200]


@pytest.fixture(scope="module")
def openai(build: Callable[..., Any], bundled_chat: RegionChat, listening: Callable[..., Any]) -> Iterator[Any]:
    """OpenAI's client, of a server at a port."""
    library = pytest.importorskip("openai", reason="needs the extra dev")
    with listening(build(bundled_chat, MODEL)) as port:
        yield library.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


@pytest.fixture
def asked(bundled_chat: RegionChat) -> RegionChat:
    """A conversation of our own on the same models."""
    chat = RegionChat(bundled_chat.model, bundled_chat.processor)
    chat.warns_of_limitation = False
    return chat


def questions() -> list[dict[str, Any]]:
    return json.loads((BUNDLED / MODEL / "demo.json").read_text())["questions"]


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_answers_are_those_of_a_chat(openai: Any, asked: RegionChat, demo_url: str) -> None:
    for question in questions():
        asked.reset()
        expected = asked.ask(question["text"], image=DEMO, boxes=question["boxes"])
        regions = [{"type": "region", "box": box} for box in question["boxes"]]
        content = [picture(demo_url), *regions, {"type": "text", "text": question["text"]}]
        answer = openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.object == "chat.completion"
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens >= len(expected.split())


def test_an_answer_that_names_a_region_leads_to_it(openai: Any, asked: RegionChat, demo_url: str) -> None:
    """And a client that sends the whole message back is understood."""
    question, boxes = "Which is larger, <region> or <region>?", [BOX, OTHER]
    asked.ask(question, image=DEMO, boxes=boxes)
    expected = [
        {"name": name, "box": regions.boxes[0].tolist(), "mask": regions.coco_rle()[0], "image": 0}
        for name, regions in asked.mentioned().items()
    ]
    assert len(expected) == 1
    regions = [{"type": "region", "box": box} for box in boxes]
    content = [picture(demo_url), *regions, {"type": "text", "text": question}]
    talk: list[Any] = [{"role": "user", "content": content}]
    options: dict[str, Any] = {"model": MODEL, "messages": talk}
    message = openai.chat.completions.create(**options).choices[0].message
    assert message.mentioned == expected
    *_, last = openai.chat.completions.create(**options, stream=True)
    assert last.choices[0].delta.mentioned == expected
    talk += [message.model_dump(), {"role": "user", "content": "What colour is region1?"}]
    assert openai.chat.completions.create(**options).choices[0].message.content


def test_follow_ups_speak_of_regions_by_name(openai: Any, asked: RegionChat, messages: Any) -> None:
    first = asked.ask("What is <region>?", image=DEMO, boxes=[BOX])
    second = asked.ask("What colour is region1, and what is <region>?", boxes=[OTHER])
    talk = [*messages, {"role": "assistant", "content": first}]
    own = [{"type": "region", "box": OTHER}, {"type": "text", "text": "What colour is region1, and what is <region>?"}]
    inline = [
        {"type": "text", "text": "What colour is"},
        {"type": "region", "name": "region1"},
        {"type": "text", "text": ", and what is"},
        {"type": "region", "box": OTHER},
        {"type": "text", "text": "?"},
    ]
    for content in (own, inline):
        answer = openai.chat.completions.create(model=MODEL, messages=[*talk, {"role": "user", "content": content}])
        assert answer.choices[0].message.content == second


def test_every_kind_of_prompt_is_that_of_a_chat(openai: Any, asked: RegionChat, demo_url: str) -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    from tap_tokenizer import mask_to_rle

    mask = np.zeros((512, 512), bool)
    mask[400:460, 190:260] = True
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    png = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"points": [[224, 430]]}, {"points": [[[224, 430]]]}),
        (
            {"points": [[224, 430], [5, 5]], "point_labels": [1, 0]},
            {"points": [[[224, 430], [5, 5]]], "point_labels": [[1, 0]]},
        ),
        ({"box": BOX, "points": [[224, 430]]}, {"boxes": [BOX], "points": [[[224, 430]]]}),
        ({"mask": mask_to_rle(mask)}, {"masks": [mask]}),
        ({"mask": png}, {"masks": [mask]}),
    ]
    for item, prompt in kinds:
        asked.reset()
        expected = asked.ask("Describe <region>.", image=DEMO, **prompt)
        content = [picture(demo_url), {"type": "region", **item}, {"type": "text", "text": "Describe <region>."}]
        answer = openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
        assert answer.choices[0].message.content == expected, item


def test_regions_belong_to_the_picture_before_them_or_to_the_one_they_name(
    client: Any, messages: Any, demo_url: str
) -> None:
    blank = picture(data_url(picture_file(512, 512)))
    alone = client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages}).json()
    text = {"type": "text", "text": "What is <region>?"}
    for content in (
        [picture(demo_url), {"type": "region", "box": BOX}, blank, text],
        [picture(demo_url), blank, {"type": "region", "box": BOX, "image": 0}, text],
        [blank, picture(demo_url), {"type": "region", "box": BOX}, text],
    ):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        both = client.post("/v1/chat/completions", json=body).json()
        assert both["choices"][0]["message"]["content"] == alone["choices"][0]["message"]["content"]


def test_a_stream_gives_the_same_words_and_the_usage(openai: Any, messages: Any) -> None:
    asked = {"model": MODEL, "messages": messages}
    whole = openai.chat.completions.create(**asked)
    chunks = list(openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(openai.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None for chunk in plain)


LONG = "What is <region>, and where is it?"


@pytest.fixture
def long(demo_url: str) -> dict[str, Any]:
    content = [picture(demo_url), {"type": "region", "box": BOX}, {"type": "text", "text": LONG}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]}


def test_an_answer_that_is_cut_says_so(openai: Any, long: Any) -> None:
    whole = openai.chat.completions.create(**long)
    assert whole.usage.completion_tokens > 3
    for name in ("max_tokens", "max_completion_tokens"):
        cut = openai.chat.completions.create(**long, **{name: 2})
        assert cut.choices[0].finish_reason == "length"
        assert cut.usage.completion_tokens == 2
        assert whole.choices[0].message.content.startswith(cut.choices[0].message.content)


def test_an_answer_ends_before_a_stop(openai: Any, long: Any) -> None:
    words = openai.chat.completions.create(**long).choices[0].message.content
    stop = words.split()[2]
    for given in (stop, [stop, "never"], ["never", words.split()[1][-1] + " " + stop[0]]):
        for stream in (False, True):
            answer = openai.chat.completions.create(**long, stop=given, stream=stream)
            if stream:
                pieces = list(answer)
                said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
                reason = pieces[-1].choices[0].finish_reason
            else:
                said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            first = min(words.find(one) for one in ([given] if isinstance(given, str) else given) if one in words)
            assert said == words[:first].rstrip()
            assert reason == "stop"


def test_a_seed_repeats_an_answer_and_greedy_needs_none(openai: Any, long: Any) -> None:
    def said(**options: Any) -> str:
        return openai.chat.completions.create(**long, **options).choices[0].message.content

    greedy = said()
    assert said(temperature=0) == greedy
    assert said(temperature=2, top_p=1e-9, seed=3) == greedy  # nothing but the best is left
    hot = [said(temperature=2, seed=seed, max_tokens=16) for seed in (2, 4, 5, 2, 4, 5)]
    assert hot[:3] == hot[3:]
    assert len(set(hot)) > 1


def test_without_a_seed_answers_are_drawn_anew(openai: Any, long: Any) -> None:
    """Wherever the generator of this process stands, as it would after every start of the server."""

    def said() -> str:
        torch.manual_seed(0)
        return openai.chat.completions.create(**long, temperature=2, max_tokens=16).choices[0].message.content

    first = said()  # the likeliest answer comes about every other time, so two that differ come soon
    assert any(said() != first for _ in range(40))


def test_errors_are_those_of_the_client(openai: Any, messages: Any) -> None:
    library = pytest.importorskip("openai", reason="needs the extra dev")
    with pytest.raises(library.NotFoundError) as unknown:
        openai.chat.completions.create(model="gpt-4o", messages=messages)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(library.BadRequestError, match="n is 3") as several:
        openai.chat.completions.create(model=MODEL, messages=messages, n=3)
    assert (several.value.code, several.value.param) == ("unsupported_parameter", "n")
    with pytest.raises(library.BadRequestError, match="Addresses are not fetched"):
        openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": [picture("https://example.org/a.png")]}]
        )
    bad = [{**messages[0], "content": [messages[0]["content"][0], {"type": "region", "box": [900, 900, 990, 990]}]}]
    with pytest.raises(library.BadRequestError) as outside:
        openai.chat.completions.create(model=MODEL, messages=bad)
    assert "Region 1" in outside.value.message


def test_models_are_listed_with_what_they_cannot_do(openai: Any, bundled_chat: RegionChat) -> None:
    (model,) = openai.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert model.limitation == bundled_chat.limitation
    assert openai.models.retrieve(MODEL).id == MODEL


def test_one_users_conversation_leaves_nothing_to_the_next(
    openai: Any, bundled_chat: RegionChat, messages: Any
) -> None:
    library = pytest.importorskip("openai", reason="needs the extra dev")
    openai.chat.completions.create(model=MODEL, messages=messages)
    assert bundled_chat.history == []
    assert bundled_chat.image is None
    for words in ("What is region1?", "What is <region>?"):
        stranger = [{"role": "user", "content": words}]
        if "<" in words:
            with pytest.raises(library.BadRequestError):
                openai.chat.completions.create(model=MODEL, messages=stranger)
    with pytest.raises(library.BadRequestError, match="before any picture"):
        openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": [{"type": "region", "box": BOX}]}]
        )


def test_an_answer_stops_when_its_client_leaves(
    build: Any, bundled_chat: RegionChat, listening: Any, long: Any
) -> None:
    """Nobody waits for it: its place in the queue is free again long before it would have been complete."""
    app = build(bundled_chat, MODEL)
    worker = app.state.service.worker
    begun, seen = [], []
    generate = bundled_chat.model.generate

    def slow(*given: Any, stopping_criteria: Any, **options: Any) -> Any:
        def wait(ids: Any, scores: Any, **more: Any) -> Any:
            seen.append(len(ids))
            time.sleep(0.05)
            return stopping_criteria(ids, scores, **more)

        begun.append(1)
        return generate(*given, stopping_criteria=[wait], **{**options, "min_new_tokens": 200, "max_new_tokens": 400})

    bundled_chat.model.generate = slow
    try:
        with listening(app) as port:
            for stream in (True, False):
                begun.clear()
                seen.clear()
                body = json.dumps({**long, "stream": stream}).encode()
                connection = socket.create_connection(("127.0.0.1", port))
                head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                head += f"Content-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                wait_for(lambda: len(seen) > 2)
                assert worker.taken == 1
                connection.close()
                wait_for(lambda: worker.taken == 0)
                assert len(seen) < 150
    finally:
        del bundled_chat.model.generate


def wait_for(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
