"""transformers' pipelines: its own for pictures and text, and those that we register."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

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


def message(picture: Image.Image, box: list[int]) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is"}, {"type": "region", "box": box}]
    return [{"role": "user", "content": content}]


def test_image_text_to_text(make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = make_bridge()
    chat = RegionChat(bridge, processor)
    want = []
    for box in BOXES:
        chat.reset()
        want.append(chat.ask("what is <region>", image=picture, boxes=[box], **SHORT))
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for pipe in (
        pipeline("image-text-to-text", model=bridge, processor=processor),
        pipeline("image-text-to-text", model=str(tmp_path)),
    ):
        one = pipe(text=message(picture, BOXES[0]), return_full_text=False, **SHORT)
        assert one[0]["generated_text"].strip() == want[0]
        many = pipe(text=[message(picture, box) for box in BOXES], return_full_text=False, batch_size=2, **SHORT)
        assert [row[0]["generated_text"].strip() for row in many] == want


def test_image_text_to_text_puts_plain_questions_into_the_chat_template(
    make_bridge: Callable[..., Pair], picture: Image.Image, other_picture: Image.Image
) -> None:
    bridge, processor = make_bridge()
    pipe = pipeline("image-text-to-text", model=bridge, processor=processor)
    chat = RegionChat(bridge, processor)
    want = []
    for image, box in ((picture, BOXES[:1]), (other_picture, [[1, 2, 30, 70]])):
        chat.reset()
        want.append(chat.ask("what is <region>", image=image, boxes=box, **SHORT))
    new = {"return_full_text": False, **SHORT}
    (one,) = pipe(images=picture, text="what is <region>", boxes=BOXES[:1], **new)
    assert (one["input_text"], one["generated_text"].strip()) == ("what is <region>", want[0])
    (full,) = pipe(images=picture, text="what is <region>", boxes=BOXES[:1], **SHORT)
    assert full["generated_text"].startswith("what is <region>")
    two = pipe(
        images=[picture, other_picture],
        text=["what is <region>"] * 2,
        boxes=[BOXES[:1], [[1, 2, 30, 70]]],
        **new,
    )
    assert [row["generated_text"].strip() for row in two] == want
    chat.reset()
    assert pipe(text="where is it", **new)[0]["generated_text"].strip() == chat.ask("where is it", **SHORT)
    with pytest.raises(ValueError, match="Got 2 texts, but boxes for a different number"):
        pipe(images=[picture] * 2, text=["what is <region>"] * 2, boxes=[BOXES[:1]], **new)


def test_image_text_to_text_leaves_whole_prompts_as_they_are(make_bridge: Callable[..., Pair]) -> None:
    bridge, processor = make_bridge()
    pipe = pipeline("image-text-to-text", model=bridge, processor=processor)
    prompt = processor.apply_chat_template([{"role": "user", "content": "where is it"}], add_generation_prompt=True)
    (answer,) = pipe(text=prompt, return_tensors=True, **SHORT)
    own = processor(prompt)["input_ids"][0].tolist()
    assert answer["generated_token_ids"].tolist()[: len(own)] == own


def test_region_text_generation(
    make_bridge: Callable[..., Pair], picture: Image.Image, other_picture: Image.Image
) -> None:
    bridge, processor = make_bridge(image_grid=2)
    pipe = pipeline("region-text-generation", model=bridge, processor=processor)
    one = pipe(picture, text="is <region> on <region> ?", boxes=BOXES, **SHORT)
    assert one["text"] == "is <region> on <region> ?"
    other_box = [[1, 2, 30, 70]]
    pictures, boxes = [picture, other_picture, picture], [BOXES[:1], other_box, BOXES[1:]]
    many = pipe(pictures, text="what is <region>", boxes=boxes, batch_size=2, **SHORT)
    chat = RegionChat(bridge, processor)
    for result, image, box in zip(many, pictures, boxes):
        chat.reset()
        assert result["generated_text"] == chat.ask("what is <region>", image=image, boxes=box, **SHORT)
    each = pipe(pictures[:2], text=["what is <region>", "where is <region>"], boxes=boxes[:2], **SHORT)
    assert each[0] == many[0]


def test_pipelines_warn_of_bfloat16_that_the_cpu_imitates(
    make_bridge: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    bridge, processor = make_bridge()
    pipeline("region-text-generation", model=bridge, processor=processor)
    assert "no instructions for bfloat16" not in caplog.text
    pipeline("region-text-generation", model=bridge.bfloat16(), processor=processor)
    assert "no instructions for bfloat16" in caplog.text


def test_region_captioning_by_tap(tiny_tokenizer: TapRegionTokenizer, picture: Image.Image, tmp_path: Path) -> None:
    tokenizer = TapRegionTokenizer(tiny_tokenizer.model, text_tokenizer=_numbers(), concepts=tiny_tokenizer.concepts)
    pipe = pipeline("region-captioning", model=tokenizer.model, region_tokenizer=tokenizer)
    regions = tokenizer.encode(picture, boxes=BOXES)
    results = pipe(picture, boxes=BOXES, top_k=1)
    assert [r["caption"] for r in results] == tokenizer.caption(regions)
    assert [r["concepts"][0][0] for r in results] == [row[0][0] for row in tokenizer.classify(regions, 1)]
    assert [r["box"] for r in results] == BOXES
    many = pipe([picture] * 3, boxes=[BOXES, [], BOXES[:1]], batch_size=2)
    assert [len(r) for r in many] == [2, 0, 1]
    assert many[2][0]["caption"] == results[0]["caption"]
    tokenizer.save_pretrained(tmp_path)
    by_name = pipeline("region-captioning", model=str(tmp_path), region_tokenizer=str(tmp_path))
    assert by_name(picture, boxes=BOXES, top_k=1) == results


def test_region_captioning_by_a_language_model(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    pipe = pipeline("region-captioning", model=bridge, processor=processor)
    results = pipe(picture, boxes=BOXES, **SHORT)
    chat = RegionChat(bridge, processor)
    for result, box in zip(results, BOXES):
        chat.reset()
        assert result["caption"] == chat.ask("Describe <region>.", image=picture, boxes=[box], **SHORT)
    assert [len(r) for r in pipe([picture, picture], points=[[[[30, 20]]], []], **SHORT)] == [1, 0]


def test_described_regions_in_the_same_pipeline(
    language_model: Callable[..., Any], text_tokenizer: Callable[..., Any], tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image,
) -> None:  # fmt: skip
    processor = DescribedRegionProcessor(text_tokenizer(), tiny_tokenizer)
    model = language_model(max_position_embeddings=512)
    pipe = pipeline("region-text-generation", model=model, processor=processor)
    chat = RegionChat(model, processor)
    want = chat.ask("what is <region>", image=picture, boxes=BOXES[:1], **SHORT)
    assert pipe(picture, text="what is <region>", boxes=BOXES[:1], **SHORT)["generated_text"] == want


def test_a_pipeline_loads_from_a_folder_alone(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path
) -> None:
    bridge, processor = make_bridge()
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for task, more in (("region-captioning", {}), ("region-text-generation", {"text": "what is <region>"})):
        want = pipeline(task, model=bridge, processor=processor)(picture, boxes=BOXES[:1], **more, **SHORT)
        assert pipeline(task, model=str(tmp_path))(picture, boxes=BOXES[:1], **more, **SHORT) == want
    tap = str(Path(__file__).parents[2] / "tap_tokenizer" / "pretrained" / "tap-tiny")
    assert pipeline("region-captioning", model=tap)(picture, boxes=BOXES[:1])[0]["caption"]


def test_dictionaries_and_iterators_are_accepted_as_input(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    bridge, processor = make_bridge()
    pipe = pipeline("region-text-generation", model=bridge, processor=processor)
    items = [{"image": picture, "text": "what is <region>", "boxes": [box]} for box in BOXES]
    want = pipe([picture] * 2, text="what is <region>", boxes=[[box] for box in BOXES], **SHORT)
    assert pipe(items, **SHORT) == want
    assert pipe(items[0], **SHORT) == want[0]
    assert list(pipe(iter(items), batch_size=1, **SHORT)) == want
    assert (
        pipe([{k: v for k, v in item.items() if k != "text"} for item in items], text="what is <region>", **SHORT)
        == want
    )
    with pytest.raises(ValueError, match="Input 1 has box"):
        pipe([items[0], {"image": picture, "box": BOXES[0]}])


def test_options_given_when_a_pipeline_is_made_are_kept(
    make_bridge: Callable[..., Pair], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, processor = make_bridge()
    asked: list[tuple[int, dict[str, Any]]] = []
    generate = type(bridge).generate

    def spy(self: Any, **options: Any) -> Any:
        names = ("max_new_tokens", "do_sample", "top_k")
        asked.append((len(options["input_ids"]), {name: options[name] for name in names if name in options}))
        return generate(self, **options)

    monkeypatch.setattr(type(bridge), "generate", spy)
    pipe = pipeline("region-text-generation", model=bridge, processor=processor, max_new_tokens=3, batch_size=2)
    given = {"text": "what is <region>", "boxes": [BOXES[:1]] * 3}
    pipe([picture] * 3, **given)
    pipe([picture] * 3, **given, batch_size=3, max_new_tokens=1, do_sample=True, top_k=5)
    plain = {"max_new_tokens": 3, "do_sample": False}
    captioning = pipeline("region-captioning", model=bridge, processor=processor, max_new_tokens=3, top_k=1)
    (region,) = captioning(picture, boxes=BOXES[:1])
    assert len(region["concepts"]) == 1
    assert asked.pop() == (1, plain)
    assert asked == [(2, plain), (1, plain), (3, {"max_new_tokens": 1, "do_sample": True, "top_k": 5})]


def test_bad_input_is_refused(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    pipe = pipeline("region-text-generation", model=bridge, processor=processor)
    with pytest.raises(ValueError, match="Got 2 images and boxes for 1"):
        pipe([picture, picture], text="<region>", boxes=[BOXES[:1]])
    with pytest.raises(ValueError, match="Got no text"):
        pipe(picture, boxes=BOXES[:1])
    with pytest.raises(ValueError, match="one image and a list of texts"):
        pipe(picture, text=["<region>"] * 2, boxes=BOXES[:1])
    with pytest.raises(ValueError, match="expected one for each text"):
        pipe(picture, text="<region>", boxes=BOXES[:1], num_return_sequences=2)
    captioning = pipeline("region-captioning", model=bridge, processor=processor)
    for wrong in ({}, {"box": BOXES}):
        with pytest.raises(ValueError, match="Got no regions"):
            captioning(picture, **wrong)
    with pytest.raises(ValueError, match="needs a region tokenizer"):
        pipeline("region-captioning", model=bridge)


def _numbers() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, "w0")), unk_token="w0"
    )


def test_the_hub_is_never_asked_for_a_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("asked the Hub")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    for task, name in (("image-text-to-text", "region-chat-tiny"), ("region-captioning", "tap-tiny")):
        pipeline(task, model=name)
    for auto in (AutoVideoProcessor, AutoFeatureExtractor):
        with pytest.raises((OSError, ValueError), match="pretrained"):
            auto.from_pretrained("region-chat-tiny")
    assert not asked


def test_region_grounding(
    make_bridge: Callable[..., Pair], picture: Image.Image, other_picture: Image.Image, tmp_path: Path
) -> None:
    bridge, processor = make_bridge(image_grid=2)
    chat = RegionChat(bridge, processor)
    options = {"threshold": 1.0, "max_new_tokens": 4}
    want = []
    other = [[1, 2, 30, 70], [5, 5, 20, 20]]
    for image, boxes in ((picture, BOXES), (other_picture, other)):
        chat.reset()
        want.append(chat.find("the red cat", image=image, boxes=boxes, **options))
    bridge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for pipe in (
        pipeline("region-grounding", model=bridge, processor=processor),
        pipeline("region-grounding", model=str(tmp_path)),
    ):
        one = pipe(picture, text="the red cat", boxes=BOXES, **options)
        many = pipe([picture, other_picture], text="the red cat", boxes=[BOXES, other], **options)
        assert len(one) == len(want[0]) > 0
        for rows, found in zip((one, *many), (want[0], *want)):
            assert [row["box"] for row in rows] == found.boxes.tolist()
            assert [row["candidate"] for row in rows] == found.rows
            assert [row["score"] for row in rows] == pytest.approx(found.probabilities.tolist(), abs=1e-5)
            assert [row["mask"].tolist() for row in rows] == found.masks.tolist()
        assert pipe(picture, text="the red cat", boxes=BOXES, threshold=0.0, max_new_tokens=4) == []
    with pytest.raises(ValueError, match="expected words such as"):
        pipe(picture, boxes=BOXES)
    with pytest.raises(ValueError, match="Got num_beams, expected most, threshold and max_new_tokens"):
        pipe(picture, text="the red cat", boxes=BOXES, num_beams=2)
