"""A judge's replies that were asked for elsewhere, in the files that the benchmarks' own scripts leave behind.

An object of {"pred", "response"} by region id (DLC-Bench, ParaDLC-Bench); a list of entries with "eval_result", by their
place (GAR-Bench-Cap); lines of {"question_id", "category", "content", "answer2"} (MDVP-Bench); and lines of {"id", "reply"},
one for each prompt in order, as `judgements.jsonl` here has them. Knows files and ids, not what replies are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.json_files import JsonError, parse_json
from ..data.problems import counted
from .items import Item
from .places import Place
from .text_files import read_entries, read_text


@dataclass
class Verdict:
    """The replies about one item; answer: what was judged, where the file says it."""

    replies: list[str] = field(default_factory=list)
    answer: str | None = None


def read_verdicts(path: str, items: Sequence[Item], places: Sequence[Place]) -> dict[str | None, dict[str, Verdict]]:
    """Verdicts by row, which is None where the file does not name any, and by item id.

    places: the items in the order of the published file. Raises `ValueError` for a file of another form, or if none of its
    verdicts is for an item.
    """
    found: dict[str | None, dict[str, Verdict]] = {}
    by_region = _entries_by_region(path)
    if by_region:
        found[None] = {key: _by_region(path, key, entry) for key, entry in by_region.items()}
    else:
        _read_entries(path, read_entries(path), items, places, found)
    known = {item.id for item in items}
    if not any(known & set(some) for some in found.values()):
        raise ValueError(f"{path} has no verdict on any item that is evaluated: is it the file of another split?")
    return found


def _entries_by_region(path: str) -> dict[str, dict[str, Any]]:
    """The objects that one object has by region id; {} for a list, or lines, of which there may be a single one."""
    text = read_text(path)
    try:
        content = parse_json(text)
    except JsonError:
        return {}
    return {k: v for k, v in content.items() if isinstance(v, dict)} if isinstance(content, dict) else {}


def _by_region(path: str, key: str, entry: dict[str, Any]) -> Verdict:
    replies = entry.get("response")
    if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
        raise ValueError(f"{path} has no list of replies for region {key}: expected DLC-Bench's response beside pred.")
    return Verdict(replies, entry.get("pred"))


def _read_entries(
    path: str,
    entries: Sequence[Any],
    items: Sequence[Item],
    places: Sequence[Place],
    found: dict[str | None, dict[str, Verdict]],
) -> None:
    numbered = {(item.type, item.sample.get("judged", {}).get("number")): item.id for item in items}
    known = {item.id for item in items}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, verdict {number + 1} is a {type(entry).__name__}, expected an object.")
        row = None
        if "eval_result" in entry:
            if len(entries) != len(places):
                raise ValueError(
                    f"{path} has {counted(len(entries), 'verdict')} without ids, and the benchmark's file "
                    f"{counted(len(places), 'entry', 'entries')}: expected one for each."
                )
            if fault := places[number].fault(entry):
                raise ValueError(f"{path}, verdict {number + 1} {fault}: is it the file of another split?")
            key, reply, answer = places[number].id, entry["eval_result"], entry.get("model_output")
        elif "content" in entry and "question_id" in entry:
            key = numbered.get((str(entry.get("category")), entry["question_id"]), "")
            reply, answer = entry["content"], entry.get("answer2")
        elif "id" in entry and "reply" in entry:
            key, reply, answer, row = str(entry["id"]), entry["reply"], entry.get("answer"), entry.get("row")
            if (
                key not in known and f"{key}/q0" in known
            ):  # as in predictions, an entry's number is that of its question
                key = f"{key}/q0"
        else:
            raise ValueError(
                f"{path}, verdict {number + 1} has none of eval_result, content and reply: expected a file of a "
                "benchmark's own script, or lines of id and reply."
            )
        if not isinstance(reply, str):
            raise ValueError(f"{path}, verdict {number + 1} has a {type(reply).__name__} for a reply, expected text.")
        verdict = found.setdefault(row, {}).setdefault(key, Verdict(answer=answer))
        verdict.replies.append(reply)
