"""The page in a real browser, from a server of files alone: it sees what the Python package sees, and answers to all hands."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from chromium import chromium
from PIL import Image

from tap_tokenizer import RegionTokens, TapRegionTokenizer, as_mask, export_browser_page, region_colour
from tap_tokenizer.browser_page import PAGE, RUNTIME, RUNTIME_ADDRESS, RUNTIME_VERSION

pytest.importorskip("playwright", reason="needs playwright: the extra dev")

from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

pytestmark = pytest.mark.slow
EXAMPLE = PAGE / "example.webp"
SHAMROCK, KNIGHT, SCISSORS = (110, 185), (300, 230), (100, 300)
"""Points of the example, whose picture is 384 pixels wide."""

POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:"
"""A strict host's: nothing from elsewhere, no code but files."""

expect.set_options(timeout=60_000)  # a machine that runs other tests beside may be slow


@pytest.fixture(scope="module")
def tokenizer() -> TapRegionTokenizer:
    return TapRegionTokenizer.from_pretrained("tap-tiny")


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The folder `dist` of onnxruntime-web, from the `node_modules` that NODE_PATH names."""
    for place in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        package = Path(place) / "onnxruntime-web"
        if package.is_dir() and json.loads((package / "package.json").read_text())["version"] == RUNTIME_VERSION:
            return package / "dist"
    pytest.skip(f"needs NODE_PATH, a node_modules folder with onnxruntime-web@{RUNTIME_VERSION}")


@pytest.fixture(scope="module")
def folder(tokenizer: TapRegionTokenizer, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in float32, which is to give Python's numbers."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("browser") / "page"
    export_browser_page(tokenizer, folder, precision="float32", runtime=runtime)
    return folder


class _Files(SimpleHTTPRequestHandler):
    """A server of files that says nothing, and has some files other than they are: None for missing."""

    altered: dict[str, bytes | None] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def do_GET(self) -> None:
        body = self.altered.get(self.path.lstrip("/"), b"")
        if body is None:
            self.send_error(404)
        elif body:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(autouse=True)
def altered(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | None]:
    """What the server has other than the folder; empty at first."""
    monkeypatch.setattr(_Files, "altered", {})
    return _Files.altered


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser, folder: Path) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    yield context
    context.close()


def opened(context: BrowserContext, address: str) -> Page:
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    tab.goto(address)
    tab.wait_for_selector("body.ready, body.broken")
    return tab


@pytest.fixture
def tab(context: BrowserContext, address: str) -> Page:
    """The page with its example."""
    tab = opened(context, address)
    tab.click("#examples button")
    expect(tab.locator("#status")).to_contain_text("Point at something")
    return tab


def load(tab: Page, file: Path) -> None:
    tab.locator("#status").evaluate("said => { said.textContent = '' }")
    tab.set_input_files("header input", file)
    expect(tab.locator("#status")).to_contain_text("Point at something")


def on_screen(tab: Page, x: float, y: float, size: tuple[int, int] = (384, 512)) -> tuple[float, float]:
    """Where a point of a picture lies in the window, as the page fits it."""
    frame = tab.locator("#board").bounding_box()
    assert frame is not None
    scale = min((frame["width"] - 24) / size[0], (frame["height"] - 24) / size[1])
    left, top = (frame["width"] - size[0] * scale) / 2, (frame["height"] - size[1] * scale) / 2
    return frame["x"] + left + x * scale, frame["y"] + top + y * scale


def drag(tab: Page, box: tuple[float, float, float, float], **size: Any) -> None:
    tab.mouse.move(*on_screen(tab, *box[:2], **size))
    tab.mouse.down()
    tab.mouse.move(*on_screen(tab, *box[2:], **size), steps=4)
    tab.mouse.up()


def saved(tab: Page) -> dict[str, Any]:
    """What the page's button saves, once all of it was seen."""
    expect(tab.locator("#regions .choose", has_text="…")).to_have_count(0)
    with tab.expect_download() as download:
        tab.click("#save")
    assert download.value.suggested_filename == "regions.json"
    return json.loads(Path(download.value.path()).read_text())


def seen_by_python(tokenizer: TapRegionTokenizer, picture: Path, region: dict[str, Any]) -> RegionTokens:
    prompt = {name: [region[key]] for name, key in (("boxes", "box"), ("points", "points"), ("point_labels", "point_labels"))
              if key in region}  # fmt: skip
    return tokenizer.encode(picture, **prompt, with_masks=True)


def assert_python_sees_the_same(tokenizer: TapRegionTokenizer, picture: Path, record: dict[str, Any]) -> None:
    with Image.open(picture) as image:
        assert (record["width"], record["height"]) == image.size
    assert record["fingerprint"] == tokenizer.fingerprint
    for region in record["regions"]:
        regions = seen_by_python(tokenizer, picture, region)
        mask = as_mask(region["segmentation"], (record["height"], record["width"]))
        expected = regions.masks[0].numpy()
        assert (mask & expected).sum() / (mask | expected).sum() >= 0.99
        rows, columns = np.nonzero(mask)
        assert region["mask_box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert region["score"] == pytest.approx(float(regions.scores[0]), abs=1e-3)
        (best,) = tokenizer.classify(regions, 5)
        assert len(region["concepts"]) == 5
        assert region["concepts"][0][0] == best[0][0]
        for (_, share), (_, expected_share) in zip(region["concepts"], best):
            assert share == pytest.approx(expected_share, abs=5e-3)  # of weights in float16


# --- it sees what Python sees -----------------------------------------------------------------------------------------


def test_masks_and_concepts_are_pythons(tab: Page, tokenizer: TapRegionTokenizer) -> None:
    for point in (SHAMROCK, KNIGHT):
        tab.mouse.click(*on_screen(tab, *point))
    tab.keyboard.down("Alt")
    tab.mouse.click(*on_screen(tab, *SHAMROCK))  # the knight without the shamrock
    tab.keyboard.up("Alt")
    drag(tab, (235, 345, 315, 480))
    expect(tab.locator("#regions > li")).to_have_count(3)
    record = saved(tab)
    assert record["model"] == "tap-tiny"
    assert [region.get("point_labels") for region in record["regions"]] == [[1], [1, 0], None]
    assert [region["concepts"][0][0] for region in record["regions"]] == ["shamrock", "knight", "bishop"]
    assert_python_sees_the_same(tokenizer, EXAMPLE, record)


@pytest.mark.parametrize(
    ("size", "name", "options"),
    [
        ((1000, 700), "wide.png", {}),
        ((150, 200), "small.png", {}),
        ((384, 512), "clear.png", {"is_clear": True}),
    ],
    ids=["larger than the frame", "smaller than the frame", "transparent"],
)
def test_pictures_of_any_size_and_kind_are_prepared_as_python_does(
    tab: Page, tokenizer: TapRegionTokenizer, tmp_path: Path, size: tuple[int, int], name: str, options: dict[str, bool]
) -> None:
    picture = Image.open(EXAMPLE).convert("RGB").resize(size)
    if options:
        alpha = np.zeros(picture.size[::-1], np.uint8)
        alpha[120:320, 60:350] = 255
        picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / name)
    load(tab, tmp_path / name)
    x, y = KNIGHT[0] * size[0] / 384, KNIGHT[1] * size[1] / 512
    tab.mouse.click(*on_screen(tab, x, y, size=size))
    expect(tab.locator("#regions > li")).to_have_count(1)
    assert_python_sees_the_same(tokenizer, tmp_path / name, saved(tab))


@pytest.mark.parametrize(("before", "after"), [((90, 61), (37, 25)), ((23, 40), (64, 111)), ((50, 50), (50, 20))])
def test_resizing_gives_pillows_bytes(tab: Page, before: tuple[int, int], after: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (before[1], before[0], 4), dtype=np.uint8)
    pixels[..., 3] = 255
    expected = np.asarray(Image.fromarray(pixels[..., :3]).resize(after, Image.Resampling.BILINEAR))
    got = tab.evaluate(
        """async ([bytes, before, after]) => {
            const { resized } = await import("./pictures.js");
            return Array.from(resized(Uint8ClampedArray.from(bytes), ...before, ...after));
        }""",
        [pixels.ravel().tolist(), before, after],
    )
    np.testing.assert_array_equal(np.reshape(got, (after[1], after[0], 4))[..., :3], expected)


# --- it answers to all hands ------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_any_other_server_and_nothing_breaks_a_strict_policy(
    context: BrowserContext, address: str
) -> None:
    asked: list[str] = []
    troubles: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: troubles.append(message.text))
    context.on("weberror", lambda error: troubles.append(str(error.error)))
    tab = opened(context, address)
    tab.click("#examples button")
    expect(tab.locator("#status")).to_contain_text("Point at something")
    tab.mouse.click(*on_screen(tab, *KNIGHT))
    expect(tab.locator("#regions")).to_contain_text("knight")
    saved(tab)
    assert not troubles
    assert any("model/onnx" in url for url in asked)
    assert all(url.startswith((address, "data:", "blob:" + address)) for url in asked)
    expect(tab.locator(".note")).to_contain_text("misreads photographs")


def test_a_mask_and_five_concepts_follow_the_pointer(tab: Page) -> None:
    concepts = tab.locator("#pointed .concepts li:not(.quality)")
    for point, name in ((SHAMROCK, "shamrock"), (KNIGHT, "knight")):
        before = tab.locator("#board").screenshot()
        tab.mouse.move(*on_screen(tab, *point))
        expect(concepts).to_have_count(5)
        expect(concepts.first).to_contain_text(name)
        tab.wait_for_function("new Promise(requestAnimationFrame)")
        assert tab.locator("#board").screenshot() != before
    tab.mouse.move(5, 5)
    expect(tab.locator("#pointed")).to_contain_text("Point at something")
    expect(tab.locator("#regions > li")).to_have_count(0)


def test_an_object_keeps_its_own_colours_inside_its_outline(tab: Page) -> None:
    def shown() -> np.ndarray:
        tab.wait_for_function("new Promise(requestAnimationFrame)")
        with Image.open(io.BytesIO(tab.locator("#board").screenshot())) as board:
            return np.asarray(board.convert("RGB")).astype(int)

    before = shown()
    tab.mouse.click(*on_screen(tab, *KNIGHT))
    expect(tab.locator("#regions")).to_contain_text("knight")
    tab.mouse.move(5, 5)
    expect(tab.locator("#pointed")).to_contain_text("Point at something")
    after = shown()
    changed = np.abs(after - before).max(axis=2)
    assert (changed > 0).sum() > 5000
    assert np.median(changed[changed > 0]) < 14  # of 255, which nobody sees as another colour
    assert (np.abs(after - region_colour(0)).max(axis=2) < 3).sum() > 500  # the outline, as Python draws it


def test_what_was_kept_is_changed_undone_and_removed(tab: Page) -> None:
    kept = tab.locator("#regions > li")
    tab.mouse.click(*on_screen(tab, *SHAMROCK))
    expect(kept).to_contain_text("1 shamrock")
    tab.keyboard.press("a")
    tab.mouse.click(*on_screen(tab, 70, 160))
    expect(kept).to_contain_text("2 points")
    tab.keyboard.press("n")
    tab.mouse.click(*on_screen(tab, *SCISSORS))
    expect(kept.nth(1)).to_contain_text("scissors")
    tab.locator(".choose").first.click()
    tab.locator("[data-mode=away]").click()
    tab.mouse.click(*on_screen(tab, *KNIGHT))
    expect(kept.first).to_contain_text("3 points")
    for points in ("2 points", "2 points"):  # without the third point, then without the scissors
        tab.keyboard.press("Control+z")
        expect(kept.first).to_contain_text(points)
    expect(kept).to_have_count(1)
    tab.locator(".remove").click()
    expect(kept).to_have_count(0)
    expect(tab.locator("#save")).to_be_disabled()
    tab.click("#undo")
    expect(kept).to_have_count(1)


def test_a_keyboard_is_enough(tab: Page) -> None:
    tab.locator("#board").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowUp")  # from the middle, by a 64th of the longer side
    for _ in range(13):
        tab.keyboard.press("ArrowRight")
    expect(tab.locator("#pointed")).to_contain_text("knight")
    tab.keyboard.press("Enter")
    expect(tab.locator("#regions")).to_contain_text("knight")
    for _ in range(8):
        tab.keyboard.press("ArrowLeft")
    for _ in range(12):
        tab.keyboard.press("ArrowDown")
    tab.keyboard.press("b")
    for _ in range(16):
        tab.keyboard.press("ArrowDown")
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    expect(tab.locator("#regions > li")).to_have_count(2)
    assert "box" in saved(tab)["regions"][1]
    tab.locator("#board").focus()
    tab.keyboard.press("Backspace")
    expect(tab.locator("#regions > li")).to_have_count(1)


def test_a_finger_is_enough_on_a_small_screen(browser: Browser, address: str) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    tab = opened(context, address)
    tab.tap("#examples button")
    expect(tab.locator("#status")).to_contain_text("Point at something")
    tab.touchscreen.tap(*on_screen(tab, *KNIGHT))
    expect(tab.locator("#regions")).to_contain_text("knight")
    expect(tab.locator("#status")).to_contain_text("Choose Take away to take away from it.")  # there is no Alt key
    tab.tap("[data-mode=away]")
    tab.touchscreen.tap(*on_screen(tab, *SHAMROCK))
    expect(tab.locator("#regions")).to_contain_text("2 points")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    context.close()


def test_pictures_may_be_dropped_and_pasted(tab: Page) -> None:
    for event in ("drop", "paste"):
        tab.locator("#status").evaluate("said => { said.textContent = '' }")
        tab.evaluate(
            """async (kind) => {
                const blob = await (await fetch("examples/1.webp")).blob(), data = new DataTransfer();
                data.items.add(new File([blob], "picture.webp", { type: "image/webp" }));
                document.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
                                                       : new ClipboardEvent("paste", { clipboardData: data }));
            }""",
            event,
        )
        expect(tab.locator("#status")).to_contain_text("Point at something")


# --- what goes wrong is said in words ---------------------------------------------------------------------------------


def test_of_two_pictures_chosen_before_tap_is_ready_the_second_is_opened(
    context: BrowserContext, address: str, tmp_path: Path
) -> None:
    for name, size in (("first.png", (60, 40)), ("second.png", (90, 70))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    said: list[str] = []
    tab.expose_function("heard", lambda words: said.append(words))
    held: list[Route] = []
    tab.route("**/tap.json", lambda route: held.append(route))
    tab.goto(address)
    tab.evaluate(
        "new MutationObserver(() => window.heard(document.querySelector('#status.wrong')?.textContent ?? ''))"
        ".observe(document.querySelector('#status'), { childList: true, attributes: true })"
    )
    for name in ("first.png", "second.png"):
        tab.set_input_files("header input", tmp_path / name)
    while not held:
        tab.wait_for_timeout(50)
    held[0].continue_()
    expect(tab.locator("#status")).to_contain_text("Point at something")
    for name in ("first.png", "second.png"):  # and again, without waiting, now that it is ready
        tab.set_input_files("header input", tmp_path / name)
    expect(tab.locator("#status")).to_contain_text("90 × 70")
    expect(tab.locator("#status")).to_contain_text("Point at something")
    drag(tab, (10, 10, 80, 60), size=(90, 70))
    expect(tab.locator("#regions > li")).to_have_count(1)
    record = saved(tab)
    assert (record["width"], record["height"]) == (90, 70)
    assert not any(said)


def test_a_file_that_is_no_picture_is_refused_and_the_one_before_stays(tab: Page, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    tab.set_input_files("header input", tmp_path / "words.png")
    expect(tab.locator("#status")).to_have_text(
        "The file is not a picture that this browser reads: choose a PNG, JPEG or WebP."
    )
    tab.mouse.move(*on_screen(tab, *KNIGHT))
    expect(tab.locator("#pointed")).to_contain_text("knight")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("tap.json", None, "tap.json is missing: write the page's folder with tap-tokenizer export --browser."),
        ("model/onnx/vision_encoder.onnx", None, "vision_encoder.onnx cannot be loaded: copy the page's folder whole."),
        ("model/onnx/vision_encoder.onnx", b"version https://git-lfs", "has 23 bytes here, expected 14"),
        (
            "runtime/ort.wasm.bundle.min.mjs",
            None,
            "ort.wasm.bundle.min.mjs cannot be loaded: copy the page's folder whole.",
        ),
    ],
    ids=["no settings", "no model", "a pointer in its place", "no runtime"],
)
def test_what_is_missing_is_named(
    context: BrowserContext, address: str, altered: dict[str, bytes | None], path: str, body: bytes | None, words: str
) -> None:
    altered[path] = body
    tab = opened(context, address)
    expect(tab.locator("#status.wrong")).to_contain_text(words)


def test_browser_without_webassembly_is_told(context: BrowserContext, address: str) -> None:
    context.add_init_script("delete globalThis.WebAssembly")
    expect(opened(context, address).locator("#status.wrong")).to_contain_text("This browser runs no WebAssembly")


@pytest.mark.parametrize("is_whole", [True, False])
def test_runtime_from_elsewhere_is_used_only_if_it_is_the_tested_one(
    context: BrowserContext, address: str, altered: dict[str, bytes | None], folder: Path, is_whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """jsDelivr is played by the test."""
    monkeypatch.setattr(f"{__name__}.POLICY", "frame-ancestors 'none'")  # one that lets the worker ask elsewhere
    settings = json.loads((folder / "tap.json").read_text())
    settings["runtime"] = {
        part: {"path": RUNTIME_ADDRESS + name, "bytes": size, "integrity": f"sha384-{digest}"}
        for part, (name, size, digest) in RUNTIME.items()
    }
    altered["tap.json"] = json.dumps(settings).encode()

    def answer(route: Route) -> None:
        body = (folder / "runtime" / route.request.url.rsplit("/", 1)[1]).read_bytes()
        route.fulfill(body=body if is_whole else body[:-1] + b" ", headers={"Access-Control-Allow-Origin": "*"})

    context.route(RUNTIME_ADDRESS + "*", answer)
    tab = opened(context, address)
    if is_whole:
        expect(tab.locator("#status")).to_have_text("TAP is ready: choose a picture.")
    else:
        expect(tab.locator("#status.wrong")).to_contain_text("did not arrive in the tested version")
