"""Runs the frozen region tokenizer once over a set of records and keeps the region tokens on disk.

    python -m finetune.cache_regions --data my.jsonl --region_tokenizer tap-tiny --output runs/my_cache
    accelerate launch -m finetune.cache_regions …          # every process takes its share of the shards

If a run was stopped, run it again: complete shards are kept. Training then needs no pictures.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from llm_bridge import PictureContext
from tap_tokenizer import RegionTokens, TapRegionTokenizer, only_writer, write_whole

from .cache import CachePlan, data_checksum, encode_regions, shard_is_whole, write_manifest, write_shard
from .config import knob, parse_arguments, run_command
from .records import Record, Region, decode_mask, load_records, open_image

PLAN = "plan.json"

VARIANTS = ("exact", "jitter", "points")
"""How regions may be prompted: as the record says; with each side of the box moved by about a twentieth; or by one to nine
points on the region's mask, if the record has one."""


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
        "they are prompted as in the last of the variants",
    )
    dtype: Literal["float16", "bfloat16", "float32"] = knob(default="float16", help="dtype of the tokens on disk")
    device: str | None = knob(
        default=None, help="where the tokenizer runs; default: this process's accelerator, or CPU"
    )
    shard_size: int = knob(default=512, help="records in a shard")
    batch_size: int = knob(default=8, help="pictures encoded at once")
    workers: int = knob(default=1, help="processes that open pictures, for each process that encodes")
    seed: int = knob(default=0, help="seed of jitter and points")


class _Pictures(Dataset[tuple[Record, "np.ndarray | ValueError"]]):
    """Records with their pictures, or with the error of opening them. (Raised in a worker, it would carry a traceback.)"""

    def __init__(self, data: Path, rows: range) -> None:
        self.records, self.rows = load_records(data), rows
        self.root = data if data.is_dir() else data.parent

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Record, np.ndarray | ValueError]:
        record = self.records[self.rows[position]]
        try:
            return record, open_image(record, self.root)
        except (ValueError, OSError) as error:
            return record, ValueError(f"Record {self.rows[position]}: {error}")


def main(argv: list[str] | None = None) -> None:
    """Read the arguments and fill the cache."""
    arguments = parse_arguments(CacheArguments, argv, description=__doc__)
    state = PartialState(cpu=not torch.cuda.is_available() and arguments.device in (None, "cpu"))
    tokenizer = TapRegionTokenizer.from_pretrained(
        arguments.region_tokenizer, variant=arguments.variant, device=arguments.device or state.device
    )
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
        for shard in mine:
            _encode_shard(arguments, tokenizer, folder, plan, shard, progress)
    state.wait_for_everyone()
    if state.is_main_process:
        write_manifest(folder, plan)
        print(
            f"wrote {folder}: {plan.samples} record{'s' * (plan.samples != 1)} in {plan.shards} shard{'s' * (plan.shards != 1)}"
        )


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


def prepare(folder: Path, plan: CachePlan) -> None:
    """A new folder, or one that holds the beginning of the same cache."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else asdict(plan)
        changed = [key for key, value in asdict(plan).items() if old.get(key) != value]
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged: delete {folder}, or choose another output.") from None
    if changed:
        raise ValueError(
            f"{folder} holds a cache with other {', '.join(changed)}: choose another output, or delete it."
        )
    write_whole(path, json.dumps(asdict(plan), indent=1))
    room = shutil.disk_usage(folder).free
    if room < 1 << 20:
        raise OSError(f"{folder} has {room} bytes free: make room first.")


def _encode_shard(
    arguments: CacheArguments, tokenizer: TapRegionTokenizer, folder: Path, plan: CachePlan, shard: int, progress: tqdm
) -> None:
    rows = plan.rows(shard)
    variants: list[list[RegionTokens]] = [[] for _ in plan.variants]
    contexts: list[Tensor] = []
    pictures = DataLoader(
        _Pictures(Path(arguments.data), rows),
        batch_size=arguments.batch_size,
        collate_fn=list,
        num_workers=arguments.workers,
    )
    number, context = rows.start, PictureContext.of(plan)
    for batch in pictures:
        for _, picture in batch:
            if isinstance(picture, ValueError):
                raise picture
        records = [record for record, _ in batch]
        features = tokenizer.embed_image([picture for _, picture in batch])
        for name, column in zip(plan.variants, variants):
            prompted = [_vary(record, name, plan.seed, number + i) for i, record in enumerate(records)]
            column += encode_regions(tokenizer, features, prompted)
        if context.regions and plan.context_from == "annotated":
            contexts += [context.of_regions(regions) for regions in variants[-1][-len(batch) :]]
        elif context.slots:
            contexts += context.encode(tokenizer, features)
        number += len(batch)
        progress.update(len(batch))
    write_shard(folder, shard, variants, contexts, getattr(torch, plan.dtype))


def _vary(record: Record, variant: str, seed: int, index: int) -> Record:
    """A record with its regions prompted as a variant says; the same for the same seed and record."""
    if variant == "exact":
        return record
    random = np.random.RandomState([VARIANTS.index(variant), seed, index])
    change = jittered if variant == "jitter" else _pointed
    return replace(record, regions=[change(region, record.size, random) for region in record.regions])


def jittered(region: Region, size: tuple[int, int], random: np.random.RandomState) -> Region:
    """A region of a picture of (height, width) `size`, its box's corners moved by a twentieth of its sides (one sigma)."""
    if region.box is None:
        return region
    x1, y1, x2, y2 = np.asarray(region.box, dtype=float)
    shift = random.normal(0, 0.05, 4) * np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    moved = np.clip(np.array([x1, y1, x2, y2]) + shift, 0, [size[1], size[0], size[1], size[0]])
    if moved[2] - moved[0] < 1 or moved[3] - moved[1] < 1:
        return region
    return replace(region, box=moved.round(2).tolist())


def _pointed(region: Region, size: tuple[int, int], random: np.random.RandomState) -> Region:
    if region.mask is None:
        return region
    pixels = np.argwhere(decode_mask(region.mask, size))
    if not len(pixels):
        return region
    chosen = pixels[random.randint(len(pixels), size=random.randint(1, 10))]
    return Region(points=[[float(x), float(y)] for y, x in chosen])


if __name__ == "__main__":
    sys.exit(run_command(main))
