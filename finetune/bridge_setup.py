"""What `finetune.train` starts from: the bridge and its processor, caches that belong to them, and optimizers.

What of them does not fit together is refused here, before a step is made; `train_arguments` has looked at the arguments alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from transformers import BitsAndBytesConfig

from llm_bridge import PictureContext, RegionBridgeForConditionalGeneration, RegionBridgeProcessor, find_adapter
from tap_tokenizer import TapRegionTokenizer

from .cache import RegionCache
from .optimizers import build_optimizers
from .train_arguments import TrainArguments
from .trained_weights import is_sharded


def load_bridge(
    arguments: TrainArguments, accelerator: Accelerator
) -> tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]:
    """The bridge to train: one that was saved, or a fresh one on a language model."""
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
        is_whole = find_adapter(arguments.init_from) is None
        if is_whole and arguments.quantize != "no":
            raise ValueError(
                f"{arguments.init_from} holds its own language model, which is loaded as it was saved: quantize needs a bridge "
                "that names its language model, as the projector stage writes it."
            )
        bridge = RegionBridgeForConditionalGeneration.from_pretrained(arguments.init_from, **options)
        bridge.config.limitation = None  # it was true of the bridge before this run
        processor = RegionBridgeProcessor.from_pretrained(
            arguments.init_from, region_tokenizer=arguments.new_region_tokenizer
        )
        processor = _adapted(bridge, processor, arguments)
        processor.attach(bridge)
        return bridge, processor
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer, variant=arguments.variant)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(arguments.language_model),
        region_tokenizer=tokenizer,
        experts=arguments.experts,
        use_semantic_embeds=arguments.use_semantic_embeds,
        use_position=arguments.use_position,
        image_grid=arguments.image_grid or 0,
        image_regions=arguments.image_regions or 0,
        **options,
    )
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tokenizer)


def _adapted(
    bridge: RegionBridgeForConditionalGeneration, processor: RegionBridgeProcessor, arguments: TrainArguments
) -> RegionBridgeProcessor:
    """The processor of a bridge that goes on with other picture context, or with another region tokenizer's tokens."""
    config, tokenizer = bridge.config, processor.region_tokenizer
    if arguments.image_grid is not None or arguments.image_regions is not None:
        config.image_grid, config.image_regions = arguments.image_grid or 0, arguments.image_regions or 0
    if arguments.new_region_tokenizer is not None and tokenizer is not None:
        decoder = tokenizer.model.config.image_decoder_config
        sizes = (decoder.hidden_size, decoder.semantic_embed_size, decoder.num_experts)
        if sizes != (config.token_size, config.embed_size, config.num_experts):
            raise ValueError(
                f"{arguments.new_region_tokenizer} has tokens, embeddings and experts of sizes {sizes}, the bridge reads "
                f"{(config.token_size, config.embed_size, config.num_experts)}: begin a fresh bridge with it."
            )
        config.fingerprint = tokenizer.fingerprint
        config.concept_space = tokenizer.concepts.digest if tokenizer.concepts else None
    return RegionBridgeProcessor.for_bridge(
        config, tokenizer=processor.tokenizer, region_tokenizer=tokenizer, chat_template=processor.chat_template
    )


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
    pairs = list(zip(arguments.data, arguments.caches))
    if arguments.eval_data is not None and arguments.eval_cache is not None:
        pairs.append((arguments.eval_data, arguments.eval_cache))
    context = PictureContext.of(bridge.config)
    for data, folder in pairs:
        RegionCache(folder).check(Path(data), bridge.config.fingerprint, context)


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
