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
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig

from llm_bridge import (
    PictureContext,
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    adapter_off,
    add_lora,
    count_parameters,
    find_adapter,
    generate_text,
    has_adapter,
    merge_lora,
    set_trainable,
)
from tap_tokenizer import TapRegionTokenizer, counted

from .batches import CachedRecord, ConversationCollator, Conversations, StepSampler, some_turns
from .cache import RegionCache
from .calibrate import calibrate, questions_to_find
from .checkpoints import is_sharded, keep_only_what_learns, save_whole
from .config import Source, parse_arguments, run_command
from .loop import Training, build_optimizers, ignore_ctrl_c, run, warn_of_bfloat16
from .losses import learned_logits, summed_loss, taught_loss, words_learned
from .records import load_records
from .train_arguments import TrainArguments, check_arguments


def load_bridge(
    arguments: TrainArguments, accelerator: Accelerator
) -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:
    """The bridge to train: one that was saved, or a fresh one on a language model."""
    if arguments.language_model_dtype == "bfloat16":
        warn_of_bfloat16("--language_model_dtype bfloat16", "--language_model_dtype float32", accelerator.device)
    options: dict[str, Any] = {"dtype": getattr(torch, arguments.language_model_dtype)}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.quantize != "no":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=arguments.quantize == "4bit",
            load_in_8bit=arguments.quantize == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": accelerator.device}
    if arguments.init_from is not None:
        if arguments.quantize != "no" and find_adapter(arguments.init_from) is None:
            raise ValueError(
                f"{arguments.init_from} holds its own language model, which is loaded as it was saved: quantize needs a bridge "
                "that names its language model, as the projector stage writes it."
            )
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(arguments.init_from, **options)
        bridge.config.limitation = None  # it was true of the bridge before this run
        processor = RegionBridgeProcessor.from_pretrained(arguments.init_from)
        config = bridge.config
        if arguments.image_grid is not None or arguments.image_regions is not None:
            config.image_grid, config.image_regions = arguments.image_grid or 0, arguments.image_regions or 0
        processor = RegionBridgeProcessor.for_bridge(
            config,
            tokenizer=processor.tokenizer,
            region_tokenizer=processor.region_tokenizer,
            chat_template=processor.chat_template,
        )
        processor.attach(bridge)
        return bridge, processor
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer, variant=arguments.variant)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(arguments.language_model),
        region_tokenizer=tokenizer,
        experts=arguments.experts,
        use_semantic_embeds=arguments.use_semantic_embeds,
        use_position=arguments.use_position,
        projector_type=arguments.projector_type,
        image_grid=arguments.image_grid or 0,
        image_regions=arguments.image_regions or 0,
        **options,
    )
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)


def check_sharding(arguments: TrainArguments, accelerator: Accelerator) -> None:
    """Refuse what does not work where each process holds a part of the parameters only."""
    if not is_sharded(accelerator):
        return
    kind = accelerator.distributed_type.value
    if arguments.optimizer != "adamw":
        raise ValueError(f"{kind} splits the matrices that {arguments.optimizer} needs whole: use --optimizer adamw.")
    if arguments.quantize != "no":
        raise ValueError(f"{kind} does not split quantized weights here: use plain data parallelism for QLoRA.")
    if accelerator.distributed_type == DistributedType.DEEPSPEED and arguments.gradient_accumulation_steps > 1:
        raise ValueError(
            "DeepSpeed accumulates gradients by itself: use gradient_accumulation_steps 1 and a larger batch_size."
        )


def check_data(arguments: TrainArguments, bridge: RegionBridgeForConditionalGeneration) -> None:
    """Refuse caches that do not belong to the records or to the bridge, before anything is trained."""
    pairs = [(source.records, source.cache) for source in arguments.sources]
    if arguments.eval_data is not None:
        pairs.append((arguments.eval_data, arguments.eval_cache))
    context = PictureContext.of(bridge.config)
    for data, folder in pairs:
        if folder is not None:
            RegionCache(folder).check(Path(data), bridge.config.fingerprint, context)


def check_words(sources: Iterable[Source]) -> None:
    """Refuse records that have a picture or regions, but no cache, before anything is loaded."""
    for source in sources:
        if source.cache is None and (row := load_records(source.records).first_seen()) is not None:
            raise ValueError(
                f"Record {row} of {source.records} has a picture or regions, but there is no cache of their tokens: give the "
                "cache that finetune.cache_regions makes of these records."
            )


def make_optimizers(
    bridge: RegionBridgeForConditionalGeneration, arguments: TrainArguments
) -> list[torch.optim.Optimizer]:
    """With a learning rate of its own for the projector."""
    learning = [(name, p) for name, p in bridge.named_parameters() if p.requires_grad]
    projector = [(name, p) for name, p in learning if name.startswith("projector.")]
    rest = [(name, p) for name, p in learning if not name.startswith("projector.")]
    return build_optimizers(
        [(projector, arguments.projector_learning_rate), (rest, arguments.learning_rate)],
        arguments.optimizer,
        arguments.muon_learning_rate,
        arguments.weight_decay,
        matrices=("projector.linear", ".layers.", ".h."),
    )


class BridgeTraining(Training):
    """The projector, and the language model's adapter or weights with it, learn the assistant's words."""

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator) -> None:
        check_sharding(arguments, accelerator)
        check_words(arguments.sources)
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
        self.collator = ConversationCollator(self.processor, arguments.max_length)
        self.model: torch.nn.Module = bridge
        self.optimizers = make_optimizers(bridge, arguments)
        if not is_sharded(accelerator):
            keep_only_what_learns(accelerator)

    def batches(self, start: int) -> Iterable[dict[str, Any]]:
        arguments, batches = self.arguments, self.passes * self.accelerator.num_processes
        data = Conversations(arguments.sources, arguments.seed)
        if data.asks_to_find():
            self.accelerator.unwrap_model(self.model).config.taught_to_find = True
        for path, count in data.silent.items():
            self.accelerator.print(f"{path}: {count} records without a conversation are passed over")
        for path, (taught, asked) in data.taught().items():
            self.accelerator.print(
                f"{path}: of {counted(asked, 'question')}, {taught:,} are learned from the teacher's distribution (KL)"
            )
        records, drawn = sum(map(len, data.rows)), arguments.steps * arguments.batch_size * batches
        self.accelerator.print(
            f"{counted(arguments.steps, 'step')} draw {drawn:,} of {counted(records, 'record')}: {drawn / records:.2f} passes"
        )
        steps, is_grouped = range(start, arguments.steps), arguments.group_by_length
        sampler = StepSampler(data, steps, arguments.batch_size, batches, arguments.seed, is_grouped)
        return self.accelerator.prepare(
            DataLoader(
                data,
                batch_sampler=sampler,
                collate_fn=self.collator,
                num_workers=arguments.workers,
                worker_init_fn=ignore_ctrl_c,
            )
        )

    def held_out(self) -> Iterator[list[CachedRecord]]:
        """The records that this process evaluates on, by batches, each cut to as many turns as training has."""
        turns = max(source.turns for source in self.arguments.sources)
        return self._by_batches(Path(str(self.arguments.eval_data)), Path(str(self.arguments.eval_cache)), turns)

    def _by_batches(self, data: Path, folder: Path, turns: int) -> Iterator[list[CachedRecord]]:
        """The same of any records and their cache, each cut to so many turns."""
        arguments = self.arguments
        records, cache = load_records(data), RegionCache(folder)
        chosen = [i for i in range(min(arguments.eval_records, len(records))) if records[i].conversations]
        mine = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        for start in range(0, len(mine), arguments.batch_size):
            batch = mine[start : start + arguments.batch_size]
            items = [CachedRecord(records[i], cache.regions(i), cache.context(i)) for i in batch]
            draws = [np.random.RandomState([arguments.seed, 4, i]) for i in batch]
            yield [some_turns(item, turns, random) for item, random in zip(items, draws)]

    def held_out_records(self) -> Iterator[CachedRecord]:
        """The whole records that a run evaluates on, one by one."""
        records, cache = load_records(str(self.arguments.eval_data)), RegionCache(str(self.arguments.eval_cache))
        for i in range(min(self.arguments.eval_records, len(records))):
            yield CachedRecord(records[i], cache.regions(i), cache.context(i))

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
            logits, _ = learned_logits(bridge, told)
        bridge.train(was_training)
        return logits

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on held-out records, and how often the last answer of each is given word for word; each process does a part."""
        if self.arguments.eval_data is None:
            return {}
        self.model.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for items in self.held_out():
            sums += self._measured(items, self._last_answers(items))
        return self._means(sums)

    def _measured(self, items: list[CachedRecord], said: list[str]) -> Tensor:
        """Sums (4,) of loss, words, right answers and answers; said: the bridge's own in place of each last answer."""
        bridge = self.accelerator.unwrap_model(self.model)
        batch = {name: value.to(bridge.device) for name, value in self.collator(items).items()}
        right = sum(a == item.record.conversations[-1].content for a, item in zip(said, items))
        loss = float(summed_loss(bridge, batch))
        return torch.tensor([loss, words_learned(batch), right, len(items)], dtype=torch.float64)

    def _means(self, sums: Tensor) -> dict[str, float]:
        """What an evaluation says of the sums of all processes."""
        loss, words, right, answers = self._over_processes(sums).tolist()
        return {"val_loss": loss / max(words, 1), "val_answer": right / max(answers, 1)}

    def _over_processes(self, sums: Tensor) -> Tensor:
        """The sums of all processes together, on the CPU."""
        return self.accelerator.reduce(sums.float().to(self.accelerator.device)).cpu()  # MPS has no doubles

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
            if found := calibrate(bridge, self.processor, questions_to_find(self.held_out_records())):
                self.accelerator.print(found)
        if self.arguments.save_dtype != "float32":
            state = _cast(bridge.state_dict() if state is None else state, getattr(torch, self.arguments.save_dtype))

        def fill(partial: Path) -> None:
            bridge.save_pretrained(partial, whole=not by_reference, **({} if state is None else {"state_dict": state}))
            self.processor.save_pretrained(partial)

        save_whole(folder, fill)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A state dict whose numbers in float32 have another dtype; weights that are one stay one, or they would be saved twice."""
    cast: dict[int, Tensor] = {}
    return {
        name: cast.setdefault(value.data_ptr(), value.to(dtype)) if value.dtype == torch.float32 else value
        for name, value in state.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, train, and write bridge and processor to `output_dir`."""
    arguments = parse_arguments(TrainArguments, argv, description=__doc__)
    check_arguments(arguments)
    run(arguments, lambda accelerator: BridgeTraining(arguments, accelerator))


if __name__ == "__main__":
    sys.exit(run_command(main))
