"""Which of many unit vectors have the largest cosines with a query: the ranks and scores of exact arithmetic, at less cost.

All vectors are compared at low precision, which reads memory once: by torch, or by faiss. Those whose rank rounding may have
changed are then compared in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF_ROUNDING = 2e-3
"""How far a cosine in half precision may be from the exact one: 2^-11 for the query's numbers and as much for the result, both
at most 1, and twice that for safety. Sums are taken in float32."""

SINGLE_ROUNDING = 2.0**-23
"""The same for a cosine in single precision, for each number of a vector: 2^-24, and twice that for safety."""

SPARE = 16
"""How many more vectors than were asked for are taken from faiss, because rounding may hide a better one among them."""


def best_rows(
    parts: Sequence[tuple[Tensor, Tensor]], allowed: Tensor, top_k: int, in_faiss: Any = None
) -> tuple[list[int], list[float]]:
    """Rows and scores of the best; each part has unit vectors (N, width) in float16 and a query (width,) in float32.

    allowed: which rows (N,) may be among them, at least one. in_faiss: what `index_in_faiss` made of the vectors, which is used
    if there is one part and every row is allowed. With one part, a score is the cosine. With several, it says by how many
    standard deviations the row's cosines lie above the means of all rows, on average.
    """
    top_k = min(top_k, int(allowed.sum()))
    means, scales = [0.0], [1.0]
    if in_faiss is not None and len(parts) == 1 and bool(allowed.all()):
        rows = _near_in_faiss(in_faiss, parts[0][1], top_k)
    else:
        rows, means, scales = _near(parts, allowed, top_k)
    exact = torch.zeros(len(rows), dtype=torch.float64)  # so that a score does not depend on what it is computed with
    for (vectors, query), mean, scale in zip(parts, means, scales):
        for start in range(0, len(rows), 65536):
            some = slice(start, start + 65536)
            exact[some] += (vectors[rows[some]].double() @ query.double() - mean) / scale
    order = exact.argsort(descending=True, stable=True)[:top_k]
    return rows[order].tolist(), exact[order].float().tolist()


def _near(
    parts: Sequence[tuple[Tensor, Tensor]], allowed: Tensor, top_k: int
) -> tuple[Tensor, list[float], list[float]]:
    """Rows that may be among the best, in half precision; and the mean and the scale of each part's cosines.

    Vectors that are not finite, which only files of others can have, are passed over.
    """
    rough = [torch.mv(vectors, query.half()).float() for vectors, query in parts]
    means, scales = [0.0] * len(parts), [1.0] * len(parts)
    numbers = torch.stack(rough).isfinite().all(dim=0)
    allowed = allowed & numbers
    top_k = min(top_k, int(allowed.sum()))
    if not top_k:
        return torch.zeros(0, dtype=torch.long), means, scales
    if len(parts) > 1:  # cosines with words lie close together and far from 1; those with an example do not
        means = [float(scores[numbers].mean()) for scores in rough]
        scales = [max(float(scores[numbers].std(correction=0)), 1e-6) * len(parts) for scores in rough]
    total = sum(((scores - mean) / scale for scores, mean, scale in zip(rough, means, scales)), torch.zeros(()))
    total = total.masked_fill(~allowed, -torch.inf)
    last = total.topk(top_k).values[-1]
    rows = (total >= last - 2 * sum(HALF_ROUNDING / scale for scale in scales)).nonzero()[:, 0]
    return rows, means, scales


# --- by faiss -----------------------------------------------------------------------------------------------------------


def index_in_faiss(vectors: Tensor) -> Any:
    """An index of faiss that holds a copy of vectors (N, width) in float16, for exact inner products; None without faiss.

    It has a part for each of torch's threads, because faiss searches for one query in one thread.
    """
    try:
        import faiss
    except ImportError:
        return None
    width, share = vectors.shape[1], -(-len(vectors) // torch.get_num_threads())
    shards = faiss.IndexShards(width, True, True)  # threads of its own, and rows numbered through all parts
    shards.own_indices = True
    for rows in vectors.split(max(share, 1)):
        part = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        part.add_sa_codes(rows.contiguous().numpy().view(np.uint8))  # its codes are numbers in half precision, too
        part.this.disown()
        shards.add_shard(part)
    return shards


def _near_in_faiss(index: Any, query: Tensor, top_k: int) -> Tensor:
    """Rows that may be among the best, in single precision."""
    margin, wanted = 2 * index.d * SINGLE_ROUNDING, top_k + SPARE
    while True:
        (scores,), (rows,) = index.search(query.float().numpy()[None], min(wanted, index.ntotal))
        least = scores[top_k - 1] - margin
        if wanted >= index.ntotal or scores[-1] < least:  # none of the others can be among them
            return torch.from_numpy(np.sort(rows[(scores >= least) & (rows >= 0)]))  # -1 where it ran out of numbers
        wanted *= 4
