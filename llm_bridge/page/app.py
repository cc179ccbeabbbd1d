"""The web page: pictures, regions, what TAP sees and the language model's streamed answer, side by side.

    region-chat app

Wires `conversation` to Gradio, which is imported only when a page is built. Pictures and downloads travel inside
messages, so that nothing is written on the server and no path of it reaches a browser. `guard` stands before it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_tokenizer import load_rgb, region_colour

from ..chat import RegionChat
from ..configuration_bridge import BUNDLED
from .conversation import PageConversation, PageConversations, as_html, table_of
from .guard import Hosts, PageGuard
from .input import PageLimits, read_picture

if TYPE_CHECKING:
    import gradio as gr

logger = logging.getLogger(__name__)
PARTS = Path(__file__).parent
EXAMPLE = BUNDLED / "region-chat-tiny" / "demo.png"

INTRODUCTION = """# Ask about regions
Choose a picture, mark one or more regions, and ask. `<region>` in a question stands for the next region that you marked. Later
questions can refer to region1, region2, …"""


def build_page(conversations: PageConversations) -> gr.Blocks:
    """The page as Gradio blocks, with its queue; `conversations` on it holds what is known of its users."""
    gr = load_gradio()
    chat, limits = conversations.chat, conversations.limits
    bare = {"padding": False, "container": False}  # HTML without a frame around it
    with gr.Blocks(title="Ask about regions", analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                board = gr.HTML(
                    value={},
                    html_template=_part("board.html"),
                    css_template=_part("board.css"),
                    js_on_load=_part("board.js"),
                    elem_id="board",
                    colours=["rgb({},{},{})".format(*region_colour(i)) for i in range(limits.regions)],
                    most_bytes=limits.file_bytes,
                    most_regions=limits.regions,
                    **bare,
                )
            with gr.Column(scale=5, min_width=320):
                question = gr.Textbox(
                    "What is <region>?", label="Question", info="Enter asks, Shift+Enter starts a new line.",
                    lines=2, max_lines=6, max_length=limits.characters,
                    placeholder="Ask about region1 again, or mark another region: What is <region>?", elem_id="question",
                )  # fmt: skip
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                    again = gr.Button("New chat", elem_id="again", min_width=80)
                said = gr.Chatbot(
                    label="Conversation", height=300, elem_id="said", render_markdown=False, feedback_options=None,
                    buttons=[], placeholder="The answer appears here.", layout="bubble", show_label=False,
                )  # fmt: skip
                if chat.limitation is not None:
                    gr.HTML(f'<p class="limitation">{as_html(chat.limitation)}</p>', elem_id="limitation", **bare)
                gr.Markdown("### What TAP sees")
                seen = gr.HTML(table_of([]), elem_id="seen", js_on_load=None, apply_default_css=False, **bare)
                with gr.Row():
                    json_button = gr.Button("Download JSON", size="sm", elem_id="save-json", min_width=80)
                    png_button = gr.Button("Download PNG", size="sm", elem_id="save-png", min_width=80)
                saver = gr.HTML(value={}, html_template="", js_on_load=_part("saver.js"), visible="hidden")
        handlers = _Handlers(gr, conversations)
        begun = [board, said, seen]
        board.upload(handlers.load, board, begun, api_name="load", show_progress="hidden", concurrency_limit=2)
        board.select(handlers.example, None, begun, api_name="example", show_progress="hidden", concurrency_limit=2)
        for anew in (again.click, said.clear):
            anew(handlers.again, None, begun, api_visibility="private", show_progress="hidden")
        asking = {
            "inputs": [question, board],
            "outputs": [*begun, question],
            "concurrency_limit": limits.queue,  # they wait for the model in `Turns`, which is fair
        }
        ask.click(handlers.ask, **asking, api_name="ask", show_progress="minimal", show_progress_on=[said])
        stop.click(handlers.stop, None, None, queue=False, api_visibility="private")
        json_button.click(handlers.save_json, None, saver, api_visibility="private", show_progress="hidden")
        png_button.click(handlers.save_png, None, saver, api_visibility="private", show_progress="hidden")
        page.unload(handlers.leave)
    page.queue(max_size=None, api_open=False)  # `Places` counts who waits
    page.conversations = conversations
    return page


def serve(
    chat: RegionChat,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: PageLimits | None = None,
    allowed_hosts: Sequence[str] = (),
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serve the page; gives it and its address, at once if not `block`, else when it is interrupted.

    chat: whose model and processor answer everyone; its own conversation is left alone.
    host: the address to listen at; only this machine can reach the default. port: the first free one from 7860 if None.
    allowed_hosts: names, beside `host` and the loopback names, under which browsers may ask for the page: a proxy's, or this
    machine's in its network.
    """
    gr = load_gradio()
    from starlette.middleware import Middleware

    limits = limits or PageLimits()
    conversations = PageConversations(chat, limits)
    page = build_page(conversations)
    plain = ["system-ui", "sans-serif"]
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        share=False,
        quiet=True,
        show_error=False,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        max_file_size=1,
        max_threads=limits.queue + 20,
        theme=gr.themes.Default(font=plain, font_mono=["ui-monospace", "monospace"]),
        css=_part("page.css"),
        app_kwargs={
            "middleware": [
                Middleware(
                    PageGuard,
                    most_bytes=limits.file_bytes * 4 // 3 + 200_000,
                    places=conversations.places,
                    hosts=Hosts(host, allowed_hosts),
                )
            ],
            "docs_url": None,
            "redoc_url": None,
        },
    )
    return page, address


class _Handlers:
    """The page's handlers: from what a browser sends to what its components show."""

    def __init__(self, gr: Any, conversations: PageConversations) -> None:
        self.gr, self.conversations = gr, conversations
        for name in ("load", "example", "again", "ask", "stop", "save_json", "save_png", "leave"):
            handler = getattr(type(self), name)
            handler.__annotations__["request"] = gr.Request  # by which Gradio knows what to hand over

    def _mine(self, request: Any) -> PageConversation:
        """The conversation of a request that has left the queue."""
        self.conversations.places.begin(request.session_hash)
        return self.conversations.of(request.session_hash)

    def _begun(self, mine: PageConversation) -> tuple[Any, Any, Any]:
        return mine.board(), [], table_of([])

    def load(self, board: Any, request: Any) -> tuple[Any, Any, Any]:
        address = board.get("upload") if isinstance(board, dict) else None
        return self._begin_with(lambda: read_picture(address, self.conversations.limits), request)

    def example(self, request: Any) -> tuple[Any, Any, Any]:
        return self._begin_with(lambda: load_rgb(EXAMPLE), request)

    def _begin_with(self, picture: Callable[[], np.ndarray], request: Any) -> tuple[Any, Any, Any]:
        session, begun = request.session_hash, time.monotonic()
        self.conversations.places.begin(session)
        try:
            return self._begun(self.conversations.show(session, picture()))
        except Exception as error:
            return {"error": _told(error)}, self.gr.skip(), self.gr.skip()
        finally:
            self.conversations.turns.charge(session, time.monotonic() - begun)

    def again(self, request: Any) -> tuple[Any, Any, Any]:
        mine = self._mine(request)
        mine.forget()
        return self._begun(mine)

    def ask(self, question: str, board: Any, request: Any) -> Iterator[tuple[Any, ...]]:
        session, skip = request.session_hash, self.gr.skip()
        places, turns = self.conversations.places, self.conversations.turns
        mine, joined = self.conversations.of(session), places.oldest(session) or math.inf
        known, said = len(mine.looks), mine.turns
        drawn = board.get("regions", []) if isinstance(board, dict) else []
        board_says: Any = {"sentence": "Answering …"}
        table = None
        try:
            with mine.asking, turns.turn(session, gives_up=lambda: mine.is_stopped(joined)) as has_turn:
                places.begin(session)
                for messages, looks in mine.ask(question, drawn, joined):
                    shown = [{"role": role, "content": as_html(words)} for role, words in messages]
                    yield board_says, shown, skip if looks is table else table_of(looks), "" if table is None else skip
                    board_says, table = skip, looks
                    if (
                        has_turn and messages[-1][0] == "user"
                    ):  # TAP is still describing regions, the answer has not begun
                        turns.give_way(session)
        except Exception as error:
            yield {"error": _told(error)}, skip, skip, skip
            return
        if len(mine.looks) > known:
            board_says = mine.board()
        elif mine.turns > said:
            board_says = {"sentence": "Ask more about these regions, or mark others."}
        else:
            board_says = {"sentence": "Stopped before there was an answer. You can ask the question again."}
        yield board_says, skip, skip, skip

    def stop(self, request: Any) -> None:
        self.conversations.of(request.session_hash).stop()

    def save_json(self, request: Any) -> Any:
        return self._file("conversation.json", self._mine(request).record_address)

    def save_png(self, request: Any) -> Any:
        return self._file("conversation.png", self._mine(request).picture_address)

    def _file(self, name: str, address: Callable[[], str]) -> Any:
        try:
            return {"name": name, "address": address()}
        except ValueError as error:
            self.gr.Warning(str(error))
            return {}

    def leave(self, request: Any) -> None:
        self.conversations.drop(request.session_hash)


def _told(error: Exception) -> str:
    """What a user is told of an error; one that no check of ours foresaw is written to the server's log."""
    if isinstance(error, ValueError):
        return str(error)
    logger.error("A request of the page failed.", exc_info=error)
    return "Something went wrong; the server's log says what. Try again, or reload the page."


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def load_gradio() -> Any:
    """Gradio, or the sentence that says how to get it."""
    try:
        import gradio
    except ImportError:
        raise ImportError("The page needs gradio, the extra app of tap-bridge: pip install 'gradio>=6'.") from None
    return gradio
