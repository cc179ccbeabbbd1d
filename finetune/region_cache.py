"""Region tokens on disk: shards with a manifest, written by `cache_regions`, read by `train`.

A shard holds the tokens of a run of records, for each prompt variant, and the picture context if there is any. Every
shard's checksum stands in the manifest, and is compared when the shard is first read: a damaged one is named. Knows
tensors and files, not how tokens are made.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_bridge import PictureContext
from tap_tokenizer import RegionTokens

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class CachePlan:
    """What a cache is of: the records, the tokenizer, and how each region is prompted."""

    data: str
    data_checksum: str
    samples: int
    region_tokenizer: dict[str, str]
    fingerprint: str
    dtype: str
    variants: list[str]
    image_grid: int
    shard_size: int
    seed: int
    image_regions: int = 0
    context_from: str = "found"
    version: int = VERSION

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_size)

    def rows(self, shard: int) -> range:
        """Numbers of the records of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.samples))


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, variants: list[list[RegionTokens]], grids: list[Tensor], dtype: torch.dtype
) -> None:
    """Write one shard whole, then the checksum that says so.

    variants: for each prompt variant, the region tokens of each record; grids: context features (slots, F) of each record.
    """
    first = variants[0]
    tensors: dict[str, Tensor] = {
        "counts": torch.tensor([len(regions) for regions in first]),
        "image_sizes": torch.cat([regions.image_sizes for regions in first]),
    }
    for name in ("semantic_tokens", "semantic_embeds", "iou_scores", "expert", "boxes"):
        columns = [torch.cat([getattr(regions, name).cpu() for regions in variant]) for variant in variants]
        stacked = torch.stack(columns)
        tensors[name] = stacked.to(dtype) if name.startswith("semantic") else stacked
    if grids:
        tensors["grids"] = torch.stack(grids).to(dtype)
    path = shard_path(folder, shard)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    checksum = file_checksum(partial)
    partial.replace(path)
    mark = path.with_suffix(".sha256.partial")
    mark.write_text(checksum)
    mark.replace(path.with_suffix(".sha256"))


def shard_checksum(folder: Path, shard: int) -> str | None:
    """The checksum of a shard that was written whole, or None."""
    mark = shard_path(folder, shard).with_suffix(".sha256")
    return mark.read_text() if mark.is_file() and shard_path(folder, shard).is_file() else None


def shard_is_whole(folder: Path, shard: int) -> bool:
    """Whether a shard is there, as it was written."""
    checksum = shard_checksum(folder, shard)
    return checksum is not None and file_checksum(shard_path(folder, shard)) == checksum


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, plan: CachePlan) -> None:
    """Declare the cache complete: the plan and every shard's checksum, in one file, written whole."""
    checksums = [shard_checksum(folder, shard) for shard in range(plan.shards)]
    missing = [shard for shard, checksum in enumerate(checksums) if checksum is None]
    if missing:
        raise RuntimeError(f"Shards {missing[:5]} of {folder} are missing: run cache_regions again to finish it.")
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({**asdict(plan), "checksums": checksums}, indent=1))
    partial.replace(folder / MANIFEST)


class RegionCache:
    """A finished cache, read shard by shard as records are asked for."""

    def __init__(self, folder: str | Path, open_shards: int = 8) -> None:
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"{folder} is no finished cache: run cache_regions with this output until it is through.")
        values = json.loads(manifest.read_text())
        if values.get("version") != VERSION:
            raise ValueError(
                f"{folder} is a cache of version {values.get('version')}, expected {VERSION}: make it again."
            )
        self.checksums: list[str] = values.pop("checksums")
        self.plan = CachePlan(**values)
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._open_shards = open_shards

    def __len__(self) -> int:
        return self.plan.samples

    def check(self, data: Path, fingerprint: str | None, context: PictureContext) -> None:
        """Refuse a cache of other records than `data`, of another tokenizer, or with another picture context."""
        if self.plan.fingerprint != fingerprint:
            raise ValueError(
                f"{self.folder} holds tokens of the tokenizer {self.plan.fingerprint}, the bridge reads those of "
                f"{fingerprint}: make the cache with the bridge's tokenizer."
            )
        if data.is_file() and self.plan.data_checksum != file_checksum(data):
            raise ValueError(f"{self.folder} was made from other records than {data} now holds: make the cache again.")
        own = PictureContext.of(self.plan)
        if context.slots and own != context:  # a bridge that reads none has no use for it
            raise ValueError(
                f"{self.folder} has picture context: {own}; the bridge reads: {context}. Make the cache with --image_grid "
                f"{context.grid} --image_regions {context.regions}."
            )

    def regions(self, index: int, variant: int = 0) -> RegionTokens:
        """Region tokens of a record, as prompted in a variant."""
        shard, row = self._shard(index)
        start = int(shard["counts"][:row].sum())
        rows = slice(start, start + int(shard["counts"][row]))
        return RegionTokens(
            semantic_tokens=shard["semantic_tokens"][variant, rows].float(),
            semantic_embeds=shard["semantic_embeds"][variant, rows].float(),
            iou_scores=shard["iou_scores"][variant, rows],
            expert=shard["expert"][variant, rows],
            boxes=shard["boxes"][variant, rows],
            image_index=torch.zeros(rows.stop - rows.start, dtype=torch.long),
            image_sizes=shard["image_sizes"][row : row + 1],
            fingerprint=self.plan.fingerprint,
        )

    def grid(self, index: int) -> Tensor | None:
        """Context features (slots, F) of a record's picture, or None if the cache has no picture context."""
        shard, row = self._shard(index)
        return shard["grids"][row].float() if "grids" in shard else None

    def _shard(self, index: int) -> tuple[dict[str, Tensor], int]:
        if not 0 <= index < self.plan.samples:
            raise IndexError(f"Got record {index} of {self.plan.samples}.")
        number, row = divmod(index, self.plan.shard_size)
        if number not in self._open:
            path = shard_path(self.folder, number)
            if not path.is_file() or file_checksum(path) != self.checksums[number]:
                raise ValueError(
                    f"{path} is missing or damaged: delete it and run cache_regions again, which makes it anew."
                )
            self._open[number] = load_file(path)
            while len(self._open) > self._open_shards:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number], row
