"""The page in a real browser: mark, ask, read, take away; what is refused; two users; a tab that closes mid-answer."""

from __future__ import annotations

import functools
import http.client
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from llm_bridge import RegionChat

pytest.importorskip("gradio", reason="needs gradio: the extra app")
pytest.importorskip("playwright", reason="needs playwright: the extra dev")

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from llm_bridge.page.app import _Handlers, load_gradio, serve
from llm_bridge.page.conversation import PageConversations
from llm_bridge.page.input import PageLimits

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[3] / "llm_bridge" / "pretrained" / "region-chat-tiny"
PICTURE = FOLDER / "demo.png"
QUESTIONS = json.loads((FOLDER / "demo.json").read_text())["questions"]
LIMITS = PageLimits(file_bytes=2_000_000, pixels=1_000_000, regions=4, queue=5)


@pytest.fixture(scope="module")
def chat() -> RegionChat:
    return RegionChat.from_pretrained("region-chat-tiny")


@pytest.fixture(scope="module")
def served(chat: RegionChat) -> Iterator[tuple[Any, str]]:
    page, address = serve(chat, limits=LIMITS, block=False)
    yield page, address
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


expect.set_options(timeout=60_000)  # a machine that runs other tests beside may be slow


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def tab(context: BrowserContext, served: tuple[Any, str]) -> Page:
    return opened(context, served[1])


def opened(context: BrowserContext, address: str) -> Page:
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    tab.goto(address)
    tab.wait_for_selector("#board canvas")
    return tab


def load(tab: Page, file: Any = PICTURE) -> None:
    tab.set_input_files("#board .file", file)
    expect(tab.locator("#board .status")).to_contain_text("mark a region", timeout=120_000)


def drag(tab: Page, box: list[float]) -> None:
    canvas = tab.locator("#board canvas")
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    assert frame is not None
    scale = frame["width"] / 512
    x1, y1, x2, y2 = (x * scale for x in box)
    tab.mouse.move(frame["x"] + x1, frame["y"] + y1)
    tab.mouse.down()
    tab.mouse.move(frame["x"] + x2, frame["y"] + y2, steps=4)
    tab.mouse.up()


def ask(tab: Page, question: str, answers: int = 1) -> str:
    """The answer, once it has come and the question has been taken up."""
    tab.fill("#question textarea", question)
    tab.locator("#board .status").evaluate("said => { said.textContent = '' }")  # what it says of an earlier question
    tab.click("#ask")
    replies = tab.locator("#said .bot.message")
    expect(replies).to_have_count(answers, timeout=120_000)
    expect(tab.locator("#board .status")).to_contain_text("Ask more", timeout=120_000)
    return replies.last.inner_text().strip()


def expected(chat: RegionChat, question: str, **prompts: Any) -> str:
    answer = RegionChat(chat.model, chat.processor).ask(question, image=PICTURE, max_new_tokens=128, **prompts)
    assert isinstance(answer, str)
    return answer


# --- what people come for ---------------------------------------------------------------------------------------------


def test_draw_a_box_ask_and_read_the_answer(tab: Page, chat: RegionChat) -> None:
    load(tab)
    box = QUESTIONS[0]["boxes"][0]
    drag(tab, box)
    expect(tab.locator("#board .regions li")).to_have_count(1)
    marked = re.findall(r"-?\d+", tab.locator("#board .regions li").inner_text().split(":")[1])
    assert np.abs(np.array([int(x) for x in marked]) - np.array(box)).max() <= 2
    answer = ask(tab, QUESTIONS[0]["text"])
    assert answer == expected(chat, QUESTIONS[0]["text"], boxes=[[float(x) for x in marked]])
    row = tab.locator("#seen tbody tr").inner_text()
    assert re.search(r"region1\s+a [a-z ]+\s+\w+ \d+%", row)
    assert tab.locator("#seen img").evaluate("image => image.naturalWidth") > 8
    expect(tab.locator("#board .regions li")).to_have_count(0)  # it belongs to the conversation now


def test_several_regions_and_follow_ups(tab: Page, chat: RegionChat) -> None:
    load(tab)
    for box in QUESTIONS[2]["boxes"]:
        drag(tab, box)
    assert ask(tab, QUESTIONS[2]["text"]) in ("region1", "region2")
    expect(tab.locator("#said .user.message")).to_have_text("Which is larger, region1 or region2?")
    ask(tab, "What colour is region1?", answers=2)
    assert tab.locator("#seen tbody tr").count() == 2
    with tab.expect_download() as download:
        tab.click("#save-json")
    record = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "conversation.json"
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 2
    assert [region["name"] for region in record["regions"]] == ["region1", "region2"]
    with tab.expect_download() as download:
        tab.click("#save-png")
    with Image.open(download.value.path()) as drawn:
        assert drawn.size == (512, 512)
    tab.click("#again")
    expect(tab.locator("#said .bot.message")).to_have_count(0)
    expect(tab.locator("#seen tbody tr")).to_have_count(0)


def test_points_and_the_brush(tab: Page) -> None:
    load(tab)
    tab.check("#board input[value=point]")
    drag(tab, [398, 250, 398, 250])
    tab.check("#board .outside")
    drag(tab, [450, 350, 450, 350])
    expect(tab.locator("#board .regions li")).to_contain_text("2 points")
    tab.check("#board input[value=paint]")
    drag(tab, [210, 430, 240, 440])
    expect(tab.locator("#board .regions li").nth(1)).to_contain_text("brush")
    ask(tab, "Which is larger, <region> or <region>?")
    assert tab.locator("#seen tbody tr").count() == 2


def test_by_keyboard_alone(tab: Page) -> None:
    """From the top of the page with Tab to the picture, a box by arrows, a typed point, the question, the answer."""
    for _ in range(4):
        tab.keyboard.press("Tab")
        if "example" in tab.evaluate("document.activeElement.className"):
            break
    tab.keyboard.press("Enter")
    expect(tab.locator("#board .status")).to_contain_text("mark a region")
    for _ in range(8):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    for _ in range(3):
        tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    expect(tab.locator("#board .status")).to_contain_text("First corner at 232 256")
    for key in ["ArrowRight"] * 8 + ["ArrowDown"] * 8 + ["Shift+ArrowDown"]:
        tab.keyboard.press(key)
    tab.keyboard.press("Enter")
    expect(tab.locator("#board .regions li")).to_have_text(re.compile("region1: box 232 256 296 321"))
    tab.keyboard.press("Backspace")
    expect(tab.locator("#board .regions li")).to_have_count(0)
    tab.keyboard.press("Tab")
    tab.keyboard.type("177 392 271 470")
    tab.keyboard.press("Enter")
    expect(tab.locator("#board .regions li")).to_have_text(re.compile("region1: box 177 392 271 470"))
    for _ in range(8):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.closest('#question') !== null"):
            break
    tab.keyboard.press("Enter")
    expect(tab.locator("#said .bot.message")).to_have_count(1, timeout=120_000)


def test_enter_asks_and_shift_enter_begins_a_line(tab: Page) -> None:
    load(tab)
    drag(tab, QUESTIONS[0]["boxes"][0])
    question = tab.locator("#question textarea")
    expect(tab.locator("#question")).to_contain_text("Enter asks, Shift+Enter starts a new line")
    question.fill("What is")
    question.press("Shift+Enter")
    tab.keyboard.type("<region>?")
    expect(question).to_have_value("What is\n<region>?")
    question.evaluate(  # an input method's Enter, which takes a word over
        "box => box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
    )
    tab.wait_for_timeout(500)
    expect(tab.locator("#said .message")).to_have_count(0)
    tab.keyboard.press("Enter")
    expect(tab.locator("#said .bot.message")).to_have_count(1, timeout=120_000)
    assert tab.locator("#said .user.message").inner_text().split() == ["What", "is", "region1?"]


def test_what_is_said_is_shown_as_it_was_written(tab: Page) -> None:
    """Tags, entities and signs of Markdown are letters here, and nothing in them runs."""
    load(tab)
    drag(tab, QUESTIONS[0]["boxes"][0])
    written = "<b>What</b> is <region>? <img src=x onerror='window.ran = 1'> a < b &amp; <x-y> **c** [d](http://e.org)"
    ask(tab, written)
    assert tab.locator("#said .user.message").inner_text().strip() == written.replace("<region>", "region1")
    assert tab.evaluate("window.ran") is None
    ask(tab, "Is <region1> a <box>?", answers=2)
    expect(tab.locator("#said .user.message").nth(1)).to_have_text("Is region1 a <box>?")


def test_a_phone_shows_it_all_without_scrolling_sideways(browser: Browser, served: tuple[Any, str]) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    tab = opened(context, served[1])
    load(tab)
    tab.check("#board input[value=point]")
    canvas = tab.locator("#board canvas")
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    assert frame is not None
    tab.touchscreen.tap(frame["x"] + frame["width"] * 0.78, frame["y"] + frame["height"] * 0.53)
    expect(tab.locator("#board .regions li")).to_have_count(1)
    ask(tab, "What is <region>?")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_a_pasted_picture(tab: Page) -> None:
    tab.evaluate(
        """async () => {
            const canvas = document.createElement("canvas"); canvas.width = 80; canvas.height = 50;
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const data = new DataTransfer(); data.items.add(new File([blob], "pasted.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }"""
    )
    expect(tab.locator("#board .status")).to_contain_text("Picture of 80 × 50 pixels")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_and_huge_files_are_refused(tab: Page, tmp_path: Path) -> None:
    status = tab.locator("#board .status")
    (tmp_path / "words.png").write_text("no picture at all")
    tab.set_input_files("#board .file", tmp_path / "words.png")
    expect(status).to_contain_text("not a picture that can be read")
    assert status.get_attribute("role") == "alert"
    (tmp_path / "huge.png").write_bytes(bytes(2_000_001))
    tab.set_input_files("#board .file", tmp_path / "huge.png")
    expect(status).to_contain_text("2.0 MB, expected at most 2 MB")
    Image.new("L", (1001, 1000)).save(tmp_path / "wide.png")
    tab.set_input_files("#board .file", tmp_path / "wide.png")
    expect(status).to_contain_text("1001 × 1000 pixels, expected at most 1 million")
    load(tab)  # and the page goes on


def test_wrong_questions_are_explained_and_kept(tab: Page) -> None:
    status = tab.locator("#board .status")
    tab.click("#ask")
    expect(status).to_contain_text("There is no picture yet")
    load(tab)
    drag(tab, QUESTIONS[0]["boxes"][0])
    tab.fill("#question textarea", "Which is larger, <region> or <region>?")
    tab.click("#ask")
    expect(status).to_contain_text("The question has 2 <region>, but 1 new region is marked")
    expect(tab.locator("#question textarea")).to_have_value("Which is larger, <region> or <region>?")
    expect(tab.locator("#board .regions li")).to_have_count(1)
    tab.fill("#board .numbers", "10 10 5 5")
    tab.click("#board .typed button")
    expect(status).to_contain_text("corners, not width and height")
    ask(tab, "What is <region>?")


def request(address: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


def test_gradios_file_routes_are_closed(served: tuple[Any, str]) -> None:
    address = served[1]
    assert request(address, "POST", "/gradio_api/upload", b"x", **{"Content-Type": "text/plain"})[0] == 404
    assert request(address, "GET", f"/gradio_api/file={PICTURE}")[0] == 404
    assert request(address, "GET", f"/file={PICTURE}")[0] == 404
    status, _ = request(address, "POST", "/gradio_api/queue/join", b" " * 3_000_000)
    assert status == 413


def test_a_body_longer_than_announced_is_cut_off(served: tuple[Any, str]) -> None:
    """Both lengths at once, as in request smuggling: the first says 5 bytes, the second goes on and on."""
    parts = urlsplit(served[1])
    lines = ["POST /gradio_api/queue/join HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json",
             "Content-Length: 5", "Transfer-Encoding: chunked"]  # fmt: skip
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        sent = 0
        try:
            while sent < 100_000_000:
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass  # the server hung up
        else:
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert sent < 20_000_000


def test_an_unknown_host_name_is_not_answered(served: tuple[Any, str]) -> None:
    for path in ("/", "/config", "/gradio_api/info"):
        assert request(served[1], "GET", path, Host="rebound.example:7860")[0] == 421
        assert request(served[1], "GET", path, Host="localhost")[0] == 200


def test_a_question_of_forty_thousand_points_is_not_even_read(served: tuple[Any, str]) -> None:
    region = {"points": [[float(i % 500), 5.0] for i in range(40_000)], "point_labels": [1] * 40_000}
    body = json.dumps({"data": ["What is <region>?", {"regions": [region]}], "fn_index": 0, "session_hash": "many"})
    kind = {"Content-Type": "application/json"}
    status, words = request(served[1], "POST", "/gradio_api/queue/join", body.encode(), **kind)
    assert status == 413
    assert "mark fewer regions" in words


def called(address: str, name: str, *data: Any, session: str = "by-hand") -> Any:
    """What a handler gives to a request that no browser of ours would send."""
    functions = json.loads(request(address, "GET", "/config")[1])["dependencies"]
    number = next(function["id"] for function in functions if function["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session, "event_data": None})
    status, said = request(
        address, "POST", "/gradio_api/queue/join", body.encode(), **{"Content-Type": "application/json"}
    )
    assert status == 200, said
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    for line in connection.getresponse():
        message = json.loads(line[5:]) if line.startswith(b"data:") else {"msg": None}
        if message["msg"] in ("process_generating", "process_completed"):
            return message
    raise AssertionError("no answer came")


def test_invalid_regions_in_a_request_get_an_error_message(served: tuple[Any, str]) -> None:
    address = served[1]
    assert called(address, "example")["success"]
    many = [[float(i % 500), 5.0] for i in range(20_000)]
    for region, words in (
        ({"points": 5}, "points that cannot be read"),
        ({"points": many, "point_labels": [1] * 20_000}, "20000 points, expected at most 64"),
        ({"strokes": [many], "brush": 3}, "expected at most 5000"),
        ({"box": [1, 2, 3, "x"]}, "expected numbers"),
        (7, "cannot be read"),
    ):
        message = called(address, "ask", "What is <region>?", {"regions": [region]})
        assert message["success"], region
        assert words in message["output"]["data"][0]["error"], region
    for board in (None, 5, {"regions": 5}, {"regions": [{"box": [1, 2, 30, 40]}] * 5}):
        message = called(address, "ask", "What is <region>?", board)
        assert message["output"]["data"][0]["error"], board


def test_an_unexpected_error_is_reported_and_logged(
    served: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert called(served[1], "example", session="unforeseen")["success"]
    monkeypatch.setattr("llm_bridge.page.conversation.read_regions", lambda *_: 1 / 0)
    message = called(served[1], "ask", "What is <region>?", {"regions": []}, session="unforeseen")
    assert "Something went wrong" in message["output"]["data"][0]["error"]
    assert "ZeroDivisionError" in caplog.text


def test_no_path_of_the_server_reaches_the_page(served: tuple[Any, str], context: BrowserContext) -> None:
    address = served[1]
    tab = context.new_page()
    bodies: list[str] = []
    hosts: set[str] = set()
    tab.on("request", lambda sent: hosts.add(str(urlsplit(sent.url).hostname)))
    tab.add_init_script(
        """window.seen = [];
        const plain = window.fetch;
        window.fetch = async (...all) => {
            const answer = await plain(...all), reader = answer.clone().body?.pipeThrough(new TextDecoderStream()).getReader();
            const read = async () => { for (;;) {  // piece by piece: streams end late or never
                const { done, value } = await reader.read();
                if (done) return;
                window.seen.push(value);
            } };
            if (reader) read().catch(() => {});
            return answer;
        };"""
    )
    tab.goto(address)
    tab.wait_for_selector("#board canvas")
    bodies += [request(address, "GET", path)[1] for path in ("/", "/config", "/gradio_api/info")]
    load(tab)
    drag(tab, QUESTIONS[0]["boxes"][0])
    ask(tab, "What is <region>?")
    bodies += tab.evaluate("window.seen")
    everything = "".join(bodies)
    assert "data:image/jpeg" in everything  # what the handlers sent is among it
    assert "region1" in everything
    for place in (str(Path.cwd()), str(Path(__file__).parents[3]), str(Path.home()) + "/", "site-packages", "/tmp/"):
        assert place not in everything, place
    assert hosts <= {"127.0.0.1", ""} | {"None"}, hosts


def test_the_page_listens_only_on_this_machine(served: tuple[Any, str]) -> None:
    page, address = served
    assert address.startswith("http://127.0.0.1:")
    assert page.server_name == "127.0.0.1"
    assert page.share is False


# --- several users ----------------------------------------------------------------------------------------------------


def test_two_users_at_once(browser: Browser, served: tuple[Any, str], chat: RegionChat) -> None:
    contexts = [browser.new_context(viewport={"width": 1280, "height": 900}) for _ in range(2)]
    tabs = [opened(context, served[1]) for context in contexts]
    for tab, question in zip(tabs, QUESTIONS):
        load(tab)
        tab.fill("#board .numbers", " ".join(str(x) for x in question["boxes"][0]))
        tab.click("#board .typed button")
        tab.fill("#question textarea", question["text"])
    for tab in tabs:
        tab.click("#ask")
    for tab, question in zip(tabs, QUESTIONS):
        expect(tab.locator("#board .status")).to_contain_text("Ask more", timeout=120_000)
        expect(tab.locator("#said .bot.message")).to_have_text(
            expected(chat, question["text"], boxes=question["boxes"])
        )
        expect(tab.locator("#seen tbody tr")).to_have_count(1)
    for context in contexts:
        context.close()


@pytest.fixture
def slow(chat: RegionChat, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Answers of 128 tokens, 60 ms each; the list grows by one with every token."""
    forward, steps = chat.model.forward, []

    @functools.wraps(forward)
    def counted(*arguments: Any, **rest: Any) -> Any:
        steps.append(time.monotonic())
        time.sleep(0.06)
        return forward(*arguments, **rest)

    monkeypatch.setattr(chat.model, "forward", counted)
    monkeypatch.setattr(chat.model.generation_config, "min_new_tokens", 128)
    return steps


def begin(tab: Page, slow: list[float]) -> None:
    load(tab)
    tab.fill("#board .numbers", "177 392 271 470")
    tab.click("#board .typed button")
    tab.click("#ask")
    while len(slow) < 5:
        tab.wait_for_timeout(20)


def test_a_closed_tab_stops_its_answer(served: tuple[Any, str], context: BrowserContext, slow: list[float]) -> None:
    tab = opened(context, served[1])
    users = len(served[0].conversations)
    begin(tab, slow)
    assert len(served[0].conversations) == users + 1
    tab.close()
    time.sleep(2)
    seen = len(slow)
    assert seen < 110
    time.sleep(1)
    assert len(slow) == seen
    assert len(served[0].conversations) <= users


def test_a_question_stopped_while_it_waits_leaves_the_turn_to_whoever_has_it(chat: RegionChat) -> None:
    conversations = PageConversations(chat, LIMITS)
    conversations.show("stopped", np.asarray(Image.open(PICTURE)))
    turns, began = conversations.turns, Event()
    turns.charge("stopped", 20.0)  # everyone else would come first
    assert conversations.places.join("stopped")
    board = {"regions": [{"box": [177, 392, 271, 470]}]}
    said: list[Any] = []

    def ask() -> None:
        handlers = _Handlers(load_gradio(), conversations)
        said.extend(handlers.ask("What is <region>?", board, SimpleNamespace(session_hash="stopped")))

    def wait() -> None:
        with turns.turn("waiting", lambda: False):
            began.set()

    threads = [Thread(target=ask), Thread(target=wait)]
    with turns.turn("answered", lambda: False):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < number:
                time.sleep(0.001)
        conversations.of("stopped").stop()
        threads[0].join(timeout=10)
        assert not threads[0].is_alive()
        assert not began.is_set()
    threads[1].join(timeout=10)
    assert began.is_set()
    assert not turns._is_taken
    assert said[-1][0] == {"sentence": "Stopped before there was an answer. You can ask the question again."}


def test_stop_ends_the_answer(tab: Page, slow: list[float]) -> None:
    begin(tab, slow)
    tab.click("#stop")
    expect(tab.locator("#said .bot.message")).to_contain_text("(stopped)")
    tab.wait_for_timeout(300)
    expect(tab.locator("#board .status")).to_contain_text("You can ask the question again")
    seen = len(slow)
    assert seen < 110
    tab.wait_for_timeout(500)
    assert len(slow) == seen
    expect(tab.locator("#board .regions li")).to_have_count(1)  # still there, to be asked about again
