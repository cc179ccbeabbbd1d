"""Teaches a language model to read region tokens: the projector first, then LoRA.

    accelerate launch -m finetune.train --config miniature_projector
    accelerate launch -m finetune.train --config miniature_lora

It reads records and their cached region tokens (`finetune.cache_regions`), never pictures: the region tokenizer is frozen
by construction. It learns the answers of a source as they stand or, with `loss: teacher`, from a teacher (see
`finetune.distill`). If a run was stopped, give the same command again: it continues from the last checkpoint, and the result
is that of a run without a stop.

A bridge that is taught to find regions by words says so in its config. If eval_data has such questions, too, its probabilities
are calibrated on them at the end (see `finetune.calibrate`).

`output_dir` then holds `model`, the trained bridge; `best`, the weights of the best evaluation; `checkpoints`;
`arguments.yaml`; `environment.jsonl` with versions and commit; `log.jsonl` and `loss.png`; and the tracker's files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from llm_bridge import adapter_off, add_lora, count_parameters, generate_text, has_adapter, merge_lora, set_trainable

from .batches import CachedRecord, ConversationCollator, Conversations, held_out, held_out_records, make_loader
from .bridge_setup import TrainArguments, check_arguments, check_data, check_sharding, load_bridge, make_optimizers
from .calibrate import calibrate, questions_to_find
from .checkpoints import is_sharded, keep_only_what_learns, save_whole
from .config import parse_arguments, run_command
from .loop import Training, run
from .losses import summed_loss, taught_loss, words_learned


class BridgeTraining(Training):
    """The projector, and the language model's adapter or weights with it, learn the assistant's words."""

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator) -> None:
        check_sharding(arguments, accelerator)
        self.arguments, self.accelerator, self.name = arguments, accelerator, arguments.mode
        self.passes, self.load_best = arguments.gradient_accumulation_steps, arguments.load_best
        self.best_metric = arguments.best_metric if arguments.eval_data else None
        bridge, self.processor = load_bridge(arguments, accelerator)
        bridge.config.find_temperature, bridge.config.find_threshold = 1.0, None  # they were fitted to other weights
        check_data(arguments, bridge)
        if arguments.max_length is None:
            arguments.max_length = getattr(bridge.config.text_config, "max_position_embeddings", None)
        if arguments.mode == "lora" and not has_adapter(bridge):
            add_lora(bridge, r=arguments.lora_r, alpha=arguments.lora_alpha, dropout=arguments.lora_dropout)
        bridge.projector.float()
        set_trainable(bridge, arguments.mode)
        if arguments.gradient_checkpointing:
            bridge.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        accelerator.print(count_parameters(bridge))
        self.collator = ConversationCollator(self.processor, arguments.max_length, arguments.mask_history)
        self.model: torch.nn.Module = bridge
        self.optimizers = make_optimizers(bridge, arguments)
        if not is_sharded(accelerator):
            keep_only_what_learns(accelerator)

    def batches(self, start: int) -> Iterable[dict[str, Any]]:
        arguments, processes = self.arguments, self.accelerator.num_processes
        data = Conversations(arguments.sources, arguments.seed, arguments.same_region)
        if data.asks_to_find():
            self.accelerator.unwrap_model(self.model).config.taught_to_find = True
        records = sum(map(len, data.rows))
        drawn = arguments.steps * arguments.batch_size * self.passes * processes
        self.accelerator.print(
            f"{arguments.steps} steps draw {drawn} of {records} records: {drawn / records:.2f} passes"
        )
        return self.accelerator.prepare(make_loader(arguments, data, self.collator, start, processes))

    def size(self, batch: dict[str, Any]) -> int:
        """The words that are learned: every one of a step counts the same, in whichever batch and process it comes."""
        return words_learned(batch)

    def loss(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        if "told" in batch:
            return taught_loss(self.model, batch, self.teacher_logits(batch["told"]), self.arguments.teacher_share)
        loss = summed_loss(self.model, batch)
        is_mixed = any(source.loss == "teacher" for source in self.arguments.sources)
        return {"loss": loss, "kl": loss.new_zeros(())} if is_mixed else {"loss": loss}

    @torch.no_grad()
    def teacher_logits(self, told: dict[str, Tensor]) -> Tensor:
        """Logits (N, V) of the language model without its adapter, which reads regions in words, for the words learned."""
        bridge = self.accelerator.unwrap_model(self.model)
        was_training = bridge.training
        bridge.eval()
        with adapter_off(bridge):
            logits = bridge(input_ids=told["input_ids"], attention_mask=told["attention_mask"]).logits[:, :-1]
        bridge.train(was_training)
        return logits[told["labels"][:, 1:] != -100]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on held-out records, and how often the last answer of each is given word for word; each process does a part."""
        if self.arguments.eval_data is None:
            return {}
        self.model.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for items in held_out(self.arguments, self.accelerator.process_index, self.accelerator.num_processes):
            bridge = self.accelerator.unwrap_model(self.model)
            batch = {name: value.to(bridge.device) for name, value in self.collator(items).items()}
            said = self._last_answers(items)
            right = sum(a == item.record.conversations[-1].content for a, item in zip(said, items))
            loss = float(summed_loss(bridge, batch))
            sums += torch.tensor([loss, words_learned(batch), right, len(items)], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.float().to(self.accelerator.device))  # MPS has no doubles
        loss, words, right, answers = sums.tolist()
        return {"val_loss": loss / max(words, 1), "val_answer": right / max(answers, 1)}

    def _last_answers(self, items: list[CachedRecord]) -> list[str]:
        """The bridge's own words in place of the last answer of each conversation."""
        bridge = self.accelerator.unwrap_model(self.model)
        asked = [
            replace(item, record=replace(item.record, conversations=item.record.conversations[:-1])) for item in items
        ]
        inputs = self.collator.prompts(asked).to(bridge.device)
        return generate_text(bridge, self.processor, inputs, max_new_tokens=self.arguments.eval_max_new_tokens)

    def save(self, folder: Path) -> None:
        """An adapter folder where the language model has a name that still stands for it, else a whole bridge."""
        bridge = self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model) if is_sharded(self.accelerator) else None
        if not self.accelerator.is_main_process:
            return
        if self.arguments.merge:
            merge_lora(bridge)
        if self.arguments.mode == "full":
            bridge.config.language_model = None  # it is now another one than the name stands for
        by_reference = bridge.config.language_model is not None and not self.arguments.merge
        if bridge.config.taught_to_find and self.arguments.eval_data is not None and state is None:
            bridge.eval()
            if found := calibrate(bridge, self.processor, questions_to_find(held_out_records(self.arguments))):
                self.accelerator.print(found)

        def fill(partial: Path) -> None:
            bridge.save_pretrained(partial, whole=not by_reference, **({} if state is None else {"state_dict": state}))
            self.processor.save_pretrained(partial)

        save_whole(folder, fill)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write bridge and processor to `output_dir`."""
    arguments = parse_arguments(TrainArguments, argv, description=__doc__)
    check_arguments(arguments)
    run(arguments, lambda accelerator: BridgeTraining(arguments, accelerator))


if __name__ == "__main__":
    sys.exit(run_command(main))
