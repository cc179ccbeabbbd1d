"""Run notebooks top to bottom and keep their outputs: `python notebooks/execute.py`, or with the names of some.

Outputs are kept small and the same from run to run where the numbers are: no times, no state of widgets, no progress
bars. A notebook whose cell fails is left as it was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
LARGEST = 2_500_000
"""Bytes that a notebook with its outputs may have; a picture of 640 pixels takes half a million."""
CELL_TIMEOUT = 300


def execute(path: Path, folder: Path = HERE) -> NotebookNode:
    """The notebook with fresh outputs, run in `folder`, where it finds `region_picker` and leaves `runs/`."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False, store_widget_state=False,
    )  # fmt: skip
    client.execute(env=environment())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_tidied, cell.outputs) if output is not None]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def environment() -> dict[str, str]:
    """The kernel's environment: this project's packages before installed ones, no progress bars of loading."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _tidied(output: NotebookNode) -> NotebookNode | None:
    """An output in one format; None for what only a terminal or a running kernel can show."""
    if output.output_type == "stream" and output.name == "stderr":
        return None
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:  # a bar of progress, or the picker
        return None
    if "image/png" in data:  # a picture of PIL comes in both formats, and this one is sharp
        data.pop("image/jpeg", None)
    return output


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all."""
    paths = [Path(name) for name in names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        start = time.perf_counter()
        notebook = execute(path)
        text = nbformat.writes(notebook)
        if len(text.encode()) > LARGEST:
            sys.exit(f"{path.name} has {len(text.encode())} bytes with its outputs, expected {LARGEST}: show less.")
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {len(text.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
