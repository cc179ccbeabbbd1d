"""X-AnyLabeling's wire: bodies as its client 4.2 sends and reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from server_requests import BOX, MODEL

from llm_bridge import RegionChat
from tap_tokenizer import as_mask

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "x_anylabeling.json").read_text())


def predict(client: Any, url: str, *marks: Any, **params: Any) -> list[dict[str, Any]]:
    body = {
        **GOLDEN["request"],
        "image": url,
        "params": {**GOLDEN["request"]["params"], "marks": list(marks), **params},
    }
    answer = client.post("/v1/predict", json=body, headers={"Token": ""})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["replace"] is False  # the client takes the marks away with all else that it replaces
    return answer.json()["data"]["shapes"]


@pytest.fixture
def taught(bundled_chat: RegionChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model as one that was taught to find, and that always finds something."""
    monkeypatch.setattr(bundled_chat.model.config, "taught_to_find", True)
    monkeypatch.setattr(bundled_chat.model.config, "find_threshold", 1.0)


def test_the_list_of_models_is_what_the_client_reads(client: Any) -> None:
    listed = client.get("/v1/models", headers={"Token": "", "Content-Type": "application/json"}).json()
    card = listed["data"][MODEL]
    assert set(GOLDEN["model_keys"]) <= set(card)
    assert card["batch_processing_mode"] is None  # a user marks every picture
    assert {widget["name"] for widget in card["widgets"]} <= set(GOLDEN["widgets"])
    assert all(set(widget) == {"name", "value"} for widget in card["widgets"])
    widgets = {widget["name"]: widget["value"] for widget in card["widgets"]}
    assert not {"edit_text", "button_send"} & set(widgets)
    assert widgets["toggle_preserve_existing_annotations"] is True  # else a request that fails deletes all shapes


def test_a_model_that_finds_by_words_gets_the_text_and_the_button_that_sends_it(client: Any, taught: None) -> None:
    card = client.get("/v1/models", headers={"Token": ""}).json()["data"][MODEL]
    widgets = {widget["name"]: widget["value"] for widget in card["widgets"]}
    assert set(widgets) <= set(GOLDEN["widgets"])
    assert {"edit_text", "button_send"} <= set(widgets)


def test_a_rectangle_becomes_a_polygon_with_concept_and_caption(
    client: Any, bundled_chat: RegionChat, demo_url: str
) -> None:
    (shape,) = predict(client, demo_url, {"type": "rectangle", "data": BOX})
    assert set(shape) == set(GOLDEN["shape_keys"])
    assert (shape["label"], shape["shape_type"]) == (GOLDEN["unfinished"], "polygon")
    assert shape["description"] == "a medium pink cloud"
    assert shape["attributes"] == {"concept": "cloud", "caption": "a medium pink cloud"}
    assert shape["points"][0] == shape["points"][-1]  # by which the client closes it
    picture = picture_of(demo_url)
    seen = bundled_chat.region_tokenizer.encode(picture, boxes=[BOX], with_masks=True).masks[0].numpy()
    drawn = as_mask([[x for point in shape["points"] for x in point]], seen.shape)
    assert (seen & drawn).sum() / (seen | drawn).sum() > 0.97
    assert 0 <= shape["score"] <= 1


def test_points_and_a_rectangle_are_one_region_and_rectangles_are_several(client: Any, demo_url: str) -> None:
    on, off = {"type": "point", "data": [224, 430], "label": 1}, {"type": "point", "data": [10, 10], "label": 0}
    assert {shape["group_id"] for shape in predict(client, demo_url, on, off, {"type": "rectangle", "data": BOX})} <= {
        None,
        1,
    }
    corners = [271, 470, 177, 392]  # drawn from the lower right
    first, second = predict(
        client, demo_url, {"type": "rectangle", "data": corners}, {"type": "rectangle", "data": BOX}
    )
    assert first == second


def test_clicks_that_refine_a_region_leave_one_shape_that_finish_gives_its_label(client: Any, demo_url: str) -> None:
    """The client's own rules: a result removes the shapes with the label of what is unfinished, and Finish renames them."""
    canvas: list[dict[str, Any]] = [{"label": "mine"}]
    marks = [
        {"type": "point", "data": [224, 430], "label": 1},
        {"type": "point", "data": [230, 440], "label": 1},
        {"type": "point", "data": [10, 10], "label": 0},
    ]
    for count in (1, 2, 3):
        kept = [shape for shape in canvas if shape["label"] != GOLDEN["unfinished"]]
        canvas = [*kept, *predict(client, demo_url, *marks[:count])]
    unfinished = [shape for shape in canvas if shape["label"] == GOLDEN["unfinished"]]
    assert {shape["group_id"] for shape in unfinished} <= {None, 1}
    assert len(canvas) == 1 + len(unfinished) == 2
    assert unfinished[0]["attributes"]["concept"] == "cloud"  # what Finish keeps


def test_a_text_without_marks_is_found(client: Any, bundled_chat: RegionChat, demo_url: str, taught: None) -> None:
    chat = RegionChat(bundled_chat.model, bundled_chat.processor)
    chat.warns_of_limitation = False
    expected = chat.find("the cloud", image=picture_of(demo_url))
    assert len(expected) > 0
    answer = client.post("/v1/predict", json={**GOLDEN["text_request"], "image": demo_url}, headers={"Token": ""})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert data["replace"] is None  # as the user has set it
    shapes = data["shapes"]
    assert set(shapes[0]) == set(GOLDEN["shape_keys"])
    assert {shape["label"] for shape in shapes} == {"the cloud"}
    scores = list(dict.fromkeys(shape["score"] for shape in shapes))
    assert scores == pytest.approx([round(float(share), 4) for share in expected.probabilities], abs=1e-3)
    first = next(point for shape in shapes if shape["group_id"] in (None, 1) for point in shape["points"])
    x1, y1, x2, y2 = expected.boxes[0].tolist()
    assert x1 - 1 <= first[0] <= x2 + 1
    assert y1 - 1 <= first[1] <= y2 + 1
    assert shapes[0]["attributes"]["caption"] == shapes[0]["description"] != ""


def test_a_text_without_marks_is_refused_by_a_model_that_was_not_taught_to_find(client: Any, demo_url: str) -> None:
    answer = client.post("/v1/predict", json={**GOLDEN["text_request"], "image": demo_url}, headers={"Token": ""})
    assert answer.status_code == 400
    assert "not taught to find regions by words: mark a point" in answer.json()["error"]["message"]


def test_text_beside_marks_is_asked_of_each_region(client: Any, bundled_chat: RegionChat, demo_url: str) -> None:
    chat = RegionChat(bundled_chat.model, bundled_chat.processor)
    chat.warns_of_limitation = False
    expected = chat.ask("What colour is <region>?", image=picture_of(demo_url), boxes=[BOX])
    for text in ("What colour is <region>?", " What colour is <region>?\n"):
        (shape,) = predict(client, demo_url, {"type": "rectangle", "data": BOX}, text_prompt=text)
        assert shape["description"] == expected
        assert shape["attributes"] == {"concept": "cloud", "caption": expected}


def test_finer_masks_have_more_points_and_unsure_ones_are_left_out(client: Any, demo_url: str) -> None:
    mark = {"type": "rectangle", "data": BOX}
    (fine,), (coarse,) = (predict(client, demo_url, mark, epsilon_factor=epsilon) for epsilon in (0.0005, 0.02))
    assert len(fine["points"]) > 2 * len(coarse["points"]) >= 8
    assert predict(client, demo_url, mark, conf_threshold=fine["score"] + 0.001) == []


def test_a_search_ends_with_the_time_of_its_request(
    build: Callable[..., Any], bundled_chat: RegionChat, demo_url: str, taught: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from llm_bridge.serving.limits import ServerLimits
    from tap_tokenizer.region_decoder import RegionDecoder

    asked: list[int] = []
    run = RegionDecoder.run

    def slow(self: Any, *given: Any, **named: Any) -> Any:
        asked.append(1)
        time.sleep(0.5)
        return run(self, *given, **named)

    monkeypatch.setattr(RegionDecoder, "run", slow)
    app = build(bundled_chat, MODEL, limits=ServerLimits(seconds=2))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    answer = client.post("/v1/predict", json={**GOLDEN["text_request"], "image": demo_url}, headers={"Token": ""})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    end = time.monotonic() + 10
    while app.state.service.worker.taken:
        assert time.monotonic() < end, "the search goes on"
        time.sleep(0.02)
    assert len(asked) <= 5  # of sixteen and more


def test_an_answer_about_what_was_found_ends_at_its_next_token(
    bundled_chat: RegionChat, demo_url: str, taught: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_bridge.generation import LocalSpeaker
    from llm_bridge.serving.annotations import find_annotations
    from tap_tokenizer import interruptible

    class LeftError(Exception):
        pass

    gone = Event()
    told: list[Any] = []
    say = LocalSpeaker.say

    def left(self: Any, *given: Any, **named: Any) -> str:
        gone.set()
        told.append(named["tally"])
        return say(self, *given, **named)

    def check() -> None:
        if gone.is_set():
            raise LeftError

    monkeypatch.setattr(LocalSpeaker, "say", left)
    monkeypatch.setattr(LocalSpeaker, "log_probabilities", lambda *given: pytest.fail("it is asked on"))
    with interruptible(check), pytest.raises(LeftError):
        find_annotations(bundled_chat, picture_of(demo_url), "the cloud", gone)
    assert [tally.tokens for tally in told] == [1]


def picture_of(url: str) -> np.ndarray:
    from llm_bridge.page.input import PageLimits, read_picture

    return read_picture(url, PageLimits())
