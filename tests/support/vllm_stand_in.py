"""A server that answers as vLLM does: from a recording, or by transformers' `generate` of a bridge's plain language model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from http_answers import answering

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor
from llm_bridge.configuration_bridge import REGION_TOKEN

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "vllm_answers.json").read_text())
"""What vLLM answered."""
Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]


class Server:
    """An HTTP server of this machine that keeps requests and gives what `answer` makes of them: status and body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models: Any = RECORDED["models"]
        self.answer: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (200, RECORDED["answer"])
        self.http = answering(self._get, self._post)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _get(self, request: BaseHTTPRequestHandler) -> tuple[int, Any]:
        self.keys.append(request.headers["Authorization"])
        return 200 if request.path == "/v1/models" else 404, self.models

    def _post(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append(body)
        return self.answer(body)


def rows_of(part: dict[str, Any]) -> torch.Tensor:
    """What a server reads where a region stands."""
    return torch.load(io.BytesIO(base64.b64decode(part["data"], validate=True)), weights_only=True)


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    (message,) = body["messages"]
    return message["content"]


def embeddings_of(body: dict[str, Any], pair: Pair) -> torch.Tensor:
    """The prompt (1, L, D) as vLLM puts it together: words looked up by its own tokenizer, and rows between them."""
    bridge, processor = pair
    parts = parts_of(body)
    rows = [rows_of(part) for part in parts if part["type"] == "prompt_embeds"]
    text = "".join(part.get("text", REGION_TOKEN) for part in parts)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, waiting = [], iter(rows)
    for token in ids:
        is_region = token == processor.region_token_id
        pieces.append(next(waiting) if is_region else bridge.get_input_embeddings()(torch.tensor([token])))
    return torch.cat(pieces).unsqueeze(0)


def with_length(answer: tuple[int, Any], body: dict[str, Any], pair: Pair) -> tuple[int, Any]:
    status, values = answer
    if isinstance(values, dict) and "usage" in values:
        values = {**values, "usage": {**values["usage"], "prompt_tokens": embeddings_of(body, pair).shape[1]}}
    return status, values


class Engine:
    """What answers as vLLM does, by the plain language model.

    words: what it says, whatever it is asked; by default, what the model says. scoring: whether it tells of any ids that it
    is asked for, as vLLM does ("ids"), of its own one alone, as older ones did ("said"), or of none ("nothing").
    """

    def __init__(self, pair: Pair, words: str | None = None, scoring: str = "ids") -> None:
        (self.bridge, self.processor), self.words, self.scoring = pair, words, scoring
        self.pair = pair

    def __call__(self, body: dict[str, Any]) -> tuple[int, Any]:
        embeddings = embeddings_of(body, self.pair)
        usage = {"prompt_tokens": embeddings.shape[1]}
        if body.get("logprobs"):
            return self._scores(body, embeddings, usage)
        words = self.processor.tokenizer
        ids = (
            self._ids(body, embeddings) if self.words is None else words(self.words, add_special_tokens=False).input_ids
        )
        if not body.get("stream"):
            message = {"role": "assistant", "content": words.decode(ids, skip_special_tokens=True)}
            return 200, {"choices": [{"message": message}], "usage": usage}
        pieces = [words.decode([token]) + " " for token in ids]
        chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces] + [{"choices": [], "usage": usage}]
        return 200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def _ids(self, body: dict[str, Any], embeddings: torch.Tensor) -> list[int]:
        ids = self.bridge.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2]),
            max_new_tokens=body["max_tokens"],
            eos_token_id=body["stop_token_ids"],
            do_sample=body["temperature"] > 0,
        )[0]
        return [token for token in ids.tolist() if token not in body["stop_token_ids"]]

    @torch.no_grad()
    def _scores(self, body: dict[str, Any], embeddings: torch.Tensor, usage: dict[str, int]) -> tuple[int, Any]:
        assert body["max_tokens"] == 1
        assert body["return_tokens_as_token_ids"]
        if len(asked := body.get("logprob_token_ids", [])) > 20:
            return 400, {"error": {"message": f"Requested logprob_token_ids of length {len(asked)}"}}
        scores = self.bridge.language_model(inputs_embeds=embeddings).logits[0, -1].log_softmax(dim=-1)
        (said,) = body.get("allowed_token_ids", [int(scores.argmax())])

        def told(token: int) -> dict[str, Any]:
            return {"token": f"token_id:{token}", "logprob": float(scores[token])}

        others = [told(token) for token in (said, *asked)] if self.scoring == "ids" else []
        logprobs = None if self.scoring == "nothing" else {"content": [{**told(said), "top_logprobs": others}]}
        message = {"role": "assistant", "content": self.processor.tokenizer.decode([said])}
        return 200, {"choices": [{"message": message, "logprobs": logprobs}], "usage": usage}
