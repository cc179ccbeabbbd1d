"""Makes a cache for invented pictures: each region borrows the tokens of an encoded region with the same caption.

    python -m finetune.compose_regions --data composed.jsonl --from_data packed.jsonl --from_caches runs/caches/packed \
        --output runs/caches/composed

A language model that is asked about the same pictures again and again learns the answers by heart. Where objects stand can
be invented, but not what they look like to the region tokenizer. So each region of the records borrows the tokens of a random
encoded region with the same first caption (or label, if it has no captions) and keeps its own box, jittered as in
`cache_regions`. The result is a cache like any other. If the other caches have picture context, so does this one, made from the
records' own regions. If the command was stopped, run it again: complete shards are kept.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from llm_bridge import PictureContext
from tap_tokenizer import RegionTokens, only_writer

from .cache import CachePlan, RegionCache, data_checksum, prepare, shard_is_whole, write_manifest, write_shard
from .config import knob, parse_arguments, run_command
from .records import Record, Records, Region, load_records
from .shard_encoder import jittered


@dataclass
class ComposeArguments:
    """Cache region tokens for records without encoding their pictures."""

    data: str = knob(help="records whose regions have a caption or label, and a box")
    output: str = knob(help="folder of the cache")
    from_data: list[str] = knob(default_factory=list, help="record files whose regions lend their tokens")
    from_caches: list[str] = knob(default_factory=list, help="the cache of each of these files, in the same order")
    shard_size: int = knob(default=512, help="records in a shard")
    seed: int = knob(default=0, help="seed for choosing tokens and for jittering boxes")


class TokenBank:
    """Region tokens of cached records, in all their variants, by the region's words."""

    def __init__(self, data: list[str], caches: list[str]) -> None:
        """Read everything. All caches must come from one tokenizer and belong to their records."""
        if not data or len(data) != len(caches):
            raise ValueError(
                f"Got {len(data)} from_data and {len(caches)} from_caches: give a cache for each record file."
            )
        opened = [RegionCache(folder) for folder in caches]
        self.plan = opened[0].plan
        if self.plan.image_grid:
            raise ValueError(
                f"{caches[0]} has picture context: {PictureContext.of(self.plan)}; a grid is of a whole picture and cannot be "
                "composed. Make the cache with image_regions, or without context."
            )
        for path, cache in zip(data, opened):
            cache.check(Path(path), self.plan.fingerprint, PictureContext.of(self.plan))
        self.places: dict[str, list[int]] = defaultdict(list)
        parts: list[RegionTokens] = []
        count = 0
        for path, cache in zip(data, opened):
            for row, record in enumerate(tqdm(load_records(path), desc=f"tokens of {path}", leave=False)):
                words = [words_of(region) for region in record.regions]
                for variant in range(len(cache.plan.variants)):
                    parts.append(cache.regions(row, variant))
                    for place, word in enumerate(words, start=count):
                        self.places[word].append(place)
                    count += len(words)
        self.tokens = RegionTokens.concatenate(parts)

    def lacks(self, records: Iterable[Record]) -> list[str]:
        """The words of regions of these records that no region here has."""
        wanted = dict.fromkeys(words_of(region) for record in records for region in record.regions)
        return [words for words in wanted if words not in self.places]

    def compose(self, record: Record, random: np.random.RandomState) -> RegionTokens:
        """Tokens for a record's regions, each from another region with the same words, at their own jittered boxes."""
        places = [self.places[words_of(region)] for region in record.regions]
        chosen = torch.tensor([own[random.randint(len(own))] for own in places], dtype=torch.long)
        boxes = [jittered(region, record.size, random).box for region in record.regions]
        return replace(
            self.tokens[chosen],
            boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            image_index=torch.zeros(len(chosen), dtype=torch.long),
            image_sizes=torch.tensor([record.size]),
        )


def words_of(region: Region) -> str:
    """What is true of a region: its first caption, or its label."""
    words = region.captions[0] if isinstance(region.captions, list) and region.captions else region.label
    if not isinstance(words, str) or not words:
        raise ValueError(f"Got the region {region}, expected captions or a label to find tokens by.")
    return words


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, gather the tokens, fill the cache."""
    arguments = parse_arguments(ComposeArguments, argv, description=__doc__)
    data, folder = Path(arguments.data), Path(arguments.output)
    records = load_records(data)
    if any(region.box is None for record in records for region in record.regions):
        raise ValueError(f"A region of {data} has no box, expected one of each.")
    bank = TokenBank(arguments.from_data, arguments.from_caches)
    if lacking := bank.lacks(records):
        raise ValueError(
            f"{data} has regions that no region of from_data can lend tokens to, such as {lacking[0]!r} (and "
            f"{len(lacking) - 1} more): add records that have some, or leave those regions out."
        )
    plan = CachePlan(
        data=data.name,
        data_checksum=data_checksum(data),
        samples=len(records),
        region_tokenizer=bank.plan.region_tokenizer,
        fingerprint=bank.plan.fingerprint,
        dtype=bank.plan.dtype,
        variants=["composed"],
        image_grid=0,
        image_regions=bank.plan.image_regions,
        context_from="composed",
        shard_size=arguments.shard_size,
        seed=arguments.seed,
    )
    with only_writer(folder):
        _fill(folder, plan, bank, records)
    print(
        f"wrote {folder}: {plan.samples} record{'s' * (plan.samples != 1)} in {plan.shards} shard{'s' * (plan.shards != 1)}"
    )


def _fill(folder: Path, plan: CachePlan, bank: TokenBank, records: Records) -> None:
    """Write the shards that are not there yet, and the manifest when all are."""
    prepare(folder, plan)
    context = PictureContext.of(plan)
    for shard in tqdm(range(plan.shards), desc="composing", unit="shard"):
        if shard_is_whole(folder, shard):
            continue
        composed = [bank.compose(records[i], np.random.RandomState([11, plan.seed, i])) for i in plan.rows(shard)]
        contexts = [context.of_regions(regions) for regions in composed] if context.slots else []
        write_shard(folder, shard, [composed], contexts, getattr(torch, plan.dtype))
    write_manifest(folder, plan)


if __name__ == "__main__":
    sys.exit(run_command(main))
