"""DLC-Bench's second step over predictions: a judge's replies, kept on disk, and the benchmark's scores.

Knows rows as descriptions by id; the questions and their scores are `dlc_bench`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm.auto import tqdm

from .dlc_bench import (
    Judge,
    LocalJudge,
    ServerJudge,
    benchmark_scores,
    judge_prompt,
    read_questions,
    read_template,
    region_scores,
)
from .items import Item
from .problems import Problems, counted
from .scoring import match_answers
from .text_files import read_text

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments

JUDGEMENTS = "judgements.jsonl"


@dataclass
class Judging:
    """A judge with its questions; without a judge, descriptions are counted and wait for one.

    load: makes the judge, once there is something to judge; None if there is none.
    """

    load: Callable[[], Judge] | None
    questions: dict[str, list[dict[str, Any]]]
    template: str
    note: str
    _judge: Judge | None = None

    @classmethod
    def of(cls, arguments: EvaluateArguments, items: Sequence[Item], device: str) -> Judging:
        """From a command's arguments: the judge, `qa.json` and the `class_names.json` beside it.

        Raises `ValueError` for files that do not belong together, or with the regions, before any region is described.
        """
        template = read_template(arguments.judge_prompt)
        if arguments.judge is None or arguments.qa is None:
            return cls(
                None, {}, template, "no judge yet: the same command with --judge and --qa scores these descriptions"
            )
        if find_spec("inflect") is None:
            raise ValueError("A judge's questions need inflect (pip install 'tap-bridge[eval]'): install it.")
        questions = read_questions(Path(arguments.qa))
        _check_questions(questions, [item.id for item in items])
        name = arguments.judge
        load: Callable[[], Judge]
        if arguments.judge_url is None:
            load = partial(LocalJudge, name, device)
        else:
            key = None if arguments.judge_key is None else read_text(arguments.judge_key).strip()
            server = ServerJudge(arguments.judge_url, name, key)  # so that an address that is none is refused at once
            load = lambda: server  # noqa: E731
        prompt = "our prompt 1" if arguments.judge_prompt is None else "a prompt of one's own"
        digest = sha256(template.encode()).hexdigest()[:8]
        note = f"judge {name} with {prompt} (sha256 {digest}); published rows: Llama-3.1-8B-Instruct, its own prompt"
        return cls(load, questions, template, note)

    def score(
        self, row: str, lines: Sequence[dict[str, Any]], items: Sequence[Item], problems: Problems, output: Path
    ) -> dict[str, float]:
        """The benchmark's scores of one row; replies that are on disk already are not asked for again."""
        by_id = match_answers(lines, items, row, problems)
        if self.load is None:
            return {"descriptions": float(len(by_id))}
        wanted = [item.id for item in items if item.id in self.questions]
        problems.extend("region without questions in qa", [item.id for item in items if item.id not in self.questions])
        problems.extend("questions of a region that is not evaluated", [k for k in self.questions if k not in by_id])
        kept = _kept(output / JUDGEMENTS)
        scores = []
        with (output / JUDGEMENTS).open("a", encoding="utf-8") as file:
            for key in tqdm(wanted, desc=f"judging {row}", unit="region"):
                replies = []
                for question in self.questions[key]:
                    prompt = judge_prompt(by_id[key]["answer"], question, self.template)
                    replies.append(self._reply(prompt, kept, file, {"row": row, "id": key}))
                if not _answers_recognition(replies[0]):
                    problems.add(f"{row}: the judge answered neither yes nor no to recognition, taken as no", key)
                    replies[0] = "No"
                scores.append(region_scores(self.questions[key], replies))
        return benchmark_scores(scores)

    def _reply(self, prompt: str, kept: dict[str, str], file: TextIO, about: dict[str, str]) -> str:
        """The reply to a prompt, from disk or by asking; a new one goes to disk at once."""
        assert self.load is not None
        if self._judge is None:
            self._judge = self.load()
        digest = sha256(f"{self._judge.name}\n{prompt}".encode()).hexdigest()[:32]
        if digest not in kept:
            kept[digest] = self._judge(prompt)
            line = {**about, "prompt": digest, "reply": kept[digest]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
        return kept[digest]


def _check_questions(questions: Mapping[str, Sequence[Mapping[str, Any]]], ids: Sequence[str]) -> None:
    """Raises `ValueError` unless both scores can be measured on the regions that are evaluated."""
    wanted = [key for key in ids if key in questions]
    if not wanted:
        raise ValueError("qa has no question about any region that is evaluated: is it the file of another split?")
    kinds = {question["type"] for key in wanted for question in questions[key]}
    if missing := [kind for kind in ("positive", "negative") if kind not in kinds]:
        raise ValueError(
            f"None of {counted(len(wanted), 'region')} has a {' or a '.join(missing)} question: is qa.json the benchmark's, "
            "and is the limit large enough?"
        )


def _answers_recognition(reply: str) -> bool:
    from .dlc_bench import read_choice

    choice = read_choice(reply, ["Yes", "No"])
    return choice is not None and choice < 2


def _kept(path: Path) -> dict[str, str]:
    """Replies by prompt; the torn end of a run that was killed is cut off."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return {line["prompt"]: line["reply"] for line in map(json.loads, whole.split("\n")[:-1])}
