"""How soon TAP's mask follows the pointer on the page, in Chromium on this machine, and whether anything on the page jumps.

    python benchmarks/page_pointing.py

Serves the page with the bundled models, loads an example, and moves the mouse to points of the picture. Prints the milliseconds
from the moment that the browser hears of the move to the frame in which the mask is drawn, beside what TAP alone takes for such
a mask in this process; and the sum of the page's layout shifts (CLS) over loading, pointing, asking and loading again.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from browser import open_chromium
from machine import describe_machine

from llm_bridge import RegionChat
from llm_bridge.page.app import serve
from llm_bridge.page.handlers import EXAMPLES, examples
from llm_bridge.page.scene import Scene
from tap_tokenizer import RegionPrompt, load_rgb

WATCH = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const shift of list.getEntries()) window.shifted += shift.value; })
  .observe({ type: "layout-shift", buffered: true });
"""

POINT = """(board, [x, y]) => new Promise((done) => {
  const frame = board.getBoundingClientRect(), pen = board.getContext("2d"), dense = devicePixelRatio;
  const seen = () => pen.getImageData(x * dense - 30, y * dense - 30, 60, 60).data.join();
  const before = seen(), begun = performance.now();
  board.dispatchEvent(new PointerEvent("pointermove", {
    clientX: frame.x + x, clientY: frame.y + y, pointerType: "mouse", bubbles: true,
  }));
  const wait = () => {
    if (performance.now() - begun > 3000) done(null);
    else if (seen() !== before) done(performance.now() - begun);
    else requestAnimationFrame(wait);
  };
  requestAnimationFrame(wait);
})"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30, help="how many points to point at")
    arguments = parser.parse_args()
    print(describe_machine())
    random = np.random.default_rng(0)
    with open_chromium() as browser:
        chat = RegionChat.from_pretrained("region-chat-tiny")
        page = serve(chat)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.add_init_script(WATCH)
        tab.goto(page.address)
        tab.locator("#examples button").first.click()
        tab.locator(".answered:not(.writing)").wait_for()
        board = tab.locator("#board")
        frame = board.bounding_box()
        assert frame is not None
        took = []
        for x, y in random.uniform(0.15, 0.85, (arguments.points, 2)):
            took.append(board.evaluate(POINT, [float(frame["width"] * x), float(frame["height"] * y)]))
            board.dispatch_event("pointerleave", {"pointerType": "mouse"})
            tab.wait_for_timeout(100)
        shifts = [tab.evaluate("window.shifted")]
        tab.reload()
        tab.locator(".answered").wait_for()
        tab.wait_for_timeout(300)
        shifts.append(tab.evaluate("window.shifted"))
    page.close()
    alone = tap_alone(chat, arguments.points)
    seen = [value for value in took if value is not None]
    print(f"{len(seen)} of {len(took)} points showed a mask")
    print("| | median ms | 95 % ms | longest ms |\n|---|---|---|---|")
    for name, values in (("from the move to the drawn mask", seen), ("TAP alone, in this process", alone)):
        middle, high = np.percentile(values, [50, 95])
        print(f"| {name} | {middle:.0f} | {high:.0f} | {max(values):.0f} |")
    print(f"layout shifts: {shifts[0]:.4f}, and after loading again {shifts[1]:.4f}")


def tap_alone(chat: RegionChat, count: int) -> list[float]:
    """Milliseconds that TAP and the page's masks take for single points, without server and browser."""
    scene = Scene(load_rgb(EXAMPLES / examples()[0]["file"]), chat)
    scene.encode()
    took = []
    for x, y in np.random.default_rng(0).uniform(80, 430, (count, 2)).tolist():
        begun = time.perf_counter()
        scene.glance([RegionPrompt(points=((x, y),), point_labels=(1,))])
        took.append(1000 * (time.perf_counter() - begun))
    return took


if __name__ == "__main__":
    main()
