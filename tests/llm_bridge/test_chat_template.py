"""What the assistant learns to write, in many families of chat templates: its words and the token that stops generation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import FAMILIES, Family, family_tokenizer
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, pipeline

from llm_bridge import DescribedRegionProcessor, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from llm_bridge.chat_template import ChatTemplate, logger
from tap_tokenizer import TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30], [20, 10, 85, 55]]
TALK = [
    {"role": "user", "content": "what is it?"},
    {"role": "assistant", "content": "a red cat"},
    {"role": "user", "content": "where?"},
    {"role": "assistant", "content": "left"},
]
LEARN = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True, "enable_thinking": False}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
either_way = pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])


@pytest.fixture(autouse=True)
def warnings_come_again() -> Iterator[None]:
    """A warning that is said once is said once in each test."""
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    yield
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]


def language_model(words: PreTrainedTokenizerBase, stops: Any = None) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(words), eos_token_id=stops or words.eos_token_id, pad_token_id=words.pad_token_id, **sizes
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def make_pair(tiny_tokenizer: TapRegionTokenizer) -> Callable[..., Pair]:
    """A bridge on a small language model of a family, and its processor."""

    def make(family: Family, named: bool = False) -> Pair:
        words = family_tokenizer(family, named=named)
        stops = [words.convert_tokens_to_ids(stop) for stop in family.stops]
        bridge = RegionBridgeForConditionalGeneration.from_language_model(
            language_model(words, stops), region_tokenizer=tiny_tokenizer, text_tokenizer=words
        )
        return bridge, RegionBridgeProcessor.for_bridge(bridge.config, words, tiny_tokenizer)

    return make


def about_regions(picture: Image.Image) -> list[dict[str, Any]]:
    """The same talk about two regions of a picture."""
    shown = [{"type": "image", "image": picture}, {"type": "region", "box": BOXES[0]}]
    other = [{"type": "region", "box": BOXES[1]}, {"type": "text", "text": "and <region1>?"}]
    return [{"role": "user", "content": shown}, TALK[1], {"role": "user", "content": other}, TALK[3]]


def runs(batch: Any) -> list[list[list[int]]]:
    """Of each row, the unbroken runs of ids that are learned."""
    found: list[list[list[int]]] = []
    for ids, mask in zip(batch["input_ids"].tolist(), batch["assistant_masks"].tolist()):
        own: list[list[int]] = [[]]
        for token, is_learned in zip(ids, mask):
            if is_learned:
                own[-1].append(token)
            elif own[-1]:
                own.append([])
        found.append([run for run in own if run])
    return found


# --- what is learned --------------------------------------------------------------------------------------------------


@every_family
@either_way
def test_what_is_learned_ends_with_the_token_that_stops_generation(
    make_pair: Callable[..., Pair], picture: Image.Image, family: Family, named: bool
) -> None:
    bridge, processor = make_pair(family, named)
    batch = processor.apply_chat_template([about_regions(picture), TALK, TALK[:2]], **LEARN)
    learned = runs(batch)
    first, last = (family.lead + words + end for words, end in zip(("a red cat", "left"), family.ends))
    only = family.lead + "a red cat" + family.ends[1]
    assert [[processor.decode(run) for run in row] for row in learned] == [[first, last], [first, last], [only]]
    stops = bridge.generation_config.eos_token_id
    assert {run[-1] for row in learned for run in row} <= set(stops if isinstance(stops, list) else [stops])


@every_family
def test_training_examples_begin_with_the_prompt(
    make_pair: Callable[..., Pair], picture: Image.Image, family: Family
) -> None:
    _, processor = make_pair(family)
    for talk in (about_regions(picture), TALK, TALK[:2]):
        lesson = processor.apply_chat_template(talk, **LEARN)["input_ids"][0].tolist()
        asked = processor.apply_chat_template(
            talk[:-1], tokenize=True, add_generation_prompt=True, enable_thinking=False
        )[0].tolist()
        assert lesson[: len(asked)] == asked


@every_family
def test_appended_ends_are_warned_of_once(
    make_pair: Callable[..., Pair], family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    _, processor = make_pair(family)
    processor.apply_chat_template(TALK, add_generation_prompt=True)
    assert not caplog.records  # nobody learns
    for _ in range(2):
        processor.apply_chat_template(TALK, **LEARN)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == family.appended
    assert all(f"training appends {family.ends[1]!r} to them" in message for message in said)


@pytest.mark.parametrize("name", ["glm 4", "qwen 1.5", "gemma 3", "qwen 3", "harmony", "deepseek r1"])
def test_prompts_are_the_templates_own_text(make_pair: Callable[..., Pair], name: str) -> None:
    _, processor = make_pair(FAMILIES[name])
    for options in ({}, {"add_generation_prompt": True}):
        for talk in (TALK[:1], TALK[:2]):
            own = processor.tokenizer.apply_chat_template(talk, tokenize=False, **options)
            assert processor.apply_chat_template(talk, **options) == own


def test_earlier_answers_are_written_as_in_training(
    make_pair: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer
) -> None:
    """Ends that training appends stand in prompts, too, but for a language model that is taken as it is."""
    _, processor = make_pair(FAMILIES["alpaca"])
    asked = processor.apply_chat_template(TALK[:3], add_generation_prompt=True)
    assert asked == (
        "<s>### Instruction:\nwhat is it?\n\n### Response:\na red cat</s>\n\n### Instruction:\nwhere?\n\n### Response:\n"
    )
    begun = processor.apply_chat_template(TALK[:2], continue_final_message=True)
    assert begun.endswith("a red cat")
    described = DescribedRegionProcessor(processor.tokenizer, tiny_tokenizer)
    assert "</s>" not in described.apply_chat_template(TALK[:3], add_generation_prompt=True)


def test_thoughts_dropped_by_the_template_are_not_learned(make_pair: Callable[..., Pair]) -> None:
    for name in ("qwen 3", "deepseek r1"):
        _, processor = make_pair(FAMILIES[name])
        thought = [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>a red cat"}, *TALK[2:]]
        learned = runs(processor.apply_chat_template(thought, **LEARN))[0]
        assert [processor.decode(run, skip_special_tokens=True) for run in learned] == ["a red cat", "left"]


def test_generation_marks_of_the_template_are_used(make_pair: Callable[..., Pair]) -> None:
    _, processor = make_pair(FAMILIES["marked"])
    parts = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]{% elif loop.last %}"
        "{% generation %}<{{ m['content'] }}>{% endgeneration %} so {% generation %}yes{% endgeneration %}<|im_end|>\n"
        "{% else %}({{ m['content'] }}){% endif %}{% endfor %}"
    )
    learned = runs(processor.apply_chat_template(TALK, parts, **LEARN))[0]
    assert [processor.decode(run) for run in learned] == ["<left>", "yes<|im_end|>"]
    changed = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' else m['content'] | length }}{% endfor %}"
    with pytest.raises(ValueError, match="The conversation: the chat template changes the assistant's words"):
        processor.apply_chat_template(TALK, changed, **LEARN)


def test_answers_that_contain_their_end_get_no_second_one(make_pair: Callable[..., Pair]) -> None:
    _, processor = make_pair(FAMILIES["alpaca"])
    talk = [TALK[0], {"role": "assistant", "content": "a red cat</s>"}]
    learned = runs(processor.apply_chat_template(talk, **LEARN))[0]
    assert [processor.decode(run) for run in learned] == ["a red cat</s>"]


@pytest.mark.parametrize(("name", "times"), [("gemma 3", 2), ("alpaca", 2), ("marked", 1)])
def test_a_conversation_is_rendered_as_often_as_its_template_needs(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    """Twice, or once where the template marks the assistant's words, however many turns there are."""
    _, processor = make_pair(FAMILIES[name])
    talks = [TALK[:2] * 8] * 16
    seen: list[int] = []
    plain = ChatTemplate._apply
    monkeypatch.setattr(ChatTemplate, "_apply", lambda *args, **options: seen.append(1) or plain(*args, **options))
    nothing = torch.zeros(0, 1, 1)
    processor.chat_batch(talks, [nothing] * 16, [None] * 16, [(1, 1)] * 16, return_assistant_tokens_mask=True)
    looks = len(seen) - times * 16
    assert 0 <= looks <= 3  # at the template, before its first conversation
    seen.clear()
    processor.apply_chat_template(talks, **LEARN)
    assert len(seen) == times * 16


def test_white_space_does_not_end_a_turn(make_pair: Callable[..., Pair]) -> None:
    """Some vocabularies have line ends and runs of spaces as added tokens."""
    _, processor = make_pair(FAMILIES["alpaca"])
    assert processor.tokenizer.convert_tokens_to_ids("\n\n") not in processor.stop_token_ids
    assert processor.stop_token_ids == [processor.tokenizer.eos_token_id]


def test_white_space_absorbed_by_the_role_token_is_not_learned(
    make_pair: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer
) -> None:
    words = family_tokenizer(FAMILIES["zephyr"])
    words.add_tokens([AddedToken(f"<|{role}|>", special=True, rstrip=True) for role in ("user", "assistant")])
    processor = RegionBridgeProcessor(words, tiny_tokenizer)
    learned = runs(processor.apply_chat_template(TALK, **LEARN))[0]
    assert [processor.decode(run) for run in learned] == ["a red cat</s>", "left</s>"]


def test_several_templates_are_known_by_name(tiny_tokenizer: TapRegionTokenizer) -> None:
    words = family_tokenizer(FAMILIES["command r"])
    words.chat_template = {"default": FAMILIES["command r"].template, "loud": "{{ messages[0]['content'] | upper }}"}
    processor = RegionBridgeProcessor(words, tiny_tokenizer)
    assert processor.apply_chat_template(TALK[:1]).startswith("<BOS_TOKEN><|START_OF_TURN_TOKEN|>")
    assert processor.apply_chat_template(TALK[:1], "loud") == "WHAT IS IT?"
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        language_model(words), region_tokenizer=tiny_tokenizer, text_tokenizer=words
    )
    assert words.convert_tokens_to_ids("<|END_OF_TURN_TOKEN|>") in bridge.generation_config.eos_token_id
    words.chat_template = {"loud": "{{ messages[0]['content'] | upper }}"}
    with pytest.raises(ValueError, match="The tokenizer has the chat templates loud but no default"):
        RegionBridgeProcessor(words, tiny_tokenizer).apply_chat_template(TALK)


# --- what is refused --------------------------------------------------------------------------------------------------


@every_family
def test_a_system_turn_is_taken_or_refused_in_a_sentence(make_pair: Callable[..., Pair], family: Family) -> None:
    _, processor = make_pair(family)
    talk = [{"role": "system", "content": "be brief"}, *TALK]
    for options in (LEARN, {"add_generation_prompt": True}):
        if family.takes_system:
            assert processor.apply_chat_template(talk, **options)
            continue
        with pytest.raises(
            ValueError, match=r"The conversation: the chat template refuses a system turn .*first user turn"
        ):
            processor.apply_chat_template(talk, **options)


def test_roles_that_must_alternate(make_pair: Callable[..., Pair]) -> None:
    _, processor = make_pair(FAMILIES["gemma 2"])
    with pytest.raises(
        ValueError,
        match=r"Conversation 1: the chat template refuses turns of user, user .*alternate turns of user and assistant",
    ):
        processor.apply_chat_template([TALK, [TALK[0], TALK[2]]])
    with pytest.raises(ValueError, match="alternate turns of user and assistant, user first"):
        processor.apply_chat_template(TALK[1:])


def test_a_dropped_system_turn_is_reported(make_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture) -> None:
    _, processor = make_pair(FAMILIES["chatml"])
    deaf = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + eos_token }}{% endfor %}"
    processor.apply_chat_template([{"role": "system", "content": "be brief"}, *TALK], deaf)
    assert "drops the words of system turns" in caplog.text


@pytest.mark.parametrize("change", ["upper", "escape", "length"])
def test_a_template_that_changes_region_placeholders_is_refused(
    make_pair: Callable[..., Pair], picture: Image.Image, change: str
) -> None:
    _, processor = make_pair(FAMILIES["chatml"])
    changed = "{% for m in messages %}{{ m['content'] | " + change + " }}<|im_end|>{% endfor %}"
    for options in (LEARN, {"add_generation_prompt": True}):
        with pytest.raises(
            ValueError, match="The conversation: the chat template leaves out or changes what is said about"
        ):
            processor.apply_chat_template(about_regions(picture), changed, **options)


def test_a_template_and_tokenizer_without_an_end_are_refused(
    make_pair: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer
) -> None:
    words = family_tokenizer(FAMILIES["alpaca"])
    words.eos_token = None
    processor = RegionBridgeProcessor(words, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"could not learn to stop: set tokenizer\.eos_token"):
        processor.apply_chat_template(TALK, **LEARN)
    processor = RegionBridgeProcessor(words, tiny_tokenizer, eos_token_id=words.convert_tokens_to_ids("</s>"))
    assert processor.decode(runs(processor.apply_chat_template(TALK, **LEARN))[0][-1]) == "left</s>"


def test_an_end_that_merges_with_neighbouring_text_is_refused(tiny_tokenizer: TapRegionTokenizer) -> None:
    names = ["<unk>", "stop", "yes", "yesstop", "ask", "<eos>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for m in messages %}{{ m['content'] + ' ' if m['role'] == 'user' else m['content'] + 'stop ' }}{% endfor %}"
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", chat_template=template
    )
    processor = RegionBridgeProcessor(words, tiny_tokenizer, eos_token_id=[1])
    talk = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(ValueError, match=r"joins 'stop', which ends the assistant's turn, .* reads 'yesstop'"):
        processor.apply_chat_template(talk, **LEARN)
    words.add_tokens([AddedToken("stop", special=True)])
    learned = runs(processor.apply_chat_template(talk, **LEARN))[0]
    assert [words.convert_ids_to_tokens(run) for run in learned] == [["yes", "stop"]]


def test_a_tokenizer_without_offsets_is_refused(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = make_pair(FAMILIES["chatml"])
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    with pytest.raises(ValueError, match=r"does not say which characters its tokens stand for.*give a fast tokenizer"):
        processor.apply_chat_template(TALK, **LEARN)


# --- where generation stops -------------------------------------------------------------------------------------------


def teach(bridge: Any, processor: RegionBridgeProcessor, picture: Image.Image, steps: int = 100) -> None:
    """Two regions of a picture and a second question, learned by heart."""
    first = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "region", "box": BOXES[0]}]},
             {"role": "assistant", "content": "cat"}]  # fmt: skip
    second = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "region", "box": BOXES[1]}]},
              {"role": "assistant", "content": "a dog"}]  # fmt: skip
    more = [*first, {"role": "user", "content": "hue"}, {"role": "assistant", "content": "red"}]
    batch = processor.apply_chat_template([first, second, more], **LEARN, processor_kwargs={"padding_side": "right"})
    labels = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    optimizer = torch.optim.AdamW(bridge.parameters(), lr=5e-3)
    bridge.train()
    for _ in range(steps):
        bridge(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    bridge.eval()


@pytest.mark.parametrize("name", ["gemma 3", "alpaca", "glm 4", "deepseek r1"])
def test_a_trained_bridge_ends_its_answers(
    make_pair: Callable[..., Pair], picture: Image.Image, tmp_path: Path, name: str
) -> None:
    """Whether its end is a token without a name, the next turn's beginning, or none of the template's."""
    bridge, processor = make_pair(FAMILIES[name])
    teach(bridge, processor, picture)
    bridge.save_pretrained(tmp_path, whole=True)
    processor.save_pretrained(tmp_path)
    chat = RegionChat.from_pretrained(tmp_path)
    steps: list[int] = []
    plain = chat.model.generate
    chat.model.generate = lambda **inputs: steps.append(0) or plain(**inputs, stopping_criteria=[count(steps)])  # type: ignore[method-assign]
    said = [
        chat.ask("<region>", image=picture, boxes=BOXES[:1], max_new_tokens=40),
        chat.ask("hue", max_new_tokens=40),
    ]
    assert said == ["cat", "red"]
    assert max(steps) < 12  # of 40
    chat.reset()
    chat.model.generate = plain  # type: ignore[method-assign]
    assert "".join(chat.ask("<region>", image=picture, boxes=BOXES[1:], max_new_tokens=40, stream=True)) == "a dog"
    chat.reset()
    assert chat.ask_each(["<region>"], image=picture, boxes=BOXES[1:], max_new_tokens=40) == ["a dog"]
    say = pipeline("region-text-generation", model=str(tmp_path))
    answer = say(picture, text="<region>", boxes=BOXES[1:], max_new_tokens=40)
    assert answer["generated_text"] == "a dog"


def count(steps: list[int]) -> Callable[..., torch.Tensor]:
    def add(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        steps[-1] += 1
        return torch.zeros(len(ids), dtype=torch.bool)

    return add


def test_saved_folders_keep_the_stop_tokens(
    make_pair: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer, tmp_path: Path
) -> None:
    bridge, processor = make_pair(FAMILIES["gemma 3"])
    stops = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("<eos>", "<end_of_turn>")]
    assert bridge.generation_config.eos_token_id == stops
    bridge.language_model.save_pretrained(tmp_path / "words")
    bridge.config.language_model = str(tmp_path / "words")
    (tmp_path / "words" / "generation_config.json").write_text(json.dumps({"eos_token_id": stops[0]}))
    for name, whole in (("whole", True), ("adapter", False)):
        bridge.save_pretrained(tmp_path / name, whole=whole)
        processor.save_pretrained(tmp_path / name)
        loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name)
        assert loaded.generation_config.eos_token_id == stops
        assert RegionBridgeProcessor.from_pretrained(tmp_path / name).eos_token_id == stops


def test_the_language_models_own_stop_tokens_are_kept(make_pair: Callable[..., Pair]) -> None:
    bridge, processor = make_pair(FAMILIES["glm 4"])
    names = ["<|endoftext|>", "<|user|>", "<|observation|>"]
    assert bridge.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids(names)
    bridge, processor = make_pair(FAMILIES["zephyr"])
    assert bridge.generation_config.eos_token_id == processor.tokenizer.eos_token_id  # nothing lacks, nothing changes


def test_attaching_a_processor_adds_its_stop_tokens(make_pair: Callable[..., Pair]) -> None:
    """As bridges that were saved before, and processors that are given another template."""
    bridge, processor = make_pair(FAMILIES["gemma 3"])
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    bridge.config.eos_token_id, bridge.generation_config.eos_token_id = None, processor.tokenizer.eos_token_id
    RegionChat(bridge, processor)
    assert bridge.generation_config.eos_token_id == [processor.tokenizer.eos_token_id, end]
    assert bridge.config.eos_token_id == bridge.generation_config.eos_token_id


def test_a_described_language_model_stops_at_the_ends_of_its_template(tiny_tokenizer: TapRegionTokenizer) -> None:
    words = family_tokenizer(FAMILIES["llama 3"])
    chat = RegionChat(language_model(words), DescribedRegionProcessor(words, tiny_tokenizer))
    assert words.convert_tokens_to_ids("<|eot_id|>") in chat.model.generation_config.eos_token_id


def test_ends_that_are_not_special_tokens_are_removed_from_answers(
    make_pair: Callable[..., Pair], tiny_tokenizer: TapRegionTokenizer
) -> None:
    words = family_tokenizer(Family(FAMILIES["chatml"].template))
    words.add_tokens([AddedToken(token, special=False) for token in ("<|im_start|>", "<|im_end|>")])
    processor = RegionBridgeProcessor(words, tiny_tokenizer)
    learned = runs(processor.apply_chat_template(TALK, **LEARN))[0]
    assert [processor.decode(run) for run in learned] == ["a red cat<|im_end|>", "left<|im_end|>"]
    assert processor.decode(torch.tensor(learned[0]), skip_special_tokens=True) == "a red cat"
    assert processor.batch_decode(learned, skip_special_tokens=True) == ["a red cat", "left"]
    assert processor.post_process_image_text_to_text(learned) == ["a red cat", "left"]
    assert processor.decode(learned[1][-1], skip_special_tokens=True) == ""
