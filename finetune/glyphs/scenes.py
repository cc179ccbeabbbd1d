"""GlyphScenes: a procedural world of pictures in which everything about every region is known.

Scene n of a split and seed is always the same scene: nameable glyphs of the DejaVu Sans font in ten colours and three
sizes, turned, lightly textured, shaded and overlapping, on varied backgrounds. Geometry is drawn from NumPy's frozen
`RandomState` and lives in units of the picture's long side, so one scene can be rendered at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tap_tokenizer import box_of_mask

VERSION = "1.0"

KINDS: dict[str, str] = {
    "airplane": "\u2708", "anchor": "\u2693", "arrow": "\u27a1", "asterisk": "\u2731", "bishop": "\u265d",
    "burst": "\u2739", "cloud": "\u2601", "club": "\u2663", "crescent": "\u262a", "diamond": "\u2666",
    "die": "\u2684", "envelope": "\u2709", "face": "\u263b", "flag": "\u2691", "flask": "\u2697",
    "flower": "\u273f", "gear": "\u2699", "hammer": "\u2692", "hand": "\u261b", "heart": "\u2665",
    "king": "\u265a", "knight": "\u265e", "note": "\u266b", "pawn": "\u265f", "pen": "\u2712",
    "plus": "\u271a", "queen": "\u265b", "rook": "\u265c", "scissors": "\u2702", "shamrock": "\u2618",
    "snowflake": "\u2744", "spade": "\u2660", "spark": "\u2726", "star": "\u2605", "sun": "\u2600",
    "telephone": "\u260e", "tick": "\u2714", "umbrella": "\u2602", "wheel": "\u2638", "wheelchair": "\u267f",
}  # fmt: skip
"""The forty kinds and their characters."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38), "orange": (244, 128, 22), "yellow": (246, 216, 40), "green": (44, 150, 58),
    "cyan": (58, 205, 214), "blue": (38, 78, 206), "purple": (122, 48, 170), "pink": (246, 138, 190),
    "white": (247, 247, 244), "black": (24, 24, 28),
}  # fmt: skip
"""The ten colours and their RGB centres; every object's own colour lies near its centre."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.14, 0.17), "medium": (0.215, 0.26), "large": (0.32, 0.39)}
"""The three sizes: the range of a glyph's longer side before turning, in units of the picture's long side."""

SIZE_BORDERS = {"small": 0.191, "medium": 0.288}
"""Upper bounds of the extent of small and medium objects that are shown at another scale; larger ones are large. Each is the
geometric mean of the end of one range of `SIZES` and the beginning of the next."""

CROWDED_SIZES: dict[str, tuple[float, float]] = {"small": (0.11, 0.15), "medium": (0.19, 0.235)}
TEXTURES = ("plain", "plain", "stripes", "dots", "gradient")
BACKGROUNDS = ("gradient", "clouds", "stripes", "checks", "dots", "patches")
ASPECTS = ((1.0, 1.0), (1.0, 0.75), (0.75, 1.0))  # width and height in units of the long side

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (kind, list(COLOURS)[(3 * i + i // 10) % len(COLOURS)]) for i, kind in enumerate(KINDS)
)
"""The (kind, colour) pairs, one per kind and four per colour, that only `test-compositional` shows."""


@dataclass(frozen=True)
class Split:
    """What sets one split apart: how many objects, how large, which pairs, how tightly they lie, and at what least scale."""

    code: int
    counts: tuple[int, int] = (3, 8)
    held_out: bool = False
    spacing: float = 0.34
    crowded: bool = False
    least_scale: float = 1.0


SPLITS: dict[str, Split] = {
    "train": Split(0),
    "val": Split(1),
    "test": Split(2),
    "test-compositional": Split(3, held_out=True),
    "test-crowded": Split(4, counts=(9, 14), spacing=0.25, crowded=True),
    "train-packed": Split(5, counts=(30, 30)),  # as train, but full to the brim: more to learn from each picture
    "train-scaled": Split(6, counts=(30, 30), least_scale=0.7),  # train-packed with scale jitter
}


@dataclass(frozen=True)
class GlyphObject:
    """One glyph. Positions and extent are in units of the picture's long side, from its top left corner."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    extent: float
    degrees: float
    rgb: tuple[int, int, int]
    texture: str
    texture_seed: int
    has_shadow: bool


@dataclass(frozen=True)
class GlyphScene:
    """One picture before it is drawn; `objects` are in drawing order, later ones in front."""

    split: str
    seed: int
    index: int
    width: float
    height: float
    background: str
    background_seed: int
    objects: tuple[GlyphObject, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}-{self.index:06d}"


@dataclass(frozen=True)
class GlyphPicture:
    """A drawn scene: RGB bytes (H, W, 3), visible masks (N, H, W) and their boxes (N, 4) xyxy in pixels."""

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray

    @property
    def visible(self) -> list[int]:
        """Numbers of the objects that can be seen, at least in part."""
        return np.flatnonzero(self.masks.any(axis=(1, 2))).tolist()


def make_scene(index: int, split: str = "train", seed: int = 0) -> GlyphScene:
    """Scene `index` of a split and seed: the same on every machine and with every version of every library."""
    if split not in SPLITS:
        raise ValueError(f"Got split {split!r}, expected one of {', '.join(SPLITS)}.")
    if index < 0 or seed < 0:
        raise ValueError(f"Got index {index} and seed {seed}, expected neither to be negative.")
    rules = SPLITS[split]
    random = np.random.RandomState([rules.code, seed, index])
    width, height = ASPECTS[random.randint(len(ASPECTS))]
    background, background_seed = BACKGROUNDS[random.randint(len(BACKGROUNDS))], random.randint(2**31 - 1)
    sizes = CROWDED_SIZES if rules.crowded else SIZES
    objects: list[GlyphObject] = []
    for _ in range(random.randint(rules.counts[0], rules.counts[1] + 1)):
        kind, colour = _draw_pair(random, rules.held_out, objects)
        size = list(sizes)[random.randint(len(sizes))]
        extent = random.uniform(*sizes[size])
        appearance: dict[str, Any] = {
            "degrees": random.uniform(-40, 40),
            "rgb": _vary_colour(COLOURS[colour], random),
            "texture": TEXTURES[random.randint(len(TEXTURES))],
            "texture_seed": random.randint(2**31 - 1),
            "has_shadow": bool(random.randint(2)),
        }
        place = _find_place(random, extent, width, height, objects, rules.spacing)
        if place is not None:
            objects.append(GlyphObject(kind, colour, size, *place, extent, **appearance))
    if not rules.crowded:  # small in front of large: nothing is hidden whole
        objects.sort(key=lambda o: -o.extent)
    if rules.least_scale < 1:
        objects = _scaled(objects, random, random.uniform(rules.least_scale, 1), width, height)
    return GlyphScene(split, seed, index, width, height, background, background_seed, tuple(objects))


def _draw_pair(random: np.random.RandomState, held_out: bool, others: list[GlyphObject]) -> tuple[str, str]:
    """Kind and colour; one in four of each repeats an object that is there already, so that things are shared."""
    while True:
        kind, colour = list(KINDS)[random.randint(len(KINDS))], list(COLOURS)[random.randint(len(COLOURS))]
        model = others[random.randint(len(others))] if others else None
        repeats_kind, repeats_colour = random.uniform(size=2) < 0.25
        if model is not None and repeats_kind:
            kind = model.kind
        elif model is not None and repeats_colour:
            colour = model.colour
        if ((kind, colour) in HELD_OUT_PAIRS) == held_out:
            return kind, colour


def _scaled(
    objects: list[GlyphObject], random: np.random.RandomState, scale: float, width: float, height: float
) -> list[GlyphObject]:
    """Make all objects smaller and nearer to each other by the same factor, somewhere in the picture, and rename
    sizes.
    """
    left, top = random.uniform(0, (1 - scale) * width), random.uniform(0, (1 - scale) * height)
    return [
        replace(
            o,
            x=left + scale * o.x,
            y=top + scale * o.y,
            extent=scale * o.extent,
            size=next((size for size, border in SIZE_BORDERS.items() if scale * o.extent < border), "large"),
        )
        for o in objects
    ]


def _vary_colour(rgb: tuple[int, int, int], random: np.random.RandomState) -> tuple[int, int, int]:
    light = random.uniform(0.88, 1.08)
    r, g, b = (int(np.clip(channel * light + random.uniform(-10, 10), 0, 255)) for channel in rgb)
    return r, g, b


def _find_place(
    random: np.random.RandomState,
    extent: float,
    width: float,
    height: float,
    others: list[GlyphObject],
    spacing: float,
) -> tuple[float, float] | None:
    """A centre inside the picture and not too near any other's, or None after sixty tries."""
    margin = 0.6 * extent
    for _ in range(60):
        x, y = random.uniform(margin, width - margin), random.uniform(margin, height - margin)
        if all(np.hypot(x - o.x, y - o.y) >= spacing * (extent + o.extent) for o in others):
            return x, y
    return None


# --- drawing ----------------------------------------------------------------------------------------------------------


LONGEST_SIDE = 4096
"""Pixels of the long side of a drawn scene, at most: drawing takes memory by its square."""


def draw_scene(scene: GlyphScene, long_side: int = 512) -> GlyphPicture:
    """Draw a scene so that its long side has `long_side` pixels.

    A mask holds the pixels that its object covers by more than half and that nothing in front covers; an object that
    is hidden whole has an empty mask and a box of zeros. Raises `ValueError` for a long side beyond `LONGEST_SIDE`.
    """
    if not 1 <= long_side <= LONGEST_SIDE:
        raise ValueError(f"The long side of a drawn scene is {long_side} pixels, expected 1 to {LONGEST_SIDE}.")
    width, height = round(scene.width * long_side), round(scene.height * long_side)
    canvas = _draw_background(scene, width, height, long_side)
    masks = np.zeros((len(scene.objects), height, width), dtype=bool)
    for number, glyph in enumerate(scene.objects):
        alpha, left, top = _place_glyph(glyph, long_side)
        if glyph.has_shadow:
            _blend_shadow(canvas, alpha, left, top, long_side)
        _blend(canvas, _paint_glyph(glyph, alpha, long_side), alpha, left, top)
        target, source = _overlap(masks.shape[1:], alpha.shape, left, top)
        covered = alpha[source] > 0.5
        masks[(slice(0, number), *target)] &= ~covered
        masks[(number, *target)] = covered
    image = np.clip(canvas + _grain(scene.background_seed, height, width), 0, 255).astype(np.uint8)
    return GlyphPicture(image, masks, np.array([box_of_mask(mask) for mask in masks], dtype=np.float32).reshape(-1, 4))


def font_path() -> Path:
    """The DejaVu Sans file that matplotlib ships."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _stencil(kind: str, side: int) -> Image.Image:
    """A kind's shape, cropped, its longer side `side` pixels."""
    font = ImageFont.truetype(str(font_path()), 2 * side)
    sheet = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(sheet).text((side, side // 2), KINDS[kind], font=font, fill=255)
    cropped = sheet.crop(sheet.getbbox())
    scale = side / max(cropped.size)
    return cropped.resize((round(cropped.width * scale), round(cropped.height * scale)), Image.Resampling.LANCZOS)


def _place_glyph(glyph: GlyphObject, long_side: int) -> tuple[np.ndarray, int, int]:
    """Coverage 0 … 1 of a turned glyph, and the pixel where its top left corner lies."""
    side = 2 * glyph.extent * long_side  # twice the size, for smooth edges after turning
    stencil = _stencil(glyph.kind, 1 << int(np.ceil(np.log2(side))))
    scale = side / max(stencil.size)
    size = max(2, round(stencil.width * scale)), max(2, round(stencil.height * scale))
    turned = stencil.resize(size, Image.Resampling.BOX).rotate(glyph.degrees, Image.Resampling.BILINEAR, expand=True)
    turned = turned.crop(turned.getbbox())
    left, top = round(2 * glyph.x * long_side - turned.width / 2), round(2 * glyph.y * long_side - turned.height / 2)
    sheet = Image.new("L", (2 * (turned.width // 2 + 2), 2 * (turned.height // 2 + 2)))
    sheet.paste(turned, (left % 2, top % 2))
    return np.asarray(sheet.reduce(2), dtype=np.float32) / 255, left // 2, top // 2


def _paint_glyph(glyph: GlyphObject, alpha: np.ndarray, long_side: int) -> np.ndarray:
    """Colour (h, w, 3) of a glyph: its own, modulated by a light texture and by shading towards the lower right."""
    height, width = alpha.shape
    x, y = (np.arange(n, dtype=np.float32) / np.float32(long_side) for n in (width, height))
    light = 1.05 - 0.1 * (y[:, None] + x) / (y[-1] + x[-1])
    random = np.random.RandomState(glyph.texture_seed)
    angle, period = random.uniform(0, np.pi), random.uniform(0.02, 0.04)
    along, across = _turned_axes(x, y, angle)
    if glyph.texture == "stripes":
        light = light * (1 + 0.10 * np.sign(np.sin(2 * np.pi * along / period)))
    elif glyph.texture == "dots":
        light = light * (1 - 0.18 * (np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period) > 0.35))
    elif glyph.texture == "gradient":
        light = light * (0.88 + 0.24 * (along - along.min()) / max(float(np.ptp(along)), 1e-6))
    base = np.array(glyph.rgb, dtype=np.float32)
    lift = 26 * (light - 1) if glyph.colour == "black" else 0  # black can only show light as a lift
    return base * light[..., None] + np.asarray(lift)[..., None]


def _blend(canvas: np.ndarray, paint: np.ndarray, alpha: np.ndarray, left: int, top: int) -> None:
    target, source = _overlap(canvas.shape[:2], alpha.shape, left, top)
    weight = alpha[source][..., None]
    canvas[target] += (paint[source] - canvas[target]) * weight


def _blend_shadow(canvas: np.ndarray, alpha: np.ndarray, left: int, top: int, long_side: int) -> None:
    blur = long_side / 80
    pad = int(3 * blur)
    soft = Image.fromarray(np.pad(alpha * 110, pad).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    weight = np.asarray(soft, dtype=np.float32) / 255
    shift = round(long_side / 90)
    _blend(canvas, np.zeros((*weight.shape, 3), np.float32), weight, left - pad + shift, top - pad + shift)


def _overlap(
    frame: tuple[int, ...], patch: tuple[int, ...], left: int, top: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch at (left, top) lies in a frame, and which part of the patch that is."""
    y0, y1 = max(top, 0), min(top + patch[0], frame[0])
    x0, x1 = max(left, 0), min(left + patch[1], frame[1])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _draw_background(scene: GlyphScene, width: int, height: int, long_side: int) -> np.ndarray:
    """Muted middle tones (H, W, 3), so that every colour, white and black included, stands out."""
    random = np.random.RandomState(scene.background_seed)
    first, second = (_muted(random) for _ in range(2))
    x, y = (np.arange(n, dtype=np.float32) / np.float32(long_side) for n in (width, height))
    angle, period = random.uniform(0, np.pi), random.uniform(0.05, 0.14)
    along, across = _turned_axes(x, y, angle)
    if scene.background == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif scene.background == "stripes":
        mix = 0.3 + 0.25 * np.sign(np.sin(2 * np.pi * along / period))
    elif scene.background == "checks":
        mix = 0.3 + 0.25 * np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    elif scene.background == "dots":
        mix = 0.5 * (np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period) > 0.45)
    else:  # clouds and patches: smooth or cut random fields
        cells = random.uniform(0, 1, (7, 7)).astype(np.float32)
        field = Image.fromarray(cells, mode="F").resize((long_side, long_side), Image.Resampling.BICUBIC)
        mix = np.asarray(field)[:height, :width]
        mix = np.floor(np.clip(mix, 0, 0.999) * 4) / 4 if scene.background == "patches" else mix
    return (first + (second - first) * np.asarray(mix, dtype=np.float32)[..., None]).astype(np.float32)


def _turned_axes(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (h, w) along and across a direction, from those of columns (w,) and rows (h,)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + (sin * y)[:, None], (cos * y)[:, None] - sin * x


def _muted(random: np.random.RandomState) -> np.ndarray:
    grey = random.uniform(105, 185)
    return np.array([grey + random.uniform(-26, 26) for _ in range(3)], dtype=np.float32)


@lru_cache(maxsize=1)
def _grain_tile() -> np.ndarray:
    return np.random.RandomState(0).normal(0, 2.5, (256, 256, 1)).astype(np.float32)


def _grain(seed: int, height: int, width: int) -> np.ndarray:
    """Film grain (H, W, 1): one tile of noise, shifted by the seed and repeated."""
    tile = np.roll(_grain_tile(), (seed % 251, seed % 241), axis=(0, 1))
    return np.tile(tile, (-(-height // 256), -(-width // 256), 1))[:height, :width]
