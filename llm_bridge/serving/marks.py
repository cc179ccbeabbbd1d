"""What a user of an annotation tool has marked, and which regions that means: the same for every tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """What a user has marked on one picture: points on and off an object, and boxes, in its pixels."""

    points: Sequence[tuple[float, float]] = ()
    point_labels: Sequence[int] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()

    def regions(self) -> list[dict[str, object]]:
        """The regions they mean, as `RegionPrompt.read` reads them: points and one box are one region, boxes alone are several.

        `ValueError` for marks that mean no region, or that leave open to which box points belong.
        """
        if not self.points and not self.boxes:
            raise ValueError("Nothing is marked: mark a point or a rectangle first.")
        if not self.points:
            return [{"box": list(box)} for box in self.boxes]
        if len(self.boxes) > 1:
            raise ValueError(
                f"There are points and {len(self.boxes)} rectangles: mark points with one rectangle at most."
            )
        if not self.boxes and not any(self.point_labels):
            raise ValueError("All points are off the object: mark one on it, or a rectangle.")
        region: dict[str, object] = {
            "points": [list(xy) for xy in self.points],
            "point_labels": list(self.point_labels),
        }
        return [region | ({"box": list(self.boxes[0])} if self.boxes else {})]
