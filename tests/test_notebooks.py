"""The notebooks run from top to bottom on the bundled models, with and without widgets; what is kept of them is small."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from llm_bridge import RegionChat

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks")
pytest.importorskip("nbclient", reason="needs the extra notebooks")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["01_region_tokens", "02_captions_and_concepts", "03_talk_about_regions", "04_finetune_your_own", "05_evaluate"]


def load(name: str) -> ModuleType:
    """A module of the notebooks' folder, which is no package."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(notebook: Any) -> str:
    """All that the cells of a notebook print."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)


SHORTER = {
    "--steps 40": "--steps 2", "--steps 24": "--steps 2", "--batch_size 10": "--batch_size 2",
    "--batch_size 8": "--batch_size 2", "--questions 8": "--questions 3", "max_new_tokens=16": "max_new_tokens=3",
    "max_new_tokens=24": "max_new_tokens=3",
}  # fmt: skip


def test_there_are_five() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    shutil.copy(FOLDER / "region_picker.py", tmp_path)
    if path.stem == "04_finetune_your_own":
        pytest.importorskip("skimage", reason="needs the extra notebooks")
    short = tmp_path / path.name  # with two small steps of training, few lessons and short answers
    words = path.read_text()
    for whole, few in SHORTER.items():
        assert (whole in words) == (path.stem == "04_finetune_your_own")
        words = words.replace(whole, few)
    short.write_text(words)
    kept, fresh = nbformat.read(path, as_version=4), load("execute").execute(short, tmp_path)
    assert pictures(fresh) == pictures(kept), "the outputs that are kept are of another notebook: make notebooks"
    assert "No widgets here" not in printed(fresh)


@pytest.mark.slow
def test_without_widgets_boxes_can_be_typed(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "region_picker.py", tmp_path)
    (tmp_path / "ipympl.py").write_text('raise ImportError("No module named ipympl")')
    notebook = nbformat.read(FOLDER / "03_talk_about_regions.ipynb", as_version=4)
    needed = ("import matplotlib", "from_pretrained", "RegionPicker", "typed_boxes")
    notebook.cells = [
        cell for cell in notebook.cells if cell.cell_type == "code" and any(map(cell.source.count, needed))
    ]
    assert len(notebook.cells) == len(needed)
    nbformat.write(notebook, tmp_path / "short.ipynb")
    fresh = load("execute").execute(tmp_path / "short.ipynb", tmp_path)
    assert "No widgets here (No module named ipympl): type boxes" in printed(fresh)
    assert "Which is larger, <region> or <region>? → region" in printed(fresh)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "make notebooks"
    assert pictures(notebook) >= 3
    assert path.stat().st_size <= load("execute").LARGEST
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_a_picture_and_pictures_are_sharp(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [set(output.get("data", {})) for output in outputs]
    assert not any("image/jpeg" in kind for kind in kinds)
    first = [cell for cell in notebook.cells if cell.cell_type == "code"][1:4]  # after imports and what is loaded
    assert any("image/png" in output.get("data", {}) for cell in first for output in cell.outputs)
    assert "use_style()" in notebook.cells[1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_says_what_to_change_for_real_weights(path: Path) -> None:
    words = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert any(text.startswith("**With") and "real weights" in text.split("**")[1] for text in words)


# --- the widget of notebook 03 ----------------------------------------------------------------------------------------


@pytest.fixture
def picker() -> Iterator[Any]:
    """A picker on the demo's picture, on a canvas of its own, laid out as a browser would."""
    pytest.importorskip("ipympl", reason="needs the extra notebooks")
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_backend()
    module = load("region_picker")
    plt.switch_backend("module://ipympl.backend_nbagg")
    demo = Path(sys.modules["llm_bridge"].__file__ or "").parent / "pretrained" / "region-chat-tiny" / "demo.png"
    made = module.RegionPicker(RegionChat.from_pretrained("region-chat-tiny"), Image.open(demo))
    made.figure.canvas.draw()
    yield made
    plt.close(made.figure)
    plt.switch_backend(before)


def mouse(picker: Any, *places: tuple[float, float]) -> None:
    """Press at the first place, move over the others, and let go at the last; in pixels of the picture."""
    from matplotlib.backend_bases import MouseEvent

    canvas = picker.figure.canvas
    across = [picker.axes.transData.transform(place) for place in places]
    names = ["button_press_event", *["motion_notify_event"] * (len(places) - 2), "button_release_event"]
    for name, (x, y) in zip(names, across):
        canvas.callbacks.process(name, MouseEvent(name, canvas, x, y, button=1))


def test_a_drag_is_a_box_and_a_click_is_a_point(picker: Any) -> None:
    mouse(picker, (271, 470), (200, 400), (177, 392))
    mouse(picker, (300, 120), (300, 120))
    (kind, box), (other, point) = picker.regions
    assert (kind, other) == ("box", "point")
    assert box == pytest.approx([177, 392, 271, 470], abs=0.5)
    assert point == pytest.approx([300, 120], abs=0.5)


def test_a_drag_out_of_the_picture_ends_at_its_edge(picker: Any) -> None:
    mouse(picker, (400, 400), (600, 450), (900, 900))
    ((kind, box),) = picker.regions
    assert kind == "box"
    assert box == pytest.approx([400, 400, picker.image.width, picker.image.height], abs=0.5)


def test_questions_are_answered_and_go_on(picker: Any) -> None:
    direct = RegionChat(picker.chat.model, picker.chat.processor)
    mouse(picker, (177, 392), (200, 400), (271, 470))
    picker._ask_button.click()
    ((_, box),) = picker.asked
    assert picker.regions == []
    first = direct.ask("What is <region>?", image=picker.image, boxes=[box])
    assert f"<b>What is region1?</b><br>{first}</p>" in picker.talk.value
    picker.question.value = "What colour is region1?"
    picker._ask_button.click()
    assert direct.ask("What colour is region1?") in picker.talk.value.split("<p>")[-1]
    picker._clear_button.click()
    assert (picker.regions, picker.asked, picker.talk.value, picker.chat.history) == ([], [], "", [])


def test_each_picker_keeps_its_own_conversation(picker: Any) -> None:
    """Cells of the notebook that go on with their chat do not change what region1 is under the picture."""
    chat = RegionChat(picker.chat.model, picker.chat.processor)
    other = load("region_picker").RegionPicker(chat, picker.image)
    chat.ask("What is <region>?", image=picker.image, boxes=[[177, 392, 271, 470]])
    other.add("box", [245, 72, 351, 175])
    other._ask_button.click()
    assert "What is region1?" in other.talk.value
    assert len(chat.history) == 2


def test_a_refused_question_is_explained_and_keeps_its_regions(picker: Any) -> None:
    picker.add("box", [177, 392, 271, 470])
    picker.question.value = "Is <region> above <region>?"
    picker._ask_button.click()
    assert "<em>" in picker.talk.value
    assert "&lt;region&gt;" in picker.talk.value
    assert len(picker.regions) == 1
