"""The style that all figures share: those of notebooks, documentation, benchmarks and reports.

A figure is drawn for a column of text: `COLUMN` inches wide at most, with no words smaller than `SMALL` points, so that
they are still read where the column is 700 pixels wide. What belongs to a region has the hue that the region has on
pictures, in a shade that stands on white paper; grey is what things are compared with.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
from matplotlib.rcsetup import cycler
from PIL import Image

from tap_tokenizer import region_colour

COLUMN = 7.2
"""Inches: the width of a column of text, and the most that a figure may have."""
NARROW = 6.0
"""Inches: the width of a notebook's figures, which fill the same column, so that their words are larger."""
PICTURE_DPI = 120
"""Dots per inch of figures that are mostly pictures, whose files are large."""
SMALL = 8.5
"""Points: the size of the smallest words."""
INK, GREY, PALE = "#23262e", "#6b7280", "#dfe2e8"
"""Of words, of what is compared with, and of lines that only guide the eye."""
RIGHT, WRONG = "#2f7d5b", "#b4493f"


def region_ink(index: int) -> str:
    """The hue of region `index` (see `region_colour`) as dark and as quiet as a line or a bar on white should be."""
    hue, _, _ = colorsys.rgb_to_hsv(*(part / 255 for part in region_colour(index)))
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55, 0.78)
    brightness = 0.21 * red + 0.72 * green + 0.07 * blue
    darker = min(1.0, 0.52 / brightness)  # yellow and green are brighter than red and blue of the same value
    return str(to_hex((darker * red, darker * green, darker * blue)))


SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", region_ink(1), "#1d2a5e"])
"""From none to all, for tables that are shown as colours."""

STYLE: dict[Any, Any] = {
    "figure.figsize": (COLUMN, 3.2),
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.hashsalt": "tap",  # the same figure gives the same file
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": cycler("color", [region_ink(i) for i in range(10)]),
    "grid.color": PALE,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "scatter.edgecolors": "none",
    "patch.linewidth": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.cmap": "viridis",
}


def styled() -> AbstractContextManager[None]:
    """Inside it, figures are drawn in the style."""
    return rc_context(STYLE)


def use_style() -> None:
    """Draw all figures of this process in the style; in a notebook, show them as sharp PNGs of one width."""
    rcParams.update(STYLE | {"figure.figsize": (NARROW, 3.0), "figure.dpi": 160})
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # no notebook
        return
    set_matplotlib_formats("png", bbox_inches=None)


def new_figure(height: float, width: float = COLUMN, **options: Any) -> Figure:
    """An empty figure of some inches, which no window shows; options: those of matplotlib's `Figure`."""
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def draw_panels(pictures: Sequence[Image.Image], titles: Sequence[str], columns: int = 2) -> Figure:
    """Pictures in rows of `columns`, each beneath its title, as wide as a notebook's figures; give them larger than shown."""
    gap, title = 0.14, 0.16 + 0.17 * (1 + max((words.count("\n") for words in titles), default=0))
    wide = (NARROW - gap * (columns - 1)) / columns
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [wide * max(picture.height / picture.width for picture in row) for row in rows]
    whole = sum(heights) + (title + gap) * len(rows) - gap
    figure, top, words = new_figure(whole, NARROW, layout="none", dpi=PICTURE_DPI), whole, iter(titles)
    for row, high in zip(rows, heights):
        top -= title
        for column, picture in enumerate(row):
            axes = _picture_axes(figure, picture, column * (wide + gap), top, wide)
            axes.set_title(next(words), pad=6)
        top -= high + gap
    return figure


def draw_beside(pictures: Sequence[Image.Image], lines: Sequence[Sequence[tuple[str, float, str]]]) -> Figure:
    """Each picture with lines at its right: words, their size in points, their colour. Names of regions have their own.

    Empty words make room. As wide as a notebook's figures.
    """
    gap, wide = 0.2, 0.47 * NARROW
    room = NARROW - wide - gap
    packed = [VPacker(children=[_packed(*line, room) for line in own], pad=0, sep=5) for own in lines]
    heights = [wide * picture.height / picture.width for picture in pictures]
    whole = sum(heights) + gap * (len(pictures) - 1)
    figure, top = new_figure(whole, NARROW, layout="none", dpi=PICTURE_DPI), whole
    for picture, own, high in zip(pictures, packed, heights):
        _picture_axes(figure, picture, 0, top, wide)
        axes = figure.add_axes(((wide + gap) / NARROW, (top - high) / whole, room / NARROW, high / whole))
        axes.set_axis_off()
        axes.add_artist(AnchoredOffsetbox("center left", child=own, pad=0, borderpad=0, frameon=False))
        top -= high + gap
    return figure


def _picture_axes(figure: Figure, picture: Image.Image, left: float, top: float, wide: float) -> Axes:
    """Axes that a picture fills; inches from the lower left corner of the figure."""
    width, height = figure.get_size_inches()
    high = wide * picture.height / picture.width
    axes = figure.add_axes((left / width, (top - high) / height, wide / width, high / height))
    axes.imshow(picture, interpolation="lanczos")
    axes.set_axis_off()
    return axes


def _packed(words: str, size: float, colour: str, room: float) -> VPacker:
    """Words in lines that are at most `room` inches wide."""
    lines = wrap(words, int(room * 72 / (0.6 * size))) or [" "]
    return VPacker(children=[_packed_line(line, size, colour) for line in lines], pad=0, sep=0.35 * size)


def _packed_line(line: str, size: float, colour: str) -> HPacker:
    spaced: list[Artist] = []
    for word in line.split():
        parts: list[Artist] = []
        for part in filter(None, re.split(r"(region\d+)", word)):
            named = re.fullmatch(r"region(\d+)", part)
            own = {"color": region_ink(int(named[1]) - 1), "weight": "bold"} if named else {"color": colour}
            parts.append(TextArea(part, textprops={"size": size, **own}))
        spaced.append(HPacker(children=parts, pad=0, sep=0, align="baseline"))
    return HPacker(children=spaced or [TextArea(" ")], pad=0, sep=0.35 * size, align="baseline")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, or an SVG if the name says so; whole or not at all."""
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise ValueError(f"{path} would not stay sharp in that format: give a name that ends in .png or .svg.")
    partial = path.with_name(path.name + ".partial")
    with styled():
        figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    partial.replace(path)
