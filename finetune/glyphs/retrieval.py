"""How well an object is found again: others of its kind and colour in other pictures, by what a region tokenizer gives for it.

A query is each visible object of some scenes, and what is searched are those of all other scenes. Ranked are cosines of
semantic embeddings and of semantic tokens, and shared words of native captions. As "words", the query is the phrase of each
kind and colour that there is, and embeddings are ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .language import concept_vector
from .scenes import COLOURS, KINDS, SIZES
from .seen_scenes import SeenScenes

WAYS = ("semantic embedding", "semantic token", "caption words", "words")
"""What is compared, in the order of the report."""

TOP = 10


class Retrieval:
    """Collects the objects of scenes, and measures when all are there."""

    def __init__(self) -> None:
        self._vectors: dict[str, list[Tensor]] = {way: [] for way in WAYS[:3]}
        self._pairs: list[tuple[str, str]] = []
        self._scenes: list[int] = []

    def add(self, seen: SeenScenes, lines: Sequence[dict[str, Any]]) -> None:
        """Add the objects of scenes, whose regions have these lines (`seen_scenes.region_lines`)."""
        captions = [line["caption"][0] for line in lines]
        for way, vectors in zip(WAYS, (seen.tokens.embeds, seen.tokens.tokens, _bags(captions))):
            self._vectors[way].append(F.normalize(vectors.float().cpu(), dim=-1))
        self._pairs += [(line["kind"][1], line["colour"][1]) for line in lines]
        self._scenes += [line["scene"] for line in lines]

    def lines(self) -> Iterator[dict[str, Any]]:
        """A line for each way, with recall@10 and mean average precision; none if no object has another like it elsewhere."""
        scenes, number = np.array(self._scenes), {pair: i for i, pair in enumerate(dict.fromkeys(self._pairs))}
        kinds = np.array([number[pair] for pair in self._pairs], dtype=int)
        elsewhere = scenes[:, None] != scenes[None]
        for way in WAYS[:3]:
            vectors = torch.cat(self._vectors[way])
            yield from _measured(way, (vectors @ vectors.T).numpy(), kinds[:, None] == kinds[None], elsewhere)
        phrases = torch.tensor(np.stack([concept_vector(f"{colour} {kind}") for kind, colour in number]))
        scores = (phrases @ torch.cat(self._vectors[WAYS[0]]).T).numpy()
        everywhere = np.ones_like(scores, dtype=bool)
        yield from _measured(WAYS[3], scores, np.arange(len(number))[:, None] == kinds[None], everywhere)


def _bags(captions: Sequence[str]) -> Tensor:
    """Which of the world's words each caption has, (R, words)."""
    place = {word: i for i, word in enumerate([*KINDS, *COLOURS, *SIZES])}
    bags = torch.zeros(len(captions), len(place))
    for row, text in enumerate(captions):
        bags[row, [place[word] for word in text.split() if word in place]] = 1
    return bags


def _measured(way: str, scores: np.ndarray, alike: np.ndarray, searched: np.ndarray) -> Iterator[dict[str, Any]]:
    """recall@10 and mean average precision of rankings (queries, regions), over queries that have something to be found.

    recall@10 is how many of those that are alike are among the first ten, as a share of ten or of all if there are fewer. Equal
    scores are ranked at random.
    """
    random = np.random.RandomState(17)
    recalls, precisions = [], []
    for own, like, among in zip(scores, alike, searched):
        places = np.flatnonzero(among)
        like = like[places]
        if not like.any():
            continue
        order = np.lexsort((random.permutation(len(places)), -own[places]))
        hits = np.flatnonzero(like[order])
        recalls.append((hits < TOP).sum() / min(TOP, len(hits)))
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    if recalls:
        numbers = {"recall@10": float(np.mean(recalls)), "mAP": float(np.mean(precisions))}
        yield {"task": "retrieval", "by": way, "queries": len(recalls), **numbers}
