"""Conversations that are too long lose their last questions, never their form."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")

from finetune.data.collator import CachedSample, ConversationCollator
from llm_bridge import RegionBridgeProcessor


@pytest.fixture
def item() -> CachedSample:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    tokenizer = processor.region_tokenizer
    assert tokenizer is not None
    regions = tokenizer.encode(np.zeros((60, 90, 3), np.uint8), boxes=[[1, 2, 30, 40], [30, 5, 80, 50], [2, 2, 9, 9]])
    turns = []
    for n in (1, 2, 3):
        turns += [{"role": "user", "content": f"What is <region{n}>?"}, {"role": "assistant", "content": "cloud"}]
    return CachedSample({"image": "a.png", "regions": [{}, {}, {}], "conversations": turns}, regions)


def test_last_questions_go(item: CachedSample) -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    whole = ConversationCollator(processor)([item])
    length = whole["input_ids"].shape[1]
    assert torch.equal(ConversationCollator(processor, length)([item])["input_ids"], whole["input_ids"])
    cut = ConversationCollator(processor, length - 1)([item, item])
    assert cut["input_ids"].shape[1] < length
    assert cut["region_mask"].sum(dim=1).tolist() == [2, 2]
    assert torch.equal(cut["region_features"][0], whole["region_features"][0, :2])
    assert (cut["labels"] != -100).any(dim=1).all()
    with pytest.raises(ValueError, match=r"A question about a\.png has \d+ tokens"):
        ConversationCollator(processor, 3)([item])


def test_only_the_last_answer_is_learned(item: CachedSample) -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    turns = item.sample["conversations"]
    answers = [{"role": "assistant", "content": text} for text in ("cloud", "a small red umbrella", "star")]
    several = CachedSample(
        {**item.sample, "conversations": [turns[0], answers[0], turns[2], answers[1]]}, item.regions[:2]
    )
    items = [several, CachedSample({**item.sample, "conversations": [turns[0], answers[2]]}, item.regions[:1])]
    everything = ConversationCollator(processor)(items)
    last = ConversationCollator(processor, mask_history=True)(items)
    assert torch.equal(everything["input_ids"], last["input_ids"])
    learned = [processor.decode(row[row != -100], skip_special_tokens=True).strip() for row in last["labels"]]
    assert learned == ["a small red umbrella", "star"]
    assert torch.equal(everything["labels"][1], last["labels"][1])
    assert (everything["labels"][0] != -100).sum() > (last["labels"][0] != -100).sum()


def test_every_answer_ends_with_a_token_that_stops_generation(
    item: CachedSample, caplog: pytest.LogCaptureFixture
) -> None:
    """Here with a template that ends no turn: the end is appended, and that is said before the first batch."""
    type(logging.getLogger()).warning_once.cache_clear()  # type: ignore[attr-defined]
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    processor.chat_template = (
        "{% for m in messages %}{{ {'user': 'Q: ', 'assistant': 'A: '}[m['role']] + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    end = processor.tokenizer.eos_token_id
    for mask_history, answers in ((False, 3), (True, 1)):
        collator = ConversationCollator(processor, mask_history=mask_history)
        assert "training appends '</s>' to them" in caplog.text
        labels = collator([item])["labels"][0].tolist()
        assert labels.count(end) == answers
        ends = [label for label, after in zip(labels, [*labels[1:], -100]) if label != -100 and after == -100]
        assert ends == [end] * answers


def test_a_tokenizer_without_an_end_is_refused_before_the_first_batch() -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    processor.tokenizer.eos_token = None
    processor.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"could not learn to stop: set tokenizer\.eos_token"):
        ConversationCollator(processor)
