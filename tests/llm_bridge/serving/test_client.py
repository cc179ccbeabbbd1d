"""The client of servers that run the language model: what goes over the wire, and what comes back."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from http_answers import served
from PIL import Image
from safetensors.torch import load_file, save_file
from vllm_stand_in import RECORDED, Engine, Pair, Server, embeddings_of, parts_of, rows_of, with_length

from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat, add_lora
from llm_bridge.generation import Tally
from llm_bridge.serving.client import AS_WRITTEN

GOLDEN = Path(__file__).parents[2] / "golden"
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with served(made.http):
        yield made


@pytest.fixture
def pair(make_bridge: Callable[..., Pair]) -> Pair:
    return make_bridge()


@pytest.fixture
def chat(server: Server, pair: Pair) -> RegionChat:
    """A chat with the recorded server, whose answers say that prompts have as many tokens as it finds in them."""
    answered = server.answer
    server.answer = lambda body: with_length(answered(body), body, pair)
    return RegionChat.from_server(server.address, bridge=pair)


# --- what goes over the wire ------------------------------------------------------------------------------------------


def test_a_request_is_the_golden_one(chat: RegionChat, server: Server, pair: Pair, picture: Image.Image) -> None:
    chat.ask("is <region> left of <region> ?", image=picture, boxes=BOXES, **SHORT)
    (body,) = server.requests
    parts = parts_of(body)
    rows = [rows_of(part) for part in parts if part["type"] == "prompt_embeds"]
    golden = json.loads((GOLDEN / "vllm_request.json").read_text())
    assert [{**part, "data": "…"} if "data" in part else part for part in parts] == golden["messages"][0]["content"]
    assert {k: v for k, v in body.items() if k != "messages"} == {k: v for k, v in golden.items() if k != "messages"}
    inputs = chat.processor.apply_chat_template(chat.messages[:1], tokenize=True, return_dict=True)
    torch.testing.assert_close(torch.cat(rows), pair[0].projector(inputs["region_features"][0]).detach())
    assert all(row.dtype == torch.float32 for row in rows)


@pytest.mark.parametrize(
    "options", [{}, {"experts": "all"}, {"image_grid": 2}], ids=["routed", "all experts", "context"]
)
def test_the_server_reads_the_prompt_of_the_bridge(
    server: Server, make_bridge: Callable[..., Pair], picture: Image.Image, options: dict[str, Any]
) -> None:
    bridge, processor = pair = make_bridge(**options)
    server.answer = lambda body: with_length((200, RECORDED["answer"]), body, pair)
    chat = RegionChat.from_server(server.address, bridge=pair)
    chat.ask("what is <region> and where is <region> ?", image=picture, boxes=BOXES, **SHORT)
    batch = processor.apply_chat_template(
        chat.messages[:1], tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=False
    )
    own = bridge.embed(batch["input_ids"], batch["region_features"], batch["region_mask"])
    torch.testing.assert_close(embeddings_of(server.requests[-1], pair), own)


def test_a_region_is_the_same_bytes_in_every_question(chat: RegionChat, server: Server, picture: Image.Image) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    chat.ask("is region1 on <region> ?", boxes=BOXES[1:], **SHORT)
    chat.reset()
    chat.ask("what is <region> and <region> ?", image=picture, boxes=BOXES[::-1], **SHORT)
    data = [[part["data"] for part in parts_of(body) if "data" in part] for body in server.requests]
    first, second = data[0][0], data[1][-1]
    assert data == [[first], [first, first, second], [second, first]]
    assert len(first) < 3000  # a row alone, not the batch that it came from


def test_options_get_the_names_that_servers_know(chat: RegionChat, server: Server) -> None:
    chat.ask("what ?", max_new_tokens=5, do_sample=True, temperature=0.5, top_k=3, stop_strings=["."])
    assert server.requests[-1].items() >= {"max_tokens": 5, "temperature": 0.5, "top_k": 3, "stop": ["."]}.items()
    chat.ask("what ?", temperature=0.5)
    assert server.requests[-1]["temperature"] == 0  # as in transformers, it has no part in a greedy answer
    with pytest.raises(ValueError, match="Got num_beams, expected options that servers know"):
        chat.ask("what ?", num_beams=2)


def test_words_that_servers_keep_for_regions_are_refused(chat: RegionChat) -> None:
    with pytest.raises(ValueError, match="<prompt_embeds>, which servers keep for regions"):
        chat.ask("what is <prompt_embeds> ?")
    assert chat.history == []


def test_a_key_is_shown_to_the_server(server: Server, pair: Pair) -> None:
    RegionChat.from_server(server.address, bridge=pair, api_key="secret")
    assert server.keys == ["Bearer secret"]


# --- what comes back --------------------------------------------------------------------------------------------------


def test_a_conversation_over_the_wire_is_that_of_the_bridge(server: Server, pair: Pair, picture: Image.Image) -> None:
    server.answer = Engine(pair)
    here, there = RegionChat(*pair), RegionChat.from_server(server.address + "/", bridge=pair)
    for chat in (here, there):
        chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
        chat.ask("is region1 left of <region> ?", boxes=BOXES[1:], **SHORT)
    assert there.history == here.history
    assert there.regions().boxes.tolist() == here.regions().boxes.tolist()
    questions = ["where is region1 ?", "describe region2", "what is it ?"]
    assert there.ask_each(questions, **SHORT) == here.ask_each(questions, **SHORT)
    streamed = "".join(there.ask("where is region2 ?", stream=True, **SHORT))
    assert streamed == here.ask("where is region2 ?", **SHORT)
    assert there.history[-1] == ("assistant", streamed)


def test_an_answer_that_a_server_cuts_off_is_known_to_be_cut(chat: RegionChat, server: Server, pair: Pair) -> None:
    prompt = chat.speaker.read([{"role": "user", "content": "what ?"}], thinking=False)
    (choice,) = RECORDED["answer"]["choices"]
    for reason, is_cut in (("stop", False), ("length", True)):
        answer = {**RECORDED["answer"], "choices": [{**choice, "finish_reason": reason}]}
        server.answer = lambda body, own=answer: with_length((200, own), body, pair)  # type: ignore[misc]
        tally = Tally()
        assert chat.speaker.say(prompt, tally=tally, **SHORT) == "a large white arrow"
        assert tally.is_cut == is_cut


def test_answers_of_vllm_are_read(chat: RegionChat, server: Server, pair: Pair) -> None:
    assert chat.ask("what ?") == "a large white arrow"
    server.answer = lambda body: (200, RECORDED["stream"].replace('"prompt_tokens":16', '"prompt_tokens":4'))
    length = chat.speaker.read([*chat.messages, {"role": "user", "content": "what ?"}], thinking=False)[
        "input_ids"
    ].shape[1]
    server.answer = lambda body: (200, RECORDED["stream"].replace('"prompt_tokens":16', f'"prompt_tokens":{length}'))
    pieces = chat.ask("what ?", stream=True)
    assert list(pieces) == ["a", " large", " white", " arrow"]
    assert server.requests[-1]["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_off_is_an_error_and_the_question_forgotten(chat: RegionChat, server: Server) -> None:
    begun = RECORDED["stream"].partition(" large")[0].rpartition("data:")[0]
    server.answer = lambda body: (200, begun + 'data: {"error": {"message": "out of memory"}}\n\n')
    with pytest.raises(RuntimeError, match="broke off its answer: out of memory"):
        list(chat.ask("what ?", stream=True))
    assert chat.history == []


FIRST = 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
"""The first word of an answer."""


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("", "broke off its answer: it ended without a reason"),
        ('data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\ndata: [DONE]\n\n', "it was aborted there"),
    ],
)
def test_a_stream_that_ends_early_is_no_answer(chat: RegionChat, server: Server, rest: str, words: str) -> None:
    server.answer = lambda body: (200, FIRST + rest)
    with pytest.raises(RuntimeError, match=words):
        list(chat.ask("what ?", stream=True))
    assert chat.history == []


def test_an_aborted_answer_is_no_answer(server: Server, pair: Pair) -> None:
    choice = {"message": {"content": "a large"}, "finish_reason": "abort"}
    server.answer = lambda body: (200, {"choices": [choice]})
    with pytest.raises(RuntimeError, match="it was aborted there"):
        RegionChat.from_server(server.address, bridge=pair).ask("what ?")


def test_an_answer_that_nobody_waits_for_ends_while_the_server_says_nothing(chat: RegionChat, server: Server) -> None:
    over = threading.Event()

    def silent() -> Iterator[str]:
        yield FIRST
        over.wait(20)

    server.answer = lambda body: (200, silent())
    prompt = chat.speaker.read([{"role": "user", "content": "what ?"}], thinking=False)
    tally = Tally()
    pieces = chat.speaker.stream(prompt, tally=tally)
    assert next(pieces) == "a"
    begun = time.monotonic()
    threading.Timer(0.3, tally.gone.set).start()
    assert list(pieces) == []
    assert time.monotonic() - begun < 10
    over.set()


def test_an_answer_to_another_prompt_is_refused(server: Server, pair: Pair) -> None:
    chat = RegionChat.from_server(server.address, bridge=pair)
    with pytest.raises(
        ValueError, match=r"smollm2 read 16 tokens, and the bridge's prompt has \d: it has another text"
    ):
        chat.ask("what ?")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("width", ValueError, "language model of another width than the bridge's"),
        ("model", ValueError, "no such page or model"),
        ("tensor", ValueError, "could not read the regions"),
        ("embeds", ValueError, "does not take regions: start it with --enable-prompt-embeds"),
        ("template", ValueError, "prompts as they are written: start it with .* --trust-request-chat-template"),
        ("part", ValueError, "needs a server that knows prompt_embeds, such as vLLM"),
        ("key", ValueError, r"wants a key \(Unauthorized\): give api_key=…"),
        ("busy", ConnectionError, r"is busy \(429\): Too many requests Try again later"),
        ("dead", RuntimeError, r"failed \(500\): EngineCore encountered an issue"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_say_what_to_do(
    chat: RegionChat, server: Server, name: str, kind: type[Exception], words: str, stream: bool
) -> None:
    busy = {"busy": [429, {"error": {"message": "Too many requests"}}]}
    server.answer = lambda body: tuple((RECORDED["refusals"] | busy)[name])
    with pytest.raises(kind, match=words):
        list(chat.ask("what ?", stream=stream))
    assert chat.history == []


def test_a_server_that_is_not_there_is_told(pair: Pair) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ConnectionError, match=r"No server answers at .*: start one, such as `vllm serve"):
        RegionChat.from_server(address, bridge=pair)
    with pytest.raises(ValueError, match=r"address is 'localhost', expected one such as \"http://"):
        RegionChat.from_server("localhost", bridge=pair)


def test_a_silent_server_is_told(server: Server, pair: Pair) -> None:
    chat = RegionChat.from_server(server.address, bridge=pair, timeout=0.2)

    def silent(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.6)
        return 200, RECORDED["answer"]

    server.answer = silent
    with pytest.raises(TimeoutError, match=r"silent for too long .*: give a longer timeout="):
        chat.ask("what ?")


def test_a_page_that_is_no_server_of_models_is_told(server: Server, pair: Pair) -> None:
    server.models = "<html>"
    with pytest.raises(ValueError, match="'<html>', which is not OpenAI's form: correct the address"):
        RegionChat.from_server(server.address, bridge=pair)
    server.models = {"data": []}
    with pytest.raises(ValueError, match="lists no models"):
        RegionChat.from_server(server.address, bridge=pair)


def test_a_prompt_that_is_too_long_for_the_server_is_not_sent(server: Server, pair: Pair) -> None:
    server.models = {"data": [{"id": "bare", "parent": None, "max_model_len": 20}]}
    chat = RegionChat.from_server(server.address, bridge=pair)
    with pytest.raises(ValueError, match="language model reads 20 in all"):
        chat.ask("what ?", max_new_tokens=20)
    assert server.requests == []


# --- which model answers ----------------------------------------------------------------------------------------------


def cards(*names: str) -> dict[str, Any]:
    """Models of a server; an adapter is named "adapter<bare"."""
    return {"data": [{"id": name.split("<")[0], "parent": [*name.split("<"), None][1]} for name in names]}


def test_the_only_bare_model_answers_for_a_bridge_without_adapter(server: Server, pair: Pair) -> None:
    server.models = cards("bare", "one<bare", "two<bare")
    chat = RegionChat.from_server(server.address, bridge=pair)
    assert chat.model.name == "bare"
    assert repr(chat).startswith("RegionChat('bare', mode='tokens'; ")


@pytest.mark.parametrize(
    ("names", "model", "words"),
    [
        (("bare", "other"), None, "has bare, other: give one of them as model=…"),
        (("one<bare",), None, r"has no adapter, and .* has only adapters \(one\)"),
        (("bare",), "mine", "has no model 'mine'; it has bare: give one of them"),
    ],
)
def test_a_model_that_is_not_clear_is_asked_for(
    server: Server, pair: Pair, names: tuple[str, ...], model: str | None, words: str
) -> None:
    server.models = cards(*names)
    with pytest.raises(ValueError, match=words):
        RegionChat.from_server(server.address, bridge=pair, model=model)


@pytest.fixture
def adapted(pair: Pair, tmp_path: Path) -> Path:
    """The folder of a bridge with an adapter."""
    bridge, processor = pair
    add_lora(bridge, r=2)
    with torch.no_grad():
        for name, weight in bridge.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    bridge.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def probed(body: dict[str, Any]) -> tuple[int, Any]:
    """vLLM's answers to one word, with the adapter and without it."""
    return 200, RECORDED["probe" if body["model"] == "bridge" else "probe_bare"]


def test_the_adapter_of_a_bridge_answers(server: Server, adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the language model is not needed")

    monkeypatch.setattr(RegionBridgeForConditionalGeneration, "from_pretrained", refuse)
    server.answer = probed
    chat = RegionChat.from_server(server.address, bridge=adapted)
    assert chat.model.name == "bridge"
    assert [body["model"] for body in server.requests] == ["bridge", "smollm2"]
    assert all(body["max_tokens"] == 1 and body["chat_template"] == AS_WRITTEN for body in server.requests)


def test_an_adapter_that_is_not_loaded_is_told(server: Server, adapted: Path) -> None:
    server.models = cards("bare")
    with pytest.raises(
        ValueError, match=r"has only bare: start it with --enable-lora --lora-modules bridge=.*mine/adapter"
    ):
        RegionChat.from_server(server.address, bridge=adapted)


def test_a_loaded_bridge_is_not_answered_without_its_adapter(server: Server, pair: Pair) -> None:
    add_lora(pair[0], r=2)
    server.models = cards("bare")
    with pytest.raises(
        ValueError, match=r"The bridge has an adapter, and .* has only bare: start it with --enable-lora"
    ):
        RegionChat.from_server(server.address, bridge=pair)
    assert (
        RegionChat.from_server(server.address, bridge=pair, model="bare").model.name == "bare"
    )  # it may be merged there
    server.models = RECORDED["models"]
    server.answer = probed
    assert RegionChat.from_server(server.address, bridge=pair).model.name == "bridge"
    assert [body["model"] for body in server.requests] == ["bridge", "smollm2"]  # whether it is heard


@pytest.mark.parametrize(
    ("model", "root", "is_told"),
    [(None, "bridge/adapter", True), ("bridge", "bridge/adapter", False), (None, "/somewhere/mine/adapter", False)],
)
def test_an_adapter_of_another_name_is_told(
    server: Server, adapted: Path, caplog: pytest.LogCaptureFixture, model: str | None, root: str, is_told: bool
) -> None:
    bare, adapter = RECORDED["models"]["data"]
    server.models = {"data": [bare, {**adapter, "root": root}]}
    server.answer = probed
    with caplog.at_level("WARNING"):
        RegionChat.from_server(server.address, bridge=adapted, model=model)
    assert ("The bridge is mine, and the only adapter that" in caplog.text) == is_told


def test_an_adapter_that_changes_nothing_at_the_server_is_refused(server: Server, adapted: Path) -> None:
    server.answer = lambda body: (200, RECORDED["probe"])
    with pytest.raises(
        ValueError, match="The adapter bridge changes nothing: the server finds the same words as likely"
    ):
        RegionChat.from_server(server.address, bridge=adapted)


def test_a_server_without_likelihoods_is_trusted(
    server: Server, adapted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        RegionChat.from_server(server.address, bridge=adapted)
    assert "gives no logprobs, so whether its adapter changes anything is not known" in caplog.text


def test_an_adapter_under_names_of_a_wrapper_is_refused_before_it_is_asked(server: Server, adapted: Path) -> None:
    path = adapted / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace("model.model", "model.language_model.model"): w for name, w in weights.items()}, path)
    with pytest.raises(
        ValueError, match=r"\d+ weights that belong to no layer of LlamaForCausalLM, such as base_model"
    ):
        RegionChat.from_server(server.address, bridge=adapted)
    assert server.requests == []


# --- the bridge, without its language model ---------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_a_saved_bridge_writes_the_prompts_of_the_loaded_one(
    server: Server, pair: Pair, tmp_path: Path, picture: Image.Image, whole: bool
) -> None:
    bridge, processor = pair
    bridge.save_pretrained(tmp_path, whole=whole, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "language_model", ignore_errors=True)  # which nothing here reads
    server.answer = lambda body: with_length((200, RECORDED["answer"]), body, pair)
    for given in (tmp_path, pair):
        chat = RegionChat.from_server(server.address, bridge=given)
        chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    one, other = ([rows_of(p) if "data" in p else p for p in parts_of(body)] for body in server.requests)
    torch.testing.assert_close(one[1], other[1])
    assert [one[0], *one[2:]] == [other[0], *other[2:]]


def test_options_of_loading_are_refused_for_a_loaded_bridge(server: Server, pair: Pair) -> None:
    with pytest.raises(ValueError, match="Got region_tokenizer with a bridge that is loaded: leave it out"):
        RegionChat.from_server(server.address, bridge=pair, region_tokenizer="tap-tiny")
