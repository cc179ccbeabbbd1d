"""X-AnyLabeling's protocol for a server of models: which models there are, and shapes for what was marked.

With every request, the client sends a header Token, which may be empty. It tells the client apart from OpenAI's.
"""

from __future__ import annotations

from threading import Event
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tap_tokenizer import before_step

from .annotations import Annotation, annotate, find_annotations
from .chat_requests import read_json
from .conversations import check_words, read_data_url, read_prompt
from .marks import Marks
from .outlines import outlines_of
from .service import Service

WIDGETS: tuple[tuple[str, int | bool | None], ...] = (
    ("button_add_point", None),
    ("button_remove_point", None),
    ("button_add_rect", None),
    ("button_run_rect", None),
    ("button_clear", None),
    ("button_finish_object", None),
    ("mask_fineness_slider", 10),
    ("mask_fineness_value_label", None),
    ("toggle_preserve_existing_annotations", True),
)
"""The client's controls that this server answers, and their first values.

The last one keeps the shapes that are there: without it, the client deletes them for what a text finds, and for a request that
failed.
"""

FINDING_WIDGETS: tuple[tuple[str, int | bool | None], ...] = (
    ("edit_text", None),
    ("button_send", None),
)
"""Those for a model that finds by words. The button sends the text, and no mark with it."""

UNFINISHED = "AUTOLABEL_OBJECT"
"""The label of what is still being marked: the client replaces it at the next mark, and asks for a label in the end."""


class Mark(BaseModel):
    """A point (x, y), on the object if its label is 1, or a rectangle (x1, y1, x2, y2)."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    type: Literal["point", "rectangle"]
    data: list[float]
    label: int = 1


class Parameters(BaseModel):
    """What the user has marked and set. The client sends more than this server has a use for, such as IoU thresholds."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    marks: list[Mark] = []
    text_prompt: str | None = None
    conf_threshold: float = 0.0
    epsilon_factor: float = Field(default=0.001, ge=0, le=1)


class PredictRequest(BaseModel):
    """A picture as a data URL, and what to find on it."""

    model_config = ConfigDict(strict=True)
    model: str
    image: str
    params: Parameters = Parameters()


def models(service: Service) -> dict[str, Any]:
    """The body of GET /v1/models for this client."""
    offered = WIDGETS if service.chat.finding_limitation is not None else FINDING_WIDGETS + WIDGETS
    widgets = [{"name": name, "value": value} for name, value in offered]
    card = {"display_name": f"Regions: {service.name}", "widgets": widgets, "batch_processing_mode": None}
    return {"success": True, "data": {service.name: {**card, "params": {}, "available_tasks": []}}}


async def predict(service: Service, request: Request) -> Response:
    """Shapes of what is marked on a picture, or of what a text without marks finds there, which is their label.

    Each has TAP's caption as its description, and its concept and caption as attributes, which the client keeps when the user
    finishes a shape. With marks and text, which the client does not send together, the language model is asked the text about
    each region, and its answer is the caption.
    """
    asked = read_json(await request.body(), PredictRequest)
    service.check_model(asked.model)
    limits = service.limits
    params = asked.params
    text = (params.text_prompt or "").strip() or None
    phrase = None if params.marks else text

    def work(gone: Event) -> list[dict[str, Any]]:
        if text is not None:
            check_words(text)
            if len(text) > limits.characters:
                raise ValueError(f"The text has {len(text)} characters, expected at most {limits.characters}.")
        if phrase is not None:
            found = find_annotations(service.chat, read_data_url(asked.image, limits, "image"), phrase, gone)
        else:
            regions = _marks(params.marks).regions()
            if len(regions) > limits.regions:
                raise ValueError(f"{len(regions)} rectangles are marked, expected at most {limits.regions}.")
            picture = read_data_url(asked.image, limits, "image")
            prompts = [read_prompt(region, picture, limits, "Region", i) for i, region in enumerate(regions, 1)]
            found = annotate(service.chat, picture, prompts, text, gone, limits.new_tokens)
        before_step()
        sure = [one for one in found if one.score >= params.conf_threshold]
        return [
            shape
            for number, one in enumerate(sure, 1)
            for shape in _shapes(one, phrase or UNFINISHED, number, params.epsilon_factor)
        ]

    shapes = await service.result(request, work)
    replace = False if phrase is None else None  # None: as the user has set it
    return JSONResponse({"success": True, "data": {"shapes": shapes, "description": "", "replace": replace}})


def _marks(marks: list[Mark]) -> Marks:
    points, labels, boxes = [], [], []
    for number, mark in enumerate(marks):
        count = 2 if mark.type == "point" else 4
        if len(mark.data) != count:
            raise ValueError(f"Mark {number} is a {mark.type} of {len(mark.data)} numbers, expected {count}.")
        if mark.label not in (0, 1) or (mark.type == "rectangle" and not mark.label):
            raise ValueError(
                f"Mark {number} is a {mark.type} with the label {mark.label}: only points may be off the object."
            )
        if mark.type == "point":
            points.append((mark.data[0], mark.data[1]))
            labels.append(mark.label)
        else:
            (x1, x2), (y1, y2) = sorted(mark.data[::2]), sorted(mark.data[1::2])
            boxes.append((x1, y1, x2, y2))
    return Marks(points, labels, boxes)


def _shapes(found: Annotation, label: str, number: int, epsilon: float) -> list[dict[str, Any]]:
    """A polygon for each part of a region's mask, closed by its first point; a rectangle if the mask is empty."""
    parts = [("polygon", [*outline.tolist(), outline[0].tolist()]) for outline in outlines_of(found.mask, epsilon)]
    x1, y1, x2, y2 = found.box
    return [
        {
            "label": label,
            "shape_type": kind,
            "points": [[round(x, 2), round(y, 2)] for x, y in points],
            "score": round(found.score, 4),
            "description": found.caption,
            "attributes": {"concept": found.concept, "caption": found.caption},
            "difficult": False,
            "direction": 0,
            "flags": None,
            "group_id": number if len(parts) > 1 else None,
            "kie_linking": [],
        }
        for kind, points in parts or [("rectangle", [[x1, y1], [x2, y1], [x2, y2], [x1, y2]])]
    ]
