"""DLC-Bench's second step over predictions: a judge's replies, kept on disk, and the benchmark's scores.

Knows rows as descriptions by id; the questions and their scores are `dlc_bench`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .dlc_bench import (
    Judge,
    LocalJudge,
    ServerJudge,
    benchmark_scores,
    judge_prompt,
    read_template,
    recognition_question,
    region_scores,
)
from .items import Item
from .problems import Problems
from .scoring import match_lines

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments

JUDGEMENTS = "judgements.jsonl"


@dataclass
class Judging:
    """A judge with its questions; without a judge, descriptions are counted and wait for one."""

    judge: Judge | None
    questions: dict[str, list[dict[str, Any]]]
    template: str
    note: str

    @classmethod
    def of(cls, arguments: EvaluateArguments, device: str) -> Judging:
        """From a command's arguments: the judge, `qa.json` and the `class_names.json` beside it."""
        template = read_template(arguments.judge_prompt)
        if arguments.judge is None or arguments.qa is None:
            return cls(
                None, {}, template, "no judge yet: the same command with --judge and --qa scores these descriptions"
            )
        own, names = Path(arguments.qa), Path(arguments.qa).with_name("class_names.json")
        for path in (own, names):
            if not path.is_file():
                raise ValueError(
                    f"Found nothing at {path}: give the benchmark's qa.json with class_names.json beside it."
                )
        asked, classes = json.loads(own.read_text()), json.loads(names.read_text())
        questions = {key: [recognition_question(classes[key]), *some] for key, some in asked.items()}
        judge: Judge
        if arguments.judge_url is None:
            judge = LocalJudge(arguments.judge, device)
        else:
            key = None if arguments.judge_key is None else Path(arguments.judge_key).read_text().strip()
            judge = ServerJudge(arguments.judge_url, arguments.judge, key)
        prompt = "our prompt 1" if arguments.judge_prompt is None else "a prompt of one's own"
        digest = sha256(template.encode()).hexdigest()[:8]
        note = (
            f"judge {judge.name} with {prompt} (sha256 {digest}); published rows: Llama-3.1-8B-Instruct, its own prompt"
        )
        return cls(judge, questions, template, note)

    def score(
        self, row: str, lines: Sequence[dict[str, Any]], items: Sequence[Item], problems: Problems, output: Path
    ) -> dict[str, float]:
        """The benchmark's scores of one row; replies that are on disk already are not asked for again."""
        by_id = match_lines(lines, items, row, problems)
        if self.judge is None:
            return {"descriptions": float(len(by_id))}
        wanted = [item.id for item in items if item.id in self.questions]
        problems.extend("region without questions in qa", [item.id for item in items if item.id not in self.questions])
        problems.extend("questions of a region that is not evaluated", [k for k in self.questions if k not in by_id])
        if not wanted:
            raise ValueError("qa has no question about any region that is evaluated: is it the file of another split?")
        kept = _kept(output / JUDGEMENTS)
        scores = []
        with (output / JUDGEMENTS).open("a", encoding="utf-8") as file:
            for key in tqdm(wanted, desc=f"judging {row}", unit="region"):
                replies = []
                for question in self.questions[key]:
                    prompt = judge_prompt(str(by_id[key]["answer"]), question, self.template)
                    digest = sha256(f"{self.judge.name}\n{prompt}".encode()).hexdigest()[:32]
                    if digest not in kept:
                        kept[digest] = self.judge(prompt)
                        line = {"row": row, "id": key, "prompt": digest, "reply": kept[digest]}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        file.flush()
                    replies.append(kept[digest])
                if not _answers_recognition(replies[0]):
                    problems.add(f"{row}: the judge answered neither yes nor no to recognition, taken as no", key)
                    replies[0] = "No"
                scores.append(region_scores(self.questions[key], replies))
        return benchmark_scores(scores)


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
    return {line["prompt"]: line["reply"] for line in map(json.loads, whole.splitlines())}
