"""Describes regions in words: what TAP says about them, in sentences that any instruct language model can read.

This needs no projector and no training. The sentences are those after which a small model answers best: what is sure and
nothing else, no numbers, and the question comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tap_tokenizer import RegionTokens, TapRegionTokenizer

PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
"""The nine parts of a picture cut into thirds, row by row."""

MIN_OVERLAP = 0.02
"""Overlaps with a smaller IoU are not mentioned."""

SMALL_PART, LARGE_PART = 0.04, 0.12
"""Shares of a picture: boxes below the first are said to take up a small part of it, from the second on a large one."""

_ARTICLES = ("a", "an", "the")

SURE = 0.5
"""Concepts of at least this score are said to be what a region shows; of others, the best two, to be what it may be."""


@dataclass
class RegionBaseline:
    """What TAP itself says about one region: its caption (None without a vocabulary) and its best concepts."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]] = field(default_factory=list)


def baselines(tokenizer: TapRegionTokenizer, regions: RegionTokens, top_k: int) -> list[RegionBaseline]:
    """What TAP itself says about region1, region2, …, each with at most `top_k` concepts; none without a concept bank."""
    captions = tokenizer.caption(regions) if tokenizer.text_tokenizer is not None else [None] * len(regions)
    concepts = tokenizer.classify(regions, top_k) if tokenizer.concepts is not None else [[] for _ in captions]
    return [RegionBaseline(f"region{i}", c, best) for i, (c, best) in enumerate(zip(captions, concepts), start=1)]


@dataclass(frozen=True)
class RegionDescription:
    """What is known about one region: name, caption (None if unknown), concepts with scores, and box xyxy in pixels."""

    name: str
    caption: str | None
    concepts: list[tuple[str, float]] = field(default_factory=list)
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def kind(self) -> str | None:
        """The concept that it surely is, without an article; None if there is none."""
        if not self.concepts or self.concepts[0][1] < SURE:
            return None
        words = self.concepts[0][0].split()
        return " ".join(words[1:] if words[0].lower() in _ARTICLES and len(words) > 1 else words)

    @property
    def thing(self) -> str | None:
        """The kind of thing that it is, with an article ("a cat"), or else its caption; None if neither is known."""
        caption = (self.caption or "").strip().rstrip(".")
        return caption or None if self.kind is None else _with_article(self.kind)


def place_of_box(box: Sequence[float], size: tuple[int, int]) -> str:
    """Which of the nine parts of a picture of (height, width) `size` contains the middle of a box xyxy."""
    height, width = size
    column = min(2, max(0, int(3 * (box[0] + box[2]) / 2 / width)))
    row = min(2, max(0, int(3 * (box[1] + box[3]) / 2 / height)))
    return PLACES[3 * row + column]


def place_in_words(place: str, picture: str = "the picture") -> str:
    """One of `PLACES`, as it is said: "at the top left of the picture"."""
    return f"{'in' if place == 'center' else 'at'} the {place} of {picture}"


def describe_regions(
    regions: Sequence[RegionDescription],
    size: tuple[int, int],
    earlier: Sequence[RegionDescription] = (),
    picture: str = "the picture",
) -> str:
    """A line for each region of a picture of (height, width) `size`, and one for each pair that overlaps.

    earlier: regions of the same picture that were described before. Only their overlaps with the new ones are mentioned.
    picture: what to call it.

    >>> describe_regions([RegionDescription("region1", "a red umbrella", [], (0, 0, 10, 10))], (100, 100))
    'region1 is a red umbrella. It is at the top left of the picture and takes up a small part of it.'
    """
    lines = [f"{_what_it_is(region)} {_where_it_is(region, size, picture)}" for region in regions]
    for i, b in enumerate(regions):
        for a in (*earlier, *regions[:i]):
            if box_iou(a.box, b.box) >= MIN_OVERLAP:
                lines.append(f"{a.name} and {b.name} overlap.")
    return "\n".join(lines)


def _what_it_is(region: RegionDescription) -> str:
    """The caption; the surest concept, where the caption does not name it; without either, what it may be."""
    kind, caption = region.kind, (region.caption or "").strip().rstrip(".")
    if caption and (kind is None or kind.lower() in caption.lower()):
        return f"{region.name} is {caption}."
    if caption and kind:
        return f"{region.name} is {caption}. It looks like {_with_article(kind)}."
    if kind is not None:
        return f"{region.name} is {_with_article(kind)}."
    if region.concepts:
        return f"{region.name} may be {' or '.join(_with_article(name) for name, _ in region.concepts[:2])}."
    return f"It is not known what {region.name} is."


def _where_it_is(region: RegionDescription, size: tuple[int, int], picture: str) -> str:
    place = place_of_box(region.box, size)
    x1, y1, x2, y2 = region.box
    share = (x2 - x1) * (y2 - y1) / (size[0] * size[1])
    part = "a small part" if share < SMALL_PART else "some" if share < LARGE_PART else "a large part"
    return f"It is {place_in_words(place, picture)} and takes up {part} of it."


def _with_article(name: str) -> str:
    if name.split(" ")[0].lower() in _ARTICLES:
        return name
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes xyxy."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0
