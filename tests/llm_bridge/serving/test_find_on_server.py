"""Finding by words over the wire: the same regions, names and probabilities as with the model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from forced_answers import byte_tokenizer, says
from http_answers import served
from PIL import Image
from transformers import PreTrainedModel
from vllm_stand_in import RECORDED, Engine, Pair, Server, parts_of, with_length

from llm_bridge import FoundRegions, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.prompt_checks import ContextFullError
from tap_tokenizer import TapRegionTokenizer

BOXES = [[4.0 * i, 3.0 * i, 4.0 * i + 30, 3.0 * i + 20] for i in range(12)]
"""Twelve candidates, so that region1 is the beginning of the names of others."""
PHRASE = "the red thing"


@pytest.fixture
def pair(language_model: Callable[..., PreTrainedModel], tiny_tokenizer: TapRegionTokenizer) -> Pair:
    words = byte_tokenizer()
    torch.manual_seed(1)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        language_model("llama", vocab_size=280, max_position_embeddings=2048),
        region_tokenizer=tiny_tokenizer,
        text_tokenizer=words,
    )
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, words, tiny_tokenizer)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with served(made.http):
        yield made


@pytest.fixture
def both(pair: Pair, server: Server) -> Callable[..., list[RegionChat]]:
    """Two chats that say the same words, the model of one in this process and that of the other behind a server."""

    def make(words: str, scoring: str = "ids") -> list[RegionChat]:
        server.answer = Engine(pair, words, scoring)
        there = RegionChat.from_server(server.address, bridge=pair)
        here = RegionChat(*pair)
        says(here, words)
        return [here, there]

    return make


def assert_same(here: FoundRegions, there: FoundRegions) -> None:
    for name in ("names", "rows", "answer", "rounds"):
        assert getattr(there, name) == getattr(here, name), name
    for name in ("probabilities", "candidate_probabilities", "tokens", "boxes", "masks"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=1e-4, atol=1e-6)
    assert there.none_probability == pytest.approx(here.none_probability, rel=1e-4)


@pytest.mark.parametrize("scoring", ["ids", "said"])
@pytest.mark.parametrize("words", ["region11 and region4", "region3, region1 and region12", "none"])
def test_what_is_found_is_what_the_model_finds_here(
    both: Callable[..., list[RegionChat]], picture: Image.Image, words: str, scoring: str
) -> None:
    here, there = both(words, scoring)
    expected, found = (chat.find(PHRASE, image=picture, boxes=BOXES) for chat in (here, there))
    assert len(expected) == words.count("region")
    assert_same(expected, found)
    assert there.history == here.history
    assert there.mentioned().keys() == here.mentioned().keys()
    assert found.none_probability + float(found.candidate_probabilities.sum()) == pytest.approx(1)


def test_more_candidates_than_are_shown_at_once_go_in_rounds(
    both: Callable[..., list[RegionChat]], picture: Image.Image
) -> None:
    here, there = both("region2")
    expected, found = (chat.find(PHRASE, image=picture, boxes=BOXES, most=5, threshold=1.0) for chat in (here, there))
    assert_same(expected, found)
    assert found.rounds == 4
    assert len(found) == 1


def test_rounds_keep_within_the_context_of_the_server(
    both: Callable[..., list[RegionChat]], server: Server, picture: Image.Image
) -> None:
    server.models = {"data": [{"id": "bare", "parent": None, "max_model_len": 120}]}
    there = both("region2")[1]
    found = there.find(PHRASE, image=picture, boxes=BOXES, max_new_tokens=10)
    assert found.rounds > 2
    assert len(found) == 1
    with pytest.raises(ContextFullError, match="the language model reads 120 in all"):
        there.find(PHRASE, image=picture, boxes=BOXES, max_new_tokens=80)


def test_the_temperature_and_the_threshold_of_the_bridge_count(
    pair: Pair, both: Callable[..., list[RegionChat]], picture: Image.Image
) -> None:
    pair[0].config.find_temperature = 2.0
    for threshold, count in ((0.0, 0), (1.0, 1)):
        pair[0].config.find_threshold = threshold
        expected, found = (chat.find(PHRASE, image=picture, boxes=BOXES) for chat in both("none"))
        assert len(found) == count
        assert_same(expected, found)


def test_what_is_found_can_be_asked_about(both: Callable[..., list[RegionChat]], picture: Image.Image) -> None:
    there = both("region7")[1]
    assert there.find(PHRASE, image=picture, boxes=BOXES).boxes.tolist() == [BOXES[6]]
    assert there.ask("What is region1?") == "region7"
    assert there.regions().boxes.tolist() == [BOXES[6]]


def test_a_prompt_is_asked_about_once_for_each_beginning_of_names(
    both: Callable[..., list[RegionChat]], server: Server, picture: Image.Image
) -> None:
    both("none")[1].find(PHRASE, image=picture, boxes=BOXES)
    answered, *scored = server.requests
    assert "logprobs" not in answered
    ends = sorted(parts_of(body)[-1]["text"].rpartition("<|assistant|>")[2] for body in scored)
    assert ends == sorted(["", "r", "re", "reg", "regi", "regio", "region", "region1", "n", "no", "non"])
    assert all(body["logprobs"] and body["max_tokens"] == 1 for body in scored)
    before = [part.get("data") for part in parts_of(answered)]
    assert all([part.get("data") for part in parts_of(body)] == before for body in scored)  # cached by the server


def test_probabilities_that_vllm_tells_are_read(pair: Pair, server: Server) -> None:
    """Those of `region` and `none`, which it was asked for, and not of the `a` that it said."""
    server.answer = lambda body: with_length((200, RECORDED["scores"]), body, pair)
    there = RegionChat.from_server(server.address, bridge=pair)
    prompt = there.speaker.read([{"role": "user", "content": "Which?"}], thinking=False)
    told = there.speaker.log_probabilities(prompt, {(): [17205, 19444]})
    listed = RECORDED["scores"]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert told == {(): {17205: listed[1]["logprob"], 19444: listed[2]["logprob"]}}
    assert server.requests[0]["logprob_token_ids"] == [17205, 19444]


def test_a_server_that_tells_no_probabilities_is_refused(
    both: Callable[..., list[RegionChat]], picture: Image.Image
) -> None:
    there = both("region2", "nothing")[1]
    with pytest.raises(ValueError, match="does not say how probable words are, which find needs: use vLLM"):
        there.find(PHRASE, image=picture, boxes=BOXES)
    assert there.history == []


def test_more_ids_than_a_server_tells_of_are_asked_for_in_parts(pair: Pair, server: Server) -> None:
    server.answer = Engine(pair)
    there, here = RegionChat.from_server(server.address, bridge=pair), RegionChat(*pair)
    wanted: dict[Any, Any] = {(): range(50), (7, 8): [9]}
    message = {"role": "user", "content": "Which?"}
    told, expected = (
        chat.speaker.log_probabilities(chat.speaker.read([message], thinking=False), wanted) for chat in (there, here)
    )
    assert len(server.requests) == 4
    assert told.keys() == expected.keys()
    for beginning, scores in expected.items():
        assert told[beginning] == pytest.approx(scores, rel=1e-4)


def test_a_beginning_that_reads_otherwise_alone_is_refused(pair: Pair, server: Server) -> None:
    there = RegionChat.from_server(server.address, bridge=pair)
    prompt = there.speaker.read([{"role": "user", "content": "Which?"}], thinking=False)
    spelled = tuple(pair[1].tokenizer("<", add_special_tokens=False).input_ids + pair[1].tokenizer("s>").input_ids)
    with pytest.raises(ValueError, match="reads '<s>' differently alone than within a longer word"):
        there.speaker.log_probabilities(prompt, {spelled: [5]})
    assert server.requests == []


def test_our_own_server_is_told_from_a_language_model(pair: Pair, server: Server) -> None:
    server.models = {"object": "list", "data": [{"id": "region-chat-tiny", "owned_by": "region-chat"}]}
    with pytest.raises(
        ValueError, match="is a `region-chat serve`, which encodes regions itself: ask it with any client"
    ):
        RegionChat.from_server(server.address, bridge=pair)
