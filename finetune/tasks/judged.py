"""Tasks that a judge scores. Its replies are kept on disk, or read from a file; each benchmark says what they are worth.

Verdict files are those that the benchmarks' own scripts write: an object of {"pred", "response"} by region id (DLC-Bench,
ParaDLC-Bench); a list of entries with "eval_result", in order (GAR-Bench-Cap); lines of {"question_id", "category", "content",
"answer2"} (MDVP-Bench). Lines of {"id", "reply"} are read, too, one for each prompt in order, as in our `judgements.jsonl`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeAlias

import numpy as np
from tqdm.auto import tqdm

from tap_tokenizer import counted, write_whole

from ..data.entries import Problems
from ..data.json_files import JsonError, parse_json, read_entries, read_text
from ..records import open_image
from .items import EvaluationSet, Item
from .judges import Judge, LocalJudge, Prompt, ServerJudge, read_template
from .predictions import Line, id_at, match_answers, whole_id
from .task import Task, TaskOptions

JUDGEMENTS = "judgements.jsonl"
JUDGE_OPTIONS = frozenset({"judge", "judge_url", "judge_key", "judge_prompt", "verdicts"})


@dataclass
class Verdict:
    """The replies about one item. answer: what was judged, if the file says so."""

    replies: list[str] = field(default_factory=list)
    answer: str | None = None


Verdicts: TypeAlias = dict[str | None, dict[str, Verdict]]
"""Verdicts by row, which is None if the file names no rows, and by item id."""


@dataclass(kw_only=True)
class JudgedTask(Task):
    """A task that a judge scores. Without a judge, answers are counted and kept until there is one."""

    max_new_tokens: int = 512

    kind = "judged"
    takes = JUDGE_OPTIONS
    needed: ClassVar[str] = "--judge"
    """The options that are needed to score the answers."""
    sees: ClassVar[bool] = False
    """Whether the judge is shown the picture."""
    longest_reply: ClassVar[int] = 300
    """In tokens."""
    published_judge: ClassVar[str]
    """The judge behind the published numbers."""
    judge_prompt: ClassVar[str]
    """Our wording of the judge's prompt."""
    fields: ClassVar[Sequence[Sequence[str]]]
    """Fields that a prompt must have. A field may go by any of its names."""

    template: str = field(init=False)
    verdicts: Verdicts | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.template = self.judge_prompt

    @abstractmethod
    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        """What the judge is asked about an answer, in order.

        picture: opens the item's picture; told: what the published file has for judges, {} of one's own records.
        """

    @abstractmethod
    def score_replies(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        """A row's numbers, from the replies to each item's prompts by item id. Items without replies are left out."""

    def judged(self, items: Sequence[Item], problems: Problems) -> list[Item]:
        """The items that the judge is asked about; others are named in `problems`."""
        return list(items)

    def replies_to(self, item: Item) -> int:
        """How many prompts there are about an item's answer."""
        return 1

    def wordings(self) -> list[tuple[str, bool]]:
        """Every template, and whether it was given by the user."""
        return [(self.template, self.template != self.judge_prompt)]

    @property
    def has_judge(self) -> bool:
        """Whether answers are scored, by a judge or by its replies."""
        return self.options.judge is not None or self.options.verdicts is not None

    def configure(self, options: TaskOptions) -> None:
        super().configure(options)
        if options.judge is not None and options.verdicts is not None:
            raise ValueError("Got both judge and verdicts: give either a judge to ask, or a file of its replies.")
        if options.judge is not None and options.judge_url is None and self.sees:
            raise ValueError(f"The judge of {self.name} must see pictures: give one on a server with judge_url=….")

    def prepare(self, items: Sequence[Item], found: EvaluationSet, device: str) -> None:
        super().prepare(items, found, device)
        if self.has_judge:
            self.prepare_judge(items, found)

    def prepare_judge(self, items: Sequence[Item], found: EvaluationSet) -> None:
        """Read the template, and the replies if they are in a file. Raises `ValueError` if they do not belong to the items."""
        options = self.options
        self.template = read_template(options.judge_prompt, self.judge_prompt, self.fields)
        if options.verdicts is not None:
            self.verdicts = read_verdicts(options.verdicts, items, found)
            return
        self._load: Callable[[], Judge] = partial(LocalJudge, str(options.judge), self.device, self.longest_reply)
        if options.judge_url is not None:
            key = None if options.judge_key is None else read_text(options.judge_key).strip()
            server = ServerJudge(options.judge_url, str(options.judge), key, self.longest_reply)  # refuses no address
            self._load = lambda: server

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded once there is something to judge."""
        return self._load()

    def score(self, row: str, lines: Sequence[Line], items: Sequence[Item], found: EvaluationSet) -> dict[str, Any]:
        """The benchmark's scores. A prompt whose reply is on disk is not asked again."""
        by_id = match_answers(lines, items, row, found.problems)
        if not self.has_judge:
            return {"questions": float(len(by_id)), "descriptions": float(len(by_id))}
        wanted = self.judged(items, found.problems)
        answers = {item.id: str(by_id[item.id]["answer"]) for item in wanted}
        if self.verdicts is not None:
            replies = self._given(self.verdicts, row, wanted, answers, found.problems)
        else:
            replies = self._asked(row, wanted, answers, found)
        return self.score_replies(replies, wanted, row, found.problems)

    def _given(
        self, verdicts: Verdicts, row: str, items: Sequence[Item], answers: Mapping[str, str], problems: Problems
    ) -> dict[str, list[str]]:
        """The replies in the file. Items without one, or with a verdict on a different answer, are named."""
        of_row = {**verdicts.get(None, {}), **verdicts.get(row, {})}
        replies: dict[str, list[str]] = {}
        for item in items:
            verdict = of_row.get(item.id)
            if verdict is None:
                problems.add(f"{row}: no verdict", item.id)
            elif verdict.answer is not None and verdict.answer.strip() != answers[item.id].strip():
                problems.add(f"{row}: verdict on another answer, not counted", item.id)
            elif len(verdict.replies) != (count := self.replies_to(item)):
                said = counted(len(verdict.replies), "reply", "replies")
                problems.add(f"{row}: verdict of {said} to {count}", item.id)
            else:
                replies[item.id] = verdict.replies
        if not replies:
            raise ValueError(f"No verdict is about an answer of {row}: give the predictions that were judged.")
        return replies

    def _asked(
        self, row: str, items: Sequence[Item], answers: Mapping[str, str], found: EvaluationSet
    ) -> dict[str, list[str]]:
        """The judge's replies, from disk or by asking."""
        replies: dict[str, list[str]] = {}
        path = Path(self.options.output) / JUDGEMENTS
        kept = _kept(path)
        with path.open("a", encoding="utf-8") as file:
            for item in tqdm(items, desc=f"judging {row}", unit="answer"):
                picture = partial(open_image, item.record, found.root)
                prompts = self.prompts(item, answers[item.id], picture, found.told.get(item.record.image_id, {}))
                about = {"row": row, "id": item.id}
                replies[item.id] = [self._reply(prompt, kept, file, about) for prompt in prompts]
        return replies

    def _reply(self, prompt: Prompt, kept: dict[str, str], file: TextIO, about: dict[str, str]) -> str:
        """The reply to a prompt, from disk or by asking; a new one goes to disk at once."""
        digest = _digest(str(self.options.judge), prompt)
        if digest not in kept:
            kept[digest] = self.judge(prompt)
            line = {**about, "prompt": digest, "reply": kept[digest]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
        return kept[digest]

    def notes(self) -> list[str]:
        published = f"published rows: {self.published_judge}"
        if not self.has_judge:
            return [f"no judge yet: the same command with {self.needed} (or --verdicts) scores these answers"]
        if self.verdicts is not None:
            return [f"a judge's replies were given; {published}"]
        wordings = self.wordings()
        digest = sha256("".join(text for text, _ in wordings).encode()).hexdigest()[:8]
        prompt = "your own prompt" if any(is_given for _, is_given in wordings) else "our prompt 1"
        return [f"judge {self.options.judge} with {prompt} (sha256 {digest}); {published}"]


def _digest(judge: str, prompt: Prompt) -> str:
    """A digest of a prompt to a judge: 32 hex digits over its text and its pictures' pixels."""
    digest = sha256(f"{judge}\n".encode())
    for part in [prompt] if isinstance(prompt, str) else prompt:
        digest.update(part.encode() if isinstance(part, str) else f"{part.shape}".encode() + part.tobytes())
    return digest.hexdigest()[:32]


def _kept(path: Path) -> dict[str, str]:
    """Replies by prompt. An incomplete last line, from a run that was killed, is cut off."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_whole(path, whole)
    try:
        return {line["prompt"]: line["reply"] for line in map(json.loads, whole.split("\n")[:-1])}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{path} is damaged: delete it to ask the judge again.") from None


def read_verdicts(path: str, items: Sequence[Item], found: EvaluationSet) -> Verdicts:
    """The verdicts of a file. Raises `ValueError` if its form is unknown, or if none of its verdicts is on an item."""
    verdicts: Verdicts = {}
    by_region = _entries_by_region(path)
    if by_region:
        verdicts[None] = {key: _by_region(path, key, entry) for key, entry in by_region.items()}
    else:
        _read_entries(path, items, found, verdicts)
    known = {item.id for item in items}
    if not any(known & set(some) for some in verdicts.values()):
        raise ValueError(f"{path} has no verdict on any item that is evaluated: is it the file of another split?")
    return verdicts


def _entries_by_region(path: str) -> dict[str, dict[str, Any]]:
    """The objects by region id that a file holds; {} for a list, or for lines, even if there is only one."""
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


def _read_entries(path: str, items: Sequence[Item], found: EvaluationSet, verdicts: Verdicts) -> None:
    """Fill in the verdicts of a list, or of lines, in any of the forms that scripts write."""
    entries = read_entries(path)
    numbers = {(item.type, found.told.get(item.record.image_id, {}).get("number")): item.id for item in items}
    known = {item.id for item in items}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, verdict {number + 1} is a {type(entry).__name__}, expected an object.")
        row = None
        if "eval_result" in entry:
            key = id_at(number, entry, len(entries), found.places, path, "verdict")
            reply, answer = entry["eval_result"], entry.get("model_output")
        elif "content" in entry and "question_id" in entry:
            key = numbers.get((str(entry.get("category")), entry["question_id"]), "")
            reply, answer = entry["content"], entry.get("answer2")
        elif "id" in entry and "reply" in entry:
            key = str(whole_id(entry["id"], known))
            reply, answer, row = entry["reply"], entry.get("answer"), entry.get("row")
        else:
            raise ValueError(
                f"{path}, verdict {number + 1} has none of eval_result, content and reply: expected a file of a "
                "benchmark's own script, or lines of id and reply."
            )
        if not isinstance(reply, str):
            raise ValueError(f"{path}, verdict {number + 1} has a {type(reply).__name__} for a reply, expected text.")
        verdict = verdicts.setdefault(row, {}).setdefault(key, Verdict(answer=answer))
        verdict.replies.append(reply)
