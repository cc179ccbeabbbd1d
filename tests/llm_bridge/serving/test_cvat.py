"""CVAT's own SDK loads the interactor and gets masks from clicks on a picture that was encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from server_requests import BOX, MODEL

from llm_bridge.configuration_bridge import BUNDLED

cvataa = pytest.importorskip("cvat_sdk.auto_annotation", reason="needs cvat-cli")

from cvat_sdk.masks import decode_mask  # noqa: E402

MODULE = "llm_bridge.serving.cvat"


@dataclass
class Prompts:
    """What CVAT hands over."""

    pos_points: tuple[Any, ...] = ()
    neg_points: tuple[Any, ...] = ()
    bounding_box: Any = None


@pytest.fixture(scope="module")
def function() -> Any:
    """The interactor as CVAT's command loads it."""
    common = pytest.importorskip("cvat_cli._internal.common", reason="needs cvat-cli")
    return common.FunctionLoader(MODULE, None, {"model": "tap-tiny"}).load()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(BUNDLED / MODEL / "demo.png")


def test_the_command_knows_what_it_takes(function: Any) -> None:
    from cvat_cli._internal.agent_driver_interaction import AgentInteractionFunctionDriver

    fields = AgentInteractionFunctionDriver.get_remote_function_fields(function.spec)
    assert fields == {"min_pos_points": 0, "min_neg_points": 0, "startswith_box_optional": True}


def test_clicks_give_the_masks_of_tap(function: Any, picture: Image.Image) -> None:
    tokenizer = function.tokenizer
    seen = function.preprocess_image(None, picture)
    box = ((BOX[0], BOX[1]), (BOX[2], BOX[3]))
    clicks: list[tuple[Prompts, dict[str, Any]]] = [
        (Prompts(pos_points=((224, 430),)), {"points": [[[224, 430]]]}),
        (Prompts(((224, 430),), ((10, 10),)), {"points": [[[224, 430], [10, 10]]], "point_labels": [[1, 0]]}),
        (Prompts(bounding_box=box), {"boxes": [BOX]}),
        (Prompts(((224, 430),), (), box), {"boxes": [BOX], "points": [[[224, 430]]]}),
    ]
    for given, prompt in clicks:
        (shape,) = function.detect(None, seen, given)
        expected = tokenizer.encode(picture, **prompt, with_masks=True)
        mask = decode_mask(shape.points, image_width=picture.width, image_height=picture.height)
        assert shape.type == "mask"
        assert (mask == expected.masks[0].numpy()).all()
        assert float(shape.attributes[0].value) == pytest.approx(float(expected.quality[0]), abs=1e-4)


def test_nothing_marked_is_refused_in_words(function: Any, picture: Image.Image) -> None:
    seen = function.preprocess_image(None, picture)
    with pytest.raises(ValueError, match="mark a point or a rectangle"):
        function.detect(None, seen, Prompts())
    with pytest.raises(ValueError, match="off the object"):
        function.detect(None, seen, Prompts(neg_points=((5, 5),)))
