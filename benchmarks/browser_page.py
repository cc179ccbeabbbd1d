"""How soon the page that needs no server sees, in Chromium on this machine: int8 and float32, taking turns.

    python benchmarks/browser_page.py --runtime node_modules/onnxruntime-web/dist

Writes the page in both precisions and opens both with the page's example. Prints the milliseconds that the encoder takes for
the picture, the decoder for a point, and the page from the moment that it hears of a move to the frame in which the mask is
drawn.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from browser import open_chromium
from machine import describe_machine
from page_pointing import POINT
from playwright.sync_api import Browser, Page

from tap_tokenizer import TapRegionTokenizer, export_browser_page

PRECISIONS = ("float32", "int8")

START = """async () => {
  const { Tap } = await import("./tap.js"), settings = await (await fetch("tap.json")).json();
  window.tap = new Tap(() => {});
  window.picture = await (await fetch(settings.examples[0].path)).blob();
  await tap.start(settings);
}"""

ENCODE = """async () => {
  await tap.open(picture);
  const begun = performance.now();
  await tap.encode();
  return performance.now() - begun;
}"""

SEE = """async (point) => {
  const begun = performance.now();
  await tap.see({ points: [point], labels: [1] });
  return performance.now() - begun;
}"""


class Files(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *_: Any) -> None:
        """Leave out the line per request."""


def opened(browser: Browser, folder: Path) -> Page:
    """A page with its example, and a TAP of its own beside it that can be timed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(120_000)
    tab.goto(f"http://127.0.0.1:{server.server_port}/")
    tab.evaluate(START)
    tab.locator("#examples button").first.click()
    tab.locator("#status", has_text="Point at something").wait_for()
    return tab


def pointed(tab: Page, x: float, y: float) -> float | None:
    """Milliseconds from a move to the drawn mask; None if the picture shows nothing new there. Where: shares of the board."""
    board = tab.locator("#board")
    frame = board.bounding_box()
    assert frame is not None
    tab.bring_to_front()
    took = board.evaluate(POINT, [frame["width"] * x, frame["height"] * y])
    board.dispatch_event("pointerleave", {"pointerType": "mouse"})
    tab.wait_for_timeout(100)
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tap-tiny", help="a region tokenizer (default: tap-tiny)")
    parser.add_argument("--runtime", type=Path, required=True, help="folder dist of the npm package onnxruntime-web")
    parser.add_argument("--points", type=int, default=30, help="how many points to point at (default: 30)")
    arguments = parser.parse_args()
    tokenizer = TapRegionTokenizer.from_pretrained(arguments.model)
    times: dict[str, dict[str, list[float]]] = {}
    with open_chromium() as browser, tempfile.TemporaryDirectory() as name:
        for precision in PRECISIONS:
            export_browser_page(tokenizer, Path(name) / precision, precision=precision, runtime=arguments.runtime)
        tabs = {precision: opened(browser, Path(name) / precision) for precision in PRECISIONS}
        for x, y in np.random.default_rng(0).uniform(0.35, 0.65, (arguments.points, 2)).tolist():
            for precision, tab in tabs.items():
                found = {
                    "the encoder, a picture": tab.evaluate(ENCODE),
                    "the decoder, a point": tab.evaluate(SEE, [384 * x, 512 * y]),
                    "from the move to the drawn mask": pointed(tab, x, y),
                }
                for row, value in found.items():
                    if value is not None:
                        times.setdefault(row, {}).setdefault(precision, []).append(value)
    print(f"{describe_machine()}; {arguments.model}, one thread of WebAssembly\n")
    print("| median ms (95 %) | float32 | int8 | |\n|---|---|---|---|")
    for row, values in times.items():
        (exact, high), (rounded, top) = (np.percentile(values[precision], [50, 95]) for precision in PRECISIONS)
        print(f"| {row} | {exact:.0f} ({high:.0f}) | {rounded:.0f} ({top:.0f}) | ÷ {exact / rounded:.2f} |")


if __name__ == "__main__":
    main()
