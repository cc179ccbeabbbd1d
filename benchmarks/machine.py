"""What every benchmark here prints first, and how it times: interleaved, medians, ratios inside one run.

Also what the machine can do at best: its rate of matrix products and of copying, measured, not read from a data sheet.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def describe_machine() -> str:
    """Processor, threads, and versions, in one line."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{name}, {torch.get_num_threads()} threads{gpu}; Python {platform.python_version()}, torch {torch.__version__}"
    )


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way of doing a thing, taking turns so that a noisy neighbour hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds_of(way))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(way: Callable[[], object]) -> float:
    """One call, until a GPU has finished it."""
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(device: str, dtype: torch.dtype, *, quick: bool = False) -> float:
    """Operations a second of the best of some products of large matrices; of small ones, if `quick`."""
    best = 0.0
    for size in (128,) if quick else (1024, 2048, 3072) if device == "cpu" else (4096, 8192):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = min(seconds_of(lambda one=one, other=other: one @ other) for _ in range(8))  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
    return best


def copy_rate(device: str, *, quick: bool = False) -> float:
    """Bytes a second, read and written, of copying what no cache holds; or what one does, if `quick`."""
    source = torch.ones((1 if quick else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source)) for _ in range(6))
    return 2 * source.numel() * source.element_size() / seconds
