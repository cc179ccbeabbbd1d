"""`EverythingOptions`: how a picture is searched, named and by default set as in transformers' mask-generation pipeline.

This module does not import torch, so that a command can show its flags quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class EverythingOptions:
    """How a picture is searched.

    points_per_crop: points along each side of the grid over the picture; over the crops of layer n, that number divided
    by crop_n_points_downscale_factor to the power n.
    crops_n_layers: layers of crops beside the whole picture; layer n cuts each side in 2ⁿ. Neighbours of layer 1 share
    crop_overlap_ratio of the picture's shorter side, those of layer n 2ⁿ⁻¹ times less.
    pred_iou_thresh, stability_score_thresh: masks below either are dropped. The stability score is the IoU of the mask
    with itself when it is cut at logits stability_score_offset above and below zero.
    crops_nms_thresh: if two masks have a larger IoU than this, only the one with the higher predicted IoU is kept.
    min_mask_region_area: specks and holes of fewer pixels are removed; 0 leaves masks as they are.
    thorough: ask all points about the picture at full resolution. Otherwise, they are asked at half the resolution first, and
    those that promise nothing, or nothing new, are left out, which takes about half of the time and rarely loses a region; but
    not if either threshold is below its default, because more would be lost then.
    """

    points_per_crop: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    crops_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    crops_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    thorough: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("points_per_crop", 1, 512),  # a million points are a night on a CPU
            ("crop_n_points_downscale_factor", 1, 512),
            ("crops_n_layers", 0, 6),  # 5,461 pictures to encode
            ("min_mask_region_area", 0, 2**40),
            ("stability_score_offset", 0, 1000),
        ):
            is_count = name != "stability_score_offset"
            if not isinstance(getattr(self, name), Integral if is_count else Real):
                kind = "a whole number" if is_count else "a number"
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {kind}.")
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} … {most}.")
        for name in ("pred_iou_thresh", "stability_score_thresh", "crop_overlap_ratio", "crops_nms_thresh"):
            if not isinstance(getattr(self, name), Real) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 … 1.")

        if not isinstance(self.thorough, bool):
            raise ValueError(f"thorough is {self.thorough!r}, expected True or False.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EverythingOptions:
        """Options from a call's keyword arguments. Raises `TypeError` for an unknown name."""
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in options if name not in names]:
            raise TypeError(
                f"encode_everything got unknown options {', '.join(unknown)}: expected some of {', '.join(names)}."
            )
        return cls(**options)

    def points_per_side(self, layer: int) -> int:
        """Points along each side of the grid over a crop of a layer; layer 0 is the picture."""
        return max(1, int(self.points_per_crop / self.crop_n_points_downscale_factor**layer))
