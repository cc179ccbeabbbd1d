"""Region tokens of records: made by the region tokenizer, and kept on disk in shards with a manifest.

A shard holds the tokens of successive records, for each prompt variant, and the picture context if there is any. The manifest
has every shard's checksum, which is compared when the shard is first read: a damaged shard is named.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_bridge import PictureContext
from tap_tokenizer import ImageFeatures, RegionTokens, TapRegionTokenizer, prompts_in_picture, write_whole

from .data.json_files import parse_json
from .records import Record, check_size

_COLUMNS = ("semantic_tokens", "semantic_embeds", "iou_scores", "expert", "boxes")
PLAN, MANIFEST = "plan.json", "manifest.json"
VERSION = 1


def encode_regions(
    tokenizer: TapRegionTokenizer, features: ImageFeatures, records: Sequence[Record]
) -> Iterator[RegionTokens]:
    """Region tokens of each record, on the CPU; features: of the records' pictures, from `embed_image`.

    Raises `WrongSizeError` if a picture is not as large as its record says, and `ValueError`, which names the record, for a
    region that is refused.
    """
    for record, size in zip(records, features.original_sizes.tolist()):
        check_size(record, (size[0], size[1]))
    try:
        tokens = tokenizer.encode(features=features, prompts=[record.prompts() for record in records])
    except ValueError:
        for record in records:
            try:
                prompts_in_picture(record.prompts(), record.size)
            except ValueError as error:
                raise ValueError(f"{record.name}: {error}") from None
        raise
    tokens = tokens.without_masks().to("cpu")
    return (tokens.of_image(i) for i in range(len(records)))


@dataclass(frozen=True)
class CachePlan:
    """What a cache is made from: the records, the tokenizer, and the prompts of each region."""

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
    _remove_partial_shards(folder)
    room = shutil.disk_usage(folder).free
    if room < 1 << 20:
        raise OSError(f"{folder} has {room} bytes free: make room first.")


def shard_path(folder: Path, shard: int) -> Path:
    """The path of a shard."""
    return folder / f"shard-{shard:05d}.safetensors"


def write_shard(
    folder: Path, shard: int, variants: list[list[RegionTokens]], contexts: list[Tensor], dtype: torch.dtype
) -> None:
    """Write a shard completely, and then its checksum.

    variants: for each prompt variant, the region tokens of each record; contexts: context features (slots, F) of each record.
    """
    first = variants[0]
    tensors: dict[str, Tensor] = {
        "counts": torch.tensor([len(regions) for regions in first]),
        "image_sizes": torch.cat([regions.image_sizes for regions in first]),
    }
    for name in _COLUMNS:
        columns = [torch.cat([getattr(regions, name).cpu() for regions in variant]) for variant in variants]
        stacked = torch.stack(columns)
        tensors[name] = stacked.to(dtype) if name.startswith("semantic") else stacked
    if contexts:
        tensors["grids"] = torch.stack(contexts).to(dtype)
    path = shard_path(folder, shard)
    partial = path.with_suffix(f".{uuid4().hex}.partial")  # its own, should a process thought dead be writing still
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    checksum = file_checksum(partial)
    partial.replace(path)
    write_whole(path.with_suffix(".sha256"), checksum)


def shard_checksum(folder: Path, shard: int) -> str | None:
    """The checksum of a shard that was written whole, or None."""
    mark = shard_path(folder, shard).with_suffix(".sha256")
    return mark.read_text() if mark.is_file() and shard_path(folder, shard).is_file() else None


def shard_is_whole(folder: Path, shard: int) -> bool:
    """Whether a shard is there and unchanged."""
    checksum = shard_checksum(folder, shard)
    return checksum is not None and file_checksum(shard_path(folder, shard)) == checksum


def data_checksum(data: Path) -> str:
    """SHA-256 of a file of records, or over those of a folder's files in order."""
    if data.is_file():
        return file_checksum(data)
    parts = [path for path in sorted(data.rglob("*")) if path.suffix in (".parquet", ".jsonl", ".json")]
    told = "".join(f"{path.relative_to(data)} {file_checksum(path)}\n" for path in parts)
    return hashlib.sha256(told.encode()).hexdigest()


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
        raise ValueError(f"Shards {missing[:5]} of {folder} are missing: run cache_regions again to finish it.")
    write_whole(folder / MANIFEST, json.dumps({**asdict(plan), "checksums": checksums}, indent=1))
    _remove_partial_shards(folder)


def _remove_partial_shards(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for path in folder.glob("shard-*.partial"):
        path.unlink(missing_ok=True)


class RegionCache:
    """A finished cache, read shard by shard as records are asked for."""

    def __init__(self, folder: str | Path, open_shards: int = 256) -> None:
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            raise ValueError(
                f"{folder} is not a finished cache: run cache_regions with this output until it has finished."
            )
        try:
            values = parse_json(manifest.read_bytes())
            values["version"], values["checksums"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{manifest} is damaged: delete it and run cache_regions again, which writes a new one."
            ) from None
        if values.get("version") != VERSION:
            raise ValueError(
                f"{folder} is a cache of version {values.get('version')}, expected {VERSION}: make it again."
            )
        self.checksums: list[str] = values.pop("checksums")
        self.plan = CachePlan(**values)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._open_shards = open_shards
        self._whole: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """The state without open files, which belong to their process."""
        return {**vars(self), "_open": OrderedDict()}

    def __len__(self) -> int:
        return self.plan.samples

    def check(self, data: Path, fingerprint: str | None, context: PictureContext) -> None:
        """Refuse a cache of other records than `data`, of another tokenizer, or with another picture context."""
        if self.plan.fingerprint != fingerprint:
            raise ValueError(
                f"{self.folder} holds tokens of the tokenizer {self.plan.fingerprint}, the bridge reads those of "
                f"{fingerprint}: make the cache with the bridge's tokenizer."
            )
        if data.exists() and self.plan.data_checksum != data_checksum(data):
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
        columns = shard.columns(row, variant)
        return RegionTokens(
            semantic_tokens=columns["semantic_tokens"].float(),
            semantic_embeds=columns["semantic_embeds"].float(),
            iou_scores=columns["iou_scores"],
            expert=columns["expert"],
            boxes=columns["boxes"],
            image_index=torch.zeros(len(columns["expert"]), dtype=torch.long),
            image_sizes=shard.image_sizes[row : row + 1],
            fingerprint=self.plan.fingerprint,
        )

    def context(self, index: int) -> Tensor | None:
        """Context features (slots, F) of a record's picture, or None if the cache has no picture context."""
        shard, row = self._shard(index)
        context = shard.context(row)
        return None if context is None else context.float()

    def _shard(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < self.plan.samples:
            raise IndexError(f"Got record {index} of {self.plan.samples}.")
        number, row = divmod(index, self.plan.shard_size)
        if number not in self._open:
            path = shard_path(self.folder, number)
            if not path.is_file() or (number not in self._whole and file_checksum(path) != self.checksums[number]):
                raise ValueError(
                    f"{path} is missing or damaged: delete it and run cache_regions again, which makes it again."
                )
            self._whole.add(number)
            self._open[number] = _Shard(path)
            while len(self._open) > self._open_shards:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number], row


class _Shard:
    """One shard's file, open: of a record only its own rows are read, so that records can be asked for in any order."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        counts = self._file.get_tensor("counts")
        self.image_sizes = self._file.get_tensor("image_sizes")
        self._ends = [0, *counts.cumsum(0).tolist()]
        self._has_contexts = "grids" in self._file.keys()  # noqa: SIM118, which is no dictionary

    def columns(self, row: int, variant: int) -> dict[str, Tensor]:
        """All that is kept of the regions of a record, as prompted in a variant."""
        start, end = self._ends[row], self._ends[row + 1]
        if start == end:  # a slice cannot be empty there
            return {name: self._file.get_tensor(name)[variant, :0] for name in _COLUMNS}
        return {name: self._file.get_slice(name)[variant : variant + 1, start:end][0] for name in _COLUMNS}

    def context(self, row: int) -> Tensor | None:
        """Context features (slots, F) of a record's picture, if the shard has any."""
        return self._file.get_slice("grids")[row : row + 1][0] if self._has_contexts else None
