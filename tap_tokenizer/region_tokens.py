"""`RegionTokens`: what the region tokenizer says about R regions, as one value that can be indexed, joined, moved and
saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .coco_masks import mask_to_rle
from .detections import as_detections
from .foreign_files import check_regular_file
from .output_files import save_tensors
from .weight_files import damage_told

FORMAT = "tap-region-tokens-1"

MaskSource: TypeAlias = "Callable[[list[int]], list[Tensor]]"
"""Rows of one `encode` call → their masks (H, W), booleans."""


@dataclass(frozen=True)
class PendingMask:
    """A mask that has not been computed yet: row `row` of a call whose masks `source` can compute."""

    source: MaskSource
    row: int


@dataclass(frozen=True, eq=False)
class RegionTokens:
    """R regions of B pictures, with K experts each (K = 4 in every published TAP).

    semantic_tokens (R, K, D): a token per expert, what the caption decoder and a language model read.
    semantic_embeds (R, K, E): the same in the space of the concept bank.
    iou_scores (R, K): the IoU that each expert predicts for its mask, float32. It may lie slightly outside 0 … 1.
    expert (R,): the expert that answers the region's prompt.
    boxes (R, 4): xyxy in pixels of the original picture: the prompt's box, clipped to the picture, or else exactly the box
    around the predicted mask; the whole picture if that mask is empty.
    image_index (R,): the picture of each region; image_sizes (B, 2): height and width of each picture.
    fingerprint: which tokenizer's weights made these tokens.
    """

    semantic_tokens: Tensor
    semantic_embeds: Tensor
    iou_scores: Tensor
    expert: Tensor
    boxes: Tensor
    image_index: Tensor
    image_sizes: Tensor
    fingerprint: str
    mask_parts: list[Tensor | PendingMask | None] = field(default_factory=list, repr=False)
    """For each region its mask (H, W), what can compute it, or None if it was not kept."""

    def __post_init__(self) -> None:
        if not self.mask_parts and len(self):
            object.__setattr__(self, "mask_parts", [None] * len(self))

    def __len__(self) -> int:
        return len(self.semantic_tokens)

    def __repr__(self) -> str:
        return (
            f"RegionTokens({len(self)} region{'s' * (len(self) != 1)} of {self.num_images} "
            f"image{'s' * (self.num_images != 1)}, experts={self.semantic_tokens.shape[1]}, "
            f"width={self.semantic_tokens.shape[2]}, fingerprint={self.fingerprint!r})"
        )

    @property
    def num_images(self) -> int:
        return len(self.image_sizes)

    @property
    def tokens(self) -> Tensor:
        """The semantic token of the answering expert, (R, D)."""
        return self._routed(self.semantic_tokens)

    @property
    def embeds(self) -> Tensor:
        """The semantic embedding of the answering expert, (R, E)."""
        return self._routed(self.semantic_embeds)

    @property
    def scores(self) -> Tensor:
        """The IoU score of the answering expert, (R,)."""
        return self._routed(self.iou_scores)

    @property
    def quality(self) -> Tensor:
        """`scores` clipped to 0 … 1, (R,), to be shown to users."""
        return self.scores.clamp(0, 1)

    def _routed(self, values: Tensor) -> Tensor:
        return values[torch.arange(len(self), device=values.device), self.expert]

    @property
    def masks(self) -> Tensor:
        """Masks (R, H, W), booleans of the original picture's size, computed when they are first read.

        Raises `ValueError` if the regions' pictures differ in size (take one picture at a time with `of_image`), or if
        the tokens were saved or moved to another process without masks.
        """
        sizes = {tuple(size) for size in self.image_sizes[self.image_index.to(self.image_sizes.device)].tolist()}
        if len(sizes) > 1:
            raise ValueError(
                f"Got regions of pictures of {len(sizes)} sizes, whose masks have no common shape: "
                "read regions.of_image(i).masks for one picture at a time."
            )
        if not len(self):
            height, width = next(iter(self.image_sizes.tolist()), (0, 0))
            return torch.zeros(0, height, width, dtype=torch.bool)
        self._compute_masks()
        return torch.stack([part for part in self.mask_parts if isinstance(part, Tensor)])

    def coco_rle(self) -> list[dict[str, list[int]]]:
        """Each region's mask as COCO's uncompressed RLE: {"size": [height, width], "counts": [run lengths]}.

        Masks are computed if they have not been yet, and pictures may differ in size. Errors as for `masks`.
        """
        self._compute_masks()
        return [mask_to_rle(part.cpu()) for part in self.mask_parts if isinstance(part, Tensor)]

    def to_detections(
        self,
        detections: Any = None,
        *,
        concepts: Sequence[Sequence[tuple[str, float]]] | None = None,
        vocabulary: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        with_masks: bool = True,
    ) -> Any:
        """The regions of one picture as supervision's `Detections`, which annotators, trackers and robots' programs read.

        xyxy are `boxes`, mask is `masks` (unless `with_masks` is False), confidence is `quality`. `data` has
        "region_embedding" (R, E), float32, and "mask_quality" (R,), the predicted IoU.
        detections: what was given to `encode`; its confidence, class_id, tracker_id and data are kept.
        concepts: what `classify` gave. The best become "class_name", all of them "concepts"; class names of the detector
        move to "detector_class_name". vocabulary: the names that they were chosen from, whose places are the class ids: your
        own words, or `tokenizer.concepts.names`. Without it, class_id is None, since no numbers would mean the same in every
        picture.
        captions: what `caption` gave, as "caption".

        Raises `ImportError` without supervision, `ValueError` for regions of several pictures (take one at a time with
        `of_image`) or lists of another length.
        """
        if self.num_images != 1:
            raise ValueError(
                f"Got regions of {self.num_images} pictures, expected one: take regions.of_image(i).to_detections()."
            )
        columns: dict[str, Any] = {
            "xyxy": self.boxes.float().cpu().numpy(),
            "mask": self.masks.cpu().numpy() if with_masks else None,
            "quality": self.quality.float().cpu().numpy(),
            "embedding": self.embeds.float().cpu().numpy(),
        }
        return as_detections(columns, detections, concepts=concepts, vocabulary=vocabulary, captions=captions)

    def _compute_masks(self) -> None:
        if any(part is None for part in self.mask_parts):
            raise ValueError("These region tokens were kept without masks: encode again, or save with_masks=True.")
        pending: dict[int, list[int]] = {}
        for i, part in enumerate(self.mask_parts):
            if isinstance(part, PendingMask):
                pending.setdefault(id(part.source), []).append(i)
        for places in pending.values():
            parts = [part for part in (self.mask_parts[i] for i in places) if isinstance(part, PendingMask)]
            for i, mask in zip(places, parts[0].source([part.row for part in parts])):
                self.mask_parts[i] = mask.to(self.boxes.device)

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray) -> RegionTokens:
        """Some of the regions, as `RegionTokens` again; a single number gives one region."""
        places = self._places(index)
        rows = {name: getattr(self, name)[places.to(getattr(self, name).device)] for name in _PER_REGION}
        return replace(self, **rows, mask_parts=[self.mask_parts[i] for i in places.tolist()])

    def _places(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray) -> Tensor:
        """The numbers of the regions that an index stands for."""
        if not isinstance(index, (int, slice)) and np.ndim(index) == 0:
            index = int(index)  # type: ignore[arg-type]  # a number of NumPy's or torch's
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Got region {index} of {len(self)}.")
            index = [index]
        return torch.arange(len(self))[index if isinstance(index, slice) else _as_index(index)]

    def of_image(self, index: int) -> RegionTokens:
        """The regions of one picture, which becomes number 0."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"Got image {index} of {self.num_images}.")
        regions = self[(self.image_index == index).cpu()]
        return replace(
            regions,
            image_index=torch.zeros_like(regions.image_index),
            image_sizes=self.image_sizes[index : index + 1],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RegionTokens], *, same_images: bool = False) -> RegionTokens:
        """Join regions. The pictures of each part are counted after those of the parts before it.

        With `same_images`, all parts are about the same pictures, and the pictures keep their numbers.
        """
        if not parts:
            raise ValueError("Got no region tokens to concatenate, expected at least one.")
        prints = {part.fingerprint for part in parts}
        if len(prints) > 1:
            raise ValueError(
                f"Got tokens of different tokenizers ({', '.join(sorted(prints))}): encode them all with one."
            )
        if same_images and any(not torch.equal(p.image_sizes, parts[0].image_sizes) for p in parts):
            raise ValueError("Got same_images=True and parts whose pictures differ in number or size.")
        offsets = np.cumsum([0, *(0 if same_images else part.num_images for part in parts)])
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _PER_REGION}
        joined["image_index"] = torch.cat([p.image_index + int(offset) for p, offset in zip(parts, offsets)])
        sizes = parts[0].image_sizes if same_images else torch.cat([part.image_sizes for part in parts])
        masks = [mask for part in parts for mask in part.mask_parts]
        return cls(**joined, image_sizes=sizes, fingerprint=parts[0].fingerprint, mask_parts=masks)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> RegionTokens:
        """The same regions on another device; `dtype` changes tokens and embeddings, not scores or boxes."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device=device) for name in (*_PER_REGION, "image_sizes")}
        for name in ("semantic_tokens", "semantic_embeds"):
            moved[name] = moved[name].to(dtype=dtype)
        masks = [part.to(device=device) if isinstance(part, Tensor) else part for part in self.mask_parts]
        return replace(self, **moved, mask_parts=masks)

    def without_masks(self) -> RegionTokens:
        """The same regions, without their masks and without what would compute them: the picture's embeddings and the model."""
        return replace(self, mask_parts=[None] * len(self))

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process or a file: masks that have been computed, but not the model that computes the
        others.
        """
        return {**vars(self), "mask_parts": [part if isinstance(part, Tensor) else None for part in self.mask_parts]}

    def save(self, path: str | Path, *, with_masks: bool = False) -> None:
        """Write one safetensors file, completely or not at all; masks, packed to bits, only on request."""
        path = Path(path)
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent}: make it first.")
        tensors = {name: getattr(self, name).cpu().contiguous() for name in (*_PER_REGION, "image_sizes")}
        if with_masks and len(self):
            self._compute_masks()
            flat = [part.cpu().numpy().reshape(-1) for part in self.mask_parts if isinstance(part, Tensor)]
            tensors["masks_packed"] = torch.from_numpy(np.packbits(np.concatenate(flat)))
        metadata = {"format": FORMAT, "fingerprint": json.dumps(self.fingerprint)}
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> RegionTokens:
        """Read what `save` wrote. `ValueError` says what is wrong with any other file."""
        check_regular_file(path)
        with damage_told(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} holds no region tokens: expected a file that RegionTokens.save wrote.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            fingerprint = json.loads(metadata.get("fingerprint", "null"))
        packed = tensors.pop("masks_packed", None)
        if not isinstance(fingerprint, str):
            raise ValueError(f"{path} does not say which region tokenizer made it: encode the regions again.")
        _check_tensors(tensors, packed, path)
        regions = cls(**tensors, fingerprint=fingerprint)
        if packed is not None:
            bits, start = np.unpackbits(packed.numpy()), 0
            for i, (height, width) in enumerate(regions.image_sizes[regions.image_index].tolist()):
                piece = bits[start : start + height * width].reshape(height, width).astype(bool)
                regions.mask_parts[i] = torch.from_numpy(piece)
                start += height * width
        return regions


_SHAPES = {
    "semantic_tokens": "RKD", "semantic_embeds": "RKE", "iou_scores": "RK", "expert": "R", "boxes": ("R", 4),
    "image_index": "R", "image_sizes": ("B", 2),
}  # fmt: skip
"""What a file holds, by axes: the same letter is the same number everywhere."""


def _check_tensors(tensors: dict[str, Tensor], packed: Tensor | None, path: str | Path) -> None:
    """Refuse tensors whose names, types, shapes or indices are not those of regions."""
    if set(tensors) != set(_SHAPES):
        lacking, surplus = sorted(set(_SHAPES) - set(tensors)), sorted(set(tensors) - set(_SHAPES))
        raise ValueError(f"{path} lacks {lacking} and has unexpected {surplus}, expected {', '.join(_SHAPES)}.")
    axes: dict[Any, int] = {4: 4, 2: 2}
    for name, shape in _SHAPES.items():
        tensor, is_number = tensors[name], name in ("expert", "image_index", "image_sizes")
        fits = tensor.ndim == len(shape) and all(axes.setdefault(a, n) == n for a, n in zip(shape, tensor.shape))
        if not fits or (tensor.dtype != torch.int64 if is_number else not tensor.is_floating_point()):
            raise ValueError(
                f"{path} holds {name} of shape {tuple(tensor.shape)} and type {tensor.dtype}, which does not fit the "
                "rest: encode the regions again."
            )
    for name, limit in (("expert", axes["K"]), ("image_index", axes["B"])):
        if ((tensors[name] < 0) | (tensors[name] >= limit)).any():
            raise ValueError(f"{path} holds {name} {tensors[name].tolist()!r:.60}, expected 0 to {limit - 1}.")
    if (tensors["image_sizes"] < 1).any():
        raise ValueError(
            f"{path} holds a picture without pixels: image_sizes is {tensors['image_sizes'].tolist()!r:.60}."
        )
    sizes = tensors["image_sizes"][tensors["image_index"]].tolist() if packed is not None else []
    if packed is not None and (packed.dtype != torch.uint8 or packed.ndim != 1
                               or len(packed) != -(-sum(h * w for h, w in sizes) // 8)):  # fmt: skip
        raise ValueError(f"{path} holds masks whose size differs from its pictures': encode the regions again.")


def _as_index(index: Any) -> Tensor:
    index = torch.as_tensor(index).cpu()
    return index if index.numel() else index.long()  # an empty list comes as floats


_PER_REGION = ("semantic_tokens", "semantic_embeds", "iou_scores", "expert", "boxes", "image_index")
assert {*_PER_REGION, "image_sizes", "fingerprint", "mask_parts"} == {f.name for f in fields(RegionTokens)}
