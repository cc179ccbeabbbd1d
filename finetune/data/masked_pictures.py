"""Pictures whose regions have masks, concept vectors and captions, in TAP's model frame: what `pretrain_tap` learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from tap_tokenizer import TapImageProcessor

from ..glyphs.language import caption, concept_vector
from ..glyphs.scenes import draw_scene, make_scene


@dataclass
class MaskedPicture:
    """One picture: RGB bytes (H, W, 3), masks (N, H, W), and of each region its concept vector (E,) and caption."""

    image: np.ndarray
    masks: np.ndarray
    concepts: np.ndarray
    captions: list[str]


@dataclass
class MaskedBatch:
    """B pictures with R regions in all, in the model frame of side S with a mask grid of side M.

    pixel_values (B, 3, S, S); image_index (R,); boxes (R, 4) xyxy in pixels of the frame; masks (R, M, M): the share of
    each grid cell that the region covers, 0 … 1; concepts (R, E); captions: R strings.
    """

    pixel_values: Tensor
    image_index: Tensor
    boxes: Tensor
    masks: Tensor
    concepts: Tensor
    captions: list[str]

    def to(self, device: torch.device) -> MaskedBatch:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return MaskedBatch(**moved, captions=self.captions)

    def select(self, regions: Tensor) -> MaskedBatch:
        """The same pictures with these regions (N,) alone."""
        return MaskedBatch(
            pixel_values=self.pixel_values,
            image_index=self.image_index[regions],
            boxes=self.boxes[regions],
            masks=self.masks[regions],
            concepts=self.concepts[regions],
            captions=[self.captions[i] for i in regions.tolist()],
        )


class MaskedPictures(Dataset[MaskedBatch]):
    """Pictures of a source, one `MaskedBatch` of one picture each. Picture `index` depends on `index` alone."""

    def __init__(
        self,
        source: Callable[[int], MaskedPicture],
        indices: Sequence[int],
        image_processor: TapImageProcessor,
        mask_size: int,
    ) -> None:
        self.source = source
        self.indices = indices
        self.image_processor = image_processor
        self.mask_size = mask_size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> MaskedBatch:
        picture = self.source(self.indices[position])
        side = self.image_processor.image_size
        inputs = self.image_processor.preprocess(picture.image)
        height, width = inputs["reshaped_input_sizes"][0].tolist()
        full = torch.from_numpy(picture.masks).float().unsqueeze(1)
        if full.shape[2:] != (height, width):
            full = F.interpolate(full, (height, width), mode="area")
        full = F.pad(full, (0, side - width, 0, side - height)).squeeze(1)
        seen = full.sum(dim=(1, 2)) >= (side / self.mask_size) ** 2  # a region smaller than a cell teaches nothing
        full = full[seen]
        kept = seen.nonzero().squeeze(1).tolist()
        return MaskedBatch(
            pixel_values=inputs["pixel_values"],
            image_index=torch.zeros(len(kept), dtype=torch.long),
            boxes=boxes_of(full > 0.5),
            masks=F.adaptive_avg_pool2d(full, self.mask_size),
            concepts=torch.from_numpy(picture.concepts)[seen],
            captions=[picture.captions[i] for i in kept],
        )


def collate(pictures: Sequence[MaskedBatch]) -> MaskedBatch:
    """Batches of one picture → one batch."""
    offsets = np.cumsum([0, *(len(p.pixel_values) for p in pictures)])
    return MaskedBatch(
        pixel_values=torch.cat([p.pixel_values for p in pictures]),
        image_index=torch.cat([p.image_index + int(offset) for p, offset in zip(pictures, offsets)]),
        boxes=torch.cat([p.boxes for p in pictures]),
        masks=torch.cat([p.masks for p in pictures]),
        concepts=torch.cat([p.concepts for p in pictures]),
        captions=[c for p in pictures for c in p.captions],
    )


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes (R, 4) xyxy around boolean masks (R, H, W); zeros where a mask is empty."""
    columns, rows = masks.any(dim=1), masks.any(dim=2)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        n = line.shape[1]
        position = torch.arange(n, device=line.device)
        first = torch.where(line, position, n).amin(dim=1)
        last = torch.where(line, position + 1, 0).amax(dim=1)
        return torch.where(last > 0, first, 0), last

    (x1, x2), (y1, y2) = ends(columns), ends(rows)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


@dataclass(frozen=True)
class GlyphPictures:
    """GlyphScenes as a source, drawn at the model frame's size: scene `index` of a seed, from the splits in turn."""

    splits: tuple[str, ...]
    seed: int
    long_side: int

    def __call__(self, index: int) -> MaskedPicture:
        scene = make_scene(index, self.splits[index % len(self.splits)], self.seed)
        drawn = draw_scene(scene, self.long_side)
        captions = [caption(glyph) for glyph in scene.objects]
        return MaskedPicture(drawn.image, drawn.masks, np.stack([concept_vector(c) for c in captions]), captions)
