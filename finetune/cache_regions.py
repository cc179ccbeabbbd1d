"""Runs the frozen region tokenizer once over a set of records and keeps the region tokens on disk.

    python -m finetune.cache_regions --data my.jsonl --region_tokenizer tap-tiny --output runs/my_cache
    accelerate launch -m finetune.cache_regions …          # every process takes its share of the shards
    python -m finetune.cache_regions … --ray 8             # so do eight actors of Ray, here or (--ray_address) on a cluster

If a run was stopped, run it again: complete shards are kept. Training then needs no pictures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from tap_tokenizer import (
    RAY_ADDRESS_HELP,
    RAY_HELP,
    TapRegionTokenizer,
    check_ray_flags,
    cluster_for,
    only_writer,
    run_chunks,
)

from .cache import CachePlan, data_checksum, prepare, shard_is_whole, write_manifest
from .config import knob, parse_arguments, run_command
from .records import load_records
from .shard_encoder import VARIANTS, EncoderElsewhere, ShardEncoder


@dataclass
class CacheArguments:
    """Encode the regions of a set of records once."""

    data: str = knob(help="records: JSONL or parquet")
    output: str = knob(help="folder of the cache")
    region_tokenizer: str = knob(default="tap-tiny", help="name, folder, checkpoint or Hub repository of the tokenizer")
    variant: str | None = knob(default=None, help="checkpoint in the original's repository, e.g. tap_vit_l_v1_1")
    variants: str = knob(default="exact", help=f"prompt variants, separated by commas: {', '.join(VARIANTS)}")
    image_grid: int = knob(default=0, help="picture context from a grid: points per side; 0 for none")
    image_regions: int = knob(default=0, help="picture context from objects: how many at most; 0 for none")
    context_from: Literal["found", "annotated"] = knob(
        default="found",
        help="which objects: those that the tokenizer finds by itself, or the record's own regions, which is much cheaper; "
        "these are prompted as in the last of the variants",
    )
    dtype: Literal["float16", "bfloat16", "float32"] = knob(default="float16", help="dtype of the tokens on disk")
    device: str | None = knob(
        default=None, help="where the tokenizer runs; default: this process's accelerator, or CPU"
    )
    shard_size: int = knob(default=512, help="records in a shard")
    batch_size: int = knob(default=8, help="pictures encoded at once")
    workers: int = knob(default=1, help="processes that open pictures, for each process that encodes")
    seed: int = knob(default=0, help="seed for jitter and points")
    ray: int = knob(default=0, help=RAY_HELP)
    ray_address: str | None = knob(default=None, help=RAY_ADDRESS_HELP)


def main(argv: list[str] | None = None) -> None:
    """Read the arguments and fill the cache."""
    arguments = parse_arguments(CacheArguments, argv, description=__doc__)
    state = PartialState(cpu=not torch.cuda.is_available() and arguments.device in (None, "cpu"))
    check_ray_flags(arguments, state.num_processes)
    device = "cpu" if arguments.ray else arguments.device or state.device
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.region_tokenizer, variant=arguments.variant, device=device)
    with only_writer(arguments.output, state.is_main_process):
        fill_cache(arguments, tokenizer, state)
    state.destroy_process_group()


def fill_cache(arguments: CacheArguments, tokenizer: TapRegionTokenizer, state: PartialState) -> None:
    """Write this process's share of the missing shards, and the manifest once all shards are there."""
    folder = Path(arguments.output)
    plan = _plan(arguments, tokenizer)
    if state.is_main_process:
        prepare(folder, plan)
    state.wait_for_everyone()
    todo = [shard for shard in range(plan.shards) if not shard_is_whole(folder, shard)]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    mine = todo[state.process_index :: state.num_processes]
    with tqdm(total=sum(len(plan.rows(s)) for s in mine), desc="encoding", unit="picture",
              disable=not state.is_local_main_process) as progress:  # fmt: skip
        if arguments.ray:
            _encode_on_ray(arguments, plan, mine, progress)
        else:
            encode = ShardEncoder(
                plan, Path(arguments.data), folder, tokenizer, arguments.batch_size, arguments.workers
            )
            for shard in mine:
                encode(shard, progress.update)
    state.wait_for_everyone()
    if state.is_main_process:
        write_manifest(folder, plan)
        print(
            f"wrote {folder}: {plan.samples} record{'s' * (plan.samples != 1)} in {plan.shards} shard{'s' * (plan.shards != 1)}"
        )


def _encode_on_ray(arguments: CacheArguments, plan: CachePlan, shards: list[int], progress: tqdm) -> None:
    """Have actors write the shards. They read records and weights, and write, where this process does."""
    if not shards:
        return
    with cluster_for(arguments) as device:
        tokenizer = Path(arguments.region_tokenizer)
        make = EncoderElsewhere(
            plan=plan,
            data=Path(arguments.data).absolute(),
            folder=Path(arguments.output).absolute(),
            region_tokenizer=str(tokenizer.absolute()) if tokenizer.exists() else arguments.region_tokenizer,
            variant=arguments.variant,
            device=device,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
        )
        for shard, _ in run_chunks(make, shards, arguments.ray, gpu=device == "cuda"):
            progress.update(len(plan.rows(shard)))


def _plan(arguments: CacheArguments, tokenizer: TapRegionTokenizer) -> CachePlan:
    variants = arguments.variants.split(",")
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ValueError(f"variants has {', '.join(unknown)}, expected some of {', '.join(VARIANTS)}.")
    data = Path(arguments.data)
    return CachePlan(
        data=data.name,
        data_checksum=data_checksum(data),
        samples=len(load_records(data)),
        region_tokenizer=tokenizer.source,
        fingerprint=tokenizer.fingerprint,
        dtype=arguments.dtype,
        variants=variants,
        image_grid=arguments.image_grid,
        image_regions=arguments.image_regions,
        context_from=arguments.context_from,
        shard_size=arguments.shard_size,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
