"""Requests that mean harm or make no sense: each gets its status and code, and the server goes on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from server_requests import MODEL, data_url, picture_file

from llm_bridge import RegionChat

CHAT, PREDICT, STUDIO = "/v1/chat/completions", "/v1/predict", "/predict"
PICTURE = data_url(picture_file())
CONFIG = '<View><Image name="img" value="$image"/><BrushLabels name="b" toName="img"><Label value="cloud"/></BrushLabels></View>'
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Case:
    """A request, and the status and code that it must get; code None is an answer."""

    name: str
    method: str
    path: str
    body: bytes | None
    status: int
    code: str | None
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def chat(*content: Any, **parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], **parameters}


def image(url: Any = PICTURE) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: Any = "What is it?") -> dict[str, Any]:
    return {"type": "text", "text": words}


def region(**prompt: Any) -> dict[str, Any]:
    return {"type": "region", **prompt}


GOOD = chat(image(), region(box=[5, 5, 30, 30]), text(), max_tokens=2)


def drawn(**value: Any) -> dict[str, Any]:
    return {"type": "rectanglelabels", "id": "a", "value": {"x": 10, "y": 10, "width": 30, "height": 30, **value}}


def studio(*result: Any, config: Any = CONFIG, url: Any = PICTURE) -> dict[str, Any]:
    return {
        "tasks": [{"id": 1, "data": {"image": url}}],
        "label_config": config,
        "params": {"context": {"result": list(result)}},
    }


def marks(*given: Any, url: Any = PICTURE, **params: Any) -> dict[str, Any]:
    return {"model": MODEL, "image": url, "params": {"marks": list(given), **params}}


def rectangle(*data: Any, **more: Any) -> dict[str, Any]:
    return {"type": "rectangle", "data": list(data), **more}


# ruff: noqa: E501
# --- pictures ---------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bad_pictures() -> Iterator[tuple[str, Any, str]]:
    """Name, address, code."""
    whole = picture_file()
    for share in range(1, 9):
        yield f"PNG cut at {share}0 %", data_url(whole[: len(whole) * share // 10]), "invalid_image"
    noise = io.BytesIO()
    from PIL import Image

    Image.effect_noise((64, 48), 90).save(noise, "JPEG")
    for share in (1, 3, 5):
        yield (
            f"JPEG cut at {share}0 %",
            data_url(noise.getvalue()[: len(noise.getvalue()) * share // 10]),
            "invalid_image",
        )
    for kind in ("GIF", "BMP", "TIFF", "WEBP"):
        other = picture_file(kind=kind)
        yield f"{kind} cut", data_url(other[: len(other) // 2]), "invalid_image"
    yield "PNG bomb", data_url(png_of(60_000, 60_000)), "invalid_image"
    yield "PNG of four thousand million pixels a side", data_url(png_of(2**31 - 1, 2**31 - 1)), "invalid_image"
    yield "PNG just over the limit", data_url(png_of(4001, 4000)), "invalid_image"
    yield "PNG without a pixel", data_url(png_of(0, 0)), "invalid_image"
    yield "PNG with too little data", data_url(png_of(64, 48, b"\0" * 10)), "invalid_image"
    yield (
        "PNG of flat colour, compressed a thousandfold",
        data_url(png_of(20_000, 20_000, b"\0" * 10_000_000)),
        "invalid_image",
    )
    yield "nothing", data_url(b""), "invalid_image"
    yield "zeros", data_url(b"\0" * 1000), "invalid_image"
    yield "text", data_url(b"hello"), "invalid_image"
    yield "SVG", data_url(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"), "invalid_image"
    yield "PDF", data_url(b"%PDF-1.4 1 0 obj", "application/pdf"), "invalid_image"
    yield "EPS", data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "invalid_image"
    yield "bad base64", "data:image/png;base64,@@@@", "invalid_image"
    yield "base64 cut", PICTURE[:-1], "invalid_image"
    yield "base64 of another alphabet", "data:image/png;base64," + "-_" * 20, "invalid_image"
    yield "no base64", "data:image/png,hello", "invalid_image"
    yield "data: alone", "data:", "invalid_image"
    for address in (
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:8000/health",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "picture.png",
        "C:\\picture.png",
        "ftp://example.org/a.png",
        "gopher://127.0.0.1:25/",
        "javascript:alert(1)",
        "",
        " ",
        "\u202e.gnp",
        "DATA:image/png;base64,AAAA",
    ):
        yield f"address {address!r}", address, "invalid_image_url"


def picture_cases() -> Iterator[Case]:
    for name, url, code in bad_pictures():
        yield Case(f"chat, {name}", "POST", CHAT, dumped(chat(image(url), region(box=[1, 1, 9, 9]), text())), 400, code)
        yield Case(f"X-AnyLabeling, {name}", "POST", PREDICT, dumped(marks(rectangle(1, 1, 9, 9), url=url)), 400, code)
        if code == "invalid_image_url":
            yield Case(f"Label Studio, {name}", "POST", STUDIO, dumped(studio(drawn(), url=url)), 400, code)
    for value in (None, 5, [], {}, True):
        yield Case(
            f"an address that is {value!r}", "POST", CHAT, dumped(chat(image(value), text())), 400, "invalid_value"
        )
    flat = data_url(picture_file(4000, 4000, mode="L", colour=255))
    whole = [image(flat)] + [region(mask={"size": [4000, 4000], "counts": [0, 16_000_000]})] * 3
    yield Case(
        "one mask of 16 million pixels too many",
        "POST",
        CHAT,
        dumped(chat(*whole, region(mask=flat), text())),
        400,
        "too_many_pixels",
    )
    five = [image() for _ in range(5)]
    yield Case(
        "five pictures", "POST", CHAT, dumped(chat(*five, region(box=[1, 1, 9, 9]), text())), 400, "too_many_images"
    )


# --- regions ----------------------------------------------------------------------------------------------------------

BAD_REGIONS: list[dict[str, Any]] = [
    {},
    {"box": None},
    {"box": []},
    {"box": [1, 2, 3]},
    {"box": [1, 2, 3, 4, 5]},
    {"box": [30, 5, 5, 30]},
    {"box": [5, 5, 5, 5]},
    {"box": [-50, -50, -10, -10]},
    {"box": [500, 500, 600, 600]},
    {"box": [1e308, 1e308, 1e309, 1e309]},
    {"box": [0.1, 0.1, 0.5, 0.5]},
    {"box": ["1", "2", "3", "4"]},
    {"box": [True, False, True, True]},
    {"box": [None, 1, 2, 3]},
    {"box": [[1, 2], [3, 4]]},
    {"box": "1,2,3,4"},
    {"box": {"x": 1}},
    {"box": [10**400, 1, 2, 3]},
    {"points": []},
    {"points": [[]]},
    {"points": [[1]]},
    {"points": [[1, 2, 3]]},
    {"points": [[1, 2], [3]]},
    {"points": [1, 2]},
    {"points": [[-100, 5]]},
    {"points": [[1e30, 5]]},
    {"points": [["a", "b"]]},
    {"points": [[5, 5]], "point_labels": []},
    {"points": [[5, 5]], "point_labels": [2]},
    {"points": [[5, 5]], "point_labels": [-1]},
    {"points": [[5, 5]], "point_labels": [1, 1]},
    {"points": [[5, 5]], "point_labels": [0.5]},
    {"points": [[5, 5]] * 65},
    {"point_labels": [1]},
    {"mask": ""},
    {"mask": "/etc/passwd"},
    {"mask": "http://example.org/mask.png"},
    {"mask": "mask.png"},
    {"mask": data_url(b"no picture")},
    {"mask": data_url(picture_file(63, 48, mode="L", colour=255))},
    {"mask": data_url(picture_file(64, 48, mode="L", colour=0))},
    {"mask": data_url(picture_file(4000, 4000, mode="L", colour=255))},
    {"mask": data_url(png_of(60_000, 60_000))},
    {"mask": {}},
    {"mask": {"size": [48, 64]}},
    {"mask": {"size": [64, 48], "counts": [0, 3072]}},
    {"mask": {"size": [48, 64], "counts": []}},
    {"mask": {"size": [48, 64], "counts": [3072]}},
    {"mask": {"size": [48, 64], "counts": [-1, 3073]}},
    {"mask": {"size": [48, 64], "counts": [1, 2, 3]}},
    {"mask": {"size": [48, 64], "counts": [2**62, 2**62]}},
    {"mask": {"size": [48, 64], "counts": "~~~~"}},
    {"mask": {"size": [48, 64], "counts": "\u2603"}},
    {"mask": {"size": [48, 64], "counts": "A" * 5000}},
    {"mask": {"size": [48.5, 64], "counts": "A"}},
    {"mask": {"size": [10**9, 10**9], "counts": [0, 10**18]}},
    {"mask": [[1, 2, 3, 4, 5, 6]]},
    {"mask": 5},
    {"mask": {"size": [48, 64], "counts": [0, 3072]}, "box": [1, 1, 9, 9]},
    {"box": [1, 1, 9, 9], "name": "region7"},
    {"box": [1, 1, 9, 9], "image": 1},
    {"box": [1, 1, 9, 9], "image": -1},
    {"box": [1, 1, 9, 9], "image": 10**30},
    {"box": [1, 1, 9, 9], "image": "0"},
    {"name": "region1"},
    {"name": "region0"},
    {"name": "region99999999999999999999"},
    {"name": "<|region|>"},
    {"name": ""},
    {"name": 3},
]
"""Prompts for a picture of 64 × 48 pixels."""


def region_cases() -> Iterator[Case]:
    for number, prompt in enumerate(BAD_REGIONS):
        body = dumped(chat(image(), region(**prompt), text()))
        code = "invalid_value"
        if isinstance(prompt.get("mask"), str) and prompt["mask"][:5] != "data:":
            code = "invalid_image_url"
        elif prompt in ({"mask": {}}, {"mask": {"size": [48, 64]}}):
            code = "missing_parameter"
        yield Case(f"region {number}: {str(prompt)[:60]}", "POST", CHAT, body, 400, code)
    yield Case(
        "unknown key of a region",
        "POST",
        CHAT,
        dumped(chat(image(), region(polygon=[1]), text())),
        400,
        "unknown_parameter",
    )
    yield Case(
        "region before its picture",
        "POST",
        CHAT,
        dumped(chat(region(box=[1, 1, 9, 9]), image(), text())),
        400,
        "invalid_value",
    )
    yield Case(
        "region without a picture", "POST", CHAT, dumped(chat(region(box=[1, 1, 9, 9]), text())), 400, "invalid_value"
    )
    many = [region(box=[1, 1, 9, 9])] * 25
    yield Case("25 regions", "POST", CHAT, dumped(chat(image(), *many, text())), 400, "too_many_regions")
    yield Case("a picture without a region", "POST", CHAT, dumped(chat(image(), text())), 400, "invalid_value")
    for words in (
        "",
        " ",
        "<image>",
        "<region>",
        "<region> <region> <region>",
        "region2 and region1",
        "region0",
        "<region1><region9>",
        "<|region|>",
    ):
        body = dumped(chat(image(), region(box=[1, 1, 9, 9]), region(box=[9, 9, 30, 30]), text(words)))
        if words.strip():
            yield Case(
                f"words {words!r}",
                "POST",
                CHAT,
                body,
                *((200, None) if words == "region2 and region1" else (400, "invalid_value")),
            )
    for given in (
        [], [rectangle()], [rectangle(1, 2)], [rectangle(1, 2, 3, 4, 5)], [rectangle(5, 5, 5, 5)], [rectangle(-9, -9, -5, -5)],
        [rectangle(900, 900, 990, 990)], [rectangle(1, 1, 9, 9, label=0)], [{"type": "point", "data": [1]}],
        [{"type": "point", "data": [5, 5], "label": 2}], [{"type": "point", "data": [5, 5], "label": 0}],
        [{"type": "point", "data": [500, 5]}], [{"type": "circle", "data": [5, 5]}], [{"data": [5, 5]}], [{"type": "point"}], [5], [None],
        [rectangle("1", 1, 9, 9)], [rectangle(None, 1, 9, 9)], [rectangle(1, 1, 9, 9)] * 25,
        [rectangle(1, 1, 9, 9), rectangle(9, 9, 20, 20), {"type": "point", "data": [5, 5]}], [{"type": "point", "data": [5, 5]}] * 65,
    ):  # fmt: skip
        code = "missing_parameter" if given in ([{"data": [5, 5]}], [{"type": "point"}]) else "invalid_value"
        yield Case(f"marks {str(given)[:60]}", "POST", PREDICT, dumped(marks(*given)), 400, code)
    for params in ({"epsilon_factor": -1}, {"epsilon_factor": 2}, {"epsilon_factor": "a"}, {"conf_threshold": "a"}, {"text_prompt": 5},
                   {"text_prompt": "a" * 20_001}, {"text_prompt": "cloud", "marks": []}, {"text_prompt": "<region> <region>"}, {"text_prompt": "<image>"}):  # fmt: skip
        yield Case(
            f"params {str(params)[:40]}",
            "POST",
            PREDICT,
            dumped(marks(rectangle(1, 1, 9, 9), **params)),
            400,
            "invalid_value",
        )
    for value in ({"x": "a"}, {"x": None}, {"x": True}, {"x": 1e300}, {"x": -50, "width": 10}, {"width": 0}, {"width": -5}, {"rotation": 30}, {"x": [1]},
                  {"x": {}}, {"height": 10**400}):  # fmt: skip
        body = dumped(studio(drawn(**value)))
        yield Case(f"drawn {str(value)[:40]}", "POST", STUDIO, body, 400, "invalid_value")
    many_drawn = [drawn()] * 25
    yield Case("25 rectangles", "POST", STUDIO, dumped(studio(*many_drawn)), 400, "invalid_value")
    yield Case("nothing drawn", "POST", STUDIO, dumped(studio()), 200, None)
    yield Case(
        "something else drawn", "POST", STUDIO, dumped(studio({"type": "ellipselabels", "value": {}})), 200, None
    )


# --- parameters -------------------------------------------------------------------------------------------------------


def parameter_cases() -> Iterator[Case]:
    for name, value, status, code in (
        ("n", 2, 400, "unsupported_parameter"),
        ("n", 0, 400, "unsupported_parameter"),
        ("n", True, 400, "unsupported_parameter"),
        ("n", 1, 200, None),
        ("logprobs", 0, 400, "unsupported_parameter"),
        ("logprobs", False, 200, None),
        ("top_logprobs", False, 400, "unsupported_parameter"),
        ("frequency_penalty", 0.0, 200, None),
        ("presence_penalty", False, 400, "unsupported_parameter"),
        ("parallel_tool_calls", 1, 400, "unsupported_parameter"),
        ("store", 0, 400, "unsupported_parameter"),
        ("logprobs", True, 400, "unsupported_parameter"),
        ("top_logprobs", 5, 400, "unsupported_parameter"),
        ("tools", [{"type": "function"}], 400, "unsupported_parameter"),
        ("tool_choice", "required", 400, "unsupported_parameter"),
        ("functions", [{}], 400, "unsupported_parameter"),
        ("response_format", {"type": "json_object"}, 400, "unsupported_parameter"),
        ("modalities", ["audio"], 400, "unsupported_parameter"),
        ("logit_bias", {"1": 100}, 400, "unsupported_parameter"),
        ("frequency_penalty", 1.5, 400, "unsupported_parameter"),
        ("presence_penalty", -1, 400, "unsupported_parameter"),
        ("store", True, 400, "unsupported_parameter"),
        ("prompt", "x", 400, "unknown_parameter"),
        ("__class__", "x", 400, "unknown_parameter"),
        ("a" * 1000, 1, 400, "unknown_parameter"),
        ("max_tokens", 0, 400, "invalid_value"),
        ("max_tokens", -1, 400, "invalid_value"),
        ("max_tokens", 1.5, 400, "invalid_value"),
        ("max_tokens", "5", 400, "invalid_value"),
        ("max_tokens", True, 400, "invalid_value"),
        ("max_tokens", 513, 400, "invalid_value"),
        ("max_tokens", 10**30, 400, "invalid_value"),
        ("max_completion_tokens", 0, 400, "invalid_value"),
        ("max_completion_tokens", 10**6, 400, "invalid_value"),
        ("temperature", -0.1, 400, "invalid_value"),
        ("temperature", 2.1, 400, "invalid_value"),
        ("temperature", "hot", 400, "invalid_value"),
        ("temperature", True, 400, "invalid_value"),
        ("top_p", 0, 400, "invalid_value"),
        ("top_p", 1.1, 400, "invalid_value"),
        ("seed", 2**63, 400, "invalid_value"),
        ("seed", 1.5, 400, "invalid_value"),
        ("seed", -(2**63), 200, None),
        ("seed", 2**63 - 1, 200, None),
        ("stop", ["a"] * 5, 400, "invalid_value"),
        ("stop", [""], 400, "invalid_value"),
        ("stop", "", 400, "invalid_value"),
        ("stop", "x" * 201, 400, "invalid_value"),
        ("stop", [1], 400, "invalid_value"),
        ("stop", {"a": 1}, 400, "invalid_value"),
        ("stream", "yes", 400, "invalid_value"),
        ("stream", 1, 400, "invalid_value"),
        ("stream_options", {"include_usage": True}, 400, "invalid_value"),
        ("stream_options", {"x": 1}, 400, "unknown_parameter"),
        ("chat_template_kwargs", {"enable_thinking": 5}, 400, "invalid_value"),
        ("chat_template_kwargs", {"x": "{{ 7 * 7 }}"}, 400, "unknown_parameter"),
        ("temperature", 1e-30, 200, None),
        ("temperature", 2, 200, None),
        ("top_p", 1e-30, 200, None),
        ("user", "somebody", 200, None),
        ("model", "gpt-4o", 404, "model_not_found"),
        ("model", "", 404, "model_not_found"),
        ("model", "../../etc/passwd", 404, "model_not_found"),
        ("model", MODEL + "\0", 404, "model_not_found"),
        ("model", 5, 400, "invalid_value"),
        ("model", None, 400, "invalid_value"),
        ("messages", [], 400, "invalid_value"),
        ("messages", None, 400, "invalid_value"),
        ("messages", "hello", 400, "invalid_value"),
        ("messages", {"role": "user"}, 400, "invalid_value"),
        ("messages", [5], 400, "invalid_value"),
        ("messages", [{}], 400, "missing_parameter"),
        ("messages", [{"role": "user"}], 400, "missing_parameter"),
        ("messages", [{"role": "user", "content": None}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": 5}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": []}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": ""}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": [5]}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": [{}]}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], 400, "missing_parameter"),
        ("messages", [{"role": "user", "content": [{"type": "input_audio"}]}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]}], 400, "invalid_value"),
        ("messages", [{"role": "root", "content": "hello"}], 400, "invalid_value"),
        ("messages", [{"role": "tool", "content": "hello", "tool_call_id": "a"}], 400, "invalid_value"),
        ("messages", [{"role": "assistant", "content": "hello"}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [image()]}, {"role": "user", "content": "hi"}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "hi", "tool_calls": [{}]}], 400, "unsupported_parameter"),
        ("messages", [{"role": "user", "content": "a" * 20_001}], 400, "too_long"),
        ("messages", [{"role": "user", "content": "word " * 3900}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "<|region|>"}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "What is <region>?"}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "What is region" + "9" * 5000}], 400, "invalid_value"),
        ("messages", [{"role": "assistant", "content": "<region1>"}, {"role": "user", "content": "hi"}], 400, "invalid_value"),
        ("messages", [{"role": "system", "content": "<image>"}, {"role": "user", "content": "hi"}], 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "hi"}] * 2000, 400, "invalid_value"),
        ("messages", [{"role": "user", "content": "{{ 7 * 7 }} {% raw %}"}], 200, None),
        ("messages", [{"role": "user", "content": "\u0000\u202e\ufeff\U0001f600 ﷽ a\u0301"}], 200, None),
    ):  # fmt: skip
        good = GOOD if name != "messages" else {"model": MODEL, "max_tokens": 2}
        yield Case(f"{name[:20]} = {str(value)[:60]}", "POST", CHAT, dumped({**good, name: value}), status, code)
    for name in ("model", "messages"):
        rest = {key: value for key, value in GOOD.items() if key != name}
        yield Case(f"without {name}", "POST", CHAT, dumped(rest), 400, "missing_parameter")
    for model in ("yolo11n", "", "../..", 5):
        code = (404, "model_not_found") if isinstance(model, str) else (400, "invalid_value")
        yield Case(
            f"X-AnyLabeling, model {model!r}",
            "POST",
            PREDICT,
            dumped({**marks(rectangle(1, 1, 9, 9)), "model": model}),
            *code,
        )
    for config in (
        "", "<View>", "<View/>", "hello", "\0", '<View><Image name="img"/></View>', '<View><Image name="img" value="$image"/></View>',
        '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', '<!DOCTYPE a SYSTEM "file:///etc/passwd"><View/>', "<a>" * 10_000,
        '<View><Image name="img" value="$image"/><BrushLabels name="b" toName="other"/></View>', "\ud800",
    ):  # fmt: skip
        code = "invalid_json" if config == "\ud800" else "invalid_label_config"
        yield Case(f"label_config {config[:50]!r}", "POST", STUDIO, dumped(studio(drawn(), config=config)), 400, code)
    for url in (None, 5, [], {}):
        yield Case(
            f"a task's picture {url!r}", "POST", STUDIO, dumped(studio(drawn(), url=url)), 400, "invalid_image_url"
        )
    for body in ({}, {"tasks": []}, {"tasks": 5, "label_config": CONFIG}, {"tasks": [5], "label_config": CONFIG}):
        code = "missing_parameter" if body in ({}, {"tasks": []}) else "invalid_value"
        yield Case(f"Label Studio sends {body}", "POST", STUDIO, dumped(body), 400, code)


# --- bodies, headers, methods, paths ----------------------------------------------------------------------------------


def form_cases() -> Iterator[Case]:
    bodies: list[tuple[str, bytes, str]] = [
        ("nothing", b"", "invalid_json"),
        ("half an object", b'{"model":', "invalid_json"),
        ("two objects", dumped(GOOD) * 2, "invalid_json"),
        ("a list", b"[]", "invalid_value"),
        ("a number", b"5", "invalid_value"),
        ("null", b"null", "invalid_value"),
        ("a string", b'"hello"', "invalid_value"),
        ("bytes", bytes(range(256)), "invalid_json"),
        ("UTF-16", json.dumps(GOOD).encode("utf-16"), "invalid_json"),
        ("Latin-1", '{"model": "é"}'.encode("latin-1"), "invalid_json"),
        ("a byte order mark", b"\xef\xbb\xbf" + dumped(GOOD), "invalid_json"),
        ("single quotes", b"{'model': 'a'}", "invalid_json"),
        ("half of a character", b'{"model": "\\ud800", "messages": []}', "invalid_json"),
        ("half of a character in words", dumped({"model": MODEL, "messages": [{"role": "user", "content": "\ud800"}]}), "invalid_json"),
        ("nested lists", b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
        ("nested objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "invalid_json"),
        ("nested lists in an extra", b'{"model": "a", "messages": [], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_json"),
        ("a million values", b'{"messages": [' + b"1," * 1_000_000 + b"1]}", "too_many_values"),
        ("a pickle", b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "invalid_json"),
        ("a form", b"model=a&messages=b", "invalid_json"),
        ("a huge number", b'{"model": "a", "messages": [], "seed": ' + b"9" * 50_000 + b"}", "invalid_json"),
    ]  # fmt: skip
    for name, body, code in bodies:
        for path in (CHAT, PREDICT, STUDIO):
            if path == CHAT or code == "invalid_json":
                yield Case(f"{path} gets {name}", "POST", path, body, 400, code)
    for constant in ("NaN", "Infinity", "-Infinity"):
        body = dumped(chat(image(), region(box=[1, 1, 9, 9]), text())).replace(
            b"[1, 1, 9, 9]", b"[1, 1, 9, %s]" % constant.encode()
        )
        yield Case(f"a box with {constant}", "POST", CHAT, body, 400, "invalid_value")
        yield Case(
            f"temperature {constant}",
            "POST",
            CHAT,
            dumped(GOOD)[:-1] + b', "temperature": %s}' % constant.encode(),
            400,
            "invalid_value",
        )
        body = dumped(marks(rectangle(1, 1, 9, 9))).replace(b"[1, 1, 9, 9]", b"[1, 1, 9, %s]" % constant.encode())
        yield Case(f"a mark with {constant}", "POST", PREDICT, body, 400, "invalid_value")
        body = dumped(studio(drawn())).replace(b'"x": 10', b'"x": %s' % constant.encode())
        yield Case(f"drawn at {constant}", "POST", STUDIO, body, 400, "invalid_value")
    for kind in (
        "text/plain",
        "multipart/form-data; boundary=a",
        "application/x-www-form-urlencoded",
        "image/png",
        "application/jsonp",
        "",
        "json",
        "*/*",
    ):
        for path in (CHAT, PREDICT, STUDIO):
            yield Case(
                f"{path} gets {kind!r}", "POST", path, dumped(GOOD), 415, "wrong_content_type", {"content-type": kind}
            )
    yield Case(
        "JSON with a charset",
        "POST",
        CHAT,
        dumped(GOOD),
        200,
        None,
        {"content-type": "application/json; charset=utf-8"},
    )
    yield Case("a body too large", "POST", CHAT, b" " * 14_000_000, 413, "too_large")
    yield Case("a length that lies", "POST", CHAT, b"{}", 413, "too_large", {**JSON, "content-length": "99999999999"})
    for length in ("-1", "1e3", "0x10", "", "5, 5", "9" * 30):
        status = (413, "too_large") if length.isdigit() else (411, "length_required")
        yield Case(f"length {length!r}", "POST", CHAT, b"{}", *status, {**JSON, "content-length": length})
    yield Case(
        "length and chunks",
        "POST",
        CHAT,
        b"{}",
        400,
        "bad_request",
        {**JSON, "content-length": "2", "transfer-encoding": "chunked"},
    )
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "",
        "[::1",
        "localhost:80:80",
        "0.0.0.0",
        "169.254.169.254",
        "a" * 300,
    ):
        yield Case(f"host {host[:30]!r}", "GET", "/v1/models", None, 421, "wrong_host", {"host": host})
        yield Case(f"host {host[:30]!r} asks", "POST", CHAT, dumped(GOOD), 421, "wrong_host", {**JSON, "host": host})
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "SPAM"):
        for path in (CHAT, PREDICT, STUDIO, "/setup", "/webhook"):
            body = dumped(GOOD) if method in ("PUT", "DELETE", "PATCH") else None
            yield Case(f"{method} {path}", method, path, body, 405, "method_not_allowed")
    for path in ("/health", "/v1/models"):
        yield Case(f"POST {path}", "POST", path, b"{}", 405, "method_not_allowed")
    for path in (
        "/v1", "/v1/", "/v2/models", "/v1/chat", "/v1/completions", "/v1/embeddings", "/v1/files", "/v1/files/file-abc123", "/v1/responses/resp_1",
        "/v1/chat/completions/chatcmpl-6e72b9e67d8d46daafcbab4701d7d4f9", "/v1/threads/thread_1", "/docs", "/openapi.json", "/metrics", "/admin", "/.env",
        "/.git/config", "/train", "/v1/video/init", "/v1/models/", "/static/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/%00", "/\u202e",
        "//etc/passwd", "/v1/chat/completions/", "/gradio_api/queue/join", "/" + "a" * 5000,
    ):  # fmt: skip
        yield Case(f"path {path[:40]!r}", "GET", path, None, 404, "not_found")
    for name in (
        "gpt-4o",
        "%2e.",
        "%2e%2e%2fetc%2fpasswd",
        "a" * 500,
        "%00",
        "region-chat-tiny%00",
        "REGION-CHAT-TINY",
    ):
        code = "model_not_found" if "%2f" not in name else "not_found"
        yield Case(f"model {name[:30]!r}", "GET", f"/v1/models/{name}", None, 404, code)


def tensor_cases() -> Iterator[Case]:
    """Tensors as vLLM takes them for rows of numbers; whoever unpacks a sparse one without checks writes beside its memory."""
    sparse = torch.sparse_coo_tensor(torch.tensor([[10**9], [10**9]]), torch.ones(1), (3, 576), check_invariants=False)
    for name, tensor in (("dense", torch.zeros(3, 576)), ("sparse", sparse), ("pickled", print)):
        file = io.BytesIO()
        torch.save(tensor, file)
        packed = base64.b64encode(file.getvalue()).decode()
        address = f"data:application/octet-stream;base64,{packed}"
        part = {"type": "prompt_embeds", "data": packed}
        for what, body, code in (
            ("a part", chat(part, text()), "invalid_value"),
            ("a part after a region", chat(image(), region(box=[5, 5, 30, 30]), part, text()), "invalid_value"),
            ("a parameter", {**GOOD, "prompt_embeds": packed}, "unknown_parameter"),
            ("a picture", chat(image(address), text()), "invalid_image"),
            ("a mask", chat(image(), region(mask=address), text()), "invalid_value"),
            ("a key of a region", chat(image(), region(box=[5, 5, 30, 30], data=packed), text()), "unknown_parameter"),
        ):
            yield Case(f"{name} tensor as {what}", "POST", CHAT, dumped(body), 400, code)
        body = dumped(marks(rectangle(1, 1, 9, 9), url=address))
        yield Case(f"{name} tensor to X-AnyLabeling", "POST", PREDICT, body, 400, "invalid_image")


KINDS = {
    "pictures that are none, too large, or elsewhere": picture_cases,
    "regions, marks and masks": region_cases,
    "parameters, messages and configurations": parameter_cases,
    "tensors in place of rows": tensor_cases,
    "bodies, headers, methods, hosts and paths": form_cases,
}
CASES_OF = {kind: list(cases()) for kind, cases in KINDS.items()}
CASES = [case for cases in CASES_OF.values() for case in cases]


def table() -> str:
    """How many requests of each kind get which status, as docs/server.md shows it."""
    statuses = sorted({case.status for case in CASES})
    rows = [["requests", *map(str, statuses), "in all"], ["---", *["---:"] * (len(statuses) + 1)]]
    for kind, cases in [*CASES_OF.items(), ("in all", CASES)]:
        counts = [sum(case.status == status for case in cases) for status in statuses]
        rows.append([kind, *(str(count or "") for count in counts), str(len(cases))])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("  |", " |")


def test_the_documentation_counts_them() -> None:
    written = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    assert table() in "\n".join(line.strip() for line in written.splitlines()), table()


def test_tensors_are_refused_unread(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *given, **named: pytest.fail("a tensor of a client's is unpacked"))
    for case in CASES_OF["tensors in place of rows"]:
        assert client.post(case.path, content=case.body, headers=case.headers).status_code == 400


def test_there_are_at_least_three_hundred() -> None:
    assert len(CASES) >= 300
    assert len({(case.method, case.path, case.body, str(case.headers)) for case in CASES}) >= 300


@pytest.fixture(scope="module")
def answered(client: Any) -> Iterator[Callable[[Case], Any]]:
    def ask(case: Case) -> Any:
        return client.request(case.method, case.path, content=case.body, headers=case.headers)

    yield ask
    assert client.get("/health").json()["queue"] == 0, "work is left over"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gets_its_status_and_code(answered: Callable[[Case], Any], case: Case) -> None:
    answer = answered(case)
    assert "Traceback" not in answer.text
    assert "/work" not in answer.text
    assert "site-packages" not in answer.text
    got = (answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else None)
    assert got == (case.status, case.code), answer.text[:500]
    assert len(answer.content) < 20_000
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# --- what only a socket can do ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(build: Callable[..., Any], bundled_chat: RegionChat, listening: Callable[..., Any]) -> Iterator[int]:
    from llm_bridge.serving import guard
    from llm_bridge.serving.limits import ServerLimits

    patience = pytest.MonkeyPatch()
    patience.setattr(guard, "HEADER_SECONDS", 0.5)
    app = build(bundled_chat, MODEL, limits=ServerLimits(body_seconds=0.5))
    with listening(app) as port:
        yield port
        assert health(port)["queue"] == 0
    patience.undo()


def health(port: int) -> Any:
    return json.loads(
        sent(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").partition(b"\r\n\r\n")[2]
    )


def sent(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that the server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:  # the server has had enough
                break
            time.sleep(pause)
        answer = b""
        try:
            while got := connection.recv(65536):
                answer += got
        except ConnectionResetError:
            pass
        return answer


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b""], b""),
        ([b"GET /health HTT"], b""),
        ([b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", *[b"X-A: b\r\n"] * 8], b""),
        ([HEAD + b"Content-Length: 1000\r\n\r\n", *[b" "] * 8], b"408"),
        ([HEAD + b"Content-Length: 1000\r\n\r\n{}"], b"408"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"], b"411"),
        ([HEAD + b"X-A: " + b"a" * 1_000_000 + b"\r\nContent-Length: 2\r\n\r\n{}"], b"400"),
        ([HEAD + b"X-A: b\r\n" * 20_000 + b"Content-Length: 2\r\n\r\n{}"], b"400"),
        ([b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], b"400"),
        ([HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"], b"400"),
        ([HEAD + b"Content-Length: -2\r\n\r\n{}"], b"400"),
        ([HEAD + b"Host: evil.example\r\nContent-Length: 2\r\n\r\n{}"], b"400"),
        ([b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"], b"400"),
        ([b"GET /health HTTP/1.0\r\n\r\n"], b"421"),
        ([b"GET /health HTTP/nine\r\nHost: 127.0.0.1\r\n\r\n"], b"400"),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200], b"400"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], b"400"),
        ([b"\0" * 10_000], b"400"),
        ([b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-\x00: a\r\n\r\n"], b"400"),
        ([b"GET http://example.org/none HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"], b"404"),
        ([b"CONNECT example.org:443 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"], b"404"),
        ([b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"], b"200"),
        ([HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"], b"400"),
    ],
)  # fmt: skip
def test_a_connection_gets_its_status_in_time(port: int, parts: list[bytes], status: bytes) -> None:
    begun = time.monotonic()
    answer = sent(port, *parts, pause=0.1 if len(parts) > 1 else 0.0)
    last = answer.partition(b"\r\n\r\n")[2] if answer.startswith(b"HTTP/1.1 100") else answer
    assert last[9:12] == status, answer[:300]
    assert b"Traceback" not in answer
    assert time.monotonic() - begun < 15
    assert health(port)["status"] == "UP"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100000\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
)
def test_a_body_that_nobody_reads_holds_no_connection(port: int, head: bytes) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, contextlib.suppress(OSError):
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
        connection.setblocking(False)
        while time.monotonic() - begun < 20:
            time.sleep(0.1)
            connection.send(b" ")
            with contextlib.suppress(BlockingIOError):
                if not connection.recv(65536):
                    break
    assert time.monotonic() - begun < 10  # it is closed, though each byte comes before uvicorn loses its patience


def test_clients_that_say_nothing_keep_nobody_out(port: int) -> None:
    from llm_bridge.serving.server import CONNECTIONS

    silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(CONNECTIONS)]
    try:
        time.sleep(1.5)
        assert health(port)["status"] == "UP"
    finally:
        for connection in silent:
            connection.close()


# --- slow readers -----------------------------------------------------------------------------------------------------


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answers never end."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await receive()
    left = asyncio.ensure_future(receive())
    while not left.done():
        await send({"type": "http.response.body", "body": b"a" * 65_536, "more_body": True})


async def long(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answers are long and complete."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000000")]})
    await send({"type": "http.response.body", "body": b"a" * 30_000_000})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from llm_bridge.serving import guard, server

    monkeypatch.setattr(guard, "READ_SECONDS", 1.0)
    monkeypatch.setattr(server, "CONNECTIONS", 6)


def reader(port: int) -> socket.socket:
    """A client that has asked, and that takes little at a time."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


@pytest.mark.parametrize("answers", [endless, long])
@pytest.mark.parametrize("takes", [0, 1])
def test_clients_that_do_not_read_their_answers_keep_nobody_out(
    impatient: None, listening: Callable[..., Any], answers: Any, takes: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await answers(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with listening(app) as port:
        slow = [reader(port) for _ in range(5)]  # with whoever comes next, they are too many
        try:
            end = time.monotonic() + 15
            assert sent(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")[9:12] == b"503"
            while True:
                for connection in slow if takes else ():
                    with contextlib.suppress(OSError):
                        connection.recv(takes)
                answer = sent(port, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                if answer.endswith(b"ok"):
                    break
                assert answer[9:12] in (b"503", b""), answer
                assert time.monotonic() < end, "they still hold all connections"
                time.sleep(0.1)
        finally:
            for connection in slow:
                connection.close()


def test_a_client_that_reads_on_gets_all_of_a_long_answer(impatient: None, listening: Callable[..., Any]) -> None:
    with listening(long) as port, reader(port) as connection:
        got = 0
        begun = time.monotonic()
        while part := connection.recv(1_000_000):
            got += len(part)
            time.sleep(max(0.0, begun + 3.0 * got / 30_000_000 - time.monotonic()))  # for longer than `READ_SECONDS`
            if got > 30_000_000:
                break
    assert got > 30_000_000


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
