"""The Chinese README says what the English one says: its commands, its code, its numbers and its links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
ADVICE = "README.md and README.zh-CN.md differ: change both"


def words(page: Path) -> str:
    """A page without the tree, which is in English alone."""
    return re.sub(r"(## The tree\n\n)```.*?```", r"\1", page.read_text(), flags=re.DOTALL)


def code(page: Path) -> list[str]:
    """Blocks without their comments, which are translated."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", words(page), re.MULTILINE | re.DOTALL)
    return [mark + "\n" + re.sub(r"\s*#.*", "", block) for mark, block in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", words(page), flags=re.MULTILINE | re.DOTALL)


def test_code_is_the_same() -> None:
    assert code(CHINESE) == code(ENGLISH), ADVICE
    assert len(code(CHINESE)) >= 4


def test_commands_are_the_same() -> None:
    def commands(page: Path) -> list[str]:
        spans = re.findall(r"`([^`\n]+)`", prose(page))
        return sorted(span for span in spans if re.match(r"(make|pip|python|pytest|tap-tokenizer|region-chat) ", span))

    assert commands(CHINESE) == commands(ENGLISH), ADVICE
    assert len(commands(CHINESE)) >= 8


def test_numbers_are_the_same() -> None:
    def numbers(page: Path) -> list[list[str]]:
        """Of each row of a table, all that is a number, and the shapes."""
        rows = [row for row in prose(page).splitlines() if row.startswith("|")]
        return [re.findall(r"(?<![\w.])(?:< )?\d*\.?\d+(?:e-?\d+)?(?![\w.])|`\w+`|\b[RKDEHW]\b", row) for row in rows]

    assert numbers(CHINESE) == numbers(ENGLISH), ADVICE
    assert sum(".770" in row or len(row) > 2 for row in numbers(CHINESE)) >= 5


def test_links_are_the_same_and_lead_somewhere() -> None:
    def links(page: Path) -> set[str]:
        return {target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", prose(page))} - {
            ENGLISH.name,
            CHINESE.name,
        }

    assert links(CHINESE) == links(ENGLISH), ADVICE
    for target in links(CHINESE):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_sections_are_the_same() -> None:
    heads = [re.findall(r"^#+(?= )", words(page), re.MULTILINE) for page in (ENGLISH, CHINESE)]
    assert [len(found) for found in heads[0]] == [len(found) for found in heads[1]], ADVICE
