"""Encoding for a cache by one process, by one actor of Ray, and by two: pictures a second once they are under way.

    pip install 'tap-bridge[ray]'
    python benchmarks/ray_actors.py

Every way has one thread for each model, and writes the same bytes, which is checked. Each is run in turns, several times. CPU
time is that of the processes that encode; it tells what Ray costs even where other work takes the cores away.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import describe_machine

from finetune.cache import CachePlan, data_checksum, prepare, shard_checksum
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.shard_encoder import EncoderElsewhere
from tap_tokenizer import TapRegionTokenizer, ray_cluster, run_chunks

SHARD = 2
"""Pictures in a shard: few, so that the end, when an actor may have nothing left to do, is short."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192, help="pictures encoded by each way, each time")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each; the median counts")
    parser.add_argument("--actors", type=int, default=2, help="how many actors are compared with one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, ray_cluster():
        make = plan_cache(Path(folder), arguments.pictures)
        timed, shards = Timed(make, Path(folder)), range(make.plan.shards)
        ways: dict[str, tuple[int, Callable[[], Iterable[int]]]] = {
            "one process": (1, lambda: encode_here(timed, shards)),
            "1 actor": (1, lambda: (shard for shard, _ in run_chunks(timed, shards, 1))),
            f"{arguments.actors} actors": (
                arguments.actors,
                lambda: (shard for shard, _ in run_chunks(timed, shards, arguments.actors)),
            ),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        expected: list[str | None] = []
        for _ in range(arguments.rounds):
            for name, (workers, way) in ways.items():
                start, rate = speed(way(), workers, timed)
                times = [timed.said(shard)[0] for shard in shards]
                found[name].append((start, rate, statistics.median(times) / SHARD))
                checksums = [shard_checksum(make.folder, shard) for shard in shards]
                expected = expected or checksums
                if checksums != expected:
                    raise SystemExit(f"{name} wrote other bytes than one process.")
                for path in make.folder.glob("shard-*"):
                    path.unlink()
    print(describe_machine() + " for each model; tap-tiny\n")
    print("| | pictures a second | of one process | CPU s a picture | seconds until the first shard |")
    print("|---|---|---|---|---|")
    one = statistics.median(rate for _, rate, _ in found["one process"])
    for name, measured in found.items():
        start, rate, cpu = (statistics.median(values) for values in zip(*measured))
        print(f"| {name} | {rate:.2f} | **{rate / one:.2f}** | {cpu:.3f} | {start:.1f} |")


@dataclass(frozen=True)
class Timed:
    """Makes an encoder that writes down the CPU seconds of each shard, and which process encoded it."""

    make: EncoderElsewhere
    folder: Path

    def __call__(self) -> Callable[[int], None]:
        """Load the tokenizer."""
        encode, folder = self.make(), self.folder

        def work(shard: int) -> None:
            start = time.process_time()
            encode(shard)
            (folder / f"{shard}.said").write_text(f"{time.process_time() - start} {os.getpid()}")

        return work

    def said(self, shard: int) -> tuple[float, int]:
        """The CPU seconds of a shard, and the number of the process."""
        seconds, process = (self.folder / f"{shard}.said").read_text().split()
        return float(seconds), int(process)


def plan_cache(folder: Path, pictures: int) -> EncoderElsewhere:
    """Scenes drawn on the fly, and what it takes to encode them."""
    data = folder / "records.jsonl"
    convert(GlyphScenesSource(output=str(data), scenes=pictures, workers=1))
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    plan = CachePlan(
        data=data.name,
        data_checksum=data_checksum(data),
        samples=pictures,
        region_tokenizer=tokenizer.source,
        fingerprint=tokenizer.fingerprint,
        dtype="float16",
        variants=["exact"],
        image_grid=0,
        shard_size=SHARD,
        seed=0,
    )
    prepare(folder / "cache", plan)
    return EncoderElsewhere(plan, data, folder / "cache", "tap-tiny", None, "cpu", batch_size=SHARD, workers=0)


def encode_here(make: Timed, shards: Iterable[int]) -> Iterator[int]:
    """What a process does without Ray."""
    encode = make()
    for shard in shards:
        encode(shard)
        yield shard


def speed(shards: Iterable[int], workers: int, timed: Timed) -> tuple[float, float]:
    """Seconds until the first shard, and pictures a second once every worker has encoded one."""
    times, done = [time.perf_counter()], []
    for shard in shards:
        times.append(time.perf_counter())
        done.append(shard)
    seen: set[int] = set()
    for begun, shard in enumerate(done, 1):
        seen.add(timed.said(shard)[1])
        if len(seen) == workers and begun < len(done):
            return times[1] - times[0], SHARD * (len(done) - begun) / (times[-1] - times[begun])
    raise SystemExit(f"{workers} workers had not begun before the end: give more --pictures.")


if __name__ == "__main__":
    main()
