"""How long a search of many regions takes, exact and with all of them compared, and how much memory it adds.

    python benchmarks/region_index.py                          # a million random vectors of 1,024 on two threads
    python benchmarks/region_index.py --regions 100000 --threads 1

Beside it, in the same run: the same search as one matrix product in float32, block by block, whose ranks must be equal; and by
faiss, if it is installed, whose copy of the vectors then takes as much memory again.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch.nn import functional as F

from tap_tokenizer import RegionIndex, RegionTokens, counted

BLOCK = 16384
"""Rows that are converted to float32 at a time, of several sizes the fastest."""

T = TypeVar("T")


def main() -> None:
    """Make the index, save it, load it, and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        index = RegionIndex()
        for start in range(0, arguments.regions, 50_000):
            index.add(_random(min(50_000, arguments.regions - start), arguments.width), [f"{start}.png"])
        index.save(path)
        size = path.stat().st_size
        del index
        index, in_faiss = RegionIndex.load(path), RegionIndex.load(path)
        example = _random(1, arguments.width)
        with _without_faiss():
            index.search(like=example)  # from here on the file is in the system's memory
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            index.search(like=example)
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        in_faiss.search(like=example)
        _, (copying, _) = _timed(partial(in_faiss.search, example))
        query = F.normalize(example.embeds, dim=-1)[0]
        times: dict[str, list[tuple[float, float]]] = {"index.search": [], "float32 blocks": []}
        if find_spec("faiss") is not None:
            times["index.search with faiss"] = []
        for _ in range(arguments.repeats):
            with _without_faiss():
                hits, taken = _timed(partial(index.search, example))
            times["index.search"].append(taken)
            rows, taken = _timed(partial(_plain, index.column("embeds"), query))
            times["float32 blocks"].append(taken)
            assert [hit.row for hit in hits] == rows, "the ranks differ"
            if find_spec("faiss") is not None:
                others, taken = _timed(partial(in_faiss.search, example))
                times["index.search with faiss"].append(taken)
                assert others == hits, "faiss finds others"
    sizes = f"{counted(arguments.regions, 'region')} of width {arguments.width}, {size / 1e9:.2f} GB"
    print(f"{sizes}, {counted(arguments.threads, 'thread')}")
    print("| | median | fastest | CPU time, median |\n|---|---|---|---|")
    for name, values in times.items():
        wall, cpu = (sorted(column) for column in zip(*values))
        print(f"| {name} | {wall[len(wall) // 2]:.3f} s | {wall[0]:.3f} s | {cpu[len(cpu) // 2]:.3f} s |")
    print(f"A search added {added:.0f} MB to the most memory that was used.")
    if "index.search with faiss" in times:
        print(f"The second search with faiss, which copies the vectors, took {copying:.2f} s.")


@contextmanager
def _without_faiss() -> Iterator[None]:
    """As if it were not installed."""
    before = sys.modules.pop("faiss", None)
    sys.modules["faiss"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["faiss"]
        if before is not None:
            sys.modules["faiss"] = before


def _timed(work: Callable[[], T]) -> tuple[T, tuple[float, float]]:
    """What some work gives, and the seconds that it took, on the clock and on the CPUs."""
    begin, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - begin, time.process_time() - cpu)


def _random(count: int, width: int) -> RegionTokens:
    vectors = torch.randn(count, 1, width)
    return RegionTokens(
        semantic_tokens=torch.zeros(count, 1, 1),
        semantic_embeds=vectors,
        iou_scores=torch.ones(count, 1),
        expert=torch.zeros(count, dtype=torch.long),
        boxes=torch.zeros(count, 4),
        image_index=torch.zeros(count, dtype=torch.long),
        image_sizes=torch.tensor([[512, 512]]),
        fingerprint="random",
    )


def _plain(vectors: torch.Tensor, query: torch.Tensor) -> list[int]:
    query = query.half().float()  # as an example is stored
    query = F.normalize(query, dim=0)
    scores = torch.cat([block.float() @ query for block in vectors.split(BLOCK)])
    return scores.topk(10).indices.tolist()


if __name__ == "__main__":
    main()
