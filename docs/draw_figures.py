"""The figures of the documentation and of README, drawn by the bundled models: `python docs/draw_figures.py`.

What is shown is what they computed: masks, scores, the numbers of the tokens, the words of the answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import llm_bridge
import tap_tokenizer
from finetune.glyphs.scenes import draw_scene, make_scene
from llm_bridge import RegionChat
from tap_tokenizer import RegionTokens, TapRegionTokenizer, draw_regions, save_picture

FIGURES = Path(__file__).parent / "figures"
DEMO = Path(llm_bridge.__file__).parent / "pretrained" / "region-chat-tiny"
EXAMPLE = Path(tap_tokenizer.__file__).parent / "pretrained" / "tap-tiny" / "example.png"
GREY, RED, BLUE = "#5b6270", "#c8384a", "#2f5fb3"


def draw_region_tokens(path: Path) -> None:
    """From a box on a picture to a word of an answer, in one row."""
    image = Image.open(DEMO / "demo.png").convert("RGB")
    question = json.loads((DEMO / "demo.json").read_text())["questions"][0]
    chat = RegionChat.from_pretrained()
    answer = str(chat.ask(question["text"], image=image, boxes=question["boxes"]))
    regions = chat.region_tokenizer.encode(image, boxes=question["boxes"], with_masks=True)
    (best,) = chat.region_tokenizer.classify(regions, top_k=1)[0]
    caption = chat.region_tokenizer.caption(regions)[0]

    figure = Figure(figsize=(13.6, 5.2), facecolor="white")
    FigureCanvasAgg(figure)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 13.6), ylim=(0, 5.2))
    canvas.axis("off")
    _picture(figure, canvas, image, regions)
    _box(canvas, 3.55, 2.65, 1.6, 1.3, "TAP\nimage encoder,\nprompt encoder,\nimage decoder", GREY)
    _tokens(figure, canvas, regions)
    canvas.text(
        6.85, 0.62, f"TAP itself says: “{caption}”, concept {best[0]} ({best[1]:.0%})", fontsize=10, ha="center"
    )
    _box(canvas, 8.9, 2.75, 1.05, 1.1, "projector", RED)
    _question(canvas, chat.history[0][1], answer)
    for start, end in (((3.1, 3.3), (3.5, 3.3)), ((5.2, 3.3), (5.6, 3.3)), ((8.45, 3.3), (8.85, 3.3))):
        canvas.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=GREY))
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)


def _picture(figure: Figure, canvas: Axes, image: Image.Image, regions: RegionTokens) -> None:
    axes = figure.add_axes((0.012, 0.3, 0.225, 0.56))
    axes.imshow(draw_regions(image, regions, names=False))
    axes.axis("off")
    canvas.text(1.6, 4.75, "a picture, a box", fontsize=12, ha="center", weight="bold")
    box = " ".join(f"{value:.0f}" for value in regions.boxes[0].tolist())
    canvas.text(
        1.6, 1.25, f"box {box}; mask, predicted IoU {regions.scores[0]:.2f}", fontsize=9, ha="center", color=GREY
    )


def _tokens(figure: Figure, canvas: Axes, regions: RegionTokens) -> None:
    """The four semantic tokens as stripes of their numbers; the one that answers has a frame."""
    tokens = regions.semantic_tokens[0].float().numpy()
    canvas.text(
        7.0, 4.75, f"four semantic tokens of {tokens.shape[1]} numbers", fontsize=12, ha="center", weight="bold"
    )
    limit = float(np.abs(tokens).max())
    for i, token in enumerate(tokens):
        bottom = 4.0 - 0.62 * i
        axes = figure.add_axes((6.35 / 13.6, bottom / 5.2, 2.05 / 13.6, 0.42 / 5.2))
        axes.imshow(token.reshape(4, -1), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(xticks=[], yticks=[])
        answers = i == int(regions.expert[0])
        for spine in axes.spines.values():
            spine.set(edgecolor=RED if answers else "white", linewidth=2.5 if answers else 0)
        words = f"expert {i}\nIoU {regions.iou_scores[0, i]:.2f}"
        canvas.text(6.25, bottom + 0.21, words, fontsize=8, ha="right", va="center", color=RED if answers else GREY)
    canvas.text(7.0, 1.55, "expert 0 answers boxes, 1 to 3 points", fontsize=9, ha="center", color=GREY)


def _question(canvas: Axes, question: str, answer: str) -> None:
    """The words of the question with the projected token among them, and the answer under the language model."""
    canvas.text(11.95, 4.75, "among the words of a question", fontsize=12, ha="center", weight="bold")
    before, after = question.split("region1", 1)
    x = 10.2
    for part in (f"{before.lstrip()}region1 ", "▮", after):
        words = canvas.text(x, 4.15, part, fontsize=10.5, va="center", color=RED if part == "▮" else "black")
        ends = words.get_window_extent().transformed(canvas.transData.inverted())
        if part == "▮":
            canvas.add_patch(
                FancyArrowPatch((10.0, 3.3), ((ends.x0 + ends.x1) / 2, 4.0), arrowstyle="-|>", mutation_scale=14,
                                color=RED, connectionstyle="arc3,rad=0.3")
            )  # fmt: skip
        x = ends.x1
    _box(canvas, 10.95, 2.05, 2.0, 0.8, "any causal\nlanguage model", BLUE)
    canvas.add_patch(FancyArrowPatch((12.5, 3.9), (12.2, 2.9), arrowstyle="-|>", mutation_scale=14, color=GREY))
    canvas.add_patch(FancyArrowPatch((11.95, 2.0), (11.95, 1.5), arrowstyle="-|>", mutation_scale=14, color=GREY))
    canvas.text(11.95, 1.25, f"“{answer}”", fontsize=10, ha="center", va="center")


def _box(canvas: Axes, x: float, y: float, wide: float, high: float, words: str, colour: str) -> None:
    canvas.add_patch(
        FancyBboxPatch((x, y), wide, high, boxstyle="round,pad=0.03,rounding_size=0.08", facecolor="white",
                       edgecolor=colour, linewidth=1.8)
    )  # fmt: skip
    canvas.text(x + wide / 2, y + high / 2, words, ha="center", va="center", fontsize=9.5, color=colour)


def draw_example(path: Path) -> None:
    """All objects of the demo's scene with the masks that their boxes get and the captions of TAP's own decoder."""
    scene = json.loads((DEMO / "demo.json").read_text())["scene"]
    drawn = draw_scene(make_scene(**scene), 512)
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    regions = tokenizer.encode(drawn.image, boxes=drawn.boxes.tolist(), with_masks=True)
    save_picture(draw_regions(drawn.image, regions, labels=tokenizer.caption(regions)), path)


if __name__ == "__main__":
    draw_region_tokens(FIGURES / "region_tokens.png")
    draw_example(EXAMPLE)
