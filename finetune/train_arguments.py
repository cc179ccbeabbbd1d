"""The knobs of `finetune.train`, and which of them do not go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .arguments import check_counts, knob
from .optimizers import OptimizerName

FREE = ("output_dir", "workers", "save_steps", "log_steps", "eval_data", "eval_cache", "eval_steps", "eval_records",
        "eval_max_new_tokens", "best_metric", "load_best", "tracker", "gradient_checkpointing",
        "attn_implementation")  # fmt: skip
"""What a run that goes on may do otherwise than when it began, for it changes nothing that is learned."""


@dataclass
class TrainArguments:
    """Train a bridge on conversations about regions."""

    output_dir: str = knob(help="folder of checkpoints, log and the trained bridge")
    language_model: str | None = knob(
        default=None, help="for a fresh bridge: name or folder of a causal language model"
    )
    init_from: str | None = knob(default=None, help="folder of a bridge to go on from, instead of a fresh one")
    region_tokenizer: str = knob(default="tap-tiny", help="name, folder or repository of the tokenizer of the caches")
    variant: str | None = knob(default=None, help="which checkpoint of the original's repository, e.g. tap_vit_l_v1_1")
    mode: Literal["projector", "lora", "full"] = knob(default="lora", help="what learns; the projector always does")
    data: list[str] = knob(default_factory=list, help="record files to learn from")
    caches: list[str] = knob(default_factory=list, help="cache of each record file, in the same order")
    weights: list[float] = knob(default_factory=list, help="how often each is drawn; default: as its size")
    eval_data: str | None = knob(default=None, help="records to evaluate on during training")
    eval_cache: str | None = knob(default=None, help="their cache")
    experts: Literal["routed", "all"] = knob(default="routed", help="fresh bridge: tokens of a region")
    use_semantic_embeds: bool = knob(default=True, help="fresh bridge: does the projector read semantic embeddings")
    use_position: bool = knob(default=True, help="fresh bridge: does the projector read the position code")
    image_grid: int | None = knob(
        default=None, help="picture context: points per side of the grid; default: none, or as init_from has it"
    )
    image_regions: int | None = knob(
        default=None, help="picture context of the other kind: this many regions; default: none, or as init_from has it"
    )
    new_region_tokenizer: str | None = knob(
        default=None,
        help="go on from init_from with the tokens of this region tokenizer, name or folder, in place of its own",
    )
    lora_r: int = knob(default=16, help="rank of LoRA")
    lora_alpha: int = knob(default=32, help="scale of LoRA")
    lora_dropout: float = knob(default=0.0, help="dropout inside LoRA")
    merge: bool = knob(default=False, help="add the adapter to the language model's weights at the end")
    language_model_dtype: Literal["float32", "bfloat16", "float16"] = knob(
        default="float32", help="of frozen weights; projector and adapter keep float32"
    )
    quantize: Literal["no", "8bit", "4bit"] = knob(
        default="no", help="load the frozen language model in 8 or 4 bit: QLoRA, by bitsandbytes"
    )
    gradient_checkpointing: bool = knob(
        default=False, help="keep no activations of the layers and compute them twice: less memory, a third slower"
    )
    attn_implementation: str | None = knob(
        default=None,
        help="how the language model computes attention, as in transformers: sdpa, eager, flash_attention_2; default: as "
        "transformers chooses. On a CPU, short conversations are learned almost twice as fast with eager",
    )
    seed: int = knob(default=0, help="of the order of records, the prompt variants and the new weights")
    steps: int = knob(default=1000, help="optimizer steps")
    batch_size: int = knob(default=16, help="records per forward pass and process")
    gradient_accumulation_steps: int = knob(default=1, help="forward passes per optimizer step")
    workers: int = knob(default=0, help="processes that put batches together")
    optimizer: OptimizerName = knob(default="adamw", help="muon: for the matrices of projector and transformer layers")
    muon_learning_rate: float = knob(default=5e-3, help="peak, of Muon")
    learning_rate: float = knob(default=2e-4, help="peak, of the language model or its adapter")
    projector_learning_rate: float = knob(default=1e-3, help="peak, of the projector")
    weight_decay: float = knob(default=0.0, help="of both optimizers")
    warmup_steps: int = knob(default=50, help="linear rise of the learning rates")
    decay_fraction: float = knob(default=1.0, help="last part of the run, over which the rates fall to zero")
    max_grad_norm: float = knob(default=1.0, help="gradients are clipped to this norm")
    turns: list[int] = knob(
        default_factory=list,
        help="of each of the data: questions in a row taken from a record, if its questions stand alone; 0 for all",
    )
    questions: list[str] = knob(
        default_factory=list,
        help="of each of the data: a regular expression; only questions are asked in which, or in whose answers on the next "
        "line, it is found, and records without one are passed over. Like turns, for questions that stand alone",
    )
    same_region: float = knob(
        default=0.0,
        help="share of the conversations whose turns are taken from the questions of a record that name the same regions: "
        "what people ask in a row is often about one",
    )
    mask_history: bool = knob(
        default=False,
        help="learn only the last answer of each conversation: a picture's context stands by the distance from the region of "
        "the last question, so with image_regions the answers before it would be learned beside a context that is not theirs",
    )
    group_by_length: bool = knob(
        default=False,
        help="put conversations with about as many questions into one step, of each eight steps, so that less is padded; the "
        "lengths are only known by reading each conversation unless turns says them",
    )
    max_length: int | None = knob(
        default=None,
        help="longest conversation in tokens, a longer one loses its last questions; default: the model's context",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = knob(default="no", help="as in accelerate")
    save_steps: int = knob(default=250, help="steps between checkpoints")
    log_steps: int = knob(default=20, help="steps between lines of log.jsonl")
    eval_steps: int = knob(default=250, help="steps between evaluations")
    eval_records: int = knob(default=128, help="records of an evaluation")
    eval_max_new_tokens: int = knob(default=32, help="longest answer in an evaluation")
    best_metric: Literal["val_loss", "val_answer"] = knob(
        default="val_loss", help="which evaluation is best, whose weights are kept in output_dir/best"
    )
    load_best: bool = knob(default=False, help="write the weights of the best evaluation to model, not the last ones")
    tracker: str = knob(default="tensorboard", help="of accelerate: tensorboard, wandb, mlflow, …; none for none")


def check_arguments(arguments: TrainArguments) -> None:
    """Refuse what does not go together, before anything is loaded."""
    if (arguments.language_model is None) == (arguments.init_from is None):
        raise ValueError(
            "Got both or neither of language_model and init_from: give one, a fresh start or a saved bridge."
        )
    if arguments.quantize != "no" and (arguments.mode == "full" or arguments.merge):
        raise ValueError("quantize is for a frozen language model: use mode projector or lora, and do not merge.")
    if arguments.mode == "full" and arguments.language_model_dtype != "float32":
        raise ValueError(
            f"mode full trains the weights themselves, in float32: got language_model_dtype {arguments.language_model_dtype}; "
            "use mixed_precision instead."
        )
    if arguments.merge and arguments.mode != "lora":
        raise ValueError(f"merge adds an adapter to the weights, but mode is {arguments.mode}: leave it out.")
    if arguments.load_best and not arguments.eval_data:
        raise ValueError("load_best needs evaluations: give eval_data and eval_cache.")
    _check_data(arguments)
    counts = (
        "steps",
        "batch_size",
        "gradient_accumulation_steps",
        "save_steps",
        "log_steps",
        "eval_steps",
        "eval_records",
    )
    check_counts(arguments, *counts)


def _check_data(arguments: TrainArguments) -> None:
    """Refuse data that lack their caches, and settings of each of the data that are not one for each, or mean nothing."""
    if not arguments.data or len(arguments.data) != len(arguments.caches):
        raise ValueError(
            f"Got {len(arguments.data)} data and {len(arguments.caches)} caches: give a cache for each record file."
        )
    if arguments.weights and len(arguments.weights) != len(arguments.data):
        raise ValueError(
            f"Got {len(arguments.weights)} weights for {len(arguments.data)} data: give one for each, or none."
        )
    if arguments.turns and (len(arguments.turns) != len(arguments.data) or min(arguments.turns) < 0):
        raise ValueError(
            f"Got turns {arguments.turns} for {len(arguments.data)} data: give a number for each, or none."
        )
    if not 0 <= arguments.same_region <= 1:
        raise ValueError(f"same_region is {arguments.same_region}, expected a share from 0 to 1.")
    if arguments.same_region and not arguments.turns:
        raise ValueError("Got same_region without turns: give turns, how many questions are taken from each record.")
    if arguments.questions and len(arguments.questions) != len(arguments.data):
        raise ValueError(
            f"Got {len(arguments.questions)} questions for {len(arguments.data)} data: give a regular expression for each, "
            "or none."
        )
    for pattern in arguments.questions:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"questions has {pattern!r}, which is no regular expression: {error}.") from None
    if (arguments.eval_data is None) != (arguments.eval_cache is None):
        raise ValueError("Got one of eval_data and eval_cache: give both or neither.")
