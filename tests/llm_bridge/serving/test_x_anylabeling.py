"""X-AnyLabeling's wire: bodies as its client 4.2 sends and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
    return answer.json()["data"]["shapes"]


def test_the_list_of_models_is_what_the_client_reads(client: Any) -> None:
    listed = client.get("/v1/models", headers={"Token": "", "Content-Type": "application/json"}).json()
    card = listed["data"][MODEL]
    assert set(GOLDEN["model_keys"]) <= set(card)
    assert card["batch_processing_mode"] is None  # a user marks every picture
    assert {widget["name"] for widget in card["widgets"]} <= set(GOLDEN["widgets"])
    assert all(set(widget) == {"name", "value"} for widget in card["widgets"])


def test_a_rectangle_becomes_a_polygon_with_label_and_caption(
    client: Any, bundled_chat: RegionChat, demo_url: str
) -> None:
    (shape,) = predict(client, demo_url, {"type": "rectangle", "data": BOX})
    assert set(shape) == set(GOLDEN["shape_keys"])
    assert (shape["label"], shape["shape_type"], shape["description"]) == ("cloud", "polygon", "a medium pink cloud")
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


def test_text_is_asked_of_each_region(client: Any, bundled_chat: RegionChat, demo_url: str) -> None:
    chat = RegionChat(bundled_chat.model, bundled_chat.processor)
    chat.warns_of_limitation = False
    expected = chat.ask("What colour is <region>?", image=picture_of(demo_url), boxes=[BOX])
    for text in ("What colour is <region>?", " What colour is <region>?\n"):
        (shape,) = predict(client, demo_url, {"type": "rectangle", "data": BOX}, text_prompt=text)
        assert shape["description"] == expected
        assert shape["label"] == "cloud"


def test_finer_masks_have_more_points_and_unsure_ones_are_left_out(client: Any, demo_url: str) -> None:
    mark = {"type": "rectangle", "data": BOX}
    (fine,), (coarse,) = (predict(client, demo_url, mark, epsilon_factor=epsilon) for epsilon in (0.0005, 0.02))
    assert len(fine["points"]) > 2 * len(coarse["points"]) >= 8
    assert predict(client, demo_url, mark, conf_threshold=fine["score"] + 0.001) == []


def picture_of(url: str) -> np.ndarray:
    from llm_bridge.page.input import PageLimits, read_picture

    return read_picture(url, PageLimits())
