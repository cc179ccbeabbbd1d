"""A picture on which one drags boxes and clicks points, and a line to ask about them: the widget of notebook 03.

Needs ipympl and ipywidgets, and a figure made after `%matplotlib widget`.
"""

from __future__ import annotations

from html import escape

import ipympl  # noqa: F401 - imported to fail here, where the notebook expects it, and not at the first figure
import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.backend_bases import Event, MouseEvent
from matplotlib.widgets import RectangleSelector
from PIL import Image

from llm_bridge import RegionChat
from tap_tokenizer import draw_regions

CLICK = 4
"""Pixels of the screen that a mouse may move in a click; further, and it drags a box."""


class RegionPicker:
    """Regions of a picture by mouse, questions about them in words. `widget` is what to display.

    regions: those not asked about yet, as ("box", [x1, y1, x2, y2]) or ("point", [x, y]), in pixels of the picture; a
    question takes them all, and from then on they are region1, region2, … of the conversation.
    """

    def __init__(self, chat: RegionChat, image: Image.Image) -> None:
        # A conversation of its own: its regions are those drawn here, whatever the notebook goes on to ask.
        self.chat = RegionChat(chat.model, chat.processor)
        self.image = image.convert("RGB")
        self.regions: list[tuple[str, list[float]]] = []
        self.asked: list[tuple[str, list[float]]] = []
        self._pressed: tuple[float, float, float, float] | None = None
        with plt.ioff():
            self.figure, self.axes = plt.subplots(
                figsize=(6, 6 * image.height / image.width), dpi=110, layout="constrained"
            )
        for place in ("header_visible", "footer_visible", "toolbar_visible"):
            setattr(self.figure.canvas, place, False)
        self.axes.axis("off")
        self._shown = self.axes.imshow(self.image)
        self._band = RectangleSelector(
            self.axes, lambda *_: None, button=[1], props={"fill": False, "edgecolor": "white"}
        )
        self.figure.canvas.mpl_connect("button_press_event", self._press)
        self.figure.canvas.mpl_connect("button_release_event", self._release)
        self.question = widgets.Text("What is <region>?", description="Question", layout=widgets.Layout(width="95%"))
        self._ask_button = widgets.Button(description="Ask", button_style="primary")
        self._clear_button = widgets.Button(description="New chat")
        self.talk = widgets.HTML()
        self._ask_button.on_click(lambda _: self.ask())
        self._clear_button.on_click(lambda _: self.clear())
        buttons = widgets.HBox([self._ask_button, self._clear_button])
        self.widget = widgets.VBox([self.figure.canvas, self.question, buttons, self.talk])

    def _press(self, event: Event) -> None:
        assert isinstance(event, MouseEvent)
        if event.button == 1 and event.inaxes is self.axes:
            self._pressed = (event.x, event.y, float(event.xdata or 0), float(event.ydata or 0))

    def _release(self, event: Event) -> None:
        """A click becomes a point, a drag a box; one that ends beside the picture, ends at its edge."""
        assert isinstance(event, MouseEvent)
        if self._pressed is None:
            return
        across, up, x, y = self._pressed
        self._pressed = None
        if max(abs(event.x - across), abs(event.y - up)) <= CLICK:
            self.add("point", [x, y])
            return
        far_x, far_y = self.axes.transData.inverted().transform((event.x, event.y))
        far_x, far_y = min(max(far_x, 0.0), self.image.width), min(max(far_y, 0.0), self.image.height)
        if far_x != x and far_y != y:
            self.add("box", [min(x, far_x), min(y, far_y), max(x, far_x), max(y, far_y)])

    def add(self, kind: str, place: list[float]) -> None:
        """A new region, as if drawn: "box" or "point"."""
        self.regions.append((kind, [float(value) for value in place]))
        self._draw()

    def clear(self) -> None:
        """Forget regions and conversation."""
        self.chat.reset()
        self.regions, self.asked = [], []
        self.talk.value = ""
        self._draw()

    def ask(self) -> None:
        """Put the question about the new regions; what is refused is said, and nothing is lost."""
        prompts = {
            "boxes": [place if kind == "box" else None for kind, place in self.regions],
            "points": [[place] if kind == "point" else None for kind, place in self.regions],
        }
        given = {name: column for name, column in prompts.items() if any(value is not None for value in column)}
        question = self.question.value
        try:
            answer = self.chat.ask(question, image=self.image, **given)
        except ValueError as error:
            self._say(question, f"<em>{escape(str(error))}</em>")
            return
        self.asked, self.regions = [*self.asked, *self.regions], []
        self._say(self.chat.history[-2][1], escape(str(answer)))

    def _say(self, question: str, answer: str) -> None:
        self.talk.value += f"<p><b>{escape(question)}</b><br>{answer}</p>"

    def _draw(self) -> None:
        every = [*self.asked, *self.regions]
        boxes = [place if kind == "box" else [*place, *place] for kind, place in every]
        points = [[place] if kind == "point" else [] for kind, place in every]
        self._shown.set_data(draw_regions(self.image, boxes=boxes, points=points) if every else self.image)
        self._band.set_visible(False)
        self.figure.canvas.draw_idle()
