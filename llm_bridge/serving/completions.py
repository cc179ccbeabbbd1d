"""/v1/chat/completions and /v1/models, as OpenAI's clients know them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from threading import Event
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .answers import AnswerOptions, Begun, Ended, answer
from .chat_requests import ChatRequest, read_chat_request
from .client import OWNER
from .conversations import check_words, read_conversation
from .errors import RequestError
from .service import Service, logger


async def complete(service: Service, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of server-sent events."""
    asked = read_chat_request(await request.body())
    service.check_model(asked.model)
    options = _options(service, asked)

    def work(gone: Event) -> Iterator[Begun | str | Ended]:
        conversation = read_conversation(asked.messages, service.limits, gone)
        return answer(service.chat, conversation, options, gone, mentions=True)

    pieces = service.pieces(request, work)
    begun = await anext(pieces)  # what is refused is refused before a stream begins
    assert isinstance(begun, Begun)
    said = _Completion(service.name, begun.prompt_tokens)
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = said.events(pieces, with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    *words, ended = [piece async for piece in pieces]
    assert isinstance(ended, Ended)
    return JSONResponse(said.whole("".join(map(str, words)), ended))


def _options(service: Service, asked: ChatRequest) -> AnswerOptions:
    limit = service.limits.new_tokens
    given = {name: getattr(asked, name) for name in ("max_tokens", "max_completion_tokens")}
    for name, value in given.items():
        if value is not None and value > limit:
            raise RequestError(400, "invalid_value", f"{name} is {value}, expected at most {limit}.", param=name)
    most = given["max_completion_tokens"] or given["max_tokens"]
    stop = asked.stop or []
    for text in stop:
        try:
            check_words(text)
        except ValueError as error:
            raise RequestError(400, "invalid_value", f"stop: {error}", param="stop") from None
    return AnswerOptions(
        limit, most, asked.temperature, asked.top_p, asked.seed, stop, asked.chat_template_kwargs.enable_thinking
    )


class _Completion:
    """An answer in OpenAI's form, whole or in chunks; beside its words, or in the last chunk, the regions that it names."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.prompt_tokens = prompt_tokens

    def whole(self, words: str, ended: Ended) -> dict[str, Any]:
        message = {"role": "assistant", "content": words, "refusal": None, "mentioned": ended.mentioned}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ended.reason}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage(ended)}

    async def events(self, pieces: AsyncIterator[Any], with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events; an answer that fails on the way ends with an event that says so."""
        usage = {"usage": None} if with_usage else {}
        yield self._chunk({"role": "assistant", "content": ""}, **usage)
        try:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield self._chunk({"content": piece}, **usage)
                    continue
                yield self._chunk({"mentioned": piece.mentioned}, piece.reason, **usage)
                if with_usage:
                    yield self._event({"choices": [], "usage": self._usage(piece)})
        except RequestError as error:
            yield f"data: {json.dumps(error.body, ensure_ascii=False)}\n\n"
            return
        except Exception as error:
            logger.error("A request failed in the middle of its answer.", exc_info=error)
            failed = RequestError(500, "server_error", "The answer failed; the server's log says why.")
            yield f"data: {json.dumps(failed.body)}\n\n"
            return
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, **usage: None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event({"choices": [choice], **usage})

    def _event(self, values: dict[str, Any]) -> str:
        whole = {**self.head, "object": "chat.completion.chunk", **values}
        return f"data: {json.dumps(whole, ensure_ascii=False)}\n\n"

    def _usage(self, ended: Ended) -> dict[str, int]:
        total = self.prompt_tokens + ended.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": ended.completion_tokens,
            "total_tokens": total,
        }


def model_card(service: Service, created: int) -> dict[str, Any]:
    """What /v1/models says of the model; `limitation` is a sentence for users, or None."""
    return {
        "id": service.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "limitation": service.chat.limitation,
    }
