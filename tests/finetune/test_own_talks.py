"""A language model's talks with itself: where they begin, which are of use, and that a chunk is the same whoever makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from finetune.own_talks import OwnTalks
from llm_bridge import RegionBridgeForConditionalGeneration, RegionBridgeProcessor
from tap_tokenizer import TapRegionTokenizer

Parts = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]


@pytest.fixture(scope="module")
def parts(stage: Path) -> Parts:
    tokenizer = TapRegionTokenizer.from_pretrained(stage / "tap0")
    language_model = str(stage / "lm" / "model")
    bridge = RegionBridgeForConditionalGeneration.from_language_model(language_model, region_tokenizer=tokenizer)
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)


def test_a_chunk_depends_on_its_number_and_the_seed_alone(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.own_talks.CHUNK", 3)
    monkeypatch.setattr("finetune.own_talks._problem_of", lambda words: None)
    monkeypatch.setattr("finetune.own_talks.whole_sentences", lambda words, is_cut: words or "yes")
    talks = OwnTalks(*parts, count=7, answer_tokens=6, seed=1)
    assert talks.chunks == 3
    lines = [list(talks.work(chunk)) for chunk in range(3)]
    assert [len(chunk) for chunk in lines] == [3, 3, 1]
    assert list(OwnTalks(*parts, count=7, answer_tokens=6, seed=1).work(1)) == lines[1]
    assert list(OwnTalks(*parts, count=7, answer_tokens=6, seed=2).work(1)) != lines[1]


def test_talks_of_no_use_are_counted_and_their_questions_not_asked(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = OwnTalks(*parts, count=5, answer_tokens=6, seed=0)
    asked: list[list[str]] = []
    said = ["  How are\nyou? ", "...", "What is region2?", "Go on. Why not now? Why not now?", "Who wrote it?"]
    monkeypatch.setattr(talks, "_say", lambda inputs, end: said)

    def answers(questions: list[str]) -> list[str]:
        asked.append(questions)
        return ["Fine, thanks.", ""]

    monkeypatch.setattr(talks, "_answers", answers)
    lines = list(talks.work(0))
    assert asked == [["How are you?", "Who wrote it?"]]
    assert [line["talk"] for line in lines] == ["kept", "empty", "speaks of regions", "repeats", "empty"]
    assert [line["record"] is not None for line in lines] == [True, False, False, False, False]
    question, answer = lines[0]["record"]["conversations"]
    assert question == {"role": "user", "content": "How are you?"}
    assert answer == {"role": "assistant", "content": "Fine, thanks."}


def test_a_question_ends_where_the_template_goes_on(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = OwnTalks(*parts, count=1, answer_tokens=6, seed=0)
    prompt = talks.processor.apply_chat_template([{"role": "user", "content": "Hello."}], add_generation_prompt=True)
    assert prompt.startswith(f"{talks.beginning}Hello.")
    assert prompt.removeprefix(f"{talks.beginning}Hello.").strip().startswith(talks.end)
    asked: list[dict[str, Any]] = []

    def say(*arguments: Any, **options: Any) -> list[str]:
        asked.append(options)
        return [f"How are you? {talks.end} Fine."]

    monkeypatch.setattr("finetune.own_talks.generate_text", say)
    inputs = talks.processor(["Hello."])
    assert [words.strip() for words in talks._say(inputs, talks.end)] == ["How are you?"]
    talks._say(inputs, "")
    assert "stop_strings" not in asked[1]


def test_a_template_that_changes_the_users_words_is_refused(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, processor = parts
    monkeypatch.setattr(processor, "chat_template", "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(ValueError, match="give talks 0"):
        OwnTalks(bridge, processor, count=1, answer_tokens=6, seed=0)
