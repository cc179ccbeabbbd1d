"""Temperature and threshold: fitted to what is known, kept in the bridge's folder, and learned with what is found by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune import cache_regions, calibrate, train
from finetune.calibrate import fit
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.records import load_records, open_image
from llm_bridge import RegionBridgeConfig, RegionChat
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


# --- learned by heart -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """A miniature language model that has learned the expressions of a few scenes by heart."""
    folder = tmp_path_factory.mktemp("learned")
    words = AutoTokenizer.from_pretrained(bundled_or_given("region-chat-tiny"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=512, eos_token_id=words.eos_token_id,
                         pad_token_id=words.pad_token_id, tie_word_embeddings=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    words.save_pretrained(folder / "lm")
    make_tokenizer(0).save_pretrained(folder / "tap")
    data, cache = str(folder / "find.jsonl"), str(folder / "cache")
    convert(GlyphScenesSource(output=data, scenes=5, turns=4, long_side=96, expressions=1.0, workers=1))
    cache_regions.main(["--data", data, "--region_tokenizer", str(folder / "tap"), "--output", cache, "--workers", "0"])
    train.main(["--output_dir", str(folder / "run"), "--mode", "full", "--language_model", str(folder / "lm"),
                "--region_tokenizer", str(folder / "tap"), "--data", data, "--caches", cache, "--turns", "1",
                "--eval_data", data, "--eval_cache", cache, "--eval_records", "5", "--eval_steps", "1000",
                "--steps", "120", "--batch_size", "10", "--learning_rate", "3e-3", "--projector_learning_rate", "3e-3",
                "--warmup_steps", "10", "--save_steps", "1000", "--tracker", "none"])  # fmt: skip
    return folder


def found_again(folder: Path, shuffled: bool) -> list[bool]:
    """Of each expression, whether `find` gives the regions that are meant, whichever order candidates are shown in."""
    chat = RegionChat.from_pretrained(folder / "run" / "model")
    chat.warns_of_limitation = False
    right = []
    for record in load_records(folder / "find.jsonl"):
        picture, boxes = open_image(record, folder), [region.box for region in record.regions]
        shown = [*boxes[1:], boxes[0]] if shuffled else boxes
        for asked, answered in zip(record.conversations[::2], record.conversations[1::2], strict=True):
            phrase = asked.content.partition("Find ")[2].partition(". Answer")[0]
            found = chat.find(phrase, image=picture, prompts=[RegionPrompt.read({"box": box}, "it") for box in shown])
            names = [f"region{boxes.index(box) + 1}" for box in sorted(found.boxes.tolist(), key=boxes.index)]
            right.append((" and ".join(names[-2:]) if len(names) < 3 else "") == answered.content
                         or sorted(names) == sorted(answered.content.replace(" and ", ", ").split(", "))
                         or (not names and answered.content == "none"))  # fmt: skip
    return right


@pytest.mark.slow
def test_what_was_learned_by_heart_is_found(learned: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = found_again(learned, shuffled=False)
    assert sum(right) / len(right) > 0.9, right
    assert "not taught" not in caplog.text
