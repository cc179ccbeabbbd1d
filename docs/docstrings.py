"""Docstrings as Markdown: lines "name: words" about parameters become a list, examples become code, as they are meant.

An extension of griffe, which mkdocstrings reads the code with.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"^(?P<names>[a-z]\w*(?: \([^)]*\))?(?:(?:, | and )[a-z]\w*(?: \([^)]*\))?)*): (?=\S)")


def as_markdown(text: str) -> str:
    """The text with a bullet before each line of the form "name: words", "name, other: words" or "name (R, 4): words".

    Lines that follow one belong to it, until a blank line. Lines that begin with ">>>" or "..." become a block of code.
    """
    text = re.sub(r"((?:^(?:>>>|\.\.\.) .*\n?)+)", r"\n```pycon\n\1\n```\n", text, flags=re.MULTILINE)
    text = re.sub(r"\n+```\n", "\n```\n", text)
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        found = ITEM.match(line)
        if found:
            if not inside and lines and lines[-1]:
                lines.append("")
            inside = True
            names = re.sub(
                r"[a-z]\w*(?![^(]*\))", lambda word: f"`{word[0]}`" if word[0] != "and" else "and", found["names"]
            )
            lines.append(f"- {names}: {line[found.end() :]}")
        elif inside and line.strip():
            lines.append("  " + line)
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)


class DocstringLists(griffe.Extension):
    """Applies `as_markdown` to every docstring that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
