"""The frozen region tokenizer over the records of a cache, shard by shard: in this process, or in any that is told how."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llm_bridge import PictureContext
from tap_tokenizer import RegionTokens, TapRegionTokenizer

from .cache import PLAN, CachePlan, data_checksum, encode_regions, shard_is_whole, write_shard
from .records import Record, Region, decode_mask, load_records, open_image

VARIANTS = ("exact", "jitter", "points")
"""How regions may be prompted: as the record says; with each side of the box moved by about a twentieth; or by one to nine
points on the region's mask, if the record has one."""


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


@dataclass(frozen=True)
class ShardEncoder:
    """Encodes shards of a cache, whose bytes depend on nothing but the plan, the records and the tokenizer.

    workers: processes that open pictures.
    """

    plan: CachePlan
    data: Path
    folder: Path
    tokenizer: TapRegionTokenizer
    batch_size: int
    workers: int

    def __call__(self, shard: int, progress: Callable[[int], object] = lambda _: None) -> None:
        """Write a shard; `progress` is told of every batch how many pictures it had. Raises what a record is refused with.

        A shard that is whole is kept: an actor that died may have left it among others that must be done again.
        """
        plan, rows = self.plan, self.plan.rows(shard)
        if shard_is_whole(self.folder, shard):
            progress(len(rows))
            return
        variants: list[list[RegionTokens]] = [[] for _ in plan.variants]
        contexts: list[Tensor] = []
        pictures = DataLoader(
            _Pictures(self.data, rows), batch_size=self.batch_size, collate_fn=list, num_workers=self.workers
        )
        number, context = rows.start, PictureContext.of(plan)
        for batch in pictures:
            for _, picture in batch:
                if isinstance(picture, ValueError):
                    raise picture
            records = [record for record, _ in batch]
            features = self.tokenizer.embed_image([picture for _, picture in batch])
            for name, column in zip(plan.variants, variants):
                prompted = [_vary(record, name, plan.seed, number + i) for i, record in enumerate(records)]
                column += encode_regions(self.tokenizer, features, prompted)
            if context.regions and plan.context_from == "annotated":
                contexts += [context.of_regions(regions) for regions in variants[-1][-len(batch) :]]
            elif context.slots:
                contexts += context.encode(self.tokenizer, features)
            number += len(batch)
            progress(len(batch))
        write_shard(self.folder, shard, variants, contexts, getattr(torch, plan.dtype))


@dataclass(frozen=True)
class EncoderElsewhere:
    """What another process, or another machine, needs to know to make a `ShardEncoder`. Paths are absolute."""

    plan: CachePlan
    data: Path
    folder: Path
    region_tokenizer: str
    variant: str | None
    device: str
    batch_size: int
    workers: int

    def __call__(self) -> ShardEncoder:
        """Load the tokenizer. Raises `ValueError` if this machine has other records or weights, or not the same output."""
        here = socket.gethostname()
        if not (self.folder / PLAN).is_file():
            raise ValueError(f"{here} sees no {self.folder / PLAN}: give an output on a disk that all machines share.")
        if not self.data.exists() or data_checksum(self.data) != self.plan.data_checksum:
            raise ValueError(
                f"{here} sees other records at {self.data}, or none: put them on a disk that all machines share."
            )
        tokenizer = TapRegionTokenizer.from_pretrained(self.region_tokenizer, variant=self.variant, device=self.device)
        if tokenizer.fingerprint != self.plan.fingerprint:
            raise ValueError(
                f"{here} has the tokenizer {tokenizer.fingerprint} under the name {self.region_tokenizer}, expected "
                f"{self.plan.fingerprint}: have all machines read the same weights."
            )
        return ShardEncoder(self.plan, self.data, self.folder, tokenizer, self.batch_size, self.workers)


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
