"""Which record comes at which place of a training run: a weighted mixture of data sets, shuffled, without any state.

The record at a position depends on the seed and the position alone, so a run that resumes at position p sees what it
would have seen. Knows numbers of records, not what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_BLOCK = 4096


class Mixture:
    """An endless sequence of (data set, record, visit) drawn from data sets of given sizes.

    Each data set is gone through in a new random order every time; how often it comes follows its weight, by default its
    size, evenly in every block of 4096 positions. `visit` counts how many times the record has come before.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"Got data sets of {list(sizes)} records: every one needs at least one.")
        weights = list(sizes) if weights is None else list(weights)
        if len(weights) != len(sizes) or min(weights) <= 0:
            raise ValueError(
                f"Got {len(weights)} weights for {len(sizes)} data sets, expected a positive one for each."
            )
        self.sizes, self.seed = list(sizes), seed
        self.shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._order = lru_cache(maxsize=4)(self._draw_order)
        self._permutation = lru_cache(maxsize=2 * len(sizes))(self._draw_permutation)

    def __reduce__(self) -> tuple[type[Mixture], tuple[list[int], list[float], int]]:
        return Mixture, (self.sizes, self.shares.tolist(), self.seed)

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        block, place = divmod(position, _BLOCK)
        sources, before = self._order(block)
        source = int(sources[place])
        drawn = int(before[source]) + int((sources[:place] == source).sum())
        visit, row = divmod(drawn, self.sizes[source])
        return source, int(self._permutation(source, visit)[row]), visit

    def _draw_order(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each place of a block, and how many of each came before it."""
        before = self._quota(block * _BLOCK)
        here = self._quota((block + 1) * _BLOCK) - before
        sources = np.repeat(np.arange(len(self.sizes)), here)
        np.random.RandomState([self.seed, 1, block]).shuffle(sources)
        return sources, before

    def _quota(self, positions: int) -> np.ndarray:
        """How many of the first `positions` belong to each data set."""
        edges = np.floor(np.concatenate([[0.0], np.cumsum(self.shares)]) * positions + 1e-9).astype(np.int64)
        edges[-1] = positions
        return np.diff(edges)

    def _draw_permutation(self, source: int, visit: int) -> np.ndarray:
        return np.random.RandomState([self.seed, 2, source, visit]).permutation(self.sizes[source])
