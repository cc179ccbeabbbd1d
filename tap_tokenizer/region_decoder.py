"""`RegionDecoder`: encoded pictures and prepared prompts → `RegionTokens`, a few regions at a time and without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .interruption import before_step
from .mask_boxes import boxes_of_masks
from .modeling_tap import TapModel
from .processing_tap import TapProcessor
from .region_tokens import PendingMask, RegionTokens

ANSWERS = ("semantic_tokens", "semantic_embeds", "iou_scores", "expert")
"""What the model says of each region, beside its masks."""


@contextmanager
def frozen(model: TapModel) -> Iterator[None]:
    """Evaluation mode without gradients, whatever mode someone has put the model in; the mode comes back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Encoded pictures, to be asked about many times.

    embeddings (B, D, G, G); original_sizes and reshaped_input_sizes (B, 2) as from `TapImageProcessor`; is_batch: whether
    a list of pictures was given, so that prompts are expected for each picture. fingerprint and encoder_precision: which
    weights encoded them, and in what.
    """

    embeddings: Tensor
    original_sizes: Tensor
    reshaped_input_sizes: Tensor
    is_batch: bool
    fingerprint: str
    encoder_precision: str = "float32"

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        sizes = [f"{width} × {height}" for height, width in self.original_sizes[:3].tolist()]
        more = ", …" if len(self) > 3 else ""
        count = f"{len(self)} image{'s' * (len(self) != 1)}"
        return f"ImageFeatures({count} of {', '.join(sizes)}{more} pixels, fingerprint={self.fingerprint!r})"

    def __getitem__(self, index: int) -> ImageFeatures:
        """The features of one picture, as a batch of one."""
        row = slice(index, index + 1) if index >= 0 else slice(len(self) + index, len(self) + index + 1)
        if not len(self.embeddings[row]):
            raise IndexError(f"Got image {index} of {len(self)}.")
        parts = (self.embeddings[row], self.original_sizes[row], self.reshaped_input_sizes[row])
        return replace(self, embeddings=parts[0], original_sizes=parts[1], reshaped_input_sizes=parts[2], is_batch=True)

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join the pictures of several calls into one batch."""
        if len({part.fingerprint for part in parts}) != 1:
            raise ValueError("Got features of different tokenizers, or none: embed the pictures with one.")
        if len({part.encoder_precision for part in parts}) != 1:
            raise ValueError("Got features in float32 and in int8: embed the pictures with one encoder_precision.")
        return cls(
            embeddings=torch.cat([part.embeddings for part in parts]),
            original_sizes=torch.cat([part.original_sizes for part in parts]),
            reshaped_input_sizes=torch.cat([part.reshaped_input_sizes for part in parts]),
            is_batch=True,
            fingerprint=parts[0].fingerprint,
            encoder_precision=parts[0].encoder_precision,
        )


class RegionDecoder:
    """Asks a model about regions of encoded pictures, at most `batch_size` of them at once."""

    def __init__(self, model: TapModel, processor: TapProcessor, *, fingerprint: str, batch_size: int) -> None:
        self.model, self.processor = model, processor
        self.fingerprint, self.batch_size = fingerprint, batch_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    def decode(self, features: ImageFeatures, prepared: dict[str, Tensor], with_masks: bool) -> RegionTokens:
        """Tokens of the regions that `TapProcessor.prepare_prompts` has `prepared`; masks now, or when they are asked for."""
        parts: dict[str, list[Tensor]] = {name: [] for name in (*ANSWERS, "boxes")}
        masks: list[Tensor | PendingMask | None] = []
        source = _MaskSource(self, features, prepared)
        count = len(prepared["image_index"])
        without_box = prepared["prompt_boxes"].isnan().any(dim=1)
        with frozen(self.model):
            for start in range(0, max(count, 1), self.batch_size):
                rows = torch.arange(start, min(start + self.batch_size, count))
                needs_masks = with_masks or bool(without_box[rows].any())
                output = self.run(features, prepared, rows, output_masks=needs_masks)
                box = prepared["prompt_boxes"][rows].to(self.device)
                if needs_masks:
                    routed = output.pred_masks[torch.arange(len(rows)), output.expert]
                    index = prepared["image_index"][rows]
                    lacking = without_box[rows].nonzero().squeeze(1)
                    if with_masks:
                        found = self.masks(routed, features, index)
                        masks += found
                        around = boxes_around([found[i] for i in lacking.tolist()], self.device)
                    else:
                        source.keep(rows[lacking], routed[lacking])
                        around = self.boxes_of_masks(routed[lacking], features, index[lacking])
                    box[lacking] = _or_whole_picture(around, features, index[lacking])
                for name in ANSWERS:
                    parts[name].append(output[name])
                parts["boxes"].append(box)
        return RegionTokens(
            **{name: torch.cat(values) for name, values in parts.items()},
            image_index=prepared["image_index"].to(self.device),
            image_sizes=features.original_sizes,
            fingerprint=self.fingerprint,
            mask_parts=masks or [PendingMask(source, row) for row in range(count)],
        )

    def run(
        self,
        features: ImageFeatures,
        prepared: dict[str, Tensor],
        rows: Tensor,
        output_masks: bool,
        mask_iou_thresh: float | None = None,
    ) -> Any:
        """The image decoder on some rows, as `TapModel.forward`; prompts of equal length need no mask."""
        before_step()
        mask = prepared["prompt_mask"][rows]
        longest = int(mask.sum(dim=1).max()) if len(rows) else mask.shape[1]
        mask = mask[:, :longest]
        return self.model(
            image_embeddings=features.embeddings.to(self.device, self.model.dtype),  # the model may have moved since
            input_points=prepared["input_points"][rows, :longest].to(self.device),
            input_labels=prepared["input_labels"][rows, :longest].to(self.device),
            prompt_mask=None if bool(mask.all()) else mask.to(self.device),
            image_index=prepared["image_index"][rows].to(self.device),
            output_masks=output_masks,
            mask_iou_thresh=mask_iou_thresh,
        )

    def masks(self, logits: Tensor, features: ImageFeatures, image_index: Tensor) -> list[Tensor]:
        """Mask logits (R, h, w) of the answering experts → a boolean mask of its picture's size for each."""
        masks = []
        for row, image in zip(logits, image_index.tolist()):
            original, reshaped = (
                s[image : image + 1] for s in (features.original_sizes, features.reshaped_input_sizes)
            )
            full = self.processor.image_processor.post_process_masks([row[None, None]], original, reshaped)
            masks.append(full[0][0, 0])
        return masks

    def boxes_of_masks(self, logits: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
        """Boxes (R, 4), in the user's pixels, around the masks that `masks` gives; zeros if one is empty."""
        boxes = torch.zeros(len(logits), 4, device=logits.device)
        for image in image_index.unique().tolist():
            mine = (image_index == image).nonzero().squeeze(1)
            sizes = features.original_sizes[image], features.reshaped_input_sizes[image]
            boxes[mine] = self.processor.image_processor.boxes_of_masks(logits[mine], *sizes).float()
        return boxes


def _or_whole_picture(boxes: Tensor, features: ImageFeatures, image_index: Tensor) -> Tensor:
    """Boxes (R, 4), with the whole picture where a mask is empty and has none."""
    sizes = features.original_sizes[image_index].to(boxes)
    whole = torch.cat([torch.zeros_like(sizes), sizes.flip(1)], dim=1)
    return torch.where(boxes.any(dim=1, keepdim=True), boxes, whole)


def boxes_around(masks: Sequence[Tensor], device: torch.device) -> Tensor:
    """Boxes (R, 4) around masks (H, W) of any sizes; zeros where one is empty."""
    found = [boxes_of_masks(mask[None]) for mask in masks]
    return torch.cat([torch.zeros(0, 4, dtype=torch.long, device=device), *found]).float()


class _MaskSource:
    """Computes masks of one `encode` call later: from logits that were kept, or by asking the image decoder again.

    Logits are kept where a region's box was read off them, for box and mask must agree to the pixel, and a decoder that is
    asked in other company rounds otherwise.
    """

    def __init__(self, decoder: RegionDecoder, features: ImageFeatures, prepared: dict[str, Tensor]) -> None:
        self.decoder, self.features, self.prepared = decoder, features, prepared
        self.logits: dict[int, Tensor] = {}

    def keep(self, rows: Tensor, logits: Tensor) -> None:
        """Keep mask logits (N, h, w) of the answering experts of some rows."""
        self.logits.update(zip(rows.tolist(), logits))

    def __call__(self, rows: list[int]) -> list[Tensor]:
        found = dict(self.logits)
        asked = [row for row in rows if row not in found]
        with frozen(self.decoder.model):
            for part in torch.tensor(asked, dtype=torch.long).split(self.decoder.batch_size):
                if len(part):
                    output = self.decoder.run(self.features, self.prepared, part, output_masks=True)
                    found |= zip(part.tolist(), output.pred_masks[torch.arange(len(part)), output.expert])
            logits = torch.stack([found[row].to(self.decoder.device) for row in rows])
            return self.decoder.masks(logits, self.features, self.prepared["image_index"][rows])
