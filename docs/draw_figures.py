"""The figures of the documentation and of README, drawn by the bundled models: `python docs/draw_figures.py`.

What is shown is what they computed: masks, scores, the numbers of the tokens, the words of the answers.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import llm_bridge
import tap_tokenizer
from finetune.figure_style import COLUMN, GREY, INK, SMALL, new_figure, region_ink, save_figure, styled
from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import RegionChat
from llm_bridge.page.app import serve
from tap_tokenizer import RegionTokens, TapRegionTokenizer, draw_regions, save_picture

FIGURES = Path(__file__).parent / "figures"
DEMO = Path(llm_bridge.__file__).parent / "pretrained" / "region-chat-tiny"
EXAMPLE = Path(tap_tokenizer.__file__).parent / "pretrained" / "tap-tiny" / "example.png"
PAGE_TALK: list[tuple[str, list[tuple[float, float]]]] = [
    ("Which is larger, <region> or <region>?", [(0.66, 0.205), (0.75, 0.55)]),
    ("What colour is region2?", []),
]
"""What is asked on the page after the example's own question, and where its regions are, as shares of the picture's sides."""
LIT, MODEL = region_ink(0), region_ink(1)
"""The colours of what goes on to the language model, and of that model."""


def draw_conversation(chat: RegionChat, path: Path) -> None:
    """A picture with the regions of the demo's questions, and beside it the questions and their answers."""
    image = Image.open(DEMO / "demo.png").convert("RGB")
    questions = json.loads((DEMO / "demo.json").read_text())["questions"]
    boxes: list[list[float]] = []
    talk = []
    for question in questions:
        boxes += [box for box in question["boxes"] if box not in boxes]
        chat.reset()
        answer = str(chat.ask(question["text"], image=image, boxes=question["boxes"]))
        names = [f"region{boxes.index(box) + 1}" for box in question["boxes"]]
        talk.append([re.sub(r"region(\d+)", lambda found, names=names: names[int(found[1]) - 1], words)
                     for words in (chat.history[0][1], answer)])  # fmt: skip
    large = image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)  # for sharp outlines
    regions = chat.region_tokenizer.encode(large, boxes=[[2 * x for x in box] for box in boxes], with_masks=True)

    height = 3.1
    with styled():
        figure, canvas = _paper(height)
        axes = _picture(figure, 0.05, 0.05, height - 0.1, draw_regions(large, regions, names=False))
        for i, (x1, y1, _, y2) in enumerate(regions.boxes.tolist()):
            axes.annotate(f"{i + 1}", (x1, (y1 + y2) / 2), (-6, 0), textcoords="offset points", color="white", weight="bold",
                          ha="right", va="center", bbox={"facecolor": region_ink(i), "boxstyle": "round,pad=0.2"})  # fmt: skip
        y = height - 0.4
        for asked, answer in talk:
            _write_line(canvas, height + 0.15, y, asked, 11.5)
            _write_line(canvas, height + 0.15, y - 0.34, answer, 15)
            y -= 0.98
        save_figure(figure, path)


def draw_region_tokens(chat: RegionChat, path: Path) -> None:
    """From a box on a picture to a word of an answer."""
    image = Image.open(DEMO / "demo.png").convert("RGB")
    question = json.loads((DEMO / "demo.json").read_text())["questions"][0]
    chat.reset()
    answer = str(chat.ask(question["text"], image=image, boxes=question["boxes"]))
    regions = chat.region_tokenizer.encode(image, boxes=question["boxes"], with_masks=True)
    (best,) = chat.region_tokenizer.classify(regions, top_k=1)[0]
    caption = chat.region_tokenizer.caption(regions)[0]

    with styled():
        figure, canvas = _paper(5.2)
        canvas.text(0.1, 4.95, "a picture, a box", weight="bold")
        _picture(figure, 0.1, 2.8, 2.05, draw_regions(image, regions, boxes=regions.boxes, names=False))
        box = " ".join(f"{value:.0f}" for value in regions.boxes[0].tolist())
        canvas.text(0.1, 2.6, f"box {box}", fontsize=SMALL, color=GREY)
        canvas.text(0.1, 2.35, f"TAP itself says “{caption}”, concept {best[0]} ({best[1]:.0%})", fontsize=SMALL)
        _box(canvas, 2.55, 3.25, 1.2, 1.15, "TAP\nimage encoder,\nprompt encoder,\nimage decoder", GREY)
        _arrow(canvas, (2.2, 3.83), (2.5, 3.83), GREY)
        _arrow(canvas, (3.8, 3.83), (4.1, 3.83), GREY)
        start = _tokens(figure, canvas, regions)
        _box(canvas, 5.95, 1.5, 1.05, 0.4, "projector", LIT)
        _arrow(canvas, start, (6.87, 1.95), LIT, "angle,angleA=0,angleB=90,rad=6")
        _question(canvas, chat.history[0][1], answer)
        save_figure(figure, path)


def _paper(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as a column, with axes whose unit is an inch."""
    figure = new_figure(height, layout="none", dpi=rcParams["savefig.dpi"])  # as saved: words are measured
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, COLUMN), ylim=(0, height))
    canvas.axis("off")
    return figure, canvas


def _picture(figure: Figure, x: float, y: float, side: float, image: Image.Image) -> Axes:
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((x / wide, y / high, side / wide, side / high))
    axes.imshow(image, interpolation="lanczos")
    axes.axis("off")
    return axes


def _tokens(figure: Figure, canvas: Axes, regions: RegionTokens) -> tuple[float, float]:
    """The four semantic tokens as stripes of their numbers; the one that answers has a frame. Returns its right end."""
    tokens = regions.semantic_tokens[0].float().numpy()
    canvas.text(6.75, 4.95, f"four semantic tokens of {tokens.shape[1]} numbers", ha="right", weight="bold")
    limit = float(np.abs(tokens).max())
    wide, high = figure.get_size_inches()
    end = (0.0, 0.0)
    for i, token in enumerate(tokens):
        bottom = 4.38 - 0.5 * i
        axes = figure.add_axes((4.95 / wide, bottom / high, 1.8 / wide, 0.4 / high))
        axes.imshow(token.reshape(4, -1), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(xticks=[], yticks=[])
        answers = i == int(regions.expert[0])
        for spine in axes.spines.values():
            spine.set(visible=answers, edgecolor=LIT, linewidth=2)
        words = f"expert {i}\nIoU {regions.iou_scores[0, i]:.2f}"
        colour = LIT if answers else GREY
        canvas.text(4.87, bottom + 0.2, words, fontsize=SMALL, ha="right", va="center", color=colour)
        if answers:
            end = (6.78, bottom + 0.2)
    canvas.text(6.75, 2.6, "expert 0 answers boxes, 1 to 3 points", fontsize=SMALL, ha="right", color=GREY)
    return end


def _question(canvas: Axes, question: str, answer: str) -> None:
    """The words of the question with the projected token among them, the language model that reads them, and its answer."""
    canvas.text(0.1, 1.85, "among the words of a question", weight="bold")
    before, after = question.split("region1", 1)
    x = _write(canvas, 0.1, 1.05, f"{before.lstrip()}region1 ", INK, 12)
    end = _write(canvas, x, 1.05, "▮", LIT, 12)
    _arrow(canvas, (5.9, 1.7), ((x + end) / 2, 1.22), LIT, "angle,angleA=180,angleB=90,rad=6")
    x = _write(canvas, end, 1.05, after, INK, 12)
    _box(canvas, 4.7, 0.8, 1.5, 0.5, "any causal\nlanguage model", MODEL)
    _arrow(canvas, (x + 0.08, 1.05), (4.65, 1.05), GREY)
    _arrow(canvas, (5.45, 0.75), (5.45, 0.45), GREY)
    canvas.text(5.45, 0.25, f"“{answer}”", fontsize=11, ha="center", va="center")


def _write_line(canvas: Axes, x: float, y: float, words: str, size: float) -> None:
    """A line in which the names of regions have their colours."""
    for part in re.split(r"(region\d+)", words):
        named = re.fullmatch(r"region(\d+)", part)
        x = _write(
            canvas, x, y, part, region_ink(int(named[1]) - 1) if named else INK, size, "bold" if named else "normal"
        )


def _write(canvas: Axes, x: float, y: float, words: str, colour: str, size: float, weight: str = "normal") -> float:
    """Words in one colour; returns where the next ones begin."""
    ends = []
    for measured in (f"{words}|", "|"):  # white space at the end of a text has no width of its own
        text = canvas.text(x, y, measured, fontsize=size, weight=weight)
        ends.append(text.get_window_extent().transformed(canvas.transData.inverted()).width)
        text.remove()
    canvas.text(x, y, words, fontsize=size, weight=weight, color=colour, va="center")
    return x + ends[0] - ends[1]


def _box(canvas: Axes, x: float, y: float, wide: float, high: float, words: str, colour: str) -> None:
    canvas.add_patch(
        FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0.03,rounding_size=0.08", facecolor="white",
                       edgecolor=colour, linewidth=1.6)
    )  # fmt: skip
    canvas.text(x + wide / 2, y + high / 2, words, ha="center", va="center", fontsize=SMALL + 0.5, color=colour)


def _arrow(canvas: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: str = "arc3") -> None:
    canvas.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, linewidth=1.3, color=colour, shrinkA=0,
                        shrinkB=0, connectionstyle=bend)
    )  # fmt: skip


def draw_example(path: Path) -> None:
    """All objects of the demo's scene with the masks that their boxes get and the captions of TAP's own decoder."""
    scene = json.loads((DEMO / "demo.json").read_text())["scene"]
    drawn = draw_scene(make_scene(**scene), 512)
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    regions = tokenizer.encode(drawn.image, boxes=drawn.boxes.tolist(), with_masks=True)
    save_picture(draw_regions(drawn.image, regions, labels=tokenizer.caption(regions)), path)


def draw_page(chat: RegionChat, path: Path) -> None:
    """The page with its first example, that example's question, and two more, in Chromium; left as it is without one."""
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from browser import find_chromium, open_chromium

    if find_chromium() is None:
        warnings.warn(
            f"Found no Chromium: {path.name} stays as it is. To draw it, install one: apt-get install chromium.",
            stacklevel=1,
        )
        return
    with closing(serve(chat)) as page, open_chromium() as browser:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(page.address)
        tab.locator("#examples button").first.click()
        answers = tab.locator(".answered:not(.writing)")
        answers.nth(0).wait_for()
        board = tab.locator("#board")
        for count, (question, points) in enumerate(PAGE_TALK, 1):
            for x, y in points:
                frame = board.bounding_box()
                assert frame is not None
                tab.get_by_role("radio", name="New region").click()
                board.click(position={"x": frame["width"] * x, "y": frame["height"] * y})
            tab.fill("#question", question)
            tab.click("#ask")
            answers.nth(count).wait_for()
        tab.wait_for_timeout(1000)
        tab.screenshot(path=path)


if __name__ == "__main__":
    talker = RegionChat.from_pretrained()
    draw_conversation(talker, FIGURES / "conversation.png")
    draw_region_tokens(talker, FIGURES / "region_tokens.png")
    draw_page(talker, FIGURES / "page.png")
    draw_example(EXAMPLE)
