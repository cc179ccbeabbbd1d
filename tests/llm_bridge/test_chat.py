"""Conversations: turns, names, streaming, baselines, and the described mode."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_forms import BOX, sharp_forms, soft_forms
from PIL import Image
from transformers import PreTrainedModel

from llm_bridge import (
    DescribedRegionProcessor,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    describe_regions,
)
from llm_bridge.generation import LocalSpeaker
from tap_tokenizer import TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def chat(make_bridge: Callable[..., Pair]) -> RegionChat:
    return RegionChat(*make_bridge())


def test_follow_ups_use_the_names_of_regions(chat: RegionChat, picture: Image.Image) -> None:
    first = chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    assert isinstance(first, str)
    second = chat.ask("is region1 on <region> ?", boxes=BOXES[1:], **SHORT)
    third = chat.ask("where is region2 ?", **SHORT)
    assert chat.history == [
        ("user", "what is region1?"),
        ("assistant", first),
        ("user", "is region1 on region2?"),
        ("assistant", second),
        ("user", "where is region2?"),
        ("assistant", third),
    ]
    assert chat.regions().boxes.tolist() == BOXES


def test_the_last_question_is_taken_back_with_the_regions_that_came_with_it(
    chat: RegionChat, picture: Image.Image
) -> None:
    with pytest.raises(ValueError, match="no question to take back"):
        chat.take_back()
    first = chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    second = chat.ask("is region1 on <region> ?", boxes=BOXES[1:], **SHORT)
    chat.ask("where is region2 ?", **SHORT)
    assert chat.take_back() == ("where is region2?", [])
    assert chat.regions().boxes.tolist() == BOXES
    question, prompts = chat.take_back()
    assert (question, [prompt.box for prompt in prompts]) == ("is region1 on region2?", [tuple(BOXES[1])])
    assert chat.regions().boxes.tolist() == BOXES[:1]
    assert chat.ask(question, prompts=prompts, **SHORT) == second
    chat.take_back()
    question, prompts = chat.take_back()
    assert (chat.history, chat.image) == ([], None)
    assert chat.ask(question, image=picture, prompts=prompts, **SHORT) == first


def test_its_representation_is_short_and_says_what_it_holds(chat: RegionChat, picture: Image.Image) -> None:
    assert repr(chat).endswith("mode='tokens'; picture: none, regions: 0, questions: 0)")
    chat.ask("what is <region> on <region>", image=picture, boxes=BOXES, **SHORT)
    assert repr(chat).endswith("picture: 90 × 60, regions: 2, questions: 1)")
    bundled = repr(RegionChat.from_pretrained("region-chat-tiny"))
    assert bundled.startswith("RegionChat('pretrained/region-chat-tiny', mode='tokens'; ")
    assert len(bundled) < 120


def test_an_answer_is_what_the_model_generates(chat: RegionChat, picture: Image.Image) -> None:
    answer = chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    content = [
        {"type": "image", "image": picture},
        {"type": "text", "text": "what is"},
        {"type": "region", "box": BOXES[0]},
    ]
    inputs = chat.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    ids = chat.model.generate(**inputs, do_sample=False, **SHORT)[0, inputs["input_ids"].shape[1] :]
    assert answer == chat.processor.decode(ids, skip_special_tokens=True).strip()


def test_streaming_gives_the_same_words(chat: RegionChat, picture: Image.Image) -> None:
    whole = chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    chat.reset()
    pieces = chat.ask("what is <region>", image=picture, boxes=BOXES[:1], stream=True, **SHORT)
    assert chat.history == []  # nothing is remembered before the answer has come
    assert "".join(pieces).strip() == whole
    assert chat.history[1] == ("assistant", whole)


def test_an_answer_without_words_is_explained(
    chat: RegionChat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LocalSpeaker, "say", lambda *_, **__: "a word")
    chat.ask("hello", **SHORT)
    assert "before the first word" not in caplog.text
    monkeypatch.setattr(LocalSpeaker, "say", lambda *_, **__: "")
    assert chat.ask("hello", **SHORT) == ""
    assert 'questions about regions, such as "What is <region>?"' in caplog.text


def test_a_closed_stream_stops_the_generation(
    chat: RegionChat, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    forward = chat.model.forward

    @functools.wraps(forward)
    def counted(*arguments: Any, **rest: Any) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return forward(*arguments, **rest)

    monkeypatch.setattr(chat.model, "forward", counted)
    pieces = chat.ask(
        "what is <region>", image=picture, boxes=BOXES[:1], stream=True, max_new_tokens=60, min_new_tokens=60
    )
    next(pieces)  # type: ignore[call-overload]
    pieces.close()  # type: ignore[union-attr]
    seen = steps
    assert seen < 30
    time.sleep(0.2)
    assert steps == seen  # no thread goes on
    assert chat.history == []


def test_regions_without_a_marker_are_all_asked_about(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("where is it ?", image=picture, boxes=BOXES, **SHORT)
    assert chat.history[0] == ("user", "region1 region2 where is it?")


def test_a_new_picture_starts_a_new_conversation(
    chat: RegionChat, picture: Image.Image, other_picture: Image.Image
) -> None:
    chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    chat.ask("what is <region>", image=other_picture, boxes=[[1, 2, 30, 70]], **SHORT)
    assert chat.history[0] == ("user", "what is region1")
    assert len(chat.history) == 2


def test_refused_questions_do_not_change_the_conversation(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    before = chat.history
    with pytest.raises(ValueError, match="Found 2 <region> placeholders but 1 region"):
        chat.ask("is <region> on <region>", boxes=BOXES[1:])
    with pytest.raises(ValueError, match="leaves the picture"):
        chat.ask("<region>", boxes=[[0, 0, 900, 900]])
    with pytest.raises(ValueError, match="begin a new conversation, or lower max_new_tokens"):
        chat.ask("where is it", max_new_tokens=500)
    other = picture.rotate(180)
    with pytest.raises(ValueError, match="Found 2 <region> placeholders but 1 region"):
        chat.ask("is <region> on <region>", image=other, boxes=BOXES[1:])
    with pytest.raises(ValueError, match="Found 2 <region> placeholders but 1 region"):
        chat.ask_each(["what is <region>", "is <region> on <region>"], image=other, boxes=BOXES[1:])
    with pytest.raises(ValueError, match="temperature"):
        chat.ask("<region>", image=other, boxes=BOXES[:1], do_sample=True, temperature=-1.0)
    chat.ask("<region>", image=other, boxes=BOXES[:1], stream=True, **SHORT).close()  # type: ignore[union-attr]
    assert chat.history == before
    assert len(chat.regions()) == 1
    assert np.array_equal(chat.image, np.asarray(picture))  # type: ignore[arg-type]
    chat.ask("what is <region>", image=other, boxes=BOXES[:1], **SHORT)
    assert len(chat.history) == 2
    with pytest.raises(ValueError, match="Got regions but no picture"):
        RegionChat(chat.model, chat.processor).ask("<region>", boxes=BOXES[:1])
    with pytest.raises(ValueError, match="No region was asked about yet"):
        RegionChat(chat.model, chat.processor).baseline()


def test_errors_while_generating_are_raised_in_the_callers_thread(chat: RegionChat, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="temperature"):
        chat.ask("<region>", image=picture, boxes=BOXES[:1], do_sample=True, temperature=-1.0)
    assert chat.history == []


def test_the_baseline_is_taps_caption_and_concepts(
    chat: RegionChat, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    chat.ask("is <region> on <region>", image=picture, boxes=BOXES, **SHORT)
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    baseline = chat.baseline(top_k=2)
    assert [b.name for b in baseline] == ["region1", "region2"]
    assert [b.caption for b in baseline] == [None, None]  # no vocabulary
    for got, want in zip(baseline, tiny_tokenizer.classify(regions, 2)):
        assert [name for name, _ in got.concepts] == [name for name, _ in want]


def test_points_and_pictures_of_every_form(chat: RegionChat, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "p.png")
    by_path = chat.ask("<region> ?", image=tmp_path / "p.png", points=[[[30, 20]]], **SHORT)
    chat.reset()
    by_pil = chat.ask("<region> ?", image=picture, points=[[[30, 20]]], point_labels=[[1]], **SHORT)
    assert by_path == by_pil


def test_a_loaded_chat_answers_like_the_saved_one(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path
) -> None:
    bridge, processor = make_bridge()
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    question: dict[str, Any] = {"question": "what is <region>", "image": picture, "boxes": BOXES[:1], **SHORT}
    assert RegionChat.from_pretrained(tmp_path).ask(**question) == RegionChat(bridge, processor).ask(**question)
    half = RegionChat.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert isinstance(half.ask(**question), str)


def placeholders(chat: RegionChat) -> str:
    return chat.processor.apply_chat_template(chat.messages)


def test_a_region_is_shown_again_in_every_turn_that_speaks_of_it(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    chat.ask("what is <region> ?", boxes=BOXES[1:], **SHORT)
    chat.ask("is Region1's on region 2 , or region1's ?", **SHORT)
    assert chat.history[4] == ("user", "is region1's on region2, or region1's?")
    assert "is region1 <|region|>'s on region2 <|region|>, or region1's ?" in placeholders(chat)
    batch = chat.processor.apply_chat_template(chat.messages, tokenize=True, return_dict=True, return_tensors="pt")
    first, second, *again = batch["region_features"][0]
    torch.testing.assert_close(torch.stack(again), torch.stack([first, second]))
    assert not torch.equal(first, second)
    assert chat.regions().boxes.tolist() == BOXES


def test_a_question_that_names_no_region_is_about_those_of_the_question_before(
    chat: RegionChat, picture: Image.Image
) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    chat.ask("what colour is it ?", **SHORT)
    assert chat.history[2] == ("user", "what colour is it?")  # one reads what one wrote
    assert "region1 <|region|> what colour is it ?" in placeholders(chat)
    batch = chat.processor.apply_chat_template(chat.messages, tokenize=True, return_dict=True, return_tensors="pt")
    first, again = batch["region_features"][0]
    torch.testing.assert_close(again, first)
    chat.ask("is <region> like region1 ?", boxes=BOXES[1:], **SHORT)
    chat.ask("why ?", **SHORT)
    chat.ask("really ?", **SHORT)
    assert placeholders(chat).count("region2 <|region|> region1 <|region|>") == 2
    chat.ask("and regions 1 and 2 ?", **SHORT)
    assert "<|user|> and regions 1 and 2 ?" in placeholders(chat)
    assert chat.take_back() == ("and regions 1 and 2?", [])
    assert len(chat.regions()) == 2


def test_nobody_means_many_regions_by_they(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what are these ?", image=picture, boxes=BOXES[:1] * 5, **SHORT)
    chat.ask("why ?", **SHORT)
    assert "<|user|> why ?" in placeholders(chat)


def test_a_picture_without_a_region_is_refused_by_a_bridge_that_would_not_see_it(
    chat: RegionChat, make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    with pytest.raises(ValueError, match="Got a picture but no region, and this bridge sees pictures through their"):
        chat.ask("what is it ?", image=picture, **SHORT)
    with pytest.raises(ValueError, match="Found region1, but there are no regions"):
        chat.ask("what is region1 ?", **SHORT)
    assert (chat.history, chat.image) == ([], None)
    assert isinstance(chat.ask("what is this ?", **SHORT), str)  # words alone need no eyes
    assert isinstance(RegionChat(*make_bridge(image_grid=2)).ask("what is it ?", image=picture, **SHORT), str)


def test_a_numbered_marker_shows_the_region_of_that_number(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("is <region2> on <region1> or <region2> ?", image=picture, boxes=BOXES, **SHORT)
    assert "is region2 <|region|> on region1 <|region|> or region2 ?" in placeholders(chat)
    assert chat.regions().boxes.tolist() == BOXES
    features = chat.processor.apply_chat_template(chat.messages, tokenize=True, return_dict=True)["region_features"][0]
    one = chat.processor(text="<region>", images=picture, boxes=BOXES[1:])["region_features"][0, 0]
    torch.testing.assert_close(features[0], one)  # the second box comes first
    chat.ask("is <region3> left of <region1> ?", boxes=[[1, 1, 9, 9]], **SHORT)
    assert chat.history[2] == ("user", "is region3 left of region1?")
    for question, boxes, words in (
        ("what is <region9> ?", BOXES[:1], "regions 1 to 4"),
        ("what is <region0> ?", BOXES[:1], "regions 1 to 4"),
        ("what is region0 ?", None, "Found region0, but there are regions 1 to 3"),
        ("what is region9 ?", None, "Found region9, but there are regions 1 to 3"),
        ("what is <region1> ?", BOXES[:1], "Found 0 <region> placeholders but 1 region"),
        ("is region4 left of region1 ?", BOXES[:2], "speaks of 1 of the 2 regions that came with it"),
        ("<image> what ?", None, "<image>"),
        (" ", None, "expected words"),
    ):
        with pytest.raises(ValueError, match=words):
            chat.ask(question, boxes=boxes, **SHORT)


def test_beams_and_sampling(chat: RegionChat, picture: Image.Image) -> None:
    for options in ({"num_beams": 2}, {"do_sample": True, "top_k": 3}, {"max_length": 60}):
        assert isinstance(chat.ask("<region> ?", image=picture, boxes=BOXES[:1], **{**SHORT, **options}), str)
        chat.reset()
    with pytest.raises(ValueError, match="expected one"):
        chat.ask("<region> ?", image=picture, boxes=BOXES[:1], do_sample=True, num_return_sequences=2)


def test_stop_strings_end_an_answer() -> None:
    folder = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny"
    chat = RegionChat.from_pretrained("region-chat-tiny")
    question: dict[str, Any] = {"image": folder / "demo.png", "boxes": [[177, 392, 271, 470]]}
    whole = chat.ask("Describe <region>.", **question)
    chat.reset()
    word = whole.split()[1]
    assert chat.ask("Describe <region>.", **question, stop_strings=[word]) == whole[: whole.index(word) + len(word)]


def test_thinking_is_off_unless_asked_for(chat: RegionChat, picture: Image.Image) -> None:
    chat.processor.chat_template += "{% if add_generation_prompt and enable_thinking is false %} red{% endif %}"
    seen: list[str] = []
    plain = chat.model.generate
    chat.model.generate = lambda **inputs: seen.append(chat.processor.decode(inputs["input_ids"][0])) or plain(**inputs)
    for thinking in (False, True):
        chat.ask("<region> ?", image=picture, boxes=BOXES[:1], thinking=thinking, **SHORT)
        chat.reset()
    assert seen[0].endswith("red")
    assert not seen[1].endswith("red")


def test_changing_arrays_later_does_not_change_a_conversation(chat: RegionChat) -> None:
    canvas, boxes = np.full((60, 90, 3), 120, dtype=np.uint8), np.array(BOXES[:1], dtype=float)
    chat.ask("<region> ?", image=canvas, boxes=boxes, **SHORT)
    before = chat.regions()
    canvas[:], boxes[:] = 0, [[1, 1, 5, 5]]
    after = chat.regions()
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.semantic_tokens, after.semantic_tokens)
    chat.ask("<region> ?", image=canvas, boxes=BOXES[:1], **SHORT)  # another picture now: a new conversation
    assert len(chat.history) == 2
    chat.ask("where is region1 ?", image=canvas.copy(), **SHORT)  # the same picture goes on
    assert len(chat.history) == 4


def test_streams_give_what_ask_gives(chat: RegionChat, picture: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    pieces = chat.ask("<region> ?", image=picture, boxes=BOXES[:1], stream=True, **SHORT)
    chat.ask("<region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    list(pieces)
    assert len(chat.history) == 2
    assert "not remembered" in caplog.text


@pytest.mark.parametrize(("prompts", "words"), [
    ({"boxes": [1, 2, 30, 40]}, r"boxes as a flat list of numbers, expected one entry per region: write boxes=\[\[x1"),
    ({"boxes": "1 2 3 4"}, "boxes of type str, expected a list"),
    ({"points": [[3, 4]]}, r"Region 0: points has shape \(2,\), expected n × 2"),
    ({"masks": np.ones((60, 90), bool)}, r"masks of shape \(60, 90\), .* give a single region as a list of one"),
    ({"masks": Image.new("1", (90, 60))}, "masks of type Image, expected a list"),
    ({"boxes": BOXES, "masks": [np.ones((60, 90), bool)]}, "2 boxes, 1 masks: give the same number"),
])  # fmt: skip
def test_a_single_region_is_refused_as_a_list_of_regions(
    chat: RegionChat, picture: Image.Image, prompts: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        chat.ask("<region> ?", image=picture, **prompts)


def test_wrong_sources_are_named(make_bridge: Callable[..., Pair], tmp_path: Path) -> None:
    bridge, processor = make_bridge()
    bridge.save_pretrained(tmp_path / "bridge")
    processor.save_pretrained(tmp_path / "bridge")
    bridge.language_model.save_pretrained(tmp_path / "lm")
    tap = Path(__file__).parents[2] / "tap_tokenizer" / "pretrained" / "tap-tiny"
    (tmp_path / "empty").mkdir()
    for source, mode, words in (
        (tmp_path / "none", "tokens", "no folder"),
        (tmp_path / "empty", "tokens", r"no config\.json"),
        (tap, "tokens", "is a region tokenizer"),
        (tmp_path / "lm", "tokens", "not a bridge"),
        (tmp_path / "bridge", "described", "is a bridge"),
        (tap / "config.json", "tokens", "is a file"),
        ("region-chat-tinny", "tokens", "Found no bridge region-chat-tinny"),
    ):
        with pytest.raises(ValueError, match=words):
            RegionChat.from_pretrained(source, mode=mode, region_tokenizer="tap-tiny")


def test_missing_models_are_refused_without_waiting_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("some/bridge", "some-model"):
        with pytest.raises(OSError, match=f"Found no {name} here, and the Hub cannot be reached"):
            RegionChat.from_pretrained(name, mode="described", region_tokenizer="tap-tiny")
    with pytest.raises(OSError, match="Found no some/bridge here"):
        RegionChat.from_pretrained("some/bridge")
    with pytest.raises(ValueError, match="cannot use here"):
        RegionChat.from_pretrained("some/bridge", device="nonsense")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
def test_damaged_folders_are_named(make_bridge: Callable[..., Pair], tmp_path: Path, name: str) -> None:
    bridge, processor = make_bridge()
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{tmp_path.name} .*copy or download it again"):
        RegionChat.from_pretrained(tmp_path, region_tokenizer="tap-tiny")


# --- described mode ---------------------------------------------------------------------------------------------------


@pytest.fixture
def described(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., Any],
    tiny_tokenizer: TapRegionTokenizer,
) -> RegionChat:
    model = language_model(max_position_embeddings=512)
    return RegionChat(model, DescribedRegionProcessor(text_tokenizer(), tiny_tokenizer))


def test_described_regions_are_words(
    described: RegionChat, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    answer = described.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    assert isinstance(answer, str)
    described.ask("is <region> on region1 ?", boxes=BOXES[1:], **SHORT)
    text = described.processor.apply_chat_template(described.messages)
    told = described.processor.describe_tokens(tiny_tokenizer.encode(picture, boxes=BOXES))
    first, second, overlap = describe_regions(told, (60, 90)).splitlines()
    assert f"{first}\nwhat is region1?" in text
    assert f"{second}\n{overlap}\nis region2 on region1" in text
    assert text.index(first) < text.index(second)
    assert text.count(first) == 1
    assert described.mode == "described"
    assert "<|region|>" not in text


def test_described_mode_adds_no_token_and_no_input(described: RegionChat, picture: Image.Image) -> None:
    inputs = described.processor("is <region> red", picture, boxes=BOXES[:1])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert len(described.processor.tokenizer) == len(described.processor.tokenizer.get_vocab())
    assert "<|region|>" not in described.processor.tokenizer.get_vocab()


def test_described_mode_from_a_folder(
    language_model: Callable[..., PreTrainedModel], text_tokenizer: Callable[..., Any], tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image, tmp_path: Path,
) -> None:  # fmt: skip
    language_model(max_position_embeddings=512).save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    chat = RegionChat.from_pretrained(tmp_path, mode="described", region_tokenizer=tiny_tokenizer)
    assert isinstance(chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT), str)
    with pytest.raises(ValueError, match='mode "described" needs a region tokenizer'):
        RegionChat.from_pretrained(tmp_path, mode="described")
    with pytest.raises(ValueError, match="mode is 'words', expected"):
        RegionChat.from_pretrained(tmp_path, mode="words")  # type: ignore[arg-type]


def test_several_pictures_are_told_apart(
    described: RegionChat, picture: Image.Image, other_picture: Image.Image
) -> None:
    text = described.processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture},
                    {"type": "region", "box": BOXES[0]},
                    {"type": "image", "image": other_picture},
                    {"type": "region", "box": [1, 2, 30, 70]},
                ],
            }
        ]
    )
    assert "of picture 1 " in text
    assert "of picture 2 " in text
    assert "overlap" not in text


def test_described_processors_load_again(
    described: RegionChat, tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    described.processor.concepts = 2
    described.processor.save_pretrained(tmp_path)
    again = DescribedRegionProcessor.from_pretrained(tmp_path)
    assert again.concepts == 2
    assert again.region_tokenizer is not None
    assert again.region_tokenizer.fingerprint == tiny_tokenizer.fingerprint
    with pytest.raises(ValueError, match="saved by DescribedRegionProcessor"):
        RegionBridgeProcessor.from_pretrained(tmp_path)


# --- many questions at once -------------------------------------------------------------------------------------------


MANY = ["what is region1 ?", "where is region1 in the picture ?", "what ?", "what colour is region1 ?"]


def one_by_one(chat: RegionChat, questions: list[str], **given: Any) -> list[str]:
    """Each question as the next and the only one."""
    answers = []
    for question in questions:
        other = RegionChat(chat.model, chat.processor)
        other.image, other.messages, other._regions = chat.image, chat.messages, chat._regions
        answers.append(other.ask(question, **given, max_new_tokens=8))
    return answers


def test_many_questions_are_answered_as_if_each_were_alone(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    before = chat.history
    answers = chat.ask_each(MANY, max_new_tokens=8)
    assert answers == one_by_one(chat, MANY)
    assert chat.history == before


@pytest.mark.parametrize(
    "questions",
    [
        ["<region> is what ?", "what is <region> ?", "is region1 where <region> is ?"],
        ["what is it ?", "where ?"],
    ],
)
def test_many_questions_with_regions_of_their_own(chat: RegionChat, picture: Image.Image, questions: list[str]) -> None:
    """Regions that stand in the part that prompts do not share, some of them behind others that they do."""
    given = {"image": picture, "boxes": BOXES[:1]}
    alone = [question.replace("region1", "<region1>").replace("where <region> is", "there") for question in questions]
    assert chat.ask_each(alone, **given, max_new_tokens=8) == one_by_one(chat, alone, **given)
    assert chat.history == []
    chat.ask("what is <region> ?", **given, **SHORT)
    given = {"boxes": BOXES[1:]}
    assert chat.ask_each(questions, **given, max_new_tokens=8) == one_by_one(chat, questions, **given)


def test_many_questions_by_beams(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    beams = {"num_beams": 3, "max_new_tokens": 5}
    alone = []
    for question in MANY:
        other = RegionChat(chat.model, chat.processor)
        other.image, other.messages, other._regions = chat.image, chat.messages, chat._regions
        alone.append(other.ask(question, **beams))
    assert chat.ask_each(MANY, **beams) == alone
    with pytest.raises(ValueError, match="num_return_sequences"):
        chat.ask_each(MANY, num_return_sequences=2, do_sample=True)


def test_masks_are_read_in_every_form_and_once(chat: RegionChat, tmp_path: Path) -> None:
    picture = Image.new("RGB", (512, 512), (90, 120, 60))
    for name, form in [*sharp_forms(tmp_path), *soft_forms()]:
        chat.reset()
        chat.ask("<region> ?", image=picture, masks=[form], max_new_tokens=1)
        assert chat.regions().boxes[0].tolist() == pytest.approx(BOX, abs=1), name
    chat.reset()
    chat.ask("<region> ?", image=picture, masks=[tmp_path / "mask.png"], max_new_tokens=1)
    (tmp_path / "mask.png").unlink()
    chat.ask("is region1 on <region> ?", masks=[[[10, 10, 90, 10, 90, 90, 10, 90]]], max_new_tokens=1)
    assert chat.regions().boxes.tolist() == [BOX, [10, 10, 90, 90]]


def test_an_invalid_mask_is_refused_and_not_remembered(chat: RegionChat, picture: Image.Image) -> None:
    for given, words in (
        ([{"size": [60, 90], "counts": [5400]}], "mask is empty"),
        ([{"size": [61, 90], "counts": [5490]}], "RLE of size"),
        ({"size": [60, 90], "counts": [5400]}, "masks of type dict, expected a list"),
        ("mask.png", "masks of type str, expected a list"),
        (["none.png"], "Found no image file"),
        ([np.arange(5400).reshape(60, 90) // 900], "label map with the labels 1, 2, 3, 4, 5"),
    ):
        with pytest.raises(ValueError, match=words):
            chat.ask("<region> ?", image=picture, masks=given)
    with pytest.raises(ValueError, match=r"Region 0: box is .*, expected numbers"):
        chat.ask("<region> ?", image=picture, boxes=[{"size": [60, 90], "counts": [5400]}])
    assert chat.history == []


def test_the_shared_beginning_of_many_questions_is_read_once(
    chat: RegionChat, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.memory.most_bytes = 0
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    read: list[tuple[int, int]] = []
    forward = type(chat.model.language_model).forward

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        read.append((given.shape[0], given.shape[1]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(chat.model.language_model), "forward", spy)
    chat.ask_each(MANY, max_new_tokens=1, min_new_tokens=1)
    prefix, rest = read
    assert (prefix[0], rest[0]) == (1, len(MANY))
    read.clear()
    one_by_one(chat, MANY)
    longest = max(length for _, length in read)
    assert prefix[1] + rest[1] == longest
    assert prefix[1] > longest / 2


def test_ask_each_needs_at_least_one_question(chat: RegionChat) -> None:
    for wrong in ([], "what is it?"):
        with pytest.raises(ValueError, match="expected a list of at least one question"):
            chat.ask_each(wrong)


def test_the_first_answer_warns_of_what_the_models_cannot_do(
    chat: RegionChat, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    assert chat.limitation is None
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    assert "photographs" not in caplog.text
    chat.model.config.limitation = "It knows drawings alone, and misreads photographs."
    chat.warns_of_limitation = True
    for _ in range(2):
        chat.ask("where is region1 ?", **SHORT)
    chat.reset()
    chat.ask("what is <region> ?", image=picture, boxes=BOXES[:1], **SHORT)
    assert caplog.text.count("misreads photographs") == 1
