"""The processor: text and chat to ids and features, and what it refuses, naming the sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_forms import ellipse, sharp_forms
from PIL import Image
from transformers import AutoProcessor

from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor, region_features
from tap_tokenizer import TapRegionTokenizer, mask_to_rle

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]


def words(processor: RegionBridgeProcessor, batch: Any, row: int = 0) -> str:
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    return processor.tokenizer.decode(ids)


# --- text -------------------------------------------------------------------------------------------------------------


def test_markers_become_names_and_placeholders(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge()
    batch = processor("is <region> on <region> ? is <region1> red", picture, boxes=BOXES)
    assert words(processor, batch) == "is region1 <|region|> on region2 <|region|> ? is region1 red"
    batch = processor("is <region2> on <region1>", picture, boxes=BOXES)
    assert words(processor, batch) == "is region2 <|region|> on region1 <|region|>"
    swapped = batch["region_features"][0].flip(0)
    plain = processor("is <region1> on <region2>", picture, boxes=BOXES)["region_features"][0]
    assert torch.equal(swapped, plain)  # features follow the text's order


def test_features_are_the_region_tokenizers(
    make_bridge: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    _, processor = make_bridge()
    regions = tiny_tokenizer.encode(picture, boxes=BOXES)
    got = processor("is <region> on <region>", picture, boxes=BOXES)["region_features"][0]
    torch.testing.assert_close(got, region_features(regions, "routed")[:, 0], rtol=0, atol=1e-5)
    token, embed, box, area, score, expert, context = got[0].split([32, 16, 4, 1, 1, 4, 1])
    torch.testing.assert_close(token, regions.tokens[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(embed, regions.embeds[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(box, torch.tensor([5 / 90, 5 / 60, 40 / 90, 30 / 60]))
    torch.testing.assert_close(area, torch.tensor([35 * 25 / 90 / 60]))
    torch.testing.assert_close(score, regions.scores[:1], rtol=0, atol=1e-5)
    assert expert.tolist() == [1, 0, 0, 0]
    assert context.tolist() == [0]


def test_batches_of_texts_pictures_and_regions(
    make_bridge: Callable[..., Pair], picture: Image.Image, other_picture: Image.Image
) -> None:
    _, processor = make_bridge()
    texts = ["is <region> on <region>", "where is it", "is <region> on <region>"]
    batch = processor(
        texts, [picture, None, [picture, other_picture]], boxes=[BOXES, None, [BOXES[1:], [[1, 2, 30, 70]]]]
    )
    assert batch["region_mask"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert batch["input_ids"][1, 0] == processor.tokenizer.pad_token_id  # padded on the left
    torch.testing.assert_close(batch["region_features"][2, 0], batch["region_features"][0, 1], rtol=0, atol=1e-5)
    right = processor(texts[:2], [picture, None], boxes=[BOXES, None], padding_side="right")
    assert right["input_ids"][1, -1] == processor.tokenizer.pad_token_id


def test_points_and_masks_become_features(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge()
    mask = np.zeros((60, 90), bool)
    mask[10:40, 20:60] = True
    by_point = processor("is <region> red", picture, points=[[[30, 20], [40, 30]]])
    labelled = processor("is <region> red", picture, points=[[[30, 20], [40, 30]]], point_labels=[[1, 1]])
    assert torch.equal(by_point["region_features"], labelled["region_features"])
    assert (
        processor("is <region> red", picture, masks=[mask])["region_features"].shape
        == by_point["region_features"].shape
    )
    mixed = processor("<region> <region>", picture, boxes=[BOXES[0], None], points=[None, [[30, 20], [40, 30]]])
    torch.testing.assert_close(mixed["region_features"][0, 1], by_point["region_features"][0, 0], rtol=0, atol=1e-5)


def test_masks_in_every_form_are_the_same_region_in_text_and_in_chats(
    make_bridge: Callable[..., Pair], tmp_path: Path
) -> None:
    _, processor = make_bridge()
    picture = Image.new("RGB", (512, 512), (90, 120, 60))
    want = processor("is <region> red", picture, masks=[np.asarray(ellipse()) > 0])["region_features"]
    forms = list(sharp_forms(tmp_path))
    texts = processor(["is <region> red"] * len(forms), [picture] * len(forms), masks=[[form] for _, form in forms])[
        "region_features"
    ]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "region", "mask": form}]}]
        for _, form in forms
    ]
    shown = processor.apply_chat_template(chats, tokenize=True, return_dict=True)["region_features"]
    for number, (name, _) in enumerate(forms):
        for features in (texts, shown):
            torch.testing.assert_close(features[number : number + 1], want, rtol=0, atol=1e-4, msg=name)
    for lone in ({"size": [512, 512], "counts": [512 * 512]}, "mask.png"):
        with pytest.raises(ValueError, match="expected a list with one entry per region"):
            processor("is <region> red", picture, masks=lone)


def test_pictures_are_encoded_once(
    make_bridge: Callable[..., Pair], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = make_bridge(image_grid=2)
    seen: list[int] = []
    plain = processor.region_tokenizer.embed_image
    monkeypatch.setattr(
        processor.region_tokenizer, "embed_image", lambda images: seen.append(len(images)) or plain(images)
    )
    first = processor(["is <region> red", "is <region> blue"], [picture, picture.copy()], boxes=[BOXES[:1], BOXES[:1]])
    assert seen == [1]  # the same picture twice in a batch
    second = processor("is <region> red", picture, boxes=BOXES[:1])
    assert seen == [1]  # and again in the next call
    torch.testing.assert_close(first["region_features"][0], second["region_features"][0], rtol=0, atol=1e-5)
    processor("<region>", Image.eval(picture, lambda x: 255 - x), boxes=BOXES[:1])
    assert seen == [1, 1]


def test_a_region_that_is_spoken_of_again_has_the_same_rows_bit_for_bit(
    make_bridge: Callable[..., Pair], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = make_bridge()
    mask = mask_to_rle(np.arange(60 * 90).reshape(60, 90) % 90 > 40)
    alone = processor(text="<region>", images=picture, boxes=[[5, 5, 40, 30]])["region_features"][0]
    drawn = processor(text="<region>", images=picture, masks=[mask])["region_features"][0]
    given = {"boxes": [[5, 5, 40, 30], None, [1, 1, 9, 9]], "masks": [None, mask, None]}
    beside = processor(text="<region> <region> <region>", images=picture, **given)["region_features"][0]
    assert torch.equal(beside[:2], torch.cat([alone, drawn]))
    monkeypatch.setattr(processor.region_tokenizer, "encode", None)  # nothing is encoded again
    again = processor(text="<region3> <region1> <region2>", images=picture, **given)["region_features"][0]
    assert torch.equal(again, beside[[2, 0, 1]])


def test_a_mask_that_was_changed_in_place_is_another_region(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    _, processor = make_bridge()
    mask = np.arange(60 * 90).reshape(60, 90) % 90 > 40
    rle = mask_to_rle(mask)
    first = [processor(text="<region>", images=picture, masks=[m])["region_features"] for m in (mask, rle)]
    mask[:30] = False
    rle["counts"] = mask_to_rle(mask)["counts"]
    second = [processor(text="<region>", images=picture, masks=[m])["region_features"] for m in (mask, rle)]
    assert not any(torch.equal(one, other) for one, other in zip(first, second))
    torch.testing.assert_close(*second)


def test_an_image_marker_becomes_context_placeholders(
    make_bridge: Callable[..., Pair], picture: Image.Image, other_picture: Image.Image
) -> None:
    _, processor = make_bridge(image_grid=2)
    batch = processor("is <region> red", picture, boxes=BOXES[:1])
    assert words(processor, batch).split() == ["<|region|>"] * 4 + ["is", "region1", "<|region|>", "red"]
    assert batch["region_features"][0, :, -1].tolist() == [1, 1, 1, 1, 0]  # context first, and marked
    placed = processor("is <region> on <image>", picture, boxes=BOXES[:1])
    assert placed["region_features"][0, :, -1].tolist() == [0, 1, 1, 1, 1]
    two = processor("<image> and <image>", [picture, other_picture], boxes=[[], []])
    assert two["region_features"].shape[1] == 8
    plain = make_bridge()[1]
    assert words(plain, plain("<image>is <region> red", picture, boxes=BOXES[:1])) == "is region1 <|region|> red"


# --- chat -------------------------------------------------------------------------------------------------------------


def chat(picture: Image.Image) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "describe"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture},
                {"type": "text", "text": "is"},
                {"type": "region", "box": BOXES[0]},
                {"type": "text", "text": "red ?"},
            ],
        },
        {"role": "assistant", "content": "no blue"},
        {
            "role": "user",
            "content": [{"type": "region", "points": [[30, 20]]}, {"type": "text", "text": "and <region1> ?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]


def test_chat_uses_the_language_models_own_template(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge()
    text = processor.apply_chat_template(chat(picture))
    assert text == (
        "<|system|> describe</s> <|user|> is region1 <|region|> red ?</s> <|assistant|> no blue</s> "
        "<|user|> region2 <|region|> and region1 <|region|> ?</s> <|assistant|> yes</s> "
    )
    asked = processor.apply_chat_template(chat(picture)[:2], add_generation_prompt=True)
    assert asked.endswith("<|assistant|> ")


def test_chats_become_a_padded_batch(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge()
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template([chat(picture), chat(picture)[:2]], **options)
    assert batch["input_ids"].shape[0] == 2
    assert batch["region_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    ids = processor.apply_chat_template(chat(picture), tokenize=True)
    assert torch.equal(ids[0], batch["input_ids"][0])
    direct = processor("is <region> red ?", picture, boxes=BOXES[:1])
    torch.testing.assert_close(batch["region_features"][1, 0], direct["region_features"][0, 0], rtol=0, atol=1e-5)


def test_assistant_masks_cover_words_and_the_end_of_the_turn(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    for template in (True, False):
        _, processor = make_bridge(template=template)
        batch = processor.apply_chat_template(
            [chat(picture), chat(picture)[:3]], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        learned = [
            processor.tokenizer.convert_ids_to_tokens(ids[mask.bool()])
            for ids, mask in zip(batch["input_ids"], batch["assistant_masks"])
        ]
        assert learned == [["no", "blue", "</s>", "yes", "</s>"], ["no", "blue", "</s>"]]


def test_a_space_before_the_words_is_learned(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    """Where the words do not swallow the space that the template puts before them, it is a token to write."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {
        letter: i
        for i, letter in enumerate(
            ["</s>", "?", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ:.\nabcdefghijklmnopqrstuvwxyz123456789"]
        )
    }
    backend = Tokenizer(models.BPE(letters, [], unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    _, made = make_bridge()
    processor = RegionBridgeProcessor(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?"), made.region_tokenizer
    )
    messages = [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red"}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    learned = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0][batch["assistant_masks"][0].bool()])
    assert learned == [" ", "R", "e", "d", "</s>"]
    asked = processor.apply_chat_template(messages[:1], tokenize=True, add_generation_prompt=True)
    assert torch.equal(batch["input_ids"][0][: asked.shape[1]], asked[0])  # what is learned follows what is asked


def test_templates_that_rewrite_history_are_understood(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    """Thinking models drop earlier thoughts: a turn is written otherwise when it is last."""
    _, processor = make_bridge()
    processor.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' and loop.last %}the </s> {% endif %}"
        "{{ m['content'] }}</s> {% endfor %}"
    )
    batch = processor.apply_chat_template(
        chat(picture), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0][batch["assistant_masks"][0].bool()])
    assert learned == ["no", "blue", "</s>", "yes", "</s>"]


def test_a_default_template_where_there_is_none(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge(template=False)
    text = processor.apply_chat_template(chat(picture)[1:2], add_generation_prompt=True)
    assert text == "<s>User: is region1 <|region|> red ?\nAssistant:"


def test_a_tokenizer_without_padding(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge("gpt2", pad=False)
    assert processor.tokenizer.pad_token == "</s>"
    batch = processor(["is <region> red", "where is it the cat on the left"], [picture, None], boxes=[BOXES[:1], None])
    assert bridge.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, None])
def test_a_processor_saved_whole_makes_the_same_features(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path, whole: bool | None
) -> None:
    """A region tokenizer that was put together by hand has no reference, so it is saved along."""
    bridge, processor = make_bridge(image_grid=2)
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path, whole=whole)
    want = processor("is <region> red", picture, boxes=BOXES[:1])
    for loaded in (RegionBridgeProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, RegionBridgeProcessor)
        got = loaded("is <region> red", picture, boxes=BOXES[:1])
        # weights that lie elsewhere in memory may be summed in another order: the last bit of a feature is free
        torch.testing.assert_close(dict(got), dict(want), rtol=0, atol=1e-6)
        assert loaded.apply_chat_template(chat(picture)) == processor.apply_chat_template(chat(picture))


def test_a_processor_saved_by_reference_makes_the_same_features(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path
) -> None:
    make_bridge()[1].region_tokenizer.save_pretrained(tmp_path / "tap")
    tokenizer = TapRegionTokenizer.from_pretrained(tmp_path / "tap")
    _, processor = make_bridge(region_tokenizer=tokenizer)
    processor.save_pretrained(tmp_path / "bridge")
    assert not (tmp_path / "bridge" / "region_tokenizer").exists()
    loaded = RegionBridgeProcessor.from_pretrained(tmp_path / "bridge")
    assert loaded.region_tokenizer.fingerprint == tokenizer.fingerprint
    with torch.no_grad():
        tokenizer.model.image_decoder.iou_token.add_(1)
    tokenizer.save_pretrained(tmp_path / "tap")  # someone trains it on
    with pytest.raises(
        ValueError, match=r"was saved with the region tokenizer .* now holds .*: give region_tokenizer=…"
    ):
        RegionBridgeProcessor.from_pretrained(tmp_path / "bridge")


def test_saving_by_reference_needs_a_reference(make_bridge: Callable[..., Pair], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no reference: save whole=True"):
        make_bridge()[1].save_pretrained(tmp_path, whole=False)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("<region> <region> <region>", {"boxes": BOXES}, "Found 3 <region> placeholders but 2 regions: give one box"),
        ("<region>", {"boxes": BOXES}, "Found 1 <region> placeholder but 2 regions"),
        ("no region", {"boxes": BOXES}, "Found 0 <region> placeholders but 2 regions"),
        ("<region1> <region3>", {"boxes": BOXES}, "Found region3 among 2 regions: number them from 1"),
        ("a <|region|> b", {"boxes": BOXES[:1]}, r"holds the placeholder <\|region\|> itself"),
        ("<region>", {"boxes": [[0, 0, 500, 20]]}, "leaves the picture of 90 × 60 pixels"),
        (
            "<region>",
            {"boxes": BOXES[:1], "points": [[[1, 1]], [[2, 2]]]},
            "Got 1 boxes, 2 points: give the same number of each",
        ),
        ("<image> <image>", {"boxes": []}, "Found 2 <image> placeholders but 1 image"),
    ],
)
def test_bad_text_is_refused(
    make_bridge: Callable[..., Pair], picture: Image.Image, text: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_bridge()[1](text, picture, **arguments)


def test_bad_batches_are_refused_by_sample(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    _, processor = make_bridge()
    with pytest.raises(ValueError, match="Sample 1: Found 1 <region> placeholder but 2 regions"):
        processor(["<region>", "<region>"], [picture, picture], boxes=[BOXES[:1], BOXES])
    with pytest.raises(ValueError, match="Got 2 texts and images for 1"):
        processor(["a", "b"], [picture])
    with pytest.raises(ValueError, match="The text has regions but no picture: give images=…"):
        processor("<region>", boxes=BOXES[:1])
    with pytest.raises(ValueError, match="Got no text"):
        processor(images=picture)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "region", "box": BOXES[0]}], "a region item stands before any image item"),
        ([{"type": "video", "video": "x"}], "content item of type 'video', expected text, image or region"),
        ([{"type": "image"}], "image item without a picture"),
        ([{"type": "image", "image": "P"}, {"type": "region"}], "region item without a prompt"),
        ([{"type": "image", "image": "P"}, {"type": "region", "name": "cup"}], "region item with the name 'cup'"),
        ([{"type": "image", "image": "P"}, {"type": "region", "box": BOXES[0], "image": 1}], "region item for image 1"),
        ([{"type": "text"}], "text item with None as its text"),
    ],
)
def test_bad_chat_is_refused(
    make_bridge: Callable[..., Pair], picture: Image.Image, content: list[dict[str, Any]], message: str
) -> None:
    content = [{k: picture if v == "P" else v for k, v in item.items()} for item in content]
    with pytest.raises(ValueError, match=f"The conversation: {message}"):
        make_bridge()[1].apply_chat_template([{"role": "user", "content": content}], tokenize=True)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "The conversation is \\[\\], expected a list of at least one message"),
        ({"role": "user", "content": "hi"}, "The conversation is {.*, expected a list of at least one message"),
        ("hi", "The conversation is 'hi', expected a list of at least one message"),
        ([[]], "Conversation 0 is \\[\\], expected a list of at least one message"),
        (["hi"], "Conversation 0 is 'hi', expected a list of at least one message"),
        ([{"content": "hi"}], "message 0 is {.*, expected a dictionary with role and content"),
        ([{"role": "user"}], "the content of message 0 is None, expected words or a list of items"),
        ([{"role": "user", "content": 3}], "the content of message 0 is 3, expected words or a list of items"),
        ([{"role": "user", "content": ["hi"]}], "content item 'hi', expected"),
    ],
)
def test_malformed_chats_are_refused(make_bridge: Callable[..., Pair], conversation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_bridge()[1].apply_chat_template(conversation)


def test_a_turn_that_only_calls_a_tool_has_no_words(make_bridge: Callable[..., Pair]) -> None:
    calls = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": []}]
    assert make_bridge()[1].apply_chat_template(calls)


def test_mismatched_parts_are_refused(make_bridge: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer) -> None:
    bridge, processor = make_bridge(image_grid=2)
    other = RegionBridgeProcessor(processor.tokenizer, tiny_tokenizer)
    with pytest.raises(ValueError, match="The processor has image_grid = 0, the bridge 2"):
        other.check_bridge(bridge.config)
    with pytest.raises(ValueError, match="wrong order"):
        RegionBridgeProcessor(tiny_tokenizer)
    blind = RegionBridgeProcessor(processor.tokenizer)
    assert set(blind("where is it")) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="has no region tokenizer"):
        blind("<region>", np.zeros((60, 90, 3), np.uint8), boxes=BOXES[:1])
