"""Conversations that are too long lose their last questions, never their form."""

from __future__ import annotations

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
