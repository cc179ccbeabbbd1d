"""What clients send to /v1/chat/completions: OpenAI's form, with region items, and which parts of it are refused."""

from __future__ import annotations

from reprlib import repr as repr_short
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import RequestError

MOST_VALUES = 200_000
"""How many values a request may hold: a picture is one, a mask's run lengths may be many."""

WITHOUT_EFFECT = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
"""OpenAI's parameters that would change nothing about an answer."""

RETURNED = {"name", "mentioned"}
"""What a message may hold beside its words: a name, and what came with an answer that is sent back. Neither has an effect."""

NOT_DONE: dict[str, list[Any]] = {
    "n": [1],
    "logprobs": [False],
    "top_logprobs": [0],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "functions": [[]],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "store": [False],
    "service_tier": ["auto", "default"],
}
"""OpenAI's parameters for what this server does not do, with the values that do not ask for it."""


class _Strict(BaseModel):
    """Nothing is converted, and neither infinity nor NaN is a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextItem(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """A picture as a data URL; `detail` has no effect: pictures are always seen whole."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImageItem(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class RunLengths(_Strict):
    """A mask as COCO's run lengths."""

    size: list[int] = Field(min_length=2, max_length=2)
    counts: str | list[int]


class RegionItem(_Strict):
    """A region of the last picture before it, or of picture number `image`, counted from 0 through the conversation.

    With a prompt it is a new region, in pixels of its picture; a mask is run lengths, or a picture as a data URL. With a
    `name` alone, as "region1", it is that region, mentioned again.
    """

    type: Literal["region"]
    box: list[float] | None = None
    points: list[list[float]] | None = None
    point_labels: list[int] | None = None
    mask: RunLengths | str | None = None
    name: str | None = None
    image: int | None = None


Item = Annotated[TextItem | ImageItem | RegionItem, Field(discriminator="type")]


class Message(BaseModel):
    """One message; words alone count as a list of one text item."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Item]

    @field_validator("content", mode="before")
    @classmethod
    def _words(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(_Strict):
    """Whether the last chunk of a stream says how many tokens were used."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateOptions(_Strict):
    """Options of the language model's chat template, named as vLLM names them."""

    enable_thinking: bool = False


class ChatRequest(BaseModel):
    """A request for an answer. Parameters that have no field here are in `NOT_DONE`, in `WITHOUT_EFFECT`, or refused."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @field_validator("stop")
    @classmethod
    def _stop_words(cls, stop: Any) -> Any:
        words = [stop] if isinstance(stop, str) else stop or []
        if len(words) > 4 or not all(0 < len(word) <= 200 for word in words):
            raise ValueError("expected at most 4 texts of 1 to 200 characters")
        return words


Model = TypeVar("Model", bound=BaseModel)


def read_json(body: bytes, form: type[Model]) -> Model:
    """A request's body in a form; `RequestError` 400 for anything else."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
        raise RequestError(
            400, "too_many_values", f"The request holds more than {MOST_VALUES:,} values: give masks as pictures."
        )
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> RequestError:
    """The first fault of a request, with where it is."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(_path(first["loc"]))
    if first["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"The request is not JSON: {first['msg']}.")
    got = "" if first["type"] == "missing" else f" Got {repr_short(first['input'])}."
    words = first["msg"].removeprefix("Value error, ")
    code = {"missing": "missing_parameter", "extra_forbidden": "unknown_parameter"}.get(first["type"], "invalid_value")
    return RequestError(400, code, f"{where or 'The request'}: {words}.{got}", param=where or None)


def _path(places: tuple[int | str, ...]) -> list[str]:
    """Where a fault is, without the names of the forms that were tried there."""
    path: list[str] = []
    for number, part in enumerate(places):
        is_kind = number > 1 and isinstance(places[number - 1], int) and places[number - 2] == "content"
        if not is_kind and part not in ("RunLengths", "str"):
            path.append(str(part))
    return path


def _is_idle(name: str, value: Any) -> bool:
    """Whether a parameter asks for nothing that is not done here. True is not 1, nor is False 0."""
    return any(value == idle and isinstance(value, bool) == isinstance(idle, bool) for idle in NOT_DONE.get(name, ()))


def read_chat_request(body: bytes) -> ChatRequest:
    """A request for an answer that asks only for what is done here; else `RequestError` 400."""
    request = read_json(body, ChatRequest)
    for name, value in (request.model_extra or {}).items():
        if name in WITHOUT_EFFECT or value is None or _is_idle(name, value):
            continue
        if name in NOT_DONE:
            words = f"{name} is {repr_short(value)}, which this server does not do: leave it out."
            raise RequestError(400, "unsupported_parameter", words, param=name)
        raise RequestError(400, "unknown_parameter", f"There is no parameter {repr_short(name)}.", param=name[:80])
    for number, message in enumerate(request.messages):
        if asked := [name for name, value in (message.model_extra or {}).items() if value and name not in RETURNED]:
            where = f"messages.{number}.{asked[0][:80]}"
            raise RequestError(400, "unsupported_parameter", f"{where}: this server does not do that.", param=where)
    if request.messages[-1].role != "user":
        raise RequestError(400, "invalid_value", "The last message must be the user's.", param="messages")
    if request.stream_options is not None and not request.stream:
        raise RequestError(400, "invalid_value", "stream_options need stream=true.", param="stream_options")
    return request
