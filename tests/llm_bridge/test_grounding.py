"""Finding by words: candidates of every kind, answers by name, probabilities, rounds, and what the conversation keeps."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forced_answers import byte_tokenizer, says
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llm_bridge import DescribedRegionProcessor, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.grounding import (
    DESCRIBE_QUESTION,
    answered_numbers,
    asked_phrase,
    find_answer,
    find_question,
    likelihoods,
    says_none,
)
from llm_bridge.model_card import bridge_card
from llm_bridge.prompt_checks import ContextFullError
from tap_tokenizer import RegionPrompt, RegionTokens, TapRegionTokenizer

BOXES = [[4.0 * i, 3.0 * i, 4.0 * i + 30, 3.0 * i + 20] for i in range(12)]
"""Twelve candidates, so that region1 is the beginning of the names of others."""
QUESTION = "Find the red thing. Answer with names of regions, or none."
LENIENT = {"points_per_crop": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0, "crops_nms_thresh": 1}


@pytest.fixture
def make_chat(
    language_model: Callable[..., PreTrainedModel], tiny_tokenizer: TapRegionTokenizer
) -> Callable[..., RegionChat]:
    def make(context: int = 2048, described: bool = False, **options: Any) -> RegionChat:
        model, words = language_model("llama", vocab_size=280, max_position_embeddings=context), byte_tokenizer()
        if described:
            return RegionChat(model, DescribedRegionProcessor(words, tiny_tokenizer))
        torch.manual_seed(1)
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            model, region_tokenizer=tiny_tokenizer, text_tokenizer=words, **options
        )
        return RegionChat(bridge, RegionBridgeProcessor.for_bridge(bridge.config, words, tiny_tokenizer))

    return make


@pytest.fixture
def chat(make_chat: Callable[..., RegionChat]) -> RegionChat:
    return make_chat()


def naming(*boxes: Sequence[float]) -> Callable[[list[list[float]]], str]:
    """An answer that names whichever of these boxes are among the candidates."""
    return lambda shown: find_answer([number for number, box in enumerate(shown, 1) if box in [*map(list, boxes)]])


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_question_has_one_form() -> None:
    assert find_question("  the red\n thing. ") == QUESTION
    assert find_question("every open door?") == "Find every open door. Answer with names of regions, or none."
    shown = find_question("the red thing", candidates=3)
    assert shown == f"<region1> <region2> <region3> {QUESTION}"
    assert asked_phrase(shown) == asked_phrase(QUESTION) == "the red thing"
    for other in ("Find the red thing.", f"Please! {QUESTION}", "What is <region1>?", "find" + QUESTION[4:]):
        assert asked_phrase(other) is None


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [([], "none"), ([3], "region3"), ([2, 5], "region2 and region5"), ([4, 2, 12], "region4, region2 and region12")],
)
def test_answers_are_read_as_they_are_written(numbers: list[int], answer: str) -> None:
    assert find_answer(numbers) == answer
    assert answered_numbers(answer, 12) == numbers


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("None of them, not even region2.", []),
        ("Region 2, of course, and <region1>; region2.", [2, 1]),
        ("region0 region13 region12", [12]),
        ("a large red umbrella", []),
        ("Nonetheless region1", [1]),
        ("regions 2 and 5", [2, 5]),
        ("Regions 2, 5, and 12 are red.", [2, 5, 12]),
        ("It is region2 and 5.", [2, 5]),
        ("region 2, 5 and region7", [2, 5, 7]),
        ("region2 and 5 others, region3, 4.5 m away", [2, 3]),
        ("", []),
    ],
)
def test_free_answers(answer: str, numbers: list[int]) -> None:
    assert answered_numbers(answer, 12) == numbers


def test_an_answer_that_says_none_is_not_one_that_names_nothing() -> None:
    assert [says_none(words) for words in ("none", " None of them.", "Nonetheless", "the left one", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip


# --- what is found ----------------------------------------------------------------------------------------------------


def test_the_named_candidate_is_found(chat: RegionChat, picture: Image.Image) -> None:
    asked = says(chat, "region12")
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    names = "".join(f"region{number} <|region|> " for number in range(1, 13))
    assert asked == [f"<|user|>{names}{QUESTION}</s><|assistant|>"]
    assert found.boxes.tolist() == BOXES[11:]
    assert found.masks.shape == (1, 60, 90)
    assert (found.names, found.answer, found.rounds) == (["region1"], "region12", 1)
    assert found.probabilities[0] == found.candidate_probabilities[11]
    assert float(found.candidate_probabilities.sum()) + found.none_probability == pytest.approx(1)


def test_several_are_found_the_best_first(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "region2, region11, region7 and region5")
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert sorted(found.rows) == [1, 4, 6, 10]
    assert found.boxes.tolist() == [BOXES[row] for row in found.rows]
    assert found.rows[0] == 1  # which the answer names first, whatever later names have
    assert found.probabilities[0] == found.candidate_probabilities[1]
    later = found.candidate_probabilities[found.rows[1:]].tolist()
    assert later == sorted(later, reverse=True)
    assert found.names == ["region1", "region2", "region3", "region4"]
    last = found[[-1, 0]]
    assert last.names == ["region4", "region1"]
    assert last.rows == [found.rows[3], found.rows[0]]
    assert last.probabilities.tolist() == found.probabilities[[3, 0]].tolist()
    assert found.of_image(0).names == found.names


def test_a_long_answer_is_read_to_its_end(
    chat: RegionChat, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    says(chat, find_answer(range(1, 13)))  # 112 tokens
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert sorted(found.rows) == list(range(12))
    assert "cut off" not in caplog.text


def test_a_name_that_is_cut_off_is_not_found(
    chat: RegionChat, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    says(chat, "region2, region12")
    found = chat.find("the red thing", image=picture, boxes=BOXES, max_new_tokens=16)
    assert (found.answer, found.rows) == ("region2, region1", [1])
    assert "about 12 candidates was cut off after 1 whole name" in caplog.text
    says(chat, "region12")
    found = chat.find("the red thing", image=picture, boxes=BOXES, max_new_tokens=7)
    assert (found.answer, found.rows) == ("region1", [int(found.candidate_probabilities.argmax())])


def test_an_answer_may_be_as_long_as_the_context(
    make_chat: Callable[..., RegionChat], picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """All candidates are shown at once even if their names do not fit behind them."""
    chat = make_chat(context=270)
    says(chat, find_answer(range(1, 13)))
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert found.rounds == 1
    assert sorted(found.rows) == list(range(len(found)))
    assert 64 < len(found.answer) < 112
    assert "cut off" in caplog.text


@pytest.mark.parametrize("answer", ["none", "None.", "a red umbrella", "region13", ""])
def test_nothing_is_found_where_no_candidate_is_named(chat: RegionChat, picture: Image.Image, answer: str) -> None:
    says(chat, answer)
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert isinstance(found, RegionTokens)
    assert len(found) == len(found.names) == len(found.probabilities) == 0
    assert found.masks.shape == (0, 60, 90)
    assert found.answer == answer
    assert float(found.candidate_probabilities.sum()) + found.none_probability == pytest.approx(1)
    assert (chat.history, chat.image) == ([], None)


def test_a_threshold_decides_whether_anything_is_meant(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "none")
    likeliest = chat.find("the red thing", image=picture, boxes=BOXES, threshold=1)
    assert len(likeliest) == 1
    assert likeliest.probabilities[0] == likeliest.candidate_probabilities.max()
    says(chat, "region3")
    assert len(chat.find("the red thing", image=picture, boxes=BOXES, threshold=0)) == 0
    assert chat.find("the red thing", image=picture, boxes=BOXES, threshold=1).boxes.tolist() == [BOXES[2]]


def test_the_threshold_of_the_bridge_is_the_default(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "region3")
    chat.model.config.find_threshold = 0.0
    assert len(chat.find("the red thing", image=picture, boxes=BOXES)) == 0
    assert len(chat.find("the red thing", image=picture, boxes=BOXES, threshold=1)) == 1


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("described", [False, True])
def test_probabilities_are_those_of_names_after_the_prompt(
    make_chat: Callable[..., RegionChat], picture: Image.Image, described: bool
) -> None:
    """Against whole passes over prompt and name, one for each; region1 is not what begins region10 to region12."""
    chat = make_chat(context=4096, described=described)
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    regions = [{"type": "region", "box": box} for box in BOXES]
    content = [{"type": "image", "image": picture}, *regions, {"type": "text", "text": QUESTION}]
    inputs = chat.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    prompt = inputs["input_ids"]
    features = {name: value for name, value in inputs.items() if name.startswith("region_")}
    shares = []
    for word in [*(f"region{n}" for n in range(1, 13)), "none"]:
        ids = torch.tensor([[*prompt[0], *word.encode()]])
        ids[:, prompt.shape[1] :] = torch.tensor([chat.processor.tokenizer(word)["input_ids"]])
        with torch.no_grad():
            after = chat.model(input_ids=ids, **features).logits[0].double().softmax(dim=-1)
        share = 1.0
        for place in range(prompt.shape[1], ids.shape[1]):
            share *= float(after[place - 1, ids[0, place]])
        if word == "region1":
            share *= 1 - sum(float(after[-1, chat.processor.tokenizer(d)["input_ids"][0]]) for d in "012")
        shares.append(share)
    wanted = torch.tensor(shares) / sum(shares)
    torch.testing.assert_close(found.candidate_probabilities, wanted[:-1], rtol=1e-3, atol=1e-7)
    assert found.none_probability == pytest.approx(float(wanted[-1]), rel=1e-3)


@pytest.mark.parametrize("tokens", ["bytes", "pieces", "words"])
@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"]
)
def test_names_are_read_as_an_answer_is_taught(
    text_tokenizer: Callable[..., PreTrainedTokenizerFast],
    tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image,
    tokens: str,
    template: str | None,
) -> None:
    """With the space that a template leaves to the assistant, in whatever way a tokenizer writes it."""
    words = text_tokenizer() if tokens == "words" else byte_tokenizer()
    if tokens == "pieces":
        model = Tokenizer.from_str(words.backend_tokenizer.to_str())
        model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        model.model = models.Unigram([("<pad>", 0), *((c, -5) for c in [*string.printable, "▁"]), ("▁region", -3)], 0)
        words = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="<pad>")
    ask = "{% if add_generation_prompt %}[assistant]{% endif %}"
    words.chat_template = None if template is None else template + ask
    processor = RegionBridgeProcessor(words, tiny_tokenizer)
    content = [
        {"type": "image", "image": picture},
        {"type": "region", "box": BOXES[0]},
        {"type": "text", "text": "red?"},
    ]
    asked = [{"role": "user", "content": content}]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True}
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, enable_thinking=False, **options)
    taught = processor.apply_chat_template(
        [*asked, {"role": "assistant", "content": "region1"}], return_assistant_tokens_mask=True, **options
    )
    answer = taught["input_ids"][0][taught["assistant_masks"][0].bool()].tolist()
    ids = processor.answer_ids(prompt["input_ids"][0], "region1")
    assert ids == answer[: len(ids)]
    assert len(answer) == len(ids) + 1  # and the end


def test_later_names_are_compared_with_those_that_were_left(chat: RegionChat, picture: Image.Image) -> None:
    """Against whole passes over the prompt, what was said before, and each name that could stand there."""
    said, left = "region11 and region4", [n for n in range(1, 13) if n != 11]
    says(chat, said)
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    content = [{"type": "image", "image": picture}, *({"type": "region", "box": box} for box in BOXES)]
    inputs = chat.processor.apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}],
        tokenize=True, return_dict=True, add_generation_prompt=True,
    )  # fmt: skip
    prompt = inputs["input_ids"]
    features = {name: value for name, value in inputs.items() if name.startswith("region_")}
    shares = []
    for number in left:
        own = chat.processor.tokenizer(f"region11 and region{number}")["input_ids"]
        with torch.no_grad():
            ids = torch.cat([prompt, torch.tensor([own])], dim=1)
            after = chat.model(input_ids=ids, **features).logits[0].double().softmax(dim=-1)
        share = 1.0
        for place in range(prompt.shape[1], ids.shape[1]):
            share *= float(after[place - 1, ids[0, place]])
        if number == 1:  # which region10 and region12 begin with
            share *= 1 - sum(float(after[-1, chat.processor.tokenizer(d)["input_ids"][0]]) for d in "02")
        shares.append(share)
    assert float(found.probabilities[found.rows.index(3)]) == pytest.approx(
        shares[left.index(4)] / sum(shares), rel=1e-3
    )


def test_numbers_of_a_list_are_compared_with_those_that_were_left(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "regions 11 and 4")
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert found.rows == [10, 3]
    prompt = chat.speaker.read(
        [{"role": "user", "content": [{"type": "image", "image": picture},
                                      *({"type": "region", "box": box} for box in BOXES),
                                      {"type": "text", "text": QUESTION}]}], thinking=False,
    )  # fmt: skip
    others = [f"regions 11 and {number}" for number in range(1, 13) if number != 11]
    shares = likelihoods(chat.model, chat.processor, prompt, others).softmax(dim=0)
    assert float(found.probabilities[1]) == pytest.approx(float(shares[3]), rel=1e-3)


def test_the_temperature_of_the_bridge_flattens_probabilities(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "none")
    plain = chat.find("the red thing", image=picture, boxes=BOXES)
    chat.model.config.find_temperature = 2.0
    flat = chat.find("the red thing", image=picture, boxes=BOXES)

    def logs(found: Any) -> torch.Tensor:
        return torch.tensor([*found.candidate_probabilities.tolist(), found.none_probability]).log()

    torch.testing.assert_close(logs(flat), (logs(plain) / 2).log_softmax(dim=0), rtol=1e-3, atol=1e-4)


def test_few_beginnings_of_names_are_read(chat: RegionChat, picture: Image.Image) -> None:
    seen = []
    forward = chat.model.forward
    chat.model.forward = lambda **inputs: seen.append(inputs["input_ids"].shape) or forward(**inputs)  # type: ignore
    says(chat, "none")
    chat.model.generate = lambda **inputs: inputs["input_ids"]  # type: ignore[method-assign, assignment]
    chat.find("the red thing", image=picture, boxes=BOXES)
    (_, prompt), names = seen
    assert prompt > 150
    assert names == (2, 8)  # "region1" and "non", each after the last token of the prompt


def test_of_a_second_phrase_its_own_words_alone_are_read(chat: RegionChat, picture: Image.Image) -> None:
    read: list[int] = []
    forward = chat.model.forward
    phrases = ["the red thing", "the blue thing"]
    fresh = [RegionChat(chat.model, chat.processor).find(phrase, image=picture, boxes=BOXES) for phrase in phrases]
    chat.model.forward = lambda **inputs: read.append(inputs["input_ids"].shape[1]) or forward(**inputs)  # type: ignore
    found = [chat.find(phrases[0], image=picture, boxes=BOXES)]
    first = read.copy()
    found.append(chat.find(phrases[1], image=picture, boxes=BOXES))
    second = read[len(first) :]
    assert first[0] > 150
    assert second[0] < 100
    assert max(first[1:] + second[1:]) < 20  # words of the answer, and names: the prompt is not read for them again
    for one, other in zip(found, fresh):
        assert (one.rows, one.answer) == (other.rows, other.answer)
        torch.testing.assert_close(one.candidate_probabilities, other.candidate_probabilities, rtol=1e-4, atol=1e-6)


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_of_every_kind(
    chat: RegionChat, picture: Image.Image, tiny_tokenizer: TapRegionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((60, 90), dtype=bool)
    mask[10:30, 20:50] = True
    points = [[[10, 10]], [[50, 30]]]
    everything = tiny_tokenizer.encode_everything(picture, **LENIENT)
    assert len(everything) > 2
    says(chat, "region2")
    kinds: list[tuple[dict[str, Any], RegionTokens]] = [
        ({"boxes": np.array(BOXES)}, tiny_tokenizer.encode(picture, boxes=BOXES)),
        ({"points": points}, tiny_tokenizer.encode(picture, points=points)),
        ({"masks": [mask.T.T, mask]}, tiny_tokenizer.encode(picture, masks=[mask, mask])),
        (
            {"prompts": [RegionPrompt(box=(1, 2, 30, 40)), RegionPrompt(points=((50, 30),), point_labels=(1,))]},
            tiny_tokenizer.encode(picture, points=points),
        ),
        ({"regions": everything}, everything),
        ({}, everything),
    ]
    find_all = tiny_tokenizer.encode_everything
    monkeypatch.setattr(tiny_tokenizer, "encode_everything", lambda **given: find_all(**given, **LENIENT))
    for given, candidates in kinds:
        chat.reset()
        found = chat.find("the red thing", image=picture, **given)
        assert len(found.candidate_probabilities) == len(given.get("prompts", candidates)), given
        torch.testing.assert_close(found.tokens, candidates[1].tokens, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.masks, candidates[1].masks if candidates is everything else found.masks)
        torch.testing.assert_close(found.boxes, candidates[1].boxes)
        assert len(chat.regions()) == 1


def test_ready_regions_are_shown_by_their_boxes(
    chat: RegionChat, picture: Image.Image, tiny_tokenizer: TapRegionTokenizer
) -> None:
    everything = tiny_tokenizer.encode_everything(picture, **LENIENT)
    says(chat, lambda shown: find_answer([shown.index(everything.boxes[-1].tolist()) + 1]))
    found = chat.find("the red thing", image=picture, regions=everything)
    assert found.boxes.tolist() == everything.boxes[-1:].tolist()
    assert torch.equal(found.masks[0], everything.masks[everything.boxes.tolist().index(found.boxes[0].tolist())])


def test_detections_are_candidates(chat: RegionChat, picture: Image.Image, tiny_tokenizer: TapRegionTokenizer) -> None:
    masks = np.zeros((2, 60, 90), dtype=bool)
    masks[0, 10:30, 20:50] = True
    detections = SimpleNamespace(xyxy=np.array(BOXES[:2]), mask=masks)  # the second mask is empty
    for answer, own in (("region1", {"masks": masks[:1]}), ("region2", {"boxes": BOXES[1:2]})):
        chat.reset()
        says(chat, answer)
        found = chat.find("the red thing", image=picture, detections=detections)
        torch.testing.assert_close(found.tokens, tiny_tokenizer.encode(picture, **own).tokens, rtol=1e-4, atol=1e-4)
        assert found.rows == [int(answer[-1]) - 1]
    assert len(chat.find("the red thing", image=picture, detections=SimpleNamespace(xyxy=np.zeros((0, 4))))) == 0


def test_detections_that_reach_beyond_the_picture_are_candidates(chat: RegionChat, picture: Image.Image) -> None:
    says(chat, "region1")
    detections = SimpleNamespace(xyxy=np.array([[-3, 10, 50, 70], [30, 20, 99, 50]]))
    found = chat.find("the red thing", image=picture, detections=detections)
    assert (found.rows, found.boxes.tolist()) == ([0], [[0, 10, 50, 60]])


@pytest.mark.parametrize("given", [{"boxes": []}, {"regions": "none"}, {}])
def test_without_candidates_nothing_is_found_and_nobody_asked(
    chat: RegionChat,
    picture: Image.Image,
    tiny_tokenizer: TapRegionTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    monkeypatch.setattr(chat.model, "generate", lambda **_: pytest.fail("must not be asked"))
    nothing = tiny_tokenizer.encode(picture, boxes=BOXES, with_masks=True)[[]]
    monkeypatch.setattr(tiny_tokenizer, "encode_everything", lambda **_: nothing)
    found = chat.find("the red thing", image=picture, **({"regions": nothing} if given.get("regions") else given))
    assert (len(found), found.rounds, found.answer, found.none_probability) == (0, 0, "", 1.0)
    assert found.masks.shape == (0, 60, 90)


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_more_candidates_than_are_shown_at_once_go_in_rounds(chat: RegionChat, picture: Image.Image) -> None:
    asked = says(chat, naming(BOXES[2], BOXES[9]))
    found = chat.find("the red thing", image=picture, boxes=BOXES, most=5)
    assert sorted(found.boxes.tolist()) == [BOXES[2], BOXES[9]]
    assert found.rounds == len(asked) == 4  # three groups of four, and a last round of what each sent on
    assert [prompt.count("<|region|>") for prompt in asked] == [4, 4, 4, 3]
    took_part = found.candidate_probabilities > 0
    assert int(took_part.sum()) == 3
    assert took_part[[2, 9]].all()
    assert float(found.candidate_probabilities.sum()) + found.none_probability == pytest.approx(1)


def test_none_is_said_in_the_last_round(chat: RegionChat, picture: Image.Image) -> None:
    asked = says(chat, "none")
    found = chat.find("the red thing", image=picture, boxes=BOXES, most=4)
    assert len(found) == 0
    assert found.rounds == len(asked) == 4


def test_rounds_end_where_every_candidate_is_named(chat: RegionChat, picture: Image.Image) -> None:
    asked = says(chat, naming(*BOXES))
    found = chat.find("the red thing", image=picture, boxes=BOXES, most=2)
    assert len(found) == 2
    assert len(asked) == found.rounds == 6 + 3 + 2 + 1


def test_rounds_keep_within_the_context(make_chat: Callable[..., RegionChat], picture: Image.Image) -> None:
    chat = make_chat(context=120)
    asked = says(chat, naming(BOXES[6]))
    found = chat.find("the red thing", image=picture, boxes=BOXES, max_new_tokens=10)
    assert found.boxes.tolist() == [BOXES[6]]
    assert found.rounds == len(asked) > 2
    assert all(prompt.count("<|region|>") >= 2 for prompt in asked)
    with pytest.raises(ContextFullError, match="the language model reads 120 in all"):
        chat.find("the red thing", image=picture, boxes=BOXES, max_new_tokens=80)


# --- the conversation -------------------------------------------------------------------------------------------------


def test_what_is_found_can_be_asked_about(chat: RegionChat, picture: Image.Image, other_picture: Image.Image) -> None:
    says(chat, "region7")
    found = chat.find("the red thing", image=picture, boxes=BOXES)
    assert chat.history == [("user", f"region1 {QUESTION}"), ("assistant", "region1")]
    assert chat.regions().boxes.tolist() == found.boxes.tolist() == [BOXES[6]]
    asked = says(chat, "red")
    assert chat.ask("What is region1?") == "red"
    assert asked[0].endswith("<|user|>What is region1 <|region|>?</s><|assistant|>")
    says(chat, "region4 and region5")
    again = chat.find("the red thing", boxes=BOXES)  # of the same picture
    assert again.names == ["region2", "region3"]
    assert chat.regions()[1:].boxes.tolist() == again.boxes.tolist()
    assert chat.history[-1] == ("assistant", "region2 and region3")
    assert [len(chat.mentioned()), list(chat.mentioned("is region3 it?"))] == [2, ["region3"]]
    says(chat, "region1")
    assert chat.find("the red thing", image=other_picture, boxes=[[1, 2, 30, 40]]).names == ["region1"]
    assert len(chat.history) == 2


def test_regions_that_an_answer_mentions(chat: RegionChat, picture: Image.Image) -> None:
    assert chat.mentioned() == {}
    says(chat, "Region 2 is above region1, not region9; region2 is red.")
    answer = chat.ask("Which is red?", image=picture, boxes=BOXES[:3])
    assert isinstance(answer, str)
    for mentioned in (chat.mentioned(answer), chat.mentioned()):
        assert list(mentioned) == ["region2", "region1"]
        assert mentioned["region2"].boxes.tolist() == [BOXES[1]]
        assert mentioned["region1"].masks.shape == (1, 60, 90)
    assert chat.mentioned("nothing of the kind") == {}


def test_a_description_names_the_regions_that_it_speaks_of(chat: RegionChat, picture: Image.Image) -> None:
    asked = says(chat, "region2 is above region12.")
    for _ in range(2):  # each begins anew
        assert chat.describe(picture, boxes=BOXES) == "region2 is above region12."
        assert {name: one.boxes.tolist() for name, one in chat.mentioned().items()} == {
            "region2": [BOXES[1]], "region12": [BOXES[11]],
        }  # fmt: skip
        assert len(chat.regions()) == 12
    names = "".join(f"region{number} <|region|> " for number in range(1, 13))
    assert asked == [f"<|user|>{names}{DESCRIBE_QUESTION}</s><|assistant|>"] * 2
    says(chat, "red")
    assert chat.ask("What colour is region12?") == "red"
    with pytest.raises(ValueError, match="Found no region to speak of: give boxes"):
        chat.describe(picture, boxes=[])
    assert len(chat.history) == 4


def test_everything_is_described_where_nothing_is_given(
    chat: RegionChat, picture: Image.Image, tiny_tokenizer: TapRegionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = tiny_tokenizer.encode_everything(picture, **LENIENT)
    monkeypatch.setattr(tiny_tokenizer, "encode_everything", lambda **_: everything)
    says(chat, "region1")
    chat.describe(picture)
    assert chat.regions().boxes.tolist() == everything.boxes.tolist()


def test_a_description_speaks_of_as_many_regions_as_the_context_holds(
    make_chat: Callable[..., RegionChat], picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    chat = make_chat(context=200)
    says(chat, "region3")
    chat.describe(picture, boxes=BOXES, max_new_tokens=20)
    assert chat.regions().boxes.tolist() == BOXES[:9]
    assert "The context holds 9 regions, and 3 more are left out." in caplog.text
    with pytest.raises(ContextFullError):
        chat.describe(picture, boxes=BOXES, max_new_tokens=190)


def test_a_described_model_answers_by_names(make_chat: Callable[..., RegionChat], picture: Image.Image) -> None:
    chat = make_chat(described=True)
    asked = says(chat, "region2")
    found = chat.find("the red thing", image=picture, boxes=BOXES[:3])
    assert found.boxes.tolist() == [BOXES[1]]
    assert asked[0].startswith("<|user|>region1 may be a thing ")
    assert asked[0].endswith(f"region1 region2 region3 {QUESTION}</s><|assistant|>")


def test_a_model_that_was_not_taught_warns_once(
    make_chat: Callable[..., RegionChat], picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    for described in (False, True):
        chat = make_chat(context=4096, described=described)
        says(chat, "region2")
        caplog.clear()
        for _ in range(2):
            assert len(chat.find("the red thing", image=picture, boxes=BOXES)) == 1
        assert [record.message for record in caplog.records] == [chat.finding_limitation]
        assert "not taught to find regions" in str(chat.finding_limitation)
    chat = make_chat()
    chat.model.config.taught_to_find = True
    says(chat, "region2")
    caplog.clear()
    chat.find("the red thing", image=picture, boxes=BOXES)
    assert (chat.finding_limitation, caplog.records) == (None, [])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_searched_is_refused(
    chat: RegionChat,
    picture: Image.Image,
    other_picture: Image.Image,
    tiny_tokenizer: TapRegionTokenizer,
    make_tokenizer: Callable[..., TapRegionTokenizer],
) -> None:
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    given = {"image": picture, "boxes": BOXES}
    for words, phrase, options in (
        ("expected words", " . ", given),
        ("names a region", "what is left of region2", given),
        ("names a region", "<region>", given),
        ("no picture", "the red thing", {"boxes": BOXES}),
        ("in one way", "the red thing", {**given, "regions": regions}),
        ("Got detections and boxes, regions: give detections alone", "the red thing", {
            **given, "detections": SimpleNamespace(xyxy=np.array(BOXES)), "regions": regions,
        }),
        ("of this picture alone", "the red thing", {"image": other_picture, "regions": regions}),
        ("encode them with", "the red thing", {
            "image": picture, "regions": make_tokenizer(5).encode(picture, boxes=BOXES),
        }),
        ("most is 1, expected 2", "the red thing", {**given, "most": 1}),
        ("threshold is 2, expected a probability", "the red thing", {**given, "threshold": 2}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            chat.find(phrase, **options)  # type: ignore[arg-type]
    assert (chat.history, chat.image) == ([], None)


def test_a_bridge_keeps_its_threshold(make_chat: Callable[..., RegionChat], tmp_path: Any) -> None:
    model = make_chat().model
    model.config.find_threshold = 0.4
    assert "| finds regions by words | not taught |\n\n```python" in bridge_card(model)
    model.config.taught_to_find, model.config.find_temperature = True, 1.7
    assert "| taught; temperature 1.7, none if that is more probable than 0.4 |" in bridge_card(model)
    model.save_pretrained(tmp_path)
    assert RegionBridgeForConditionalGeneration.from_pretrained(tmp_path).config.find_threshold == 0.4
    for name, value in (("find_threshold", 2), ("find_temperature", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
            type(model.config)(**{name: value})
