"""What a judge is sent: text alone, or text and pictures in their order; templates and their fields."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.records import Record, Region
from finetune.tasks.judges import (
    LocalJudge,
    ServerJudge,
    fill_template,
    read_template,
    region_mask,
    surroundings,
    with_numbers,
)


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A judge that says Yes, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "Yes"}}]}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/v1", sent
    made.shutdown()
    made.server_close()


def test_a_judge_is_sent_pictures_between_their_words(server: tuple[str, list[dict[str, Any]]]) -> None:
    url, sent = server
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    mask = np.eye(4, 6, dtype=np.uint8) * 255
    assert ServerJudge(url, "m", max_tokens=7)(["The picture:", picture, "Its mask:", mask, "Is it?"]) == "Yes"
    content = sent[0]["messages"][0]["content"]
    assert sent[0]["max_tokens"] == 7
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    for part, pixels in ((content[1], picture), (content[3], mask)):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_a_model_on_this_machine_sees_no_pictures() -> None:
    judge = LocalJudge.__new__(LocalJudge)
    judge.name = "m"
    with pytest.raises(ValueError, match="The judge m cannot see pictures: give one on a server with judge_url"):
        judge(["text", np.zeros((2, 2, 3), np.uint8)])


def test_templates_have_every_field_and_fill_it_once(tmp_path: Path) -> None:
    assert fill_template("{a} and {b}, {a}; {c}", {"a": "{b}", "b": "x"}) == "{b} and x, {b}; {c}"
    path = tmp_path / "prompt.txt"
    path.write_text("{a} or {c}")
    assert read_template(str(path), "", (("a",), ("b", "c"))) == "{a} or {c}"
    assert read_template(None, "{a}", (("a",),)) == "{a}"
    with pytest.raises(ValueError, match=r"lacks \{d\} or \{e\}, which is filled in for every question: write it"):
        read_template(str(path), "", (("a",), ("d", "e")))


def test_surroundings_are_three_times_the_box_and_end_at_the_border() -> None:
    picture = np.random.RandomState(0).randint(0, 255, (400, 600, 3), dtype=np.uint8)
    mask = np.zeros((400, 600), dtype=bool)
    mask[150:250, 200:300] = True
    shown, inside = surroundings(picture, mask)
    assert np.array_equal(shown, picture[50:350, 100:400])
    assert inside.dtype == np.uint8
    assert np.array_equal(inside, mask[50:350, 100:400] * np.uint8(255))
    mask[:] = False
    mask[10:20, 590:600] = True  # small, and at a corner: measured as 56 pixels
    shown, _ = surroundings(picture, mask)
    assert np.array_equal(shown, picture[0 : -13 + 112, 567 - 56 : 600])
    mask[:] = False
    assert surroundings(picture, mask)[0].shape == picture.shape


def test_a_region_without_a_mask_is_its_box() -> None:
    record = Record("a.png", 20, 10, [Region([2, 3, 5, 7]), Region([4, 4, 4.2, 4.2])])
    mask = region_mask(record, 0)
    assert (mask.sum(), mask[3:7, 2:5].all()) == (12, True)
    assert region_mask(record, 1).sum() == 1


def test_marks_are_drawn_with_their_numbers() -> None:
    picture = np.full((100, 120, 3), 200, dtype=np.uint8)
    drawn = with_numbers(picture, [Region([10, 20, 60, 80]), Region(points=[[100, 50]], point_labels=[1])])
    assert drawn.shape == picture.shape
    assert tuple(drawn[80, 40]) == (0, 255, 0)
    assert tuple(drawn[50, 100]) == (0, 255, 0)
    assert tuple(drawn[95, 5]) == (160, 160, 160)
    assert (picture == 200).all()
