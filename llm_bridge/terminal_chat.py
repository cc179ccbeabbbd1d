"""`region-chat chat`: a conversation about one picture, line by line; lines that begin with a slash are commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tap_tokenizer import (
    RegionPrompt,
    check_not_read,
    check_picture_path,
    draw_regions,
    region_prompts,
    save_picture,
    tell_limitation,
    write_whole,
)

from .chat import RegionChat

HELP = """Write a question, with <region> for each new region; region1, region2, … are those you asked about before.
  /box X1 Y1 X2 Y2 · /point X Y · /mask PICTURE   a region for the next question
  /undo   take that region back; if none waits, the last question
  /save PICTURE   draw the regions · /json FILE   write the conversation · /new   start a new chat · /quit"""

COMMANDS = {"box": "X1 Y1 X2 Y2", "point": "X Y", "mask": "PICTURE", "undo": "", "save": "PICTURE", "json": "FILE", "new": "",
            "help": "", "quit": ""}  # fmt: skip
"""What each command is followed by."""


class TerminalChat:
    """Reads questions and commands, and prints what comes of them.

    inputs: files that no command may overwrite.
    """

    def __init__(self, chat: RegionChat, picture: np.ndarray, inputs: Iterable[Path], max_new_tokens: int) -> None:
        self.chat, self.picture, self.inputs, self.max_new_tokens = chat, picture, list(inputs), max_new_tokens
        self.waiting: list[tuple[str, RegionPrompt]] = []
        """Regions for the next question, each with the command that marks it."""
        self.asked: list[list[tuple[str, RegionPrompt]]] = []
        """Those that came with each question before."""

    def run(self) -> None:
        """Go on until /quit, or until there are no more lines."""
        while (line := _next_line()) not in (None, "/quit", "/exit"):
            try:
                if line.startswith("/"):
                    self._obey(line)
                elif line:
                    self._ask(line)
            except (ValueError, OSError) as error:
                print(error)

    def mark(self, kind: str, value: Any) -> None:
        """Let a box, a point or a mask (a picture's path) wait for the next question; `ValueError` if it does not fit."""
        height, width = self.picture.shape[:2]
        earlier = len(self.chat._regions) + len(self.waiting)
        (prompt,) = region_prompts([(kind, value)], (height, width), first=earlier + 1)
        words = value if kind == "mask" else " ".join(f"{number:g}" for number in value)
        self.waiting.append((f"/{kind} {words}", prompt))

    def _ask(self, question: str) -> None:
        self._check_marked(question)
        prompts = [prompt for _, prompt in self.waiting]
        pieces = self.chat.ask(
            question, image=self.picture, prompts=prompts, stream=True, max_new_tokens=self.max_new_tokens
        )
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        tell_limitation(self.chat.limitation)
        self.asked.append(self.waiting)
        self.waiting = []

    def _check_marked(self, question: str) -> None:
        """Refuse a question with more or fewer <region> than regions wait for it, in words of the commands that mark them."""
        marks = "/box X1 Y1 X2 Y2, /point X Y or /mask PICTURE marks one"
        new, spoken, known = len(self.waiting), question.count("<region>"), len(self.chat._regions)
        if not new and not known and not self.chat.sees_pictures:
            raise ValueError(f"No region is marked yet: {marks}; then ask.")
        waiting = "no new region is" if not new else "1 new region is" if new == 1 else f"{new} new regions are"
        if spoken > new:
            earlier = ", or speak of one that you asked about before by its name, as in region1" if known else ""
            raise ValueError(f"The question has {spoken} <region>, and {waiting} marked: {marks}{earlier}.")
        if 0 < spoken < new:
            raise ValueError(
                f"The question has {spoken} <region>, and {waiting} marked: write <region> once for each, or take the others "
                "back with /undo."
            )

    def _obey(self, line: str) -> None:
        """Do what a line that begins with a slash says."""
        name, _, rest = line[1:].partition(" ")
        if name in ("box", "point"):
            self.mark(name, _numbers(name, rest))
        elif name == "mask" and rest:
            self.mark(name, Path(rest))
            self.inputs.append(Path(rest))
        elif name == "undo":
            self._undo()
        elif name == "save" and rest:
            check_picture_path(Path(rest), self.inputs)
            if self.chat.image is None:
                raise ValueError("There is nothing to draw yet: ask about a region first.")
            save_picture(draw_regions(self.chat.image, self.chat.regions()), Path(rest))
            print(f"Wrote {rest}.")
        elif name == "json" and rest:
            check_not_read(Path(rest), self.inputs)
            messages = [{"role": role, "content": content} for role, content in self.chat.history]
            write_whole(rest, json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n")
            print(f"Wrote {rest}.")
        elif name == "new":
            self.chat.reset()
            self.waiting, self.asked = [], []
        elif name == "help":
            print(HELP)
        elif name in COMMANDS:
            raise ValueError(f"/{name} needs more: /{name} {COMMANDS[name]}.")
        else:
            raise ValueError(f"There is no command /{name}: there are {', '.join(f'/{known}' for known in COMMANDS)}.")

    def _undo(self) -> None:
        """Take back the last region that waits, or the last question, whose regions wait again."""
        if self.waiting:
            print(f"Took back {self.waiting.pop()[0]}.")
            return
        if not self.asked:
            raise ValueError("There is nothing to take back: no region waits for a question, and none was asked.")
        question, _ = self.chat.take_back()
        self.waiting = self.asked.pop()
        regions = " and ".join(command for command, _ in self.waiting)
        again = f" {regions} {'waits' if len(self.waiting) == 1 else 'wait'} again." if regions else ""
        print(f'Took back "{question}" and its answer.{again}')


def _numbers(name: str, words: str) -> list[float]:
    """What follows /box or /point."""
    count = 4 if name == "box" else 2
    try:
        values = [float(word) for word in words.split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"Got /{name} {words}, expected {count} numbers in pixels of the picture.")
    return values


def _next_line() -> str | None:
    """A line of input without its ends, or None when there is no more."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
