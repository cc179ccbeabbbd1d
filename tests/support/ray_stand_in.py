"""What stands in for a cluster where Ray is not needed: chunks are done here, last first, by what can be sent elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest


def without_ray(patch: pytest.MonkeyPatch, module: Any) -> None:
    """Have a module's work for actors done in this process."""

    @contextmanager
    def cluster_for(flags: Any) -> Iterator[str]:
        assert flags.ray
        yield flags.device or "cpu"

    def run_chunks(
        make: Callable[[], Callable[[int], str]], chunks: Sequence[int], actors: int, *, gpu: bool = False
    ) -> Iterator[tuple[int, str]]:
        assert not gpu
        work = pickle.loads(pickle.dumps(make))()
        yield from ((chunk, work(chunk)) for chunk in reversed(chunks))

    patch.setattr("tap_tokenizer.cluster.find_spec", lambda name: True)
    patch.setattr(module, "cluster_for", cluster_for)
    patch.setattr(module, "run_chunks", run_chunks)
