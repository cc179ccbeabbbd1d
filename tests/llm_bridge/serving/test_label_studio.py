"""Label Studio's wire: its own SDK accepts the predictions, decodes the brushes, and its pictures are fetched from it alone."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_requests import BOX, MODEL

from llm_bridge import RegionChat
from llm_bridge.configuration_bridge import BUNDLED
from tap_tokenizer import as_mask

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "label_studio.json").read_text())
DEMO = BUNDLED / MODEL / "demo.png"


def config(shape: str = "Brush") -> str:
    return GOLDEN["config"].replace("BrushLabels", f"{shape}Labels")


def rectangle(box: Any = BOX, **more: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = (value / 512 * 100 for value in box)
    value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": ["cloud"]}
    return {**GOLDEN["rectangle"], "value": value, **more}


def keypoint(x: float, y: float, **more: Any) -> dict[str, Any]:
    return {
        **GOLDEN["keypoint"],
        "value": {"x": x / 5.12, "y": y / 5.12, "width": 1, "keypointlabels": ["cloud"]},
        **more,
    }


def predict(client: Any, url: str, *drawn: Any, shape: str = "Brush", smart: bool = True) -> dict[str, Any]:
    task: dict[str, Any] = {"id": 7, "data": {"image": url}}
    body: dict[str, Any] = {**GOLDEN["request"], "tasks": [task], "label_config": config(shape)}
    if smart:
        body["params"] = {"context": {"result": list(drawn)}, "login": None, "password": None}
    else:
        task["annotations"] = [{"id": 1, "result": list(drawn), "was_cancelled": False}]
        body["params"] = {}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == MODEL
    (prediction,) = answer.json()["results"]
    assert set(prediction) == {"result", "score", "model_version"}
    return prediction


def mask_of(chat: RegionChat, **prompt: Any) -> np.ndarray:
    return chat.region_tokenizer.encode(DEMO, **prompt, with_masks=True).masks[0].numpy()


def decoded(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """A brush's mask, read bit by bit as its format says."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = read(1)
        count = read(widths[read(2)]) + 1
        values += [read(word)] * count if same else [read(word) for _ in range(count)]
    return np.array(values).reshape(*size, 4)[..., 3] > 0


def test_setup_health_and_webhook_answer_as_expected(client: Any) -> None:
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/setup", json=GOLDEN["setup"]).json() == {"model_version": MODEL}
    assert client.post("/webhook", json={"action": "ANNOTATION_CREATED", "task": {}}).status_code == 201


def test_what_is_drawn_becomes_a_brush_with_a_text(client: Any, bundled_chat: RegionChat, demo_url: str) -> None:
    for drawn, prompt in (
        ([rectangle()], {"boxes": [BOX]}),
        ([keypoint(224, 430)], {"points": [[[224, 430]]]}),
        (
            [keypoint(224, 430), keypoint(10, 10, is_positive=0)],
            {"points": [[[224, 430], [10, 10]]], "point_labels": [[1, 0]]},
        ),
        ([rectangle(), keypoint(224, 430)], {"boxes": [BOX], "points": [[[224, 430]]]}),
    ):
        brush, text = predict(client, demo_url, *drawn)["result"]
        expected = mask_of(bundled_chat, **prompt)
        assert set(brush) == set(GOLDEN["result_keys"]) | {"score"}
        assert (brush["type"], brush["from_name"], brush["to_name"]) == ("brushlabels", "brush", "img")
        assert (brush["original_width"], brush["original_height"]) == (512, 512)
        assert brush["value"]["format"] == "rle"
        assert brush["value"]["brushlabels"] == ["cloud"]
        assert (decoded(brush["value"]["rle"], (512, 512)) == expected).mean() > 0.9999  # percent are rounded
        assert (text["type"], text["from_name"], text["id"]) == ("textarea", "caption", brush["id"])
        assert text["value"] == {"text": ["a medium pink cloud"]}


def test_several_rectangles_are_several_regions(client: Any, demo_url: str) -> None:
    result = predict(client, demo_url, rectangle(), rectangle([40, 40, 200, 200]))["result"]
    assert [one["type"] for one in result] == ["brushlabels", "textarea"] * 2
    assert len({one["id"] for one in result}) == 2


def test_polygons_are_drawn_where_the_project_has_them(client: Any, bundled_chat: RegionChat, demo_url: str) -> None:
    polygon, _ = predict(client, demo_url, rectangle(), shape="Polygon")["result"]
    assert polygon["type"] == "polygonlabels"
    points = [[x * 5.12, y * 5.12] for x, y in polygon["value"]["points"]]
    expected, again = mask_of(bundled_chat, boxes=[BOX]), as_mask(points, (512, 512))
    assert (expected & again).sum() / (expected | again).sum() > 0.97


def test_rectangles_of_an_annotation_get_their_texts(client: Any, demo_url: str) -> None:
    same, text = predict(client, demo_url, rectangle(id="mine"), smart=False)["result"]
    assert (same["id"], same["type"], text["id"]) == ("mine", "rectanglelabels", "mine")
    assert same["value"] == rectangle()["value"]
    assert text["value"]["text"] == ["a medium pink cloud"]
    assert predict(client, demo_url, smart=False) == {"model_version": MODEL, "score": 0.0, "result": []}


def test_its_own_sdk_accepts_every_prediction(client: Any, demo_url: str) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="needs label-studio-sdk")
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs label-studio-sdk")
    for shape in ("Brush", "Polygon"):
        for smart in (True, False):
            prediction = predict(client, demo_url, rectangle(), shape=shape, smart=smart)
            assert interface.LabelInterface(config(shape)).validate_prediction(prediction, return_errors=True) == []
    rle = predict(client, demo_url, rectangle())["result"][0]["value"]["rle"]
    theirs = brush.decode_rle(rle).reshape(512, 512, 4)[..., 3]
    assert set(np.unique(theirs)) == {0, 255}
    ours = brush.mask2rle(theirs)
    assert ours[: len(rle) - 1] == rle[: len(rle) - 1]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 30), (300, 300)])
def test_brushes_come_back(size: tuple[int, int]) -> None:
    from llm_bridge.serving.brush import brush_of_mask

    for seed, share in enumerate((0.0, 0.5, 0.02, 1.0)):
        mask = np.random.RandomState(seed).random(size) < share
        assert (decoded(brush_of_mask(mask), size) == mask).all()


# --- pictures that Label Studio keeps ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studio() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A web server that serves the demo's picture as Label Studio does, and what it was asked for."""
    asked: list[tuple[str, str | None]] = []

    class Studio(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            if self.path == "/data/moved.png":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()
                return
            data = {
                "/data/upload/1/demo.png": DEMO.read_bytes(),
                "/data/large.png": b"\0" * 11_000_000,
                "/data/text.png": b"hello",
            }
            self.send_response(200 if self.path in data else 404)
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has had enough
                self.wfile.write(data.get(self.path, b""))

        def log_message(self, *given: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Studio)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def fetching(build: Callable[..., Any], bundled_chat: RegionChat, studio: Any) -> Any:
    from starlette.testclient import TestClient

    from llm_bridge.serving.label_studio_files import LabelStudioFiles

    files = LabelStudioFiles(studio[0], "key", 10_000_000)
    return TestClient(build(bundled_chat, MODEL, files=files), base_url="http://127.0.0.1:8000")


def test_pictures_are_fetched_with_the_operators_token(fetching: Any, studio: Any, demo_url: str) -> None:
    expected = predict(fetching, demo_url, rectangle())["result"][0]["value"]
    address, asked = studio
    for url in ("/data/upload/1/demo.png", f"{address}/data/upload/1/demo.png"):
        assert predict(fetching, url, rectangle())["result"][0]["value"] == expected
    assert asked[-2:] == [("/data/upload/1/demo.png", "Token key")] * 2


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("/data/none.png", "invalid_image_url"),
        ("/data/moved.png", "invalid_image_url"),
        ("/data/large.png", "invalid_image"),
        ("/data/text.png", "invalid_value"),
        ("http://127.0.0.1:9/data/upload/1/demo.png", "invalid_image_url"),
        ("//example.org/a.png", "invalid_image_url"),
        ("http://127.0.0.1@example.org/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("http://[::1/a.png", "invalid_image_url"),
        ("s3://bucket/a.png", "invalid_image_url"),
    ],
)  # fmt: skip
def test_nothing_is_fetched_from_anywhere_else(fetching: Any, studio: Any, url: str, code: str) -> None:
    before = len(studio[1])
    body = {
        **GOLDEN["request"],
        "tasks": [{"data": {"image": url}}],
        "label_config": config(),
        "params": {"context": {"result": [rectangle()]}},
    }
    answer = fetching.post("/predict", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert len(studio[1]) - before == (1 if url.startswith("/data") else 0)
