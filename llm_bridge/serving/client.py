"""`ServedModel`: a language model behind an OpenAI-compatible server that takes rows of numbers between words, such as vLLM.

The server knows nothing of regions. It gets whole prompts, so its chat template is replaced by one that changes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Thread
from typing import Any, cast

import httpx
import torch

from ..chat_template import token_ids
from ..generation import Ids, NextIds, Tally
from ..modeling_bridge import RegionBridgeForConditionalGeneration
from ..processing_bridge import RegionBridgeProcessor
from .served_adapter import check_names
from .served_prompts import PromptWriter, ServedPrompt

logger = logging.getLogger(__name__)

AS_WRITTEN = (
    "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
)
"""A chat template that writes the parts of messages side by side, and nothing else."""
OWNER = "region-chat"
"""Who owns the models of our own server, as it says of them."""
FLAGS = "--enable-prompt-embeds --trust-request-chat-template"
"""What vLLM must be started with."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_OPTIONS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "seed": "seed",
    **{name: name for name in _SAMPLING},
}
"""What transformers' `generate` calls an option, and what a server calls it."""
_AT_ONCE = 32
"""How many questions are under way at the same time."""
_LOOKS_UP = 0.1
"""After how many seconds it is noticed that nobody waits for an answer any more."""
_BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_MOST_IDS = 20
"""How many ids a question may ask the probabilities of: vLLM's --max-logprobs, unless it is told otherwise."""


class UpstreamError(ValueError):
    """A server that does not have what the bridge needs. Whoever runs it must mend that; no other question would help."""


class UpstreamFailedError(RuntimeError):
    """A server that failed at a question, or broke its answer off. The same question may be answered the next time."""


class ServedModel:
    """A language model that a server runs, and the projector and processor here that write its prompts: a `Speaker`.

    It can be shared by conversations in several threads: `chat.another()` begins another one.
    """

    def __init__(
        self, address: str, writer: PromptWriter, *, model: str | None = None, api_key: str | None = None,
        timeout: float = 120.0,
    ) -> None:  # fmt: skip
        if not address.startswith(("http://", "https://")):
            raise ValueError(f'address is {address!r:.80}, expected one such as "http://127.0.0.1:8000/v1".')
        self.address, self.writer, self.processor = address.rstrip("/"), writer, writer.processor
        self.config, self.generation_config = deepcopy(writer.config), deepcopy(writer.generation_config)
        self.device = torch.device("cpu")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_AT_ONCE),
        )
        cards = self._cards()
        card = _chosen(cards, model, writer, self.address)
        self.name: str = card["id"]
        self.config.name_or_path = self.name
        if card.get("owned_by") == OWNER:
            raise ValueError(
                f"{self.address} is a `region-chat serve`, which encodes regions itself: ask it with any client of OpenAI's "
                "(docs/server.md), or give the address of a vLLM here."
            )
        self._shorten_context(card.get("max_model_len") or _parent(cards, card).get("max_model_len"))
        if writer.adapter is not None:
            check_names(writer.adapter, self.config)
        if card.get("parent"):
            if model is None and not _is_of(card, writer.name):
                logger.warning(
                    "The bridge is %s, and the only adapter that %s has is %s: give model=%r if that is the bridge's.",
                    writer.name, self.address, self.name, self.name,
                )  # fmt: skip
            self._check_adapter_is_heard(card["parent"])

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        bridge: str | Path | tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor],
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        **loading: Any,
    ) -> ServedModel:
        """As `RegionChat.from_server`."""
        loaded = {name: value for name, value in loading.items() if value is not None}
        if not isinstance(bridge, tuple):
            writer = PromptWriter.from_pretrained(bridge, **loading)
        elif loaded:
            raise ValueError(f"Got {', '.join(loaded)} with a bridge that is loaded: leave it out.")
        else:
            writer = PromptWriter.of(*bridge)
        return cls(address, writer, model=model, api_key=api_key, timeout=timeout)

    # --- a Speaker ----------------------------------------------------------------------------------------------------

    def read(self, messages: Sequence[dict[str, Any]], *, thinking: bool) -> Mapping[str, Any]:
        return self.writer.write(messages, thinking=thinking)

    def read_each(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> Sequence[Mapping[str, Any]]:
        return [self.read(messages, thinking=False) for messages in conversations]

    def say(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> str:
        answer = self._json("POST", "/chat/completions", self._body(prompt, options))
        usage, choice = _usage(answer), self._first(answer, "message")
        self._check_length(prompt, usage)
        _reason(choice)
        if tally is not None:
            tally.tokens = usage.get("completion_tokens", tally.tokens)
            tally.is_cut = choice.get("finish_reason") == "length"
        return str(choice["message"].get("content") or "").strip()

    def say_each(self, prompts: Sequence[Mapping[str, Any]], **options: Any) -> list[str]:
        with ThreadPoolExecutor(min(_AT_ONCE, len(prompts))) as pool:
            return list(pool.map(lambda prompt: self.say(prompt, **options), prompts))

    def stream(self, prompt: Mapping[str, Any], *, tally: Tally | None = None, **options: Any) -> Iterator[str]:
        tally = tally or Tally()
        try:
            yield from self._pieces(prompt, tally, options)
        except (ConnectionError, RuntimeError):
            if not tally.gone.is_set():  # else it was ended here
                raise

    def _pieces(self, prompt: Mapping[str, Any], tally: Tally, options: dict[str, Any]) -> Iterator[str]:
        body = {**self._body(prompt, options), "stream": True, "stream_options": {"include_usage": True}}
        is_whole = False
        with (
            self._told(),
            self._http.stream("POST", f"{self.address}/chat/completions", json=body) as answer,
            _ended_with(tally.gone, answer),
        ):
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise self._refusal(answer)
            for line in answer.iter_lines():
                event = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if event in ("", "[DONE]"):
                    is_whole |= bool(event)
                    continue
                chunk = self._chunk(event)
                if "error" in chunk:
                    raise UpstreamFailedError(f"The server broke off its answer: {_message(chunk)}")
                self._check_length(prompt, usage := _usage(chunk))
                for choice in chunk["choices"]:
                    tally.tokens += 1  # a good guess, until the server says the number
                    reason = _reason(choice)
                    is_whole |= reason is not None
                    tally.is_cut = reason == "length"
                    if piece := choice["delta"].get("content"):
                        yield piece
                tally.tokens = usage.get("completion_tokens", tally.tokens)
                if tally.gone.is_set():
                    return
        if not is_whole:
            raise UpstreamFailedError("The server broke off its answer: it ended without a reason. Ask again.")

    def log_probabilities(self, prompt: Mapping[str, Any], wanted: Mapping[Ids, Collection[int]]) -> NextIds:
        written = cast(ServedPrompt, prompt)
        asked = [
            (beginning, self.writer.begun(written, beginning), ids[start : start + _MOST_IDS])
            for beginning, ids in ((beginning, sorted(ids)) for beginning, ids in wanted.items())
            for start in range(0, len(ids), _MOST_IDS)
        ]
        found: NextIds = {beginning: {} for beginning in wanted}
        with ThreadPoolExecutor(min(_AT_ONCE, len(asked) or 1)) as pool:
            scores = pool.map(lambda one: self._next(one[1], one[2]), asked)
            for (beginning, _, _), own in zip(asked, scores):
                found[beginning] |= own
        return found

    def _next(self, prompt: ServedPrompt, ids: Sequence[int]) -> dict[int, float]:
        """The log-probabilities of ids as the next one after a prompt."""
        body = {**self._body(prompt, {"max_new_tokens": 1}), "logprobs": True, "return_tokens_as_token_ids": True}
        found = self._scores(prompt, {**body, "logprob_token_ids": list(ids)})
        for one in ids:
            if one not in found:  # an older server ignores logprob_token_ids, but tells of what it is made to say
                found |= self._scores(prompt, {**body, "allowed_token_ids": [one]})
        if not all(one in found for one in ids):
            raise UpstreamError(
                f"{self.address} does not say how probable words are, which find needs: use vLLM, or load the bridge here, "
                "with RegionChat.from_pretrained."
            )
        return {one: found[one] for one in ids}

    def _scores(self, prompt: ServedPrompt, body: dict[str, Any]) -> dict[int, float]:
        """By id, the log-probabilities that the server tells of the one token that it was asked for."""
        answer = self._json("POST", "/chat/completions", body)
        self._check_length(prompt, _usage(answer))
        first = ((self._first(answer, "message").get("logprobs") or {}).get("content") or [])[:1]
        told = [word for token in first for word in (token, *token.get("top_logprobs", ()))]
        named = ((word["token"].removeprefix("token_id:"), word["logprob"]) for word in told)
        return {int(name): float(score) for name, score in named if name.isdecimal()}

    # --- requests -----------------------------------------------------------------------------------------------------

    def _body(self, prompt: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """A request for the answer to a prompt."""
        given = dict(options)
        samples = given.pop("do_sample", False)
        if unknown := sorted(set(given) - set(_OPTIONS)):
            raise ValueError(
                f"Got {', '.join(unknown)}, expected options that servers know, too: do_sample, {', '.join(_OPTIONS)}."
            )
        sampling = (
            {"temperature": 1.0, **{n: given[n] for n in _SAMPLING if n in given}} if samples else {"temperature": 0}
        )
        others = {_OPTIONS[name]: value for name, value in given.items() if name not in _SAMPLING}
        stops = [*token_ids(self.generation_config.eos_token_id), *self.processor.stop_token_ids]
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": cast(ServedPrompt, prompt)["parts"]}],
            "chat_template": AS_WRITTEN,
            "add_special_tokens": False,
            "stop_token_ids": list(dict.fromkeys(stops)),
            **sampling,
            **others,
        }

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._told():
            answer = self._http.request(method, f"{self.address}{path}", json=body)
            if answer.status_code != httpx.codes.OK:
                raise self._refusal(answer)
            try:
                values = answer.json()
            except ValueError:
                values = None
        if not isinstance(values, dict):
            raise self._misfit(answer.text)
        return values

    def _misfit(self, said: object) -> UpstreamError:
        return UpstreamError(f"{self.address} answers {said!r:.80}, which is not OpenAI's form: correct the address.")

    def _first(self, answer: dict[str, Any], part: str) -> dict[str, Any]:
        """The first choice of an answer, which holds a `part`."""
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get(part), dict):
            raise self._misfit(answer)
        return choice

    def _chunk(self, event: str) -> dict[str, Any]:
        """One event of a stream, with its choices, or with an error."""
        try:
            chunk = json.loads(event)
        except (ValueError, RecursionError):
            raise self._misfit(event) from None
        if not isinstance(chunk, dict):
            raise self._misfit(event)
        choices = chunk.setdefault("choices", [])
        is_list = isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)
        if not is_list or not all(isinstance(choice.get("delta"), dict) for choice in choices):
            raise self._misfit(event)
        return chunk

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in our users' words why no answer came."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise TimeoutError(
                f"{self.address} was silent for too long ({type(error).__name__}): give a longer timeout=…, or see whether the "
                "server is overloaded."
            ) from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ConnectionError(
                f"No server answers at {self.address} ({error}): start one, such as `vllm serve LANGUAGE_MODEL "
                f"--host 127.0.0.1 {FLAGS}`, or correct the address. See docs/serving.md."
            ) from error

    def _refusal(self, answer: httpx.Response) -> Exception:
        """What a server's refusal means for whoever asked."""
        said = _message(answer)
        if answer.status_code in (401, 403):
            return UpstreamError(f"{self.address} wants a key ({said}): give api_key=….")
        if answer.status_code == 404:
            return UpstreamError(f"{self.address} has no such page or model ({said}): correct the address or model=….")
        if answer.status_code in _BUSY:
            return ConnectionError(f"{self.address} is busy ({answer.status_code}): {said} Try again later.")
        if answer.status_code >= 500:
            return UpstreamFailedError(f"{self.address} failed ({answer.status_code}): {said}")
        for word, what in _CAUSES.items():
            if word in said:
                kind = ValueError if word == _TOO_LONG else UpstreamError
                return kind(f"{self.address} {what} It said: {said}")
        return ValueError(f"{self.address} refused the question ({answer.status_code}): {said}")

    # --- checks -------------------------------------------------------------------------------------------------------

    def _cards(self) -> list[dict[str, Any]]:
        """What the server says of its models."""
        cards = self._json("GET", "/models").get("data")
        if not isinstance(cards, list) or not cards or not all(isinstance(c, dict) and c.get("id") for c in cards):
            raise ValueError(f"{self.address} lists no models: got {cards!r:.80}, expected OpenAI's form.")
        return cards

    def _shorten_context(self, longest: Any) -> None:
        """Have prompts that are too long for the server refused here."""
        text_config = self.config.get_text_config()
        own = getattr(text_config, "max_position_embeddings", None)
        if isinstance(longest, int):
            text_config.max_position_embeddings = min(own or longest, longest)

    def _check_length(self, prompt: Mapping[str, Any], usage: Any) -> None:
        """Refuse an answer to any prompt other than the one that was written here."""
        read, written = (usage or {}).get("prompt_tokens"), prompt["input_ids"].shape[1]
        if isinstance(read, int) and read != written:
            raise UpstreamError(
                f"The server's model {self.name} read {read} tokens, and the bridge's prompt has {written}: it has another "
                "text tokenizer or ignores chat_template. Serve the language model that the bridge was trained on."
            )

    def _check_adapter_is_heard(self, parent: str) -> None:
        """Refuse an adapter that makes no difference to what the server says.

        vLLM silently ignores weights whose names fit no layer.
        """
        prompt = self.writer.write([{"role": "user", "content": "What is this?"}])
        body = {**self._body(prompt, {"max_new_tokens": 1}), "logprobs": True, "top_logprobs": 5}
        said = []
        for name in (self.name, parent):
            choice = self._json("POST", "/chat/completions", {**body, "model": name})["choices"][0]
            found = (choice.get("logprobs") or {}).get("content") or []
            said.append({word["token"]: word["logprob"] for first in found[:1] for word in first["top_logprobs"]})
        with_adapter, without = said
        if not with_adapter:
            logger.warning("%s gives no logprobs, so whether its adapter changes anything is not known.", self.address)
        elif with_adapter == without:
            raise ValueError(
                f"The adapter {self.name} changes nothing: the server finds the same words as likely with it as without it. "
                "Either it was never trained, or the server dropped its weights because their names fit no layer: save the "
                "bridge again, and start the server with the folder `adapter` in it."
            )


_TOO_LONG = "maximum context length"
_CAUSES = {
    "--enable-prompt-embeds": f"does not take regions: start it with {FLAGS}.",
    "--trust-request-chat-template": f"does not take prompts as they are written: start it with {FLAGS}.",
    "hidden_size": "runs a language model of another width than the bridge's: serve the one that it was trained on, or give "
    "model=….",
    "content part type": "takes no regions in prompts: it needs a server that knows prompt_embeds, such as vLLM.",
    "prompt_embeds": "could not read the regions.",
    _TOO_LONG: "has too short a context: ask about fewer regions, or start it with a larger --max-model-len.",
}
"""A word by which a server's refusal is known, and what the refusal means."""


def _message(answer: httpx.Response | dict[str, Any]) -> str:
    """The words of an error, in any of the forms in which servers give it."""
    try:
        values = answer if isinstance(answer, dict) else answer.json()
    except ValueError:
        values = {}
    found = values.get("error", values) if isinstance(values, dict) else values
    words = found.get("message") or found.get("detail") if isinstance(found, dict) else found
    return str(words or (answer.text if isinstance(answer, httpx.Response) else answer))[:500]


def _usage(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer cost; nothing where the server does not say."""
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}


def _reason(choice: Mapping[str, Any]) -> str | None:
    """Why an answer ended; None if it goes on. `UpstreamFailedError` if the server gave it up."""
    reason: str | None = choice.get("finish_reason")
    if reason == "abort":
        raise UpstreamFailedError("The server broke off its answer: it was aborted there. Ask again.")
    return reason


@contextmanager
def _ended_with(gone: Event, answer: httpx.Response) -> Iterator[None]:
    """End an answer as soon as nobody waits for it, even while the server says nothing: it then stops working on it."""
    done = Event()

    def watch() -> None:
        while not done.wait(_LOOKS_UP):
            if gone.is_set():
                socket = answer.extensions["network_stream"].get_extra_info("socket")
                with suppress(OSError):  # closed already
                    socket.shutdown(SHUT_RDWR)
                return

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _is_of(card: Mapping[str, Any], bridge: str | None) -> bool:
    """Whether an adapter's card names a bridge: by its id, or by the folder that the server loaded it from."""
    return bridge is None or card["id"] == bridge or bridge in Path(str(card.get("root") or "")).parts


def _chosen(cards: Sequence[dict[str, Any]], model: str | None, writer: PromptWriter, address: str) -> dict[str, Any]:
    """The card of the model to be asked: the one with the name `model`, or else the only one of the kind that is needed."""
    names = ", ".join(card["id"] for card in cards)
    if model is not None:
        for card in cards:
            if card["id"] == model:
                return card
        raise ValueError(f"{address} has no model {model!r}; it has {names}: give one of them as model=….")
    fitting = [card for card in cards if bool(card.get("parent")) == writer.has_adapter]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{address} has {', '.join(card['id'] for card in fitting)}: give one of them as model=….")
    if writer.has_adapter:
        raise ValueError(
            f"The bridge has an adapter, and {address} has only {names}: start it with --enable-lora --lora-modules "
            f"bridge={writer.adapter or 'FOLDER/adapter'}, or give model=… if one of these has it merged."
        )
    raise ValueError(f"The bridge has no adapter, and {address} has only adapters ({names}): give model=….")


def _parent(cards: Sequence[dict[str, Any]], card: dict[str, Any]) -> dict[str, Any]:
    """The card of the language model to which an adapter belongs; empty if there is none."""
    return next((one for one in cards if one["id"] == card.get("parent")), {})
