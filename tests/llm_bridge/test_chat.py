"""Conversations: turns, names, streaming, baselines, and the described mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from llm_bridge import (
    DescribedRegionProcessor,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
)
from tap_tokenizer import TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def chat(make_bridge: Callable[..., Pair]) -> RegionChat:
    return RegionChat(*make_bridge())


def test_turns_and_names(chat: RegionChat, picture: Image.Image) -> None:
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


def test_regions_without_a_marker_are_all_asked_about(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("where is it ?", image=picture, boxes=BOXES, **SHORT)
    assert chat.history[0] == ("user", "region1 region2 where is it?")


def test_a_new_picture_begins_anew(chat: RegionChat, picture: Image.Image, other_picture: Image.Image) -> None:
    chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    chat.ask("what is <region>", image=other_picture, boxes=[[1, 2, 30, 70]], **SHORT)
    assert chat.history[0] == ("user", "what is region1")
    assert len(chat.history) == 2


def test_refused_questions_leave_no_trace(chat: RegionChat, picture: Image.Image) -> None:
    chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    before = chat.history
    with pytest.raises(ValueError, match="Found 2 <region> placeholders but 1 regions"):
        chat.ask("is <region> on <region>", boxes=BOXES[1:])
    with pytest.raises(ValueError, match="leaves the picture"):
        chat.ask("<region>", boxes=[[0, 0, 900, 900]])
    with pytest.raises(ValueError, match="begin a new conversation, or lower max_new_tokens"):
        chat.ask("where is it", max_new_tokens=500)
    assert chat.history == before
    with pytest.raises(ValueError, match="Got regions but no picture"):
        RegionChat(chat.model, chat.processor).ask("<region>", boxes=BOXES[:1])
    with pytest.raises(ValueError, match="No region was asked about yet"):
        RegionChat(chat.model, chat.processor).baseline()


def test_errors_while_generating_reach_the_asker(chat: RegionChat, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="temperature"):
        chat.ask("<region>", image=picture, boxes=BOXES[:1], do_sample=True, temperature=-1.0)
    assert chat.history == []


def test_baseline_is_taps_own_words(chat: RegionChat, tiny_tokenizer: TapRegionTokenizer, picture: Image.Image) -> None:
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
    by_pil = chat.ask("<region> ?", image=picture, points=[[[30, 20]]], point_labels=[[1]], **SHORT)
    assert by_path == by_pil


def test_loading(make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = make_bridge()
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    question: dict[str, Any] = {"question": "what is <region>", "image": picture, "boxes": BOXES[:1], **SHORT}
    assert RegionChat.from_pretrained(tmp_path).ask(**question) == RegionChat(bridge, processor).ask(**question)
    half = RegionChat.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert isinstance(half.ask(**question), str)


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
    name, score = tiny_tokenizer.classify(tiny_tokenizer.encode(picture, boxes=BOXES[:1]), 1)[0][0]
    assert "The picture is 90 pixels wide and 60 high." in text
    assert f"region1: looks like {name} ({score:.0%})" in text
    assert "at the top left; box 5 5 40 30; 16% of the picture." in text
    assert "region1 and region2 overlap (IoU 0." in text
    assert (
        text.index("region1:")
        < text.index("what is region1?")
        < text.index("region2:")
        < text.index("is region2 on region1")
    )
    assert text.count("The picture is") == 1
    assert described.mode == "described"
    assert "<|region|>" not in text


def test_described_mode_needs_nothing_of_ours_in_the_model(described: RegionChat, picture: Image.Image) -> None:
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
    assert "Picture 1 is 90 pixels wide" in text
    assert "Picture 2 is 40 pixels wide" in text
    assert "overlap" not in text
