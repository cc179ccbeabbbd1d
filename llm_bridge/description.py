"""Describes regions in words: what TAP says about them, as text that any instruct language model can read.

This needs no projector and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The nine parts of a picture cut into thirds, row by row."""

MIN_OVERLAP = 0.02
"""Overlaps with a smaller IoU are not mentioned."""


@dataclass(frozen=True)
class RegionDescription:
    """What is known about one region: name, caption (None if unknown), concepts with scores, and box xyxy in pixels."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]] = field(default_factory=list)
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def place_of_box(box: Sequence[float], size: tuple[int, int]) -> str:
    """Which of the nine parts of a picture of (height, width) `size` contains the middle of a box xyxy."""
    height, width = size
    column = min(2, max(0, int(3 * (box[0] + box[2]) / 2 / width)))
    row = min(2, max(0, int(3 * (box[1] + box[3]) / 2 / height)))
    return PLACES[3 * row + column]


def describe_regions(
    regions: Sequence[RegionDescription],
    size: tuple[int, int],
    earlier: Sequence[RegionDescription] = (),
    title: str = "The picture",
) -> str:
    """One line for the picture of (height, width) `size`, one for each region, and one for each pair that overlaps.

    earlier: regions of the same picture that were described before. Only their overlaps with the new ones are mentioned.
    """
    height, width = size
    lines = [f"{title} is {width} pixels wide and {height} high."] if not earlier else []
    for region in regions:
        x1, y1, x2, y2 = region.box
        share = 100 * (x2 - x1) * (y2 - y1) / (width * height)
        parts = [region.caption] if region.caption else []
        if region.concepts:
            parts.append("looks like " + ", ".join(f"{name} ({score:.0%})" for name, score in region.concepts))
        parts.append(f"at the {place_of_box(region.box, size)}")
        parts.append(f"box {round(x1)} {round(y1)} {round(x2)} {round(y2)}")
        parts.append(f"{max(1, round(share))}% of the picture")
        lines.append(f"{region.name}: " + "; ".join(parts) + ".")
    for i, b in enumerate(regions):
        for a in (*earlier, *regions[:i]):
            if (overlap := box_iou(a.box, b.box)) >= MIN_OVERLAP:
                lines.append(f"{a.name} and {b.name} overlap (IoU {overlap:.2f}).")
    return "\n".join(lines)


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes xyxy."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0
