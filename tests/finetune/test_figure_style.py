"""Figures share one style, which is legible in a column of text, and are saved in formats that stay sharp."""

from __future__ import annotations

import colorsys
import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.text import Text

from finetune.figure_style import (
    COLUMN,
    INK,
    NARROW,
    SMALL,
    STYLE,
    draw_beside,
    draw_panels,
    new_figure,
    region_ink,
    save_figure,
    styled,
)
from tap_tokenizer import region_colour

ROOT = Path(__file__).parents[2]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def hue_and_saturation(red: float, green: float, blue: float) -> tuple[float, float]:
    return colorsys.rgb_to_hsv(red, green, blue)[:2]


@pytest.mark.parametrize("index", range(16))
def test_a_regions_ink_has_its_hue_is_quiet_and_stands_on_white(index: int) -> None:
    ink = region_ink(index)
    hue, saturation = hue_and_saturation(*(int(ink[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    bright, vivid = hue_and_saturation(*(part / 255 for part in region_colour(index)))
    assert min(abs(hue - bright), 1 - abs(hue - bright)) < 0.02
    assert saturation < vivid
    assert 1.05 / (luminance(ink) + 0.05) >= 3  # WCAG's contrast for graphics


def test_words_are_large_enough_for_a_column() -> None:
    sizes = {name: value for name, value in STYLE.items() if re.search(r"size$", name) and "marker" not in name}
    assert min(value for name, value in sizes.items() if re.search(r"font|label|title", name)) >= SMALL
    assert STYLE["figure.figsize"][0] == COLUMN
    assert SMALL / 72 * 700 / COLUMN >= 11  # pixels, where the column is 700 pixels wide


def test_all_figures_are_made_and_saved_by_the_style() -> None:
    """A figure of another size, with smaller words or of another format would have to go around these functions."""
    folders = ("finetune", "benchmarks", "docs")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        if path.name == "figure_style.py":
            continue
        text = path.read_text()
        assert not re.search(r"\bFigure\(|savefig\(|pyplot", text), f"{path.name} draws without the style"
        for size in re.findall(r"fontsize=([\d.]+)", text):
            assert float(size) >= SMALL, f"{path.name} writes at {size} points"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_figure_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with styled():
            figure = new_figure(2)
            axes = figure.subplots()
            axes.plot([1, 2], [3, 1], label="a line")
            axes.legend()
            save_figure(figure, tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {f"a.{kind}", f"b.{kind}"}
    if kind == "png":
        assert Image.open(tmp_path / "a.png").width == pytest.approx(COLUMN * STYLE["savefig.dpi"], abs=1)


def test_soft_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.jpg would not stay sharp .* ends in .png or .svg"):
        save_figure(new_figure(2), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_the_style_ends_where_it_was_asked_for() -> None:
    before = matplotlib.rcParams["axes.titlelocation"]
    with styled():
        assert matplotlib.rcParams["axes.titlelocation"] == "left"
    assert matplotlib.rcParams["axes.titlelocation"] == before


def test_panels_keep_the_form_of_their_pictures_and_do_not_overlap() -> None:
    pictures = [Image.new("RGB", size, "grey") for size in ((300, 200), (200, 300), (200, 200))]
    with styled():
        figure = draw_panels(pictures, ["a", "b\nin two lines", "c"])
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert width == NARROW
    for axes, picture in zip(figure.axes, pictures, strict=True):
        place = axes.get_position()
        assert place.width * width / (place.height * height) == pytest.approx(picture.width / picture.height)
        assert place.y0 >= -1e-9
    whole = [axes.get_tightbbox() for axes in figure.axes]
    for i, one in enumerate(whole):
        assert one.y1 <= height * figure.dpi  # titles are inside
        assert not any(one.overlaps(other) for other in whole[i + 1 :])


def test_words_beside_a_picture_stay_in_the_figure_and_regions_have_their_colours() -> None:
    words = "Which is larger and which is further left in this picture, region1 or region2?"
    with styled():
        figure = draw_beside([Image.new("RGB", (300, 200))] * 2, [[(words, 10.5, INK)], [("", 6, INK), ("a", 14, INK)]])
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    texts = figure.findobj(Text)
    shown = {text.get_text(): text for text in texts if text.get_text().strip()}
    assert {name: shown[name].get_color() for name in ("region1", "region2", "Which")} == {
        "region1": region_ink(0), "region2": region_ink(1), "Which": INK,
    }  # fmt: skip
    for text in shown.values():
        place = text.get_window_extent()
        assert 0 < place.x0 < place.x1 <= width * figure.dpi
        assert 0 < place.y0 < place.y1 < height * figure.dpi
