"""Chats whose language model says what a test wants, token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from llm_bridge import RegionChat


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, so that names are several tokens long."""
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
    )  # fmt: skip
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    return fast


class _Words(LogitsProcessor):
    """Lets a model say given ids after its prompt, and nothing else."""

    def __init__(self, start: int, ids: Sequence[int]) -> None:
        self.start, self.ids = start, ids

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[min(input_ids.shape[1] - self.start, len(self.ids) - 1)]] = 0
        return forced


def says(chat: RegionChat, answer: str | Callable[[list[list[float]]], str]) -> list[str]:
    """Let a chat's model answer with these words, or with what a function says of the candidates' boxes.

    Returns the prompts that it is given from now on.
    """
    words, model_class = chat.processor.tokenizer, type(chat.model)
    asked: list[str] = []

    def forced(**inputs: Any) -> Any:
        asked.append(words.decode(inputs["input_ids"][0]))
        text = answer if isinstance(answer, str) else answer(shown_boxes(chat, inputs))
        ids = [*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
        return model_class.generate(chat.model, **inputs, logits_processor=[_Words(inputs["input_ids"].shape[1], ids)])

    chat.model.generate = forced  # type: ignore[method-assign, assignment]
    return asked


def shown_boxes(chat: RegionChat, inputs: Any) -> list[list[float]]:
    """Boxes of the candidates of a prompt, in pixels of the picture of 90 × 60 pixels."""
    shares = inputs["region_features"][0][:, chat.processor.feature_layout.box]
    return (shares * torch.tensor([90, 60, 90, 60])).round().tolist()
