"""The command line: `python -m llm_bridge demo` and `python -m llm_bridge ask`.

Prints and writes files; everything it does is one call of the library.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tap_tokenizer import draw_regions

from .chat import RegionChat
from .configuration_bridge import BUNDLED

DEMO = "region-chat-tiny"


def main(argv: list[str] | None = None) -> int:
    """Run a command; gives the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_bridge", description="Ask a language model about regions of a picture."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="ask the bundled models about the bundled picture")
    demo.add_argument(
        "--output", type=Path, default=Path("region-chat-demo.png"), help="where to write the annotated picture"
    )
    ask = commands.add_parser(
        "ask",
        help="ask about regions of your own picture",
        epilog='example: python -m llm_bridge ask picture.png "What is <region>, and where is it?" --box 40 60 310 420',
    )
    ask.add_argument("image", type=Path, help="the picture")
    ask.add_argument("question", help="words, with a <region> for every box, point or mask, in order")
    for flag, number, names, words in (
        ("--box", 4, ("X1", "Y1", "X2", "Y2"), "a region by its box, in pixels of the picture"),
        ("--point", 2, ("X", "Y"), "a region by a point on it"),
    ):
        ask.add_argument(flag, type=float, nargs=number, metavar=names, action=_AddRegion, help=words)
    ask.add_argument("--mask", type=Path, metavar="PICTURE", action=_AddRegion,
                     help="a region by a picture of the same size, white where it is")  # fmt: skip
    ask.add_argument("--model", default=DEMO, help=f"name, folder or Hub repository of a bridge (default: {DEMO})")
    arguments = parser.parse_args(argv)
    try:
        return {"demo": _demo, "ask": _ask}[arguments.command](arguments)
    except (ValueError, OSError) as error:
        print(f"{parser.prog} {arguments.command}: {error}", file=sys.stderr)
        return 2


class _AddRegion(argparse.Action):
    """Keeps regions in the order in which they were given, whatever their kind."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        regions = getattr(namespace, "regions", [])
        namespace.regions = [*regions, (str(option).lstrip("-"), values)]


def _demo(arguments: argparse.Namespace) -> int:
    folder = BUNDLED / DEMO
    picture = folder / "demo.png"
    questions = json.loads((folder / "demo.json").read_text())["questions"]
    chat = RegionChat.from_pretrained(DEMO)
    image = Image.open(picture)
    print(f"Picture: {picture} ({image.width} × {image.height})")
    print(
        "Models:  tap-tiny, the region tokenizer, and region-chat-tiny, a small language model that reads its tokens."
    )
    print(
        "         Both were trained on GlyphScenes and know nothing but such pictures: coloured glyphs on backgrounds.\n"
    )
    for question in questions:
        chat.reset()
        answer = chat.ask(question["text"], image=image, boxes=question["boxes"])
        print(f"Q: {chat.history[0][1]}")
        print(f"A: {answer}")
        for baseline, box in zip(chat.baseline(top_k=1), question["boxes"]):
            name, score = baseline.concepts[0]
            where = " ".join(f"{x:.0f}" for x in box)
            print(
                f'   {baseline.name} is the box {where}; TAP itself: "{baseline.caption}", concept {name} ({score:.0%})'
            )
        print()
    boxes = [box for question in questions for box in question["boxes"]]
    boxes = [box for i, box in enumerate(boxes) if box not in boxes[:i]]
    regions = chat.region_tokenizer.encode(image, boxes=boxes)
    draw_regions(image, regions, labels=chat.region_tokenizer.caption(regions), opacity=0.25).save(arguments.output)
    print(f"Wrote {arguments.output}: the regions with TAP's masks and captions.")
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    chat = RegionChat.from_pretrained(arguments.model)
    regions = getattr(arguments, "regions", [])
    columns: dict[str, Any] = {
        "boxes": [value if kind == "box" else None for kind, value in regions],
        "points": [[value] if kind == "point" else None for kind, value in regions],
        "masks": [Image.open(value) if kind == "mask" else None for kind, value in regions],
    }
    given = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    print(chat.ask(arguments.question, image=arguments.image, **given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
