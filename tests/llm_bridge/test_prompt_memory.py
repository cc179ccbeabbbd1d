"""What a model has read is not read again, and answers are what they are when all is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_bridge import (
    DescribedRegionProcessor,
    PromptMemory,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    adapter_off,
    add_lora,
)
from tap_tokenizer import RegionPrompt, TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
FOLLOW_UPS = ["where is region1 in the picture ?", "what ?", "is region1 on <region> ?", "what colour is region2 ?"]
SIX = {"max_new_tokens": 6}


@pytest.fixture
def chat(make_bridge: Callable[..., Pair]) -> RegionChat:
    return RegionChat(*make_bridge())


@pytest.fixture
def reads(chat: RegionChat, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many words the language model reads at each step."""
    lengths: list[int] = []
    forward = chat.model.language_model.forward

    @functools.wraps(forward)
    def spy(*args: Any, **given: Any) -> Any:
        lengths.append((given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]).shape[1])
        return forward(*args, **given)

    monkeypatch.setattr(chat.model.language_model, "forward", spy)
    return lengths


def talk(chat: RegionChat, picture: Image.Image, **options: Any) -> list[list[int]]:
    """The ids of the answers of a whole conversation, prompts and all."""
    said: list[list[int]] = []
    generate = chat.model.generate

    def spy(**given: Any) -> Any:
        output = generate(**given)
        said.append(output[0].tolist())
        return output

    chat.model.generate = spy
    try:
        chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SIX, **options)
        for question in FOLLOW_UPS:
            boxes = BOXES[1:] if "<region>" in question else None
            chat.ask(question, boxes=boxes, **SIX, **options)
    finally:
        del chat.model.generate
    return said


def without_memory(chat: RegionChat) -> RegionChat:
    return RegionChat(chat.model, chat.processor, PromptMemory(most_bytes=0))


def test_a_follow_up_reads_new_words_only(chat: RegionChat, picture: Image.Image, reads: list[int]) -> None:
    forgetful = talk(without_memory(chat), picture)
    prompts = [length for length in reads if length > 1]
    reads.clear()
    assert talk(chat, picture) == forgetful
    assert reads[0] == prompts[0]  # of the first prompt, nothing is known
    news = [length for length in reads if length > 1][1:]
    for new, whole, before in zip(news, prompts[1:], prompts, strict=False):
        assert new <= whole - before  # words of the earlier answer that the tokenizer leaves out are read again
    assert len(news) == len(FOLLOW_UPS)
    assert len(chat.memory) == 1


def test_another_question_about_the_same_regions_reads_its_own_words_only(
    chat: RegionChat, picture: Image.Image, reads: list[int]
) -> None:
    given: dict[str, Any] = {"image": picture, "boxes": BOXES, **SIX}
    questions = [f"<region> and <region> {words}" for words in ("is what ?", "where ?")]
    expected = [without_memory(chat).ask(question, **given) for question in questions]
    reads.clear()
    assert [chat.another().ask(question, **given) for question in questions] == expected
    first, second = [length for length in reads if length > 1]
    assert second < first / 2
    assert len(chat.memory) == 2  # neither conversation goes on from the other


def test_streams_remember_and_are_remembered(chat: RegionChat, picture: Image.Image, reads: list[int]) -> None:
    expected = without_memory(chat)
    reads.clear()
    first = expected.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SIX)
    second = expected.ask("where is region1 ?", **SIX)
    before, both = [length for length in reads if length > 1]
    reads.clear()
    assert "".join(chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], stream=True, **SIX)) == first
    assert "".join(chat.ask("where is region1 ?", stream=True, **SIX)) == second
    whole, new = [length for length in reads if length > 1]
    assert whole == before
    assert new <= both - before


def test_another_picture_or_another_region_is_read(
    chat: RegionChat, picture: Image.Image, other_picture: Image.Image
) -> None:
    """The words are the same; what they show is not."""
    answers = set()
    for image, box in ((picture, BOXES[0]), (picture, [0, 0, 90, 60]), (other_picture, [1, 2, 30, 50])):
        given: dict[str, Any] = {"image": image, "boxes": [box], "max_new_tokens": 12}
        answer = chat.another().ask("what is <region> ?", **given)
        assert answer == without_memory(chat).ask("what is <region> ?", **given)
        answers.add(answer)
    assert len(answers) > 1


def test_a_conversation_keeps_its_latest_prompt_and_reset_forgets_it(
    chat: RegionChat, picture: Image.Image, other_picture: Image.Image
) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SIX)
    other = chat.another()
    other.ask("is it on the left ?", image=other_picture, boxes=[[1, 2, 30, 50]], **SIX)
    assert len(chat.memory) == 2
    chat.ask("what is <region> ?", image=other_picture, boxes=[[1, 2, 30, 50]], **SIX)
    assert len(chat.memory) == 2
    chat.reset()
    assert len(chat.memory) == 1
    other.reset()
    assert (len(chat.memory), chat.memory.bytes) == (0, 0)


def test_the_memory_stays_within_its_bounds(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SIX)
    one = chat.memory.bytes
    chat.memory.most_bytes = 3 * one
    for box in range(6):
        other = chat.another()
        other.ask("what is <region> ?", image=picture, boxes=[[box, 0, 60, 50]], **SIX)
        assert 0 < chat.memory.bytes <= 3 * one
    assert len(chat.memory) == 3
    chat.memory.most_bytes = one // 2
    chat.another().ask("what ?", image=picture, boxes=BOXES[:1], **SIX)
    assert len(chat.memory) == 0


def test_what_changed_weights_would_read_otherwise_is_read_again(chat: RegionChat, picture: Image.Image) -> None:
    given: dict[str, Any] = {"image": picture, "boxes": BOXES[:1], **SIX}
    chat.ask("what is <region> ?", **given)
    with torch.no_grad():
        chat.model.language_model.lm_head.weight.neg_()
        for layer in chat.model.language_model.model.layers:
            layer.self_attn.k_proj.weight.mul_(-2)
    assert chat.ask("where is region1 ?", **SIX)
    assert chat.messages[3]["content"] == again(chat).ask("where is region1 ?", **SIX)
    add_lora(chat.model, targets=["q_proj", "v_proj"])
    with torch.no_grad():
        for name, weight in chat.model.language_model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=2.0)
    said = {}
    for is_on in (True, False, True):
        if is_on:
            said[is_on] = again(chat, chat.memory).ask("what is region1 ?", **SIX)
            assert said[is_on] == again(chat).ask("what is region1 ?", **SIX)
        else:
            with adapter_off(chat.model):
                said[is_on] = again(chat, chat.memory).ask("what is region1 ?", **SIX)
                assert said[is_on] == again(chat).ask("what is region1 ?", **SIX)
    assert said[True] != said[False]


def again(chat: RegionChat, memory: PromptMemory | None = None) -> RegionChat:
    """The same conversation up to its first answer, without what was read for it, or with it."""
    other = RegionChat(chat.model, chat.processor, memory or PromptMemory(most_bytes=0))
    other.image, other.messages, other._regions = chat.image, chat.messages[:2], chat._regions
    return other


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 2},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_other_ways_of_generating_read_all(chat: RegionChat, picture: Image.Image, options: dict[str, Any]) -> None:
    assert talk(chat, picture, **options) == talk(without_memory(chat), picture, **options)
    assert len(chat.memory) == 0


def test_sampled_follow_ups_are_the_same_for_the_same_seed(chat: RegionChat, picture: Image.Image) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 3}
    assert talk(chat, picture, **options) == talk(without_memory(chat), picture, **options)
    assert len(chat.memory) == 1


def test_a_failure_leaves_nothing_half_read(chat: RegionChat, picture: Image.Image) -> None:
    given: dict[str, Any] = {"image": picture, "boxes": BOXES[:1], **SIX}
    first = chat.ask("what is <region> ?", **given)

    def fail(*_: Any) -> Any:
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        chat.ask("where is region1 ?", stopping_criteria=[fail], **SIX)
    assert chat.history[-1] == ("assistant", first)
    assert chat.ask("where is region1 ?", **SIX) == again(chat).ask("where is region1 ?", **SIX)


def test_conversations_in_many_threads_do_not_mix(chat: RegionChat, picture: Image.Image) -> None:
    """The page and the server let conversations take turns in several threads."""
    boxes = [[n, n, 50 + n, 40 + n] for n in range(4)]

    def converse(box: list[int], memory: PromptMemory) -> list[str]:
        own = RegionChat(chat.model, chat.processor, memory)
        said = [own.ask("what is <region> ?", image=picture, boxes=[box], **SIX)]
        return [*said, *(own.ask(question, **SIX) for question in FOLLOW_UPS[:2])]  # type: ignore[list-item]

    expected = [converse(box, PromptMemory(most_bytes=0)) for box in boxes]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda box: converse(box, chat.memory), boxes)) == expected


def test_regions_in_words_are_not_read_again(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., PreTrainedTokenizerFast],
    tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image,
) -> None:
    model = language_model(max_position_embeddings=1024)
    chat = RegionChat(model, DescribedRegionProcessor(text_tokenizer(), tiny_tokenizer))
    assert talk(chat, picture) == talk(without_memory(chat), picture)
    assert len(chat.memory) == 1


def test_many_questions_go_on_from_what_was_read(chat: RegionChat, picture: Image.Image, reads: list[int]) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SIX)
    questions = ["what is region1 ?", "where is region1 in the picture ?", "what ?"]
    expected = without_memory(chat)
    expected.image, expected.messages, expected._regions = chat.image, chat.messages, chat._regions
    reads.clear()
    answers = expected.ask_each(questions, **SIX)
    whole, rest = reads[:2]
    reads.clear()
    assert chat.ask_each(questions, **SIX) == answers
    assert reads[0] < whole / 2
    assert reads[1] == rest
    assert len(chat.memory) == 1
    reads.clear()
    assert chat.ask("what ?", **SIX) == answers[2]
    assert max(reads) < whole / 2


def test_questions_about_regions_of_their_own_are_one_batch(
    chat: RegionChat, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[RegionPrompt(box=(4.0 * n, 3.0 * n, 40.0 + 4 * n, 30.0 + 3 * n))] for n in range(8)]
    given: dict[str, Any] = {"image": picture, **SIX}
    alone = [without_memory(chat).ask("what is <region> ?", prompts=own, **given) for own in prompts]
    encoded: list[int] = []
    encode = chat.region_tokenizer.encode
    monkeypatch.setattr(
        chat.region_tokenizer,
        "encode",
        lambda *args, **named: encoded.append(sum(map(len, named["prompts"]))) or encode(*args, **named),
    )
    chat.processor.encoder._rows.clear()
    assert chat.ask_each(["what is <region> ?"] * 8, prompts=prompts, **given) == alone
    assert encoded == [8]
    with pytest.raises(ValueError, match="prompts for 7 questions, expected a list for each of 8"):
        chat.ask_each(["what is <region> ?"] * 8, prompts=prompts[:7], **given)
