"""`region-chat demo`: a talk about the bundled picture, what TAP itself says beside it, and a picture of both."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tap_tokenizer import EXIT_CODES, add_command, check_picture_path, save_picture

from .model_flags import bridge_at_hand

if TYPE_CHECKING:  # loaded where work begins, so that --help needs no torch
    from PIL.Image import Image

    from .chat import RegionChat

PANEL, MARGIN, LINE, FONT_SIZE, COLUMNS = 500, 22, 20, 14, 66
"""Width of the panel with the talk, its margin, and the height of a line, in pixels; a font's size, and letters in a line."""
PAPER, INK, ANSWER, FAINT = (250, 250, 248), (28, 28, 32), (12, 94, 60), (110, 110, 118)


def add_demo_command(commands: Any) -> None:
    """Add `demo`."""
    demo = add_command(
        commands,
        "demo",
        "talk with the bundled models about the bundled picture",
        "region-chat demo",
        exit_codes=EXIT_CODES,
    )
    demo.add_argument("--output", type=Path, default=Path("region-chat-demo.png"),
                      help="where to write the picture and the conversation (default: %(default)s)")  # fmt: skip


def run_demo(arguments: argparse.Namespace) -> None:
    """Have the talk of the bridge's `demo.json`, print the talk, and draw it."""
    from PIL import Image

    from tap_tokenizer import draw_regions

    from .chat import RegionChat
    from .configuration_bridge import BUNDLED

    name = bridge_at_hand()
    folder = BUNDLED / name
    demo = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    picture = folder / demo["picture"]
    check_picture_path(arguments.output, [picture])
    chat = RegionChat.from_pretrained(name)
    chat.warns_of_limitation = False  # printed below
    image = Image.open(picture).convert("RGB")
    print(f"Picture: {picture.resolve()} ({image.width} × {image.height})")
    print(f"Models:  tap-tiny, the region tokenizer, and {name}, {demo['about']}")
    print(f"         {chat.limitation}\n")
    talk = []
    for question in demo["talk"]:
        said = _asked(chat, image, question)
        for line in said:
            print(line)
        print()
        talk.append(said)
    regions = chat.regions()
    drawn = draw_regions(image, regions, labels=chat.region_tokenizer.caption(regions))
    save_picture(_beside(drawn, talk), arguments.output)
    print(f"Wrote {arguments.output}: the regions with TAP's masks and captions, and the talk.")


def _asked(chat: RegionChat, image: Image, question: dict[str, Any]) -> list[str]:
    """A question, its answer, and what TAP itself says of each region that it shows for the first time."""
    known = len(chat.baseline(top_k=1)) if chat.messages else 0
    answer = chat.ask(question["text"], image=image if not chat.messages else None, boxes=question.get("boxes"))
    lines = [f"Q: {chat.history[-2][1]}", f"A: {answer}"]
    for own in chat.baseline(top_k=1)[known:]:
        name, score = own.concepts[0]
        lines.append(f'   TAP itself of {own.name}: "{own.caption}", concept {name} ({score:.0%})')
    return lines


def _beside(drawn: Image, talk: list[list[str]]) -> Image:
    """The picture, and to its right the talk in lines that begin with Q:, A: or neither."""
    from PIL import Image, ImageDraw, ImageFont

    lines: list[tuple[str, tuple[int, int, int]]] = []
    for said in talk:
        for line in said:
            colour = {"Q:": INK, "A:": ANSWER}.get(line[:2], FAINT)
            lines += [(part, colour) for part in textwrap.wrap(line.strip(), COLUMNS, subsequent_indent="   ")]
        lines.append(("", INK))
    height = max(drawn.height, 2 * MARGIN + LINE * (len(lines) - 1))
    sheet = Image.new("RGB", (drawn.width + PANEL, height), PAPER)
    sheet.paste(drawn, (0, (height - drawn.height) // 2))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    top = (height - LINE * (len(lines) - 1)) // 2
    for number, (words, colour) in enumerate(lines):
        pen.text((drawn.width + MARGIN, top + number * LINE), words, colour, font)
    return sheet
