"""Label Studio's protocol for a machine learning backend: regions with masks and texts for what was marked.

With a context, a user has just marked something with a smart tool. Without one, tasks are predicted in bulk: each rectangle
and point of a task's first annotation gets a text.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any
from xml.etree import ElementTree

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tap_tokenizer import RegionPrompt, counted, load_rgb

from ..listening import is_loopback
from ..page.input import decode_file
from .annotations import Annotation, annotate
from .brush import brush_of_mask
from .chat_requests import read_json
from .client import UpstreamError
from .conversations import read_data_url, read_prompt
from .errors import RequestError
from .label_studio_files import LabelStudioFiles
from .marks import Marks
from .outlines import outlines_of
from .service import Service, logger

CONFIG_CHARACTERS = 100_000
"""How long a project's configuration may be."""

EPSILON = 0.001
"""How far a polygon may lie from its mask, as a share of its length."""


class Drawn(BaseModel):
    """One thing that was drawn, with its place in percent of the picture."""

    model_config = ConfigDict(allow_inf_nan=False)
    type: str
    value: dict[str, Any] = {}
    id: str | None = None
    from_name: str | None = None
    is_positive: bool = True
    image_rotation: float = 0


class Drawing(BaseModel):
    """What was drawn together: an annotation, or the context of a smart tool."""

    result: list[Drawn] = []


class Task(BaseModel):
    """One picture to annotate, and what is known of it."""

    data: dict[str, Any]
    annotations: list[Drawing] = []


class PredictParameters(BaseModel):
    """Holds what the user has just drawn, if anything."""

    context: Drawing | None = None


class SetupRequest(BaseModel):
    """What Label Studio says of a project when it is connected."""

    config: str | None = Field(None, alias="schema")


class LabelStudioRequest(BaseModel):
    """Tasks, and how their project is labelled."""

    tasks: list[Task]
    label_config: str
    params: PredictParameters | None = None


@dataclass(frozen=True)
class Labelling:
    """What a project's configuration lets this server draw.

    image, key: the name of the picture, and its key in a task's data. shape: "brushlabels", "polygonlabels" or None; control,
    labels: its name and labels. text: the name of the text that each region has, or None.
    """

    image: str
    key: str
    shape: str | None
    control: str
    labels: tuple[str, ...]
    text: str | None

    @classmethod
    def read(cls, config: str) -> Labelling:
        """Read a project's XML. `ValueError` for one without a picture, or with nothing to draw."""
        if len(config) > CONFIG_CHARACTERS:
            raise ValueError(f"label_config has {len(config):,} characters, expected at most {CONFIG_CHARACTERS:,}.")
        if "<!" in config.replace("<!--", ""):
            raise ValueError("label_config declares a document type or entities: leave them out.")
        try:
            tree = ElementTree.fromstring(config)
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"label_config is not XML: {error}.") from None
        image = next(tree.iter("Image"), None)
        if image is None or not image.get("name") or not image.get("value", "").startswith("$"):
            raise ValueError('label_config has no <Image name="…" value="$…">, which this server needs.')
        own = [node for node in tree.iter() if image.get("name") in node.get("toName", "").split(",")]
        shape = next((node for tag in ("BrushLabels", "PolygonLabels") for node in own if node.tag == tag), None)
        texts = [node for node in own if node.tag == "TextArea" and node.get("perRegion", "").lower() == "true"]
        if shape is None and not texts:
            raise ValueError(
                "label_config has nothing for this server to fill in: add <BrushLabels>, <PolygonLabels> or "
                '<TextArea perRegion="true">.'
            )
        return cls(
            image=str(image.get("name")),
            key=str(image.get("value"))[1:],
            shape=None if shape is None else shape.tag.lower(),
            control="" if shape is None else shape.get("name", ""),
            labels=() if shape is None else tuple(label.get("value", "") for label in shape.iter("Label")),
            text=texts[0].get("name") if texts else None,
        )


async def setup(service: Service, request: Request) -> Response:
    """Which model it is; 400 for a project whose configuration this server can do nothing with."""
    asked = read_json(await request.body(), SetupRequest)
    if asked.config:
        _labelling(asked.config, "schema")
    return JSONResponse({"model_version": service.name})


def _labelling(config: str, param: str) -> Labelling:
    try:
        return Labelling.read(config)
    except ValueError as error:
        raise RequestError(400, "invalid_label_config", str(error), param=param) from None


async def webhook(service: Service, request: Request) -> Response:
    """Acknowledge an event, as Label Studio expects; nothing is learned from annotations."""
    return JSONResponse({}, status_code=201)


async def predict(service: Service, files: LabelStudioFiles, request: Request, *, is_open: bool) -> Response:
    """A prediction for each task.

    is_open: whether requests need no token; then pictures are fetched only for clients on this machine.

    What a user has just marked is answered or refused. A task that cannot be predicted in bulk gets an empty result, and a
    region of a task no text; the log says why: the others are worth having.
    """
    asked = read_json(await request.body(), LabelStudioRequest)
    labelling = _labelling(asked.label_config, "label_config")
    if len(asked.tasks) > service.limits.tasks:
        words = f"There are {len(asked.tasks)} tasks, expected at most {service.limits.tasks}: select fewer."
        raise RequestError(400, "too_many_tasks", words, param="tasks")
    if is_open and files.url is not None and not _is_near(request):
        for number, task in enumerate(asked.tasks):
            if not str(task.data.get(labelling.key)).startswith("data:"):
                words = "This server asks for no token, so it fetches pictures only for clients on its own machine: "
                words += "start it with REGION_CHAT_TOKEN, and give Label Studio that token as the password."
                raise RequestError(403, "not_allowed", words, param=f"tasks.{number}.data.{labelling.key}")
    context = asked.params.context if asked.params is not None else None

    def work(gone: Event) -> list[dict[str, Any]]:
        results = []
        for number, task in enumerate(asked.tasks):
            if gone.is_set():
                break
            own = _Task(service, labelling, files, task, f"tasks.{number}.data.{labelling.key}", gone)
            if context is not None:
                results.append(own.drawn(context.result))
                continue
            try:
                prediction, refused = own.described()
                results.append(prediction)
                if refused:
                    words = "Task %d of a request of Label Studio's gets no text for %d of its %s: %s"
                    count = counted(len(_marking(task.annotations[0].result)), "region")
                    logger.warning(words, number, len(refused), count, " ".join(refused)[:2000])
            except (ValueError, RequestError) as error:
                is_about_all = isinstance(error, UpstreamError) or getattr(error, "status", 400) >= 500
                if gone.is_set() or is_about_all:
                    raise
                logger.warning("Task %d of a request of Label Studio's gets no prediction: %s", number, error)
                results.append(_prediction(service.name, [], []))
        return results

    results = await service.result(request, work)
    return JSONResponse({"results": results, "model_version": service.name})


def _is_near(request: Request) -> bool:
    """Whether a request comes from this machine, and not from elsewhere through a proxy here."""
    is_passed_on = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
    return request.client is not None and is_loopback(request.client.host) and not is_passed_on


@dataclass(frozen=True)
class _Task:
    """A task, and what it takes to predict it. param: where its picture stands in the request."""

    service: Service
    labelling: Labelling
    files: LabelStudioFiles
    task: Task
    param: str
    gone: Event

    def drawn(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """A new region for what a user has just marked; several rectangles are one each."""
        marked = _marking(drawn)
        only_boxes = all(_KINDS[one.type] == "box" for one in marked)
        groups = [[one] for one in marked] if only_boxes else [marked]
        if len(groups) > self.service.limits.regions:
            raise ValueError(
                f"A task has {counted(len(groups), 'region')}, expected at most {self.service.limits.regions}."
            )
        return self._prediction(groups, lambda one, group: _new(self.labelling, one, group))[0]

    def described(self) -> tuple[dict[str, Any], list[str]]:
        """A text for each rectangle and point of the first annotation, and what is wrong with those that get none."""
        marked = _marking(self.task.annotations[0].result if self.task.annotations else [])
        return self._prediction(
            [[one] for one in marked], lambda one, group: _texts(self.labelling, one, group[0]), goes_on=True
        )

    def _prediction(
        self,
        groups: Sequence[list[Drawn]],
        write: Callable[[Annotation, list[Drawn]], list[dict[str, Any]]],
        *,
        goes_on: bool = False,
    ) -> tuple[dict[str, Any], list[str]]:
        """What `write` makes of the region that each group marks, as many regions at a time as a request may have.

        goes_on: whether groups that mark no region are left out, and what is wrong with them is told, instead of raised.
        """
        result: list[dict[str, Any]] = []
        scores: list[float] = []
        good: list[tuple[list[Drawn], RegionPrompt]] = []
        refused: list[str] = []
        limits = self.service.limits
        picture = self._picture() if groups else None
        for number, group in enumerate(groups, 1):
            assert picture is not None
            try:
                region = _marks(group, picture).regions()[0]
                good.append((group, read_prompt(region, picture, limits, "Region", number)))
            except ValueError as error:
                if not goes_on:
                    raise
                refused.append(f"{group[0].type} {(group[0].id or str(number))!r:.40}: {error}")
        for start in range(0, len(good), limits.regions):
            if picture is None or self.gone.is_set():
                break
            some = good[start : start + limits.regions]
            prompts = [prompt for _, prompt in some]
            found = annotate(self.service.chat, picture, prompts, None, self.gone, limits.new_tokens)
            for (group, _), one in zip(some, found):
                result += write(one, group)
                scores.append(one.score)
        return _prediction(self.service.name, result, scores), refused

    def _picture(self) -> np.ndarray:
        """The picture (H, W, 3): in a data URL, or in a file that Label Studio serves."""
        value, limits = self.task.data.get(self.labelling.key), self.service.limits
        if not isinstance(value, str):
            words = f"{self.param} is not the address of a picture."
            raise RequestError(400, "invalid_image_url", words, param=self.param)
        if value.startswith("data:"):
            return read_data_url(value, limits, self.param)
        return load_rgb(decode_file(self.files.fetch(value, self.param, self.gone), limits))


def _marking(drawn: Sequence[Drawn]) -> list[Drawn]:
    return [one for one in drawn if one.type in _KINDS]


_KINDS = {"keypointlabels": "point", "keypoint": "point", "rectanglelabels": "box", "rectangle": "box"}
"""What can be drawn to mark a region."""


def _marks(drawn: list[Drawn], picture: np.ndarray) -> Marks:
    height, width = picture.shape[:2]
    points, labels, boxes = [], [], []
    for one in drawn:
        if one.image_rotation or _number(one.value, "rotation", 0):
            raise ValueError("A picture or a rectangle is rotated: rotate it back first.")
        x, y = _number(one.value, "x") * width / 100, _number(one.value, "y") * height / 100
        if _KINDS[one.type] == "point":
            points.append((x, y))
            labels.append(int(one.is_positive))
        else:
            across, down = (_number(one.value, side) / 100 for side in ("width", "height"))
            boxes.append((x, y, x + across * width, y + down * height))
    return Marks(points, labels, boxes)


def _number(value: Mapping[str, Any], name: str, missing: float | None = None) -> float:
    number = value.get(name, missing)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= 1e6:
        raise ValueError(f"{name} of what was drawn is {number!r:.40}, expected a number in percent of the picture.")
    return float(number)


def _chosen(drawn: list[Drawn]) -> str | None:
    """The label that the user has drawn with."""
    for one in drawn:
        labels = one.value.get(one.type)
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            return labels[0]
    return None


def _new(labelling: Labelling, found: Annotation, drawn: list[Drawn]) -> list[dict[str, Any]]:
    """A new region, with its text: the label that was drawn with if it is one of the shape's, or what TAP sees there.

    A project without shapes gets the rectangle or point that was drawn, with its text.
    """
    if labelling.shape is None:
        marked = next((one for one in drawn if _KINDS[one.type] == "box"), drawn[0])
        return _texts(labelling, found, marked.model_copy(update={"id": None}))
    label = _label(labelling, _chosen(drawn), found.concept)
    values: list[dict[str, Any]] = []
    if labelling.shape == "brushlabels":
        values = [{"format": "rle", "rle": brush_of_mask(found.mask), "brushlabels": [label]}]
    elif labelling.shape == "polygonlabels":
        height, width = found.mask.shape
        outlines = [outline * [100 / width, 100 / height] for outline in outlines_of(found.mask, EPSILON)]
        values = [{"points": outline.tolist(), "closed": True, "polygonlabels": [label]} for outline in outlines]
    result = []
    for value in values:
        own = {"id": uuid.uuid4().hex[:10], **_frame(labelling, found.mask)}
        result.append(
            {**own, "type": labelling.shape, "from_name": labelling.control, "value": value, "score": found.score}
        )
        result += _text(labelling, found.caption, own, {})
    return result


def _label(labelling: Labelling, chosen: str | None, concept: str) -> str:
    """One of the shape's labels; any, if the configuration takes them from the tasks."""
    labels = labelling.labels
    if not labels:
        return chosen or concept
    found = next((one for one in (chosen, concept) if one in labels), labels[0] if len(labels) == 1 else None)
    if found is None:
        drawn = "without a label" if chosen is None else f"with the label {chosen!r:.60}"
        raise ValueError(
            f"This was marked {drawn}, and TAP sees {concept!r:.60} there. Expected a label of {labelling.control}: "
            f"{', '.join(labels)[:200]}. Give the tags that mark regions the same labels."
        )
    return found


def _texts(labelling: Labelling, found: Annotation, drawn: Drawn) -> list[dict[str, Any]]:
    """A region that is there already, as it was drawn, with its text."""
    own = {"id": drawn.id or uuid.uuid4().hex[:10], **_frame(labelling, found.mask)}
    place: dict[str, Any] = {name: drawn.value[name] for name in ("x", "y", "width", "height") if name in drawn.value}
    same = {**own, "type": drawn.type, "from_name": drawn.from_name, "value": drawn.value, "score": found.score}
    return [same, *_text(labelling, found.caption, own, place)] if labelling.text else []


def _text(labelling: Labelling, caption: str, own: dict[str, Any], place: dict[str, Any]) -> list[dict[str, Any]]:
    if labelling.text is None:
        return []
    return [{**own, "type": "textarea", "from_name": labelling.text, "value": {**place, "text": [caption]}}]


def _frame(labelling: Labelling, mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    return {"to_name": labelling.image, "original_width": width, "original_height": height, "image_rotation": 0}


def _prediction(version: str, result: list[dict[str, Any]], scores: list[float]) -> dict[str, Any]:
    score = round(sum(scores) / len(scores), 4) if scores else 0.0
    return {"model_version": version, "score": score, "result": result}
