"""A small causal language model and its tokenizer from scratch, on the language of GlyphScenes.

    accelerate launch -m finetune.pretrain_lm --config region_chat_tiny_lm

It reads descriptions of regions in words and answers questions about them; it never hears of pictures. The bundled
region-chat-tiny is this model after `train` has taught it to read region tokens. For real use, take any causal language
model of transformers instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llm_bridge import RegionDescription, describe_regions
from tap_tokenizer import check_config, model_from_config, only_writer, read_json_object

from .arguments import RECIPES, check_counts, knob, parse_arguments, run_command, save_arguments
from .checkpoints import save_whole
from .glyphs.language import caption
from .glyphs.questions import CONTEXT_FAMILIES, FAMILIES, draw_question, number_regions
from .glyphs.scenes import KINDS, GlyphScene, make_scene
from .loop import (
    MeanWindow,
    RunLog,
    StopRequest,
    ignore_ctrl_c,
    load_last_state,
    mean_of,
    rate_share,
    save_state,
    seed_step,
)
from .optimizers import OptimizerName, build_optimizers, param_groups

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'A:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ 'Q: ' + message['content'] }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
FREE = ("output_dir", "steps", "workers", "save_steps", "log_steps", "eval_steps", "eval_texts")
"""What a run that goes on may do otherwise than when it began; with other `steps`, the rates of those that are left change."""
LONG_SIDE = 512
"""Pictures are described as if they had this many pixels."""


@dataclass
class LanguageArguments:
    """Train a small language model on descriptions of scenes and questions about them."""

    output_dir: str = knob(help="folder of checkpoints, log and the trained model")
    model_config: str = knob(
        default="region_chat_tiny_lm.json", help="sizes: a transformers config file or shipped name"
    )
    vocab_size: int = knob(default=640, help="pieces of the byte-level BPE tokenizer, special tokens included")
    seed: int = knob(default=0, help="of the scenes, the questions and the weights")
    steps: int = knob(default=1000, help="optimizer steps")
    batch_size: int = knob(default=32, help="texts per step and process")
    turns: int = knob(default=8, help="questions per text")
    workers: int = knob(default=1, help="processes that write texts")
    optimizer: OptimizerName = knob(default="adamw", help="muon: for the matrices of attention and MLPs")
    learning_rate: float = knob(default=2e-3, help="peak, of AdamW")
    muon_learning_rate: float = knob(default=5e-3, help="peak, of Muon")
    weight_decay: float = knob(default=0.05, help="of both optimizers")
    warmup_steps: int = knob(default=100, help="linear rise of the learning rate")
    decay_fraction: float = knob(default=0.5, help="last part of the run, over which the rate falls to zero")
    max_grad_norm: float = knob(default=1.0, help="gradients are clipped to this norm")
    mixed_precision: Literal["no", "bf16", "fp16"] = knob(default="no", help="as in accelerate")
    save_steps: int = knob(default=250, help="steps between checkpoints")
    log_steps: int = knob(default=20, help="steps between lines of log.jsonl")
    eval_steps: int = knob(default=500, help="steps between evaluations on split val")
    eval_texts: int = knob(default=64, help="texts of an evaluation")


# --- the world in words -----------------------------------------------------------------------------------------------


def described_conversation(index: int, split: str, seed: int, turns: int) -> list[dict[str, str]]:
    """Questions about a scene whose regions are described in words before the first: messages of a chat.

    One to all objects are described, in random order; questions about the whole picture come only if all are.
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
        words, answer = number_regions(question, list(order))
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


# --- the loop ---------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write the model with its tokenizer to `output_dir`."""
    arguments = parse_arguments(LanguageArguments, argv, description=__doc__)
    check_counts(arguments, "steps", "batch_size", "turns", "save_steps", "log_steps", "eval_steps", "eval_texts")
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    set_seed(arguments.seed)
    torch.set_flush_denormal(True)  # which a CPU multiplies at a fraction of its speed
    output = Path(arguments.output_dir)
    with only_writer(output, accelerator.is_main_process):
        _train(arguments, accelerator, output)


def _train(arguments: LanguageArguments, accelerator: Accelerator, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(arguments)
    model = _model(arguments, tokenizer)
    accelerator.print(f"{model.num_parameters():,} parameters, {len(tokenizer)} pieces")
    optimizers = build_optimizers(
        [(list(model.named_parameters()), arguments.learning_rate)],
        arguments.optimizer,
        arguments.muon_learning_rate,
        arguments.weight_decay,
    )
    model, *optimizers = accelerator.prepare(model, *optimizers)
    peaks = [group["lr"] for group in param_groups(optimizers)]  # before a checkpoint brings the rates of its step
    checkpoints, log = output / "checkpoints", RunLog(output, accelerator)
    start = load_last_state(accelerator, output, arguments, FREE)
    log.forget_after(start)
    if accelerator.is_main_process:
        save_arguments(arguments, output / "arguments.yaml")
    per_step = arguments.batch_size * accelerator.num_processes
    loader = accelerator.prepare(
        _loader(arguments, tokenizer, "train", range(start * per_step, arguments.steps * per_step))
    )
    began, window = time.perf_counter(), MeanWindow()
    progress = tqdm(
        loader, initial=start, total=arguments.steps, desc="language", disable=not accelerator.is_main_process
    )
    with StopRequest(accelerator) as stop:
        for step, batch in enumerate(progress, start=start):
            share = rate_share(step, arguments.steps, arguments.warmup_steps, arguments.decay_fraction)
            for group, peak in zip(param_groups(optimizers), peaks):
                group["lr"] = peak * share
            seed_step(arguments.seed, step, accelerator.process_index)
            model.train()
            loss = model(**batch).loss
            for optimizer in optimizers:
                optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
            window.add({"loss": loss.item()})
            done = step + 1
            if done % arguments.log_steps == 0 or done == arguments.steps:
                means = window.take()
                progress.set_postfix(loss=f"{means['loss']:.3f}")
                log.write({"step": done, "seconds_per_step": (time.perf_counter() - began) / (done - start), **means})
            if done % arguments.eval_steps == 0 or done == arguments.steps:
                log.write({"step": done, **_evaluate(arguments, accelerator, model, tokenizer)})
            if done % arguments.save_steps == 0 or done == arguments.steps or stop.wanted:
                save_state(accelerator, checkpoints, done)
            stop.stop_if_wanted()
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        save_whole(output / "model", lambda folder: [part.save_pretrained(folder) for part in (trained, tokenizer)])
    accelerator.print(f"wrote {output / 'model'}")


def _tokenizer(arguments: LanguageArguments) -> PreTrainedTokenizerFast:
    texts = []
    for index in range(2000):
        turns = described_conversation(index, "train", arguments.seed, arguments.turns)
        texts.append("\n".join(f"{'A' if m['role'] == 'assistant' else 'Q'}: {m['content']}" for m in turns))
    return build_tokenizer(arguments.vocab_size, texts)


def _model(arguments: LanguageArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    path = Path(arguments.model_config)
    values = read_json_object(path if path.is_file() else RECIPES / arguments.model_config)
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


@torch.no_grad()
def _evaluate(
    arguments: LanguageArguments, accelerator: Accelerator, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Loss on texts of split val, and how often the last answer of each is given word for word."""
    if not accelerator.is_main_process:
        return {}
    plain = accelerator.unwrap_model(model).eval()
    numbers = range(arguments.eval_texts)
    losses = [{"val_loss": plain(**{k: v.to(plain.device) for k, v in batch.items()}).loss.item()}
              for batch in _loader(arguments, tokenizer, "val", numbers)]  # fmt: skip
    right = []
    for index in numbers:
        messages = described_conversation(index, "val", arguments.seed, arguments.turns)
        ids = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = plain.generate(**ids.to(plain.device), max_new_tokens=24, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ]
        right.append(tokenizer.decode(said, skip_special_tokens=True).strip() == messages[-1]["content"])
    return {**mean_of(losses), "val_answer": sum(right) / len(right)}


if __name__ == "__main__":
    sys.exit(run_command(main))
