"""Label Studio's wire: its own SDK accepts the predictions, decodes the brushes, and its pictures are fetched from it alone."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_answers import served
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
    for schema in (GOLDEN["config"], "", None):
        setup = client.post("/setup", json={**GOLDEN["setup"], "schema": schema})
        assert setup.json() == {"model_version": MODEL}
    refused = client.post("/setup", json={**GOLDEN["setup"], "schema": '<View><Text name="a" value="$b"/></View>'})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_label_config")
    assert "has no <Image" in refused.json()["error"]["message"]
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


def bulk(client: Any, *urls: Any, drawn: list[dict[str, Any]] | None = None) -> Any:
    """The answer to tasks without a context, each with the same rectangles."""
    annotations = [{"id": 1, "result": [rectangle()] if drawn is None else drawn}]
    tasks = [{"id": number, "data": {"image": url}, "annotations": annotations} for number, url in enumerate(urls)]
    return client.post("/predict", json={**GOLDEN["request"], "tasks": tasks, "label_config": config(), "params": {}})


def test_a_task_that_fails_leaves_the_others_their_predictions(
    client: Any, demo_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = bulk(client, demo_url, "data:image/png;base64,AAAA", "/data/none.png", demo_url)
    assert answer.status_code == 200, answer.text
    good, damaged, elsewhere, last = answer.json()["results"]
    assert [one["type"] for one in good["result"]] == ["rectanglelabels", "textarea"]
    assert last == good
    assert damaged["result"] == elsewhere["result"] == []
    assert "Task 1 of a request of Label Studio's gets no prediction: The file is not a picture" in caplog.text
    assert "Task 2 " in caplog.text


def test_a_region_that_cannot_be_read_leaves_the_others_their_texts(
    client: Any, demo_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        rectangle(id="turned", image_rotation=90),
        rectangle([50, 50, 50, 90], id="thin"),
        keypoint(-30, 20, id="beside"),
        {**rectangle(id="words"), "value": {"x": "left"}},
    ]
    bad[0]["value"] = {**bad[0]["value"], "rotation": 30}
    drawn = [bad[0], rectangle(id="one"), bad[1], bad[2], keypoint(224, 430, id="two"), bad[3]]
    (prediction,) = bulk(client, demo_url, drawn=drawn).json()["results"]
    assert [(one["id"], one["type"]) for one in prediction["result"]] == [
        ("one", "rectanglelabels"),
        ("one", "textarea"),
        ("two", "keypointlabels"),
        ("two", "textarea"),
    ]
    (alone,) = bulk(client, demo_url, drawn=[drawn[1]]).json()["results"]
    assert [one["value"] for one in prediction["result"][:2]] == [one["value"] for one in alone["result"]]
    assert "Task 0 of a request of Label Studio's gets no text for 4 of its 6 regions: " in caplog.text
    for one in bad:
        assert f"{one['type']} {one['id']!r}: " in caplog.text
    assert "rotated: rotate it back first." in caplog.text
    (none,) = bulk(client, demo_url, drawn=bad).json()["results"]
    assert none["result"] == []
    smart = {**drawn_at(demo_url), "params": {"context": {"result": bad[:1]}}}
    assert client.post("/predict", json=smart).status_code == 400  # what was just drawn is refused


def test_a_project_with_texts_alone_gets_what_was_drawn_with_its_text(client: Any, demo_url: str) -> None:
    written = (
        '<View><Image name="img" value="$image"/><RectangleLabels name="rectangle" toName="img" smart="true">'
        '<Label value="cloud"/></RectangleLabels><KeyPointLabels name="point" toName="img" smart="true">'
        '<Label value="cloud"/></KeyPointLabels><TextArea name="caption" toName="img" perRegion="true"/></View>'
    )
    assert client.post("/setup", json={**GOLDEN["setup"], "schema": written}).status_code == 200
    for drawn, kept in (
        ([rectangle()], [rectangle()]),
        ([keypoint(224, 430)], [keypoint(224, 430)]),
        ([rectangle(), rectangle([40, 40, 200, 200])], [rectangle(), rectangle([40, 40, 200, 200])]),
        ([keypoint(224, 430), rectangle()], [rectangle()]),
    ):
        body = {**drawn_at(demo_url), "label_config": written, "params": {"context": {"result": drawn}}}
        (prediction,) = client.post("/predict", json=body).json()["results"]
        regions, texts = prediction["result"][::2], prediction["result"][1::2]
        for region, text, expected in zip(regions, texts, kept, strict=True):
            assert (region["type"], region["from_name"]) == (expected["type"], expected["from_name"])
            assert region["value"] == expected["value"]
            assert (text["type"], text["from_name"], text["id"]) == ("textarea", "caption", region["id"])
            assert text["value"]["text"][0]
        assert len({region["id"] for region in regions} - {one["id"] for one in drawn}) == len(kept)


def test_a_task_may_have_more_regions_than_are_encoded_at_once(client: Any, demo_url: str) -> None:
    boxes = [[177, 392, 271 + number, 470] for number in range(26)]
    (prediction,) = bulk(client, demo_url, drawn=[rectangle(box) for box in boxes]).json()["results"]
    assert len(prediction["result"]) == 2 * 26


def test_a_request_takes_one_place_and_has_one_deadline_however_many_tasks_it_has(
    build: Callable[..., Any], bundled_chat: RegionChat, demo_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from llm_bridge.serving import label_studio
    from llm_bridge.serving.limits import ServerLimits

    app = build(bundled_chat, MODEL, limits=ServerLimits(seconds=1.0, tasks=6))
    taken, gone = [], []

    def slow(*given: Any) -> list[Any]:
        taken.append(app.state.service.worker.taken)
        gone.append(given[4])
        time.sleep(0.4)
        return []

    monkeypatch.setattr(label_studio, "annotate", slow)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    answer = bulk(client, *[demo_url] * 6)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    assert set(taken) == {1}
    assert gone[0].wait(5)
    assert len(taken) < 6
    refused = bulk(client, *[demo_url] * 7)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_tasks")
    assert "expected at most 6: select fewer" in refused.json()["error"]["message"]


def test_a_region_never_gets_a_label_that_nobody_gave_it(client: Any, demo_url: str) -> None:
    drawn = rectangle()
    drawn["value"] = {**drawn["value"], "rectanglelabels": ["positive"]}

    def asked(*labels: str) -> Any:
        own = "".join(f'<Label value="{label}"/>' for label in labels)
        written = (
            f'<View><Image name="img" value="$image"/><BrushLabels name="brush" toName="img">{own}</BrushLabels></View>'
        )
        task = {"id": 7, "data": {"image": demo_url}}
        body = {
            **GOLDEN["request"],
            "tasks": [task],
            "label_config": written,
            "params": {"context": {"result": [drawn]}},
        }
        return client.post("/predict", json=body)

    for labels, label in ((("star", "cloud"), "cloud"), (("positive", "cloud"), "positive"), (("thing",), "thing")):
        (prediction,) = asked(*labels).json()["results"]
        assert prediction["result"][0]["value"]["brushlabels"] == [label]
    refused = asked("star", "moon")
    assert refused.status_code == 400
    words = refused.json()["error"]["message"]
    assert "with the label 'positive', and TAP sees 'cloud' there. Expected a label of brush: star, moon." in words


def test_a_configuration_of_any_length_is_not_read(client: Any, demo_url: str) -> None:
    long = config() + " " * 100_000
    for path, body in (
        ("/predict", {**GOLDEN["request"], "tasks": [], "label_config": long}),
        ("/setup", {**GOLDEN["setup"], "schema": long}),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_label_config")
        assert "characters, expected at most 100,000" in answer.json()["error"]["message"]


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
            if self.path == "/data/upload/1/moved.png":
                self.send_response(302)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.end_headers()
                return
            data = {
                "/data/upload/1/demo.png": DEMO.read_bytes(),
                "/data/upload/1/large.png": b"\0" * 11_000_000,
                "/data/upload/1/text.png": b"hello",
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


def drawn_at(url: str) -> dict[str, Any]:
    """A request about a rectangle on the picture at an address."""
    return {
        **GOLDEN["request"],
        "tasks": [{"data": {"image": url}}],
        "label_config": config(),
        "params": {"context": {"result": [rectangle()]}},
    }


@pytest.fixture(scope="module")
def fetching(build: Callable[..., Any], bundled_chat: RegionChat, studio: Any) -> Any:
    from starlette.testclient import TestClient

    from llm_bridge.serving.label_studio_files import LabelStudioFiles

    files = LabelStudioFiles(studio[0], "key", 10_000_000)
    app = build(bundled_chat, MODEL, files=files)
    return TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50_000))


def test_pictures_are_fetched_with_the_operators_token(fetching: Any, studio: Any, demo_url: str) -> None:
    expected = predict(fetching, demo_url, rectangle())["result"][0]["value"]
    address, asked = studio
    for url in ("/data/upload/1/demo.png", f"{address}/data/upload/1/demo.png"):
        assert predict(fetching, url, rectangle())["result"][0]["value"] == expected
    assert asked[-2:] == [("/data/upload/1/demo.png", "Token key")] * 2


class Modern(http.server.BaseHTTPRequestHandler):
    """Label Studio as it is today: it takes a personal access token, exchanges it, and refuses the old scheme."""

    asked: list[tuple[str, str | None]] = []
    given = 0

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/api/token/refresh" or sent != {"refresh": PERSONAL}:
            self.answer(401, b'{"detail": "Token is invalid or expired"}')
            return
        Modern.given += 1
        self.answer(200, json.dumps({"access": f"eyJ.access.{self.given}"}).encode())

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        is_known = self.headers["Authorization"] == f"Bearer eyJ.access.{self.given}"
        self.answer(200, DEMO.read_bytes()) if is_known else self.answer(401, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        pass


PERSONAL = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"


def test_a_personal_access_token_is_exchanged_and_again_when_it_has_expired(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("starlette", reason="needs the extra serve")
    from llm_bridge.serving.errors import RequestError
    from llm_bridge.serving.label_studio_files import LabelStudioFiles

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Modern)
    with served(server):
        address = f"http://127.0.0.1:{server.server_port}"
        files = LabelStudioFiles(address, PERSONAL, 10_000_000)
        for _ in range(2):
            assert files.fetch("/data/upload/1/demo.png", "image", threading.Event()) == DEMO.read_bytes()
        assert Modern.given == 1
        Modern.given = 7  # what was given before has expired
        assert files.fetch("/data/upload/1/demo.png", "image", threading.Event()) == DEMO.read_bytes()
        assert Modern.asked[-1] == ("/data/upload/1/demo.png", "Bearer eyJ.access.8")
        with pytest.raises(RequestError, match="answered 401 for image: check its access token"):
            LabelStudioFiles(address, "legacy", 10_000_000).fetch("/data/upload/1/demo.png", "image", threading.Event())
        other = LabelStudioFiles(address, PERSONAL + "x", 10_000_000)
        with pytest.raises(RequestError) as refused:
            other.fetch("/data/upload/1/demo.png", "image", threading.Event())
        assert (refused.value.status, refused.value.code) == (502, "upstream_error")
        assert "refuses the access token (401): give a new one" in caplog.text


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("/data/upload/1/none.png", "invalid_image_url"),
        ("/data/upload/1/moved.png", "invalid_image_url"),
        ("/data/upload/1/large.png", "invalid_image"),
        ("/data/upload/1/text.png", "invalid_value"),
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
    answer = fetching.post("/predict", json=drawn_at(url))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert len(studio[1]) - before == (1 if url.startswith("/data/upload") and ".." not in url else 0)


@pytest.mark.parametrize(
    "path",
    [
        "/api/users/",
        "/api/projects/1/export",
        "/data/export/1.json",
        "/",
        "",
        "/data/upload",
        "/data/upload/../../api/users/",
        "/data/upload/%2e%2e/%2e%2e/api/users/",
        "/data/upload/%252e%252e/%252e%252e/api/users/",
        "/data/upload/..%5c..%5capi/users/",
        "/data/upload/1\\..\\..\\api",
        "/api/users/?x=/data/upload/1/demo.png",
        "/api/users/#/data/upload/1/demo.png",
        "/xdata/upload/1/demo.png",
        "/x/data/upload/1/demo.png",
        "/tasks/1/resolvers/",
        "/tasks/me/resolve/",
    ],
)
def test_nothing_but_pictures_is_fetched_from_label_studio(fetching: Any, studio: Any, path: str) -> None:
    address, asked = studio
    before = len(asked)
    for url in (path, address + path):
        answer = fetching.post("/predict", json=drawn_at(url))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image_url"), answer.text
    assert len(asked) == before


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://127.0.0.1:8080", "/data/upload/9/a picture.png"),
        ("http://127.0.0.1:8080", "/data/upload/9/100%25.png"),
        ("http://127.0.0.1:8080", "/data/local-files/?d=pictures/a.png"),
        ("http://127.0.0.1:8080", "/tasks/12/resolve/?fileuri=czM6Ly9hL2IucG5n"),
        ("http://127.0.0.1:8080/", "/projects/3/resolve/?fileuri=czM6Ly9hL2IucG5n"),
        ("http://127.0.0.1:8080/studio", "/studio/data/upload/9/a.png"),
    ],
)
def test_pictures_are_known_by_their_paths(url: str, path: str) -> None:
    from urllib.parse import urlsplit

    from llm_bridge.serving.label_studio_files import _is_served

    assert _is_served(urlsplit(path).path, urlsplit(url).path)


@pytest.mark.parametrize(
    ("token", "peer", "headers", "status"),
    [
        (None, "127.0.0.1", {}, 200),
        (None, "::1", {}, 200),
        (None, "192.0.2.7", {}, 403),
        (None, "127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, 403),
        (None, "127.0.0.1", {"Forwarded": "for=192.0.2.7"}, 403),
        ("correct-horse-battery", "192.0.2.7", {}, 401),
        ("correct-horse-battery", "127.0.0.1", {}, 401),
        ("correct-horse-battery", "192.0.2.7", {"Authorization": "Bearer correct-horse-battery"}, 200),
    ],
)
def test_pictures_are_fetched_only_for_clients_with_the_token_or_on_this_machine(
    build: Callable[..., Any], bundled_chat: RegionChat, studio: Any, demo_url: str,
    token: str | None, peer: str, headers: dict[str, str], status: int,
) -> None:  # fmt: skip
    from starlette.testclient import TestClient

    from llm_bridge.serving.label_studio_files import LabelStudioFiles

    app = build(bundled_chat, MODEL, files=LabelStudioFiles(studio[0], "key", 10_000_000), token=token)
    client = TestClient(app, base_url="http://127.0.0.1:8000", client=(peer, 50_000), headers=headers)
    before = len(studio[1])
    answer = client.post("/predict", json=drawn_at("/data/upload/1/demo.png"))
    assert answer.status_code == status, answer.text
    assert len(studio[1]) - before == (status == 200)
    if status == 403:
        assert "start it with REGION_CHAT_TOKEN" in answer.json()["error"]["message"]
        assert client.post("/predict", json=drawn_at(demo_url)).status_code == 200  # a picture that it brings itself
