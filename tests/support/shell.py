"""Commands of ours as in the shell, and what those of `region-chat` are asked about: the demo's picture, and a folder of it."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MODEL = Path(__file__).parents[2] / "llm_bridge" / "pretrained" / "region-chat-tiny"
DEMO = MODEL / "demo.png"
QUESTIONS = json.loads((MODEL / "demo.json").read_text())["questions"]
LARGER, BOXES = QUESTIONS[2]["text"], QUESTIONS[2]["boxes"]
FLAGS = ["--box", *BOXES[0], "--box", *BOXES[1]]


@dataclass(frozen=True)
class Shell:
    """A command by its name and what runs it."""

    name: str
    main: Callable[[list[str]], int]

    def said(self, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
        """What it prints when all goes well."""
        assert self.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
        """The one line in which it refuses bad input."""
        assert self.main([str(argument) for argument in arguments]) == 2
        got = capsys.readouterr()
        assert got.out == ""
        assert got.err.startswith(f"{self.name} ")
        assert len(got.err.splitlines()) == 1
        return got.err


def folder_of_two(path: Path) -> Path:
    """The folder `path`, with the demo's picture twice in `pictures`, and a table of two regions of each."""
    (path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copyfile(DEMO, path / "pictures" / name)
    rows = [f"{name},{','.join(str(x) for x in box)}" for name in ("a.png", "b.png") for box in BOXES]
    (path / "boxes.csv").write_text("image,x1,y1,x2,y2\n" + "\n".join(rows) + "\n")
    return path


def run_module(*words: str) -> None:
    """`python -m …` in this process: starting each anew takes longer than what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        with pytest.raises(SystemExit) as end:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    assert not end.value.code, words
