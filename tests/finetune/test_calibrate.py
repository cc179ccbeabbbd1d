"""Temperature and threshold: fitted to what is known, kept in the bridge's folder, and learned with what is found by heart."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune import cache_regions, calibrate, train
from finetune.batches import CachedRecord, ConversationCollator
from finetune.calibrate import fit, questions_to_find
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource, expression_record
from finetune.records import Turn, load_records, open_image
from llm_bridge import RegionBridgeConfig, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, RegionChat
from tap_tokenizer import RegionPrompt, bundled_or_given


def drawn(temperature: float, count: int = 4000) -> tuple[list[torch.Tensor], list[int]]:
    """Log-probabilities of five names and none, and truths that were drawn at a temperature."""
    random = np.random.RandomState(0)
    logits = torch.from_numpy(random.normal(0, 3, (count, 6)))
    shares = (logits / temperature).softmax(dim=1).numpy()
    return list(logits.log_softmax(dim=1)), [int(random.choice(6, p=own / own.sum())) for own in shares]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_at_which_truths_were_drawn(temperature: float) -> None:
    found = fit(*drawn(temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.loss[1] <= found.loss[0] + 1e-9
    assert (found.loss[1] < found.loss[0] - 0.01) == (temperature != 1)


def test_the_threshold_tells_none_from_something() -> None:
    """None is never more probable than .2 where there is something, and never less than .4 where there is none."""
    shares = [(0.1, False), (0.2, False), (0.05, False), (0.4, True), (0.9, True)]
    logs = [torch.tensor([1 - none, none], dtype=torch.float64).log() for none, _ in shares]
    found = fit(logs, [int(is_none) for _, is_none in shares])
    own = [float((log / found.temperature).softmax(dim=0)[-1]) for log in logs]
    assert found.threshold == pytest.approx((own[1] + own[3]) / 2, abs=1e-5)
    assert (found.none_right, found.none_wrong) == (1.0, 0.0)
    assert "said of 100.0% where there is none, of 0.0% where there is something" in str(found)


def test_rare_questions_of_none_count_as_much_as_the_others() -> None:
    """Of eleven, the only one of none lies among some of something: it is worth more than two of these."""
    none = [0.1] * 8 + [0.5, 0.6] + [0.45]
    logs = [torch.tensor([1 - share, share], dtype=torch.float64).log() for share in none]
    found = fit(logs, [0] * 10 + [1])
    assert (found.none_right, found.none_wrong) == (1.0, 0.2)


def test_there_is_no_threshold_for_questions_of_one_kind() -> None:
    logs = [torch.tensor([0.7, 0.3], dtype=torch.float64).log()] * 4
    for truth in (0, 1):
        found = fit(logs, [truth] * 4)
        assert found.threshold is None
        assert "no threshold" in str(found)


def test_questions_come_with_the_candidates_that_the_first_one_shows() -> None:
    usual, once = (
        expression_record(3, "train", 0, turns=4, long_side=64, shown_once=shown_once) for shown_once in (False, True)
    )
    alone = [one.record.conversations for one in questions_to_find([CachedRecord(once, None)])]
    assert alone == [one.record.conversations for one in questions_to_find([CachedRecord(usual, None)])]
    assert len(alone) == 4


def test_answers_that_cannot_be_read_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "likelihoods", lambda *_: torch.tensor([0.5, 0.3, 0.2]).log())
    inputs = SimpleNamespace(to=lambda device: None)
    collator = SimpleNamespace(prompts=lambda items: inputs)
    monkeypatch.setattr(calibrate, "ConversationCollator", lambda *_, **__: collator)
    bridge: Any = SimpleNamespace(device="cpu", config=SimpleNamespace())
    usual = expression_record(3, "train", 0, turns=1, long_side=64)
    asked = [
        replace(usual, regions=usual.regions[:2], conversations=[usual.conversations[0], Turn("assistant", answer)])
        for answer in ("region1", "none", "the left one", "region9")
    ]
    found = calibrate.calibrate(bridge, None, asked)  # type: ignore[arg-type]
    assert found is not None
    assert (found.questions, found.unread) == (2, ("the left one", "region9"))
    assert "without 2 questions whose answers neither name" in str(found)
    assert "such as 'the left one'" in str(found)
    assert calibrate.calibrate(bridge, None, asked[2:]) is None  # type: ignore[arg-type]


# --- learned by heart -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """A miniature language model that has learned the expressions of three scenes by heart."""
    folder = tmp_path_factory.mktemp("learned")
    words = AutoTokenizer.from_pretrained(bundled_or_given("region-chat-tiny"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=512, eos_token_id=words.eos_token_id,
                         pad_token_id=words.pad_token_id, initializer_range=0.1)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    words.save_pretrained(folder / "lm")
    make_tokenizer(0).save_pretrained(folder / "tap")
    data, cache = str(folder / "find.jsonl"), str(folder / "cache")
    convert(GlyphScenesSource(output=data, scenes=3, turns=4, long_side=96, expressions=1.0, workers=1))
    cache_regions.main(["--data", data, "--region_tokenizer", str(folder / "tap"), "--output", cache, "--workers", "0"])
    train.main(["--output_dir", str(folder / "run"), "--mode", "full", "--language_model", str(folder / "lm"),
                "--region_tokenizer", str(folder / "tap"), "--data", data, "--caches", cache, "--turns", "1",
                "--eval_data", data, "--eval_cache", cache, "--eval_records", "3", "--eval_steps", "1000",
                "--steps", "80", "--batch_size", "12", "--learning_rate", "3e-3", "--projector_learning_rate", "3e-3",
                "--warmup_steps", "10", "--save_steps", "1000", "--tracker", "none", "--decay_fraction", "0.5",
                "--attn_implementation", "eager"])  # fmt: skip
    return folder


def found_again(folder: Path, shuffled: bool) -> list[bool]:
    """Of each expression, whether `find` gives the regions that are meant; shuffled: with the candidates in another order."""
    chat = RegionChat.from_pretrained(folder / "run" / "model")
    right = []
    for record in load_records(folder / "find.jsonl"):
        picture, boxes = open_image(record, folder), [region.box for region in record.regions]
        shown = [*boxes[1:], boxes[0]] if shuffled else boxes
        prompts = [RegionPrompt.read({"box": box}, "An object") for box in shown]
        for asked, answered in zip(record.conversations[::2], record.conversations[1::2], strict=True):
            phrase = asked.content.partition("Find ")[2].partition(". Answer")[0]
            found = chat.find(phrase, image=picture, prompts=prompts, max_new_tokens=40)
            meant = [boxes[int(number) - 1] for number in re.findall(r"region(\d+)", answered.content)]
            right.append(sorted(found.boxes.tolist()) == sorted(map(list, meant)))
    return right


@pytest.mark.slow
def test_what_was_learned_by_heart_is_found_unless_candidates_are_shuffled(
    learned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right, shuffled = found_again(learned, shuffled=False), found_again(learned, shuffled=True)
    nothing = sum(not re.search(r"region\d", turn.content) for record in load_records(learned / "find.jsonl")
                  for turn in record.conversations[1::2])  # fmt: skip
    assert len(right) == 12
    assert all(right)
    assert sum(shuffled) <= nothing + 2  # none is none in any order
    assert "not taught" not in caplog.text


@pytest.mark.slow
def test_training_says_that_it_taught_to_find_and_calibrates(learned: Path, tmp_path: Path, capsys: Any) -> None:
    model = tmp_path / "model"
    shutil.copytree(learned / "run" / "model", model)
    config = RegionBridgeConfig.from_pretrained(model)
    assert config.taught_to_find
    assert config.find_temperature != 1
    assert config.find_threshold is not None
    changed = json.loads((model / "config.json").read_text()) | {"find_temperature": 1.0, "find_threshold": None}
    (model / "config.json").write_text(json.dumps(changed))
    flags = ["--model", str(model), "--data", str(learned / "find.jsonl")]
    calibrate.main([*flags, "--cache", str(learned / "cache")])
    again = RegionBridgeConfig.from_pretrained(model)
    assert again.find_temperature == pytest.approx(config.find_temperature, rel=1e-3)
    assert again.find_threshold == pytest.approx(config.find_threshold, abs=1e-3)
    said = f"taught; temperature {again.find_temperature:.3g}, none if that is more probable than {again.find_threshold:.3g}"
    assert f"| finds regions by words | {said} |" in (model / "README.md").read_text()
    assert "calibrated on 12 questions" in capsys.readouterr().out
    (model / "README.md").write_text("Mine.")
    calibrate.main([*flags, "--limit", "1"])  # from the pictures themselves
    assert "calibrated on 4 questions" in capsys.readouterr().out
    assert (model / "README.md").read_text() == "Mine."


@pytest.mark.slow
def test_what_cannot_be_calibrated_is_refused(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        calibrate.main(["--model", str(tmp_path), "--data", str(learned / "find.jsonl")])
    data = tmp_path / "other.jsonl"
    convert(GlyphScenesSource(output=str(data), scenes=1, turns=1, long_side=96, workers=1))
    with pytest.raises(ValueError, match="has no question that asks to find regions"):
        calibrate.main(["--model", str(learned / "run" / "model"), "--data", str(data)])


@pytest.mark.slow
@pytest.mark.parametrize("image_grid", [0, 2])
def test_a_question_of_a_record_is_what_find_asks(
    stage: Path, make_tokenizer: Any, tmp_path: Path, image_grid: int
) -> None:
    """Token by token and feature by feature, with and without picture context."""
    tokenizer = make_tokenizer(0)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(stage / "lm" / "model"), region_tokenizer=tokenizer, image_grid=image_grid
    )
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)
    record = expression_record(0, "train", 0, turns=2, long_side=96)
    chat = RegionChat(bridge, processor)
    asked: list[Any] = []
    plain = bridge.generate
    bridge.generate = lambda **inputs: asked.append(inputs) or plain(**inputs)  # type: ignore
    questions = list(questions_to_find([CachedRecord(record, None)]))
    assert len(questions) == 2
    for one in questions:
        phrase = one.record.conversations[0].content.partition("Find ")[2].partition(". Answer")[0]
        chat.reset()
        chat.find(phrase, image=open_image(record, tmp_path), boxes=[r.box for r in record.regions], max_new_tokens=2)
        alone = replace(one.record, conversations=one.record.conversations[:1])
        taught = ConversationCollator(processor).prompts([alone])
        assert taught["input_ids"].tolist() == asked[-1]["input_ids"].tolist()
        torch.testing.assert_close(taught["region_features"], asked[-1]["region_features"])
