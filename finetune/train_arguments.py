"""The options of a bridge's training, and which of them do not go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import Source, check_counts, check_sources, knob
from .loop import RunArguments


@dataclass(kw_only=True)
class TrainArguments(RunArguments):
    """Train a bridge on conversations about regions."""

    language_model: str | None = knob(
        default=None, help="for a fresh bridge: name or folder of a causal language model"
    )
    init_from: str | None = knob(
        default=None, help="name or folder of a bridge to train further, instead of a fresh one"
    )
    region_tokenizer: str = knob(
        default="tap-tiny", help="the region tokenizer that made the caches: a name, folder or Hub repository"
    )
    variant: str | None = knob(default=None, help="checkpoint in the original's repository, e.g. tap_vit_l_v1_1")
    mode: Literal["projector", "lora", "full"] = knob(default="lora", help="what is trained; the projector always is")
    sources: list[Source] = knob(
        default_factory=list,
        help="what to learn from, each with records, cache, weight, turns, loss; as flags, use --data, --caches, …",
    )
    eval_data: str | None = knob(default=None, free=True, help="records to evaluate on during training")
    eval_cache: str | None = knob(default=None, free=True, help="cache of eval_data")
    experts: Literal["routed", "all"] = knob(
        default="routed",
        help="fresh bridge: routed gives a region one token, that of the answering expert; all gives it every expert's",
    )
    use_semantic_embeds: bool = knob(default=True, help="fresh bridge: whether the projector reads semantic embeddings")
    use_position: bool = knob(default=True, help="fresh bridge: whether the projector reads the position code")
    projector_type: str = knob(default="mlp", help="fresh bridge: which projector")
    image_grid: int | None = knob(
        default=None, help="picture context from a grid: points per side; default: none, or that of init_from"
    )
    image_regions: int | None = knob(
        default=None, help="picture context from found objects: how many at most; default: none, or that of init_from"
    )
    teacher_share: float = knob(
        default=0.8,
        help="of what is learned from a teacher (a source's loss: teacher), the share that is KL to its distribution over "
        "words; the rest is cross entropy on the words it chose",
    )
    lora_r: int = knob(default=16, help="rank of LoRA")
    lora_alpha: int = knob(default=32, help="scale of LoRA (its alpha)")
    lora_dropout: float = knob(default=0.0, help="dropout inside LoRA")
    save_dtype: Literal["float32", "float16"] = knob(
        default="float32", free=True, help="dtype of the trained weights in output_dir/model; checkpoints keep float32"
    )
    merge: bool = knob(default=False, help="add the adapter to the language model's weights at the end")
    language_model_dtype: Literal["float32", "bfloat16", "float16"] = knob(
        default="float32",
        help="dtype of frozen weights; projector and adapter keep float32, so give bfloat16 together with mixed_precision bf16",
    )
    quantize: Literal["no", "8bit", "4bit"] = knob(
        default="no", help="load the frozen language model in 8 or 4 bit: QLoRA, by bitsandbytes"
    )
    gradient_checkpointing: bool = knob(
        default=False,
        free=True,
        help="compute the activations of layers twice instead of keeping them: less memory, a third slower",
    )
    attn_implementation: str | None = knob(
        default=None,
        free=True,
        help="how the language model computes attention: sdpa, eager, flash_attention_2; default: transformers' choice. On a "
        "CPU, training on short conversations is almost twice as fast with eager",
    )
    gradient_accumulation_steps: int = knob(default=1, help="forward passes per optimizer step")
    workers: int = knob(default=0, free=True, help="processes that prepare batches")
    learning_rate: float = knob(default=2e-4, help="peak learning rate of the language model or its adapter")
    projector_learning_rate: float = knob(
        default=1e-3, help="peak learning rate of the projector; 0 leaves it as it is"
    )
    weight_decay: float = knob(default=0.0, help="weight decay of both optimizers")
    warmup_steps: int = knob(default=50, help="steps over which the learning rates rise linearly")
    decay_fraction: float = knob(
        default=1.0, help="share of the run, at its end, over which the learning rates fall to zero along a cosine"
    )
    group_by_length: bool = knob(
        default=False,
        help="sort the conversations of every eight steps by their number of questions, so that less is padded; unless turns "
        "gives the numbers, each conversation has to be read first",
    )
    max_length: int | None = knob(
        default=None,
        help="tokens of a conversation at most; a longer one loses its last questions; default: the model's context",
    )
    eval_steps: int = knob(default=250, free=True, help="steps between evaluations")
    eval_records: int = knob(default=128, free=True, help="records in each evaluation")
    eval_max_new_tokens: int = knob(default=32, free=True, help="tokens of an answer in an evaluation, at most")
    best_metric: Literal["val_loss", "val_answer"] = knob(
        default="val_loss",
        free=True,
        help="what decides which evaluation is best; its weights are kept in output_dir/best",
    )
    load_best: bool = knob(
        default=False,
        free=True,
        help="write the weights of the best evaluation, not the last ones, to output_dir/model",
    )
    tracker: str = knob(
        default="tensorboard", free=True, help="a tracker that accelerate knows: tensorboard, wandb, mlflow, …; or none"
    )


def check_arguments(arguments: TrainArguments) -> None:
    """Refuse arguments that do not go together, before anything is loaded."""
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
    check_sources(arguments.sources)
    if not 0 <= arguments.teacher_share <= 1:
        raise ValueError(f"teacher_share is {arguments.teacher_share}, expected a share from 0 to 1.")
    if arguments.mode == "full" and any(source.loss == "teacher" for source in arguments.sources):
        raise ValueError(
            "The teacher is the language model without what it learns, so mode full, which changes its weights, leaves none: "
            "use mode lora or projector."
        )
    if (arguments.eval_data is None) != (arguments.eval_cache is None):
        raise ValueError("Got one of eval_data and eval_cache: give both or neither.")
    check_counts(arguments, "gradient_accumulation_steps", "eval_records")
