"""Which points of a grid are worth asking about: most find nothing that passes the filters, or what another has found.

All points are first asked about the picture at half its resolution, which takes a fraction of the time. Their IoU
scores come close to those at full resolution, and points that mean the same region get nearly the same semantic token.
So only promising points are asked at full resolution, the most different ones first, and what they find settles the
points that are like them, too. The answers at half resolution are never part of a result.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .everything_options import EverythingOptions
from .mask_boxes import boxes_of_masks
from .region_decoder import ImageFeatures, RegionDecoder

SLACK = 0.1
"""How far the IoU score at half resolution may be too low. Of tap-tiny's points that pass at the default threshold, one in a
hundred is off by more, and none of those whose regions are kept."""

ALIKE = 0.9
"""Cosine of two points' semantic tokens, less the mean of all, from which on they mean the same region, or one that looks the
same."""

SURELY_WORSE = 0.02
"""Points that are like one whose IoU score is known are expected to be off by as much, give or take this."""

LEAST = EverythingOptions()
"""The lowest thresholds with which a screen is used (`benchmarks/everything.py` measures what it loses). At 0.7 and 0.8, it
lost a sixth of tap-tiny's regions."""

MOST_OVERLAP = 0.8
"""Above this `crops_nms_thresh`, regions that are nearly the same are all wanted, and no point settles another."""


def is_screened(features: ImageFeatures, options: EverythingOptions) -> bool:
    """Whether a search begins with a screen: its result would be nearly the same, and the picture can be halved."""
    is_strict = (
        options.pred_iou_thresh >= LEAST.pred_iou_thresh
        and options.stability_score_thresh >= LEAST.stability_score_thresh
    )
    return is_strict and not options.thorough and features.embeddings.shape[-1] % 2 == 0


class PointScreen:
    """The points that are still worth asking about, after what has been found so far."""

    def __init__(
        self, decoder: RegionDecoder, features: ImageFeatures, prepared: dict[str, Tensor], options: EverythingOptions
    ) -> None:
        """Ask all `prepared` points of one picture at half resolution."""
        half = replace(features, embeddings=F.avg_pool2d(features.embeddings, 2))
        scores, tokens, experts = [], [], []
        for rows in torch.arange(len(prepared["image_index"])).split(decoder.batch_size):
            output = decoder.run(half, prepared, rows, output_masks=False)
            answer = torch.arange(len(rows)), output.expert
            scores.append(output.iou_scores[answer])
            tokens.append(output.semantic_tokens[answer].float())
            experts.append(output.expert)
        places = prepared["input_points"][:, 0].to(decoder.device) / decoder.model.config.image_size
        self.begin(torch.cat(scores), torch.cat(tokens), torch.cat(experts), places, options)

    def begin(
        self, scores: Tensor, tokens: Tensor, experts: Tensor, places: Tensor, options: EverythingOptions
    ) -> None:
        """Start from points' answers, scores and experts (P,), tokens (P, D), and places (P, 2), 0 … 1 over the model frame."""
        self.scores, self.experts, self.places = scores, experts, places
        self.tokens = F.normalize(tokens - tokens.mean(dim=0), dim=1)
        self.threshold, self.joins = options.pred_iou_thresh, options.crops_nms_thresh <= MOST_OVERLAP
        order = scores.argsort(descending=True, stable=True)
        promising = int((scores >= self.threshold - SLACK).sum())
        self.waiting = order[: max(1, promising)]  # one point is always asked, so that the search has an answer
        self.first = self._different(self.waiting) if self.joins else self.waiting

    def take(self, count: int) -> Tensor:
        """The next points to ask about, at most `count`: (N,), best first; none when the search is done."""
        rows, self.first = (self.first if len(self.first) else self.waiting)[:count], self.first[count:]
        self.waiting = self.waiting[~torch.isin(self.waiting, rows)]
        return rows

    def learn(self, rows: Tensor, scores: Tensor, passes: Tensor, masks: Tensor) -> None:
        """Leave out points that are settled by what points `rows` (N,) have found at full resolution.

        scores (N,); passes (N,): which of them found a region; masks (M, h, w) of those M: boolean, over the model frame.
        """
        if not self.joins or not len(self.waiting):
            return
        alike = self._alike(rows, self.waiting)
        size = torch.tensor(masks.shape[:0:-1], device=masks.device)
        boxes = boxes_of_masks(masks)[:, None] / torch.cat([size, size])
        places = self.places[self.waiting]
        within = alike.new_zeros(alike.shape)
        within[passes] = ((places >= boxes[..., :2]) & (places <= boxes[..., 2:])).all(dim=-1)
        likely = self.scores[self.waiting] + (scores - self.scores[rows])[:, None]
        hopeless = (scores < self.threshold)[:, None] & (likely < self.threshold - SURELY_WORSE)
        self.waiting = self.waiting[~(alike & (within | hopeless)).any(dim=0)]

    def _alike(self, rows: Tensor, others: Tensor) -> Tensor:
        same = self.experts[rows][:, None] == self.experts[others]
        return same & (self.tokens[rows] @ self.tokens[others].T > ALIKE)

    def _different(self, rows: Tensor) -> Tensor:
        """Of rows, best first, those that are like none before them."""
        found = []
        while len(rows):
            found.append(rows[:1])
            rows = rows[1:][~self._alike(rows[:1], rows[1:])[0]]
        return torch.cat(found) if found else rows
