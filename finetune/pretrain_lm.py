"""Trains a small causal language model and its tokenizer from scratch, on the language of GlyphScenes.

    accelerate launch -m finetune.pretrain_lm --config bundled/region_chat_tiny_lm

The model reads descriptions of regions in words and answers questions about them. It never sees a picture. The bundled
region-chat-tiny is such a model, after `finetune.train` has taught it to read region tokens. For real use, take any causal
language model of transformers instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llm_bridge import RegionDescription, describe_regions, generate_text
from tap_tokenizer import check_config, model_from_config, read_json_object

from .checkpoints import save_whole
from .config import check_counts, knob, parse_arguments, run_command, shipped_file
from .glyphs.language import caption
from .glyphs.questions import CONTEXT_FAMILIES, FAMILIES, draw_question
from .glyphs.scenes import KINDS, GlyphScene, make_scene
from .loop import RunArguments, Training, build_optimizers, ignore_ctrl_c, mean_of, run

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'A:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ 'Q: ' + message['content'] }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
LONG_SIDE = 512
"""Pixels of the longer side that pictures are described as having."""


@dataclass(kw_only=True)
class LanguageArguments(RunArguments):
    """Train a small language model on descriptions of scenes and questions about them."""

    model_config: str = knob(
        default="bundled/region_chat_tiny_lm.json",
        help="sizes of the model: a transformers config file, or a shipped one's name",
    )
    vocab_size: int = knob(default=640, help="pieces of the byte-level BPE tokenizer, special tokens included")
    steps: int = knob(
        default=1000,
        free=True,
        help="optimizer steps; a different number in a continued run changes the learning rates of the steps that are left",
    )
    batch_size: int = knob(default=32, help="texts in a step of each process")
    turns: int = knob(default=8, help="questions in each text")
    learning_rate: float = knob(default=2e-3, help="peak learning rate of AdamW")
    eval_texts: int = knob(default=64, free=True, help="texts of split val in each evaluation")


# --- the world in words -----------------------------------------------------------------------------------------------


def described_conversation(index: int, split: str, seed: int, turns: int) -> list[dict[str, str]]:
    """Chat messages with questions about a scene, whose regions are described in words before the first question.

    At least one object is described, in random order; questions about the whole picture are asked only if all are.
    """
    scene = make_scene(index, split, seed)
    random = np.random.RandomState([131, seed, index])
    everything = random.uniform() < 0.5
    order = [int(i) for i in random.permutation(len(scene.objects))]
    if not everything:
        order = order[: 1 + random.randint(len(order))]
    families = [name for name in FAMILIES if everything or name not in CONTEXT_FAMILIES]
    described = [_described(scene, number, i, random) for number, i in enumerate(order, start=1)]
    text = describe_regions(described, (round(scene.height * LONG_SIDE), round(scene.width * LONG_SIDE)))
    messages: list[dict[str, str]] = []
    for _ in range(4 * turns):
        question = draw_question(scene, families[random.randint(len(families))], random)
        if question is None or not set(question.objects) <= set(order):
            continue
        words, answer = question.numbered(list(order))
        words = words.replace("<", "").replace(">", "")
        messages += [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
        if len(messages) == 2 * turns:
            break
    if not messages:  # what can always be asked
        answer = caption(scene.objects[order[0]])
        messages = [{"role": "user", "content": "Describe region1."}, {"role": "assistant", "content": answer}]
    messages[0]["content"] = f"{text}\n{messages[0]['content']}"
    return messages


def _described(scene: GlyphScene, number: int, index: int, random: np.random.RandomState) -> RegionDescription:
    """An object as a perfect observer might describe it, with scores as an observer's would scatter."""
    glyph = scene.objects[index]
    half = glyph.extent / 2 * random.uniform(0.8, 1.1, 2)
    box = np.array([glyph.x - half[0], glyph.y - half[1], glyph.x + half[0], glyph.y + half[1]]) * LONG_SIDE
    others = [kind for kind in KINDS if kind != glyph.kind]
    score = random.uniform(0.7, 1.0)
    rest = [(others[random.randint(len(others))], (1 - score) * share) for share in (0.6, 0.3)]
    x1, y1, x2, y2 = box.tolist()
    return RegionDescription(f"region{number}", caption(glyph), [(glyph.kind, score), *rest], (x1, y1, x2, y2))


def build_tokenizer(vocab_size: int, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can spell anything and knows this world's words whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )


class _Conversations(Dataset[list[dict[str, str]]]):
    """Conversations, each by its number."""

    def __init__(self, split: str, seed: int, turns: int, numbers: range) -> None:
        self.split, self.seed, self.turns, self.numbers = split, seed, turns, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> list[dict[str, str]]:
        return described_conversation(self.numbers[position], self.split, self.seed, self.turns)


# --- training ---------------------------------------------------------------------------------------------------------


class LanguageTraining(Training):
    """A causal language model learns the answers; other tokens are mostly digits and names that nothing could foretell."""

    name = "language"

    def __init__(self, arguments: LanguageArguments, accelerator: Accelerator) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        self.tokenizer = _tokenizer(arguments)
        model = _model(arguments, self.tokenizer)
        accelerator.print(f"{model.num_parameters():,} parameters, {len(self.tokenizer)} pieces")
        self.model: torch.nn.Module = model
        self.optimizers = build_optimizers(
            [(list(model.named_parameters()), arguments.learning_rate)],
            arguments.optimizer,
            arguments.muon_learning_rate,
            arguments.weight_decay,
        )

    def batches(self, start: int) -> Iterable[dict[str, Tensor]]:
        per_step = self.arguments.batch_size * self.accelerator.num_processes
        numbers = range(start * per_step, self.arguments.steps * per_step)
        return self.accelerator.prepare(_loader(self.arguments, self.tokenizer, "train", numbers))

    def loss(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {"loss": self.model(**batch).loss}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on texts of split val, and how often the last answer of each is given word for word."""
        if not self.accelerator.is_main_process:
            return {}
        plain = self.accelerator.unwrap_model(self.model).eval()
        numbers = range(self.arguments.eval_texts)
        losses = [{"val_loss": plain(**{k: v.to(plain.device) for k, v in batch.items()}).loss.item()}
                  for batch in _loader(self.arguments, self.tokenizer, "val", numbers)]  # fmt: skip
        right = []
        for index in numbers:
            messages = described_conversation(index, "val", self.arguments.seed, self.arguments.turns)
            ids = self.tokenizer.apply_chat_template(
                messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            (said,) = generate_text(plain, self.tokenizer, ids.to(plain.device), max_new_tokens=24)
            right.append(said == messages[-1]["content"])
        return {**mean_of(losses), "val_answer": sum(right) / len(right)}

    def save(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            parts = (self.accelerator.unwrap_model(self.model), self.tokenizer)
            save_whole(folder, lambda partial: [part.save_pretrained(partial) for part in parts])


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write the model with its tokenizer to `output_dir`."""
    arguments = parse_arguments(LanguageArguments, argv, description=__doc__)
    check_counts(arguments, "turns", "eval_texts")
    run(arguments, lambda accelerator: LanguageTraining(arguments, accelerator))


def _tokenizer(arguments: LanguageArguments) -> PreTrainedTokenizerFast:
    texts = []
    for index in range(2000):
        turns = described_conversation(index, "train", arguments.seed, arguments.turns)
        texts.append("\n".join(f"{'A' if m['role'] == 'assistant' else 'Q'}: {m['content']}" for m in turns))
    return build_tokenizer(arguments.vocab_size, texts)


def _model(arguments: LanguageArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    values = read_json_object(shipped_file(arguments.model_config))
    check_config(values, arguments.model_config)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(values.pop("model_type"), vocab_size=len(tokenizer), **ids, **values)
    return model_from_config(AutoModelForCausalLM, config)


def _loader(
    arguments: LanguageArguments, tokenizer: PreTrainedTokenizerBase, split: str, numbers: range
) -> Iterable[dict[str, Tensor]]:
    def collate(conversations: list[list[dict[str, str]]]) -> dict[str, Tensor]:
        """Learned are the answers alone: most other tokens are digits and names that nothing could foretell."""
        batch = tokenizer.apply_chat_template(
            conversations,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "right"},
        )
        answers = torch.as_tensor(batch.pop("assistant_masks")).bool()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return {**inputs, "labels": inputs["input_ids"].masked_fill(~answers, -100)}

    conversations = _Conversations(split, arguments.seed, arguments.turns, numbers)
    return DataLoader(
        conversations,
        batch_size=arguments.batch_size,
        collate_fn=collate,
        num_workers=arguments.workers,
        worker_init_fn=ignore_ctrl_c,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
