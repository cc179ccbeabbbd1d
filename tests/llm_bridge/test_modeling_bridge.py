"""The bridge on ten families of language models: what transformers promises of a model holds for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel, TextIteratorStreamer

from llm_bridge import RegionBridgeConfig, RegionBridgeForConditionalGeneration, RegionBridgeProcessor
from tap_tokenizer import TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}


def ask(processor: RegionBridgeProcessor, picture: Image.Image) -> dict[str, torch.Tensor]:
    """A batch of three: two regions, one region and no region, of different length."""
    texts = ["what is <region> on the left of <region> ?", "is <region> red", "where is it"]
    return processor(texts, [picture, picture, None], boxes=[BOXES, BOXES[:1], None])


def one(processor: RegionBridgeProcessor, picture: Image.Image, **options: Any) -> dict[str, torch.Tensor]:
    return processor("what is <region> on the left of <region>", picture, boxes=BOXES, **options)


def greedy(bridge: RegionBridgeForConditionalGeneration, inputs: Any, **options: Any) -> torch.Tensor:
    out = bridge.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False, **options})
    return out[:, inputs["input_ids"].shape[1] :]


# --- every family -----------------------------------------------------------------------------------------------------


def test_forward_and_backward(make_bridge: Callable[..., Pair], picture: Image.Image, family: str) -> None:
    bridge, processor = make_bridge(family)
    inputs = one(processor, picture)
    out = bridge(
        **inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == bridge.config.region_token_id, -100)
    )
    assert out.logits.shape == (1, inputs["input_ids"].shape[1], bridge.config.text_config.vocab_size)
    out.loss.backward()
    for name, parameter in bridge.projector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_logits_of_some_words_alone_are_those_of_all_words(
    make_bridge: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    bridge, processor = make_bridge(family)
    inputs = ask(processor, picture)
    kept = inputs["attention_mask"].bool() & (torch.arange(inputs["input_ids"].shape[1]) % 3 > 0)
    found, everything = bridge(**inputs, logits_to_keep=kept).logits, bridge(**inputs).logits
    assert found.shape == (int(kept.sum()), bridge.config.text_config.vocab_size)
    torch.testing.assert_close(found, everything[kept], atol=1e-5, rtol=1e-4)


def test_words_outside_placeholders_have_the_plain_models_embeddings(
    make_bridge: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    bridge, processor = make_bridge(family)
    inputs = one(processor, picture)
    is_region = inputs["input_ids"] == bridge.config.region_token_id
    assert is_region.sum() == 2
    features = {name: inputs[name] for name in ("region_features", "region_mask", "region_source")}
    embedded = bridge.embed(inputs["input_ids"], **features)
    own = bridge.language_model.get_input_embeddings()(inputs["input_ids"].masked_fill(is_region, 0))
    assert torch.equal(embedded[~is_region], own[~is_region])
    assert torch.equal(embedded[is_region], bridge.projector(inputs["region_features"][0]))
    assert len(bridge.language_model.get_input_embeddings().weight) == bridge.config.text_config.vocab_size


def test_answers_depend_on_the_region(make_bridge: Callable[..., Pair], picture: Image.Image, family: str) -> None:
    bridge, processor = make_bridge(family)
    a, b = (processor("is <region> red", picture, boxes=[box]) for box in BOXES)
    assert not torch.allclose(bridge(**a).logits[:, -1], bridge(**b).logits[:, -1])


def test_a_padded_batch_equals_single_calls(
    make_bridge: Callable[..., Pair], picture: Image.Image, family: str
) -> None:
    bridge, processor = make_bridge(family)
    together = greedy(bridge, ask(processor, picture))
    alone = [
        one(processor, picture), processor("is <region> red", picture, boxes=BOXES[:1]), processor("where is it"),
    ]  # fmt: skip
    alone[0] = processor("what is <region> on the left of <region> ?", picture, boxes=BOXES)
    for row, inputs in zip(together, alone):
        assert row.tolist()[: len(greedy(bridge, inputs)[0])] == greedy(bridge, inputs)[0].tolist()


def test_cache_beams_and_static_cache(make_bridge: Callable[..., Pair], picture: Image.Image, family: str) -> None:
    bridge, processor = make_bridge(family)
    inputs = ask(processor, picture)
    want = greedy(bridge, inputs)
    assert torch.equal(greedy(bridge, inputs, use_cache=False), want)
    assert torch.equal(greedy(bridge, inputs, cache_implementation="static"), want)
    beams = greedy(bridge, inputs, num_beams=3, num_return_sequences=2)
    for i, own in enumerate([0, 1]):
        single = {k: v[own : own + 1] for k, v in inputs.items()}
        assert torch.equal(greedy(bridge, single, num_beams=3, num_return_sequences=2), beams[2 * i : 2 * i + 2])


def test_text_alone_is_the_bare_language_model(make_bridge: Callable[..., Pair], family: str) -> None:
    bridge, processor = make_bridge(family)
    inputs = processor(["where is it", "what is the red cat on"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert torch.equal(bridge(**inputs).logits, bridge.language_model(**inputs).logits)
    plain = bridge.language_model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(bridge.generate(**inputs, max_new_tokens=6, do_sample=False), plain)


def test_a_saved_bridge_gives_the_same_logits(
    make_bridge: Callable[..., Pair], picture: Image.Image, family: str, tmp_path: Path
) -> None:
    bridge, processor = make_bridge(family)
    inputs = one(processor, picture)
    bridge.save_pretrained(tmp_path)
    for loaded in (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path),
        AutoModelForImageTextToText.from_pretrained(tmp_path),
    ):
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits, bridge(**inputs).logits)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(name.startswith(("language_model.", "projector.")) for name in file.keys())  # noqa: SIM118


# --- ways of generating -----------------------------------------------------------------------------------------------


def test_sampling_follows_the_seed(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(greedy(bridge, inputs, do_sample=True, temperature=2.0, num_return_sequences=4).tolist())
    assert runs[0] == runs[1] != runs[2]


def test_logits_processors_work_with_placeholders(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    """The placeholder's id lies outside the vocabulary, where a repetition penalty would look it up."""
    bridge, processor = make_bridge()
    inputs = ask(processor, picture)
    assert bridge.config.region_token_id >= len(processor.tokenizer) - 1
    out = bridge.generate(**inputs, max_new_tokens=4, do_sample=False, repetition_penalty=1.3, no_repeat_ngram_size=2)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])  # placeholders are back in place


def test_streamed_words_are_those_of_generate(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    bridge.generate(**inputs, max_new_tokens=5, do_sample=False, streamer=streamer)
    want = processor.tokenizer.decode(greedy(bridge, inputs, max_new_tokens=5)[0])
    assert "".join(streamer).strip() == want.strip()


def test_stop_strings_end_generation(
    language_model: Callable[..., PreTrainedModel], tiny_tokenizer: TapRegionTokenizer, picture: Image.Image
) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spelling = Tokenizer(models.BPE(letters, []))
    spelling.pre_tokenizer, spelling.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token="!")
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        language_model(vocab_size=257), region_tokenizer=tiny_tokenizer, text_tokenizer=words
    )
    processor = RegionBridgeProcessor.for_bridge(bridge.config, words, tiny_tokenizer)
    inputs = one(processor, picture)
    whole = greedy(bridge, inputs, max_new_tokens=12)[0].tolist()
    word = words.decode(whole[3:5])
    cut = greedy(bridge, inputs, max_new_tokens=12, stop_strings=[word], tokenizer=words)[0].tolist()
    assert cut == whole[: len(cut)]
    assert words.decode(cut).endswith(word)
    assert len(cut) <= 5


def test_outputs_as_a_dictionary(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    out = bridge.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert len(out.scores) <= 3


def test_embeddings_can_be_given(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    embedded = bridge.embed(**{k: v for k, v in inputs.items() if k != "attention_mask"})
    out = bridge.generate(
        inputs_embeds=embedded, attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False
    )
    assert torch.equal(out, greedy(bridge, inputs))


def test_a_compiled_bridge_gives_the_same_logits(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    compiled = torch.compile(bridge, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, bridge(**inputs).logits)


# --- what a region gives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        ({"experts": "all"}, 8),
        ({"image_grid": 2}, 6),
        ({"experts": "all", "image_grid": 3}, 17),
        ({"use_semantic_embeds": False}, 2),
        ({"use_position": False}, 2),
        ({"projector_hidden_size": 7, "position_frequencies": 2}, 2),
    ],
)
def test_options_set_the_placeholders_and_survive_saving(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path, options: dict[str, Any], slots: int
) -> None:
    bridge, processor = make_bridge(**options)
    inputs = one(processor, picture)
    assert (inputs["input_ids"] == bridge.config.region_token_id).sum() == slots
    assert inputs["region_features"].shape == (1, slots, bridge.config.feature_layout.size)
    want = greedy(bridge, inputs)
    bridge.save_pretrained(tmp_path)
    assert torch.equal(greedy(RegionBridgeForConditionalGeneration.from_pretrained(tmp_path), inputs), want)


def test_ignored_features_change_nothing(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    for option, part in (("use_semantic_embeds", slice(32, 48)), ("use_position", slice(48, 54))):
        bridge, processor = make_bridge(**{option: False})
        inputs = one(processor, picture)
        changed = {**inputs, "region_features": inputs["region_features"].clone()}
        changed["region_features"][..., part] += 1
        assert torch.equal(bridge(**inputs).logits, bridge(**changed).logits)
        bridge, processor = make_bridge(**{option: True})
        assert not torch.equal(bridge(**inputs).logits, bridge(**changed).logits)


def test_projected_tokens_start_at_the_size_of_words(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    for family in ("llama", "gemma3_text"):
        bridge, processor = make_bridge(family)
        words = bridge.get_input_embeddings()(torch.arange(40)).square().mean().sqrt()
        regions = bridge.projector(one(processor, picture)["region_features"][0]).square().mean().sqrt()
        assert 0.5 < regions / words < 2


# --- laws -------------------------------------------------------------------------------------------------------------


def test_train_mode_does_not_reach_the_region_tokenizer(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    want = one(processor, picture)["region_features"]
    bridge.train()
    processor.encoder.cache.clear()
    assert torch.equal(one(processor, picture)["region_features"], want)
    assert not processor.region_tokenizer.model.training
    assert not any("tap" in name or "image_encoder" in name for name, _ in bridge.named_modules())


def test_config_records_the_tokenizer(make_bridge: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer) -> None:
    config = make_bridge()[0].config
    assert config.fingerprint == tiny_tokenizer.fingerprint
    assert config.concept_space == tiny_tokenizer.concepts.digest
    assert (config.token_size, config.embed_size, config.num_experts) == (32, 16, 4)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_placeholders_and_features_are_counted_by_sample(
    make_bridge: Callable[..., Pair], picture: Image.Image
) -> None:
    bridge, processor = make_bridge()
    inputs = ask(processor, picture)
    fewer = {**inputs, "region_mask": inputs["region_mask"].clone()}
    fewer["region_mask"][1, 0] = 0
    for call in (bridge, bridge.generate):
        with pytest.raises(
            ValueError, match=r"Sample 1 has 1 <\|region\|> placeholders but 0 region features: give one region"
        ):
            call(**fewer)
    swapped = {**inputs, "region_mask": inputs["region_mask"].flip(0)}  # as many in all, but not in each
    with pytest.raises(ValueError, match="Sample 0 has 2"):
        bridge(**swapped)
    with pytest.raises(ValueError, match=r"Sample 0 has .* but no region features came with it"):
        bridge(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def test_tokens_of_another_tokenizer_are_refused(
    make_bridge: Callable[..., Pair], make_tokenizer: Callable[..., TapRegionTokenizer], picture: Image.Image
) -> None:
    bridge, _ = make_bridge()
    _, stranger = make_bridge(region_tokenizer=make_tokenizer(seed=9))
    inputs = one(stranger, picture)
    for call in (bridge, bridge.generate):
        with pytest.raises(ValueError, match="Sample 0 has region tokens of another tokenizer than"):
            call(**inputs)
    with pytest.raises(ValueError, match="The bridge was built on the region tokenizer"):
        stranger.check_bridge(bridge.config)
    bridge.config.accept_any_tokenizer = True
    assert bridge(**inputs).logits.isfinite().all()
    stranger.check_bridge(bridge.config)


def test_features_for_other_experts_are_refused(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    (routed, routed_processor), (every, every_processor) = make_bridge(), make_bridge(experts="all")
    for bridge, processor in ((routed, every_processor), (every, routed_processor)):
        with pytest.raises(ValueError, match="other experts"):
            bridge.generate(**one(processor, picture))
    inputs = one(routed_processor, picture)
    inputs["region_features"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="hold NaN"):
        routed(**inputs)


def test_other_models_than_language_models_are_refused(
    make_bridge: Callable[..., Pair], language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., Any], tiny_tokenizer: TapRegionTokenizer,
) -> None:  # fmt: skip
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    bert = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1))
    for model, words in (
        (bert, "BertModel is not a causal language model"),
        (t5, "T5ForConditionalGeneration is not a causal language model"),
        (make_bridge()[0], "is already a bridge"),
        (language_model(vocab_size=9), "embeds only 9"),
    ):
        with pytest.raises(ValueError, match=words):
            RegionBridgeForConditionalGeneration.from_language_model(
                model, region_tokenizer=tiny_tokenizer, text_tokenizer=text_tokenizer()
            )
    for wrong in ({"image_grid": 1000}, {"position_frequencies": 0}, {"projector_hidden_size": 0}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            make_bridge(**wrong)


def test_features_of_another_width_are_refused(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = one(processor, picture)
    with pytest.raises(ValueError, match="Region features have width 58, this bridge reads 59"):
        bridge(**{**inputs, "region_features": inputs["region_features"][..., :-1]})
    with pytest.raises(ValueError, match="without input_ids or region_mask"):
        bridge(input_ids=inputs["input_ids"], region_features=inputs["region_features"])


def test_prompts_beyond_the_context_are_refused(make_bridge: Callable[..., Pair], picture: Image.Image) -> None:
    bridge, processor = make_bridge()
    inputs = processor("is <region> " + "red " * 125, picture, boxes=BOXES[:1])
    with pytest.raises(
        ValueError, match=r"The prompt has 12\d tokens and the answer may have 20, but the language model reads 128"
    ):
        bridge.generate(**inputs, max_new_tokens=20)


def test_a_language_model_without_a_name_needs_its_tokenizer(
    language_model: Callable[..., PreTrainedModel], tiny_tokenizer: TapRegionTokenizer
) -> None:
    with pytest.raises(ValueError, match="no name to find its tokenizer by: give text_tokenizer"):
        RegionBridgeForConditionalGeneration.from_language_model(language_model(), region_tokenizer=tiny_tokenizer)


def test_unknown_options_are_refused(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., Any],
    tiny_tokenizer: TapRegionTokenizer,
) -> None:
    with pytest.raises(ValueError, match=r"Got \['image_gird'\]"):
        RegionBridgeForConditionalGeneration.from_language_model(
            language_model(), region_tokenizer=tiny_tokenizer, text_tokenizer=text_tokenizer(), image_gird=3
        )
    with pytest.raises(Exception, match="experts"):
        RegionBridgeForConditionalGeneration.from_language_model(
            language_model(), region_tokenizer=tiny_tokenizer, text_tokenizer=text_tokenizer(), experts="some"
        )


def test_a_language_model_by_folder(
    language_model: Callable[..., PreTrainedModel], text_tokenizer: Callable[..., Any], tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image, tmp_path: Path,
) -> None:  # fmt: skip
    language_model().save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(str(tmp_path), region_tokenizer=tiny_tokenizer)
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tiny_tokenizer)
    assert bridge.config.language_model == str(tmp_path)
    assert greedy(bridge, one(processor, picture)).shape[0] == 1


def test_bfloat16_that_the_cpu_imitates_is_not_taken_unasked(
    language_model: Callable[..., PreTrainedModel], text_tokenizer: Callable[..., Any], tiny_tokenizer: TapRegionTokenizer,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    language_model().bfloat16().save_pretrained(tmp_path / "language")
    text_tokenizer().save_pretrained(tmp_path / "language")

    def made(**dtype: Any) -> torch.dtype:
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            str(tmp_path / "language"), region_tokenizer=tiny_tokenizer, **dtype
        )
        bridge.save_pretrained(tmp_path / "bridge", whole=True)
        return bridge.language_model.dtype

    assert made() == torch.float32
    assert "no instructions for bfloat16" not in caplog.text
    assert made(dtype=torch.bfloat16) == torch.bfloat16
    assert "no instructions for bfloat16" in caplog.text
    for dtype, told in (({"dtype": "auto"}, False), ({}, True)):
        caplog.clear()
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "bridge", **dtype)
        assert bridge.language_model.dtype == torch.bfloat16
        assert ("no instructions for bfloat16" in caplog.text) is told


def test_a_saved_folder_that_calls_the_flag_reads_padding_is_understood() -> None:
    config = RegionBridgeConfig.from_dict({"model_type": "region_bridge", "reads_padding": False})
    assert not config.ignores_padding
    assert config.to_dict()["ignores_padding"] is False
    assert "reads_padding" not in config.to_dict()
