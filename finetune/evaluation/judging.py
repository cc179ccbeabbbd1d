"""A judge's part in an evaluation: what was replied is kept on disk, or read from a file, and scored by the benchmark.

Knows rows as answers by id; what is asked and what replies are worth is the benchmark's (`JudgedBenchmark`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from tqdm.auto import tqdm

from tap_tokenizer import write_whole

from ..data.problems import Problems, counted
from ..data.sample import Sample, open_image
from .benchmarks import Benchmark
from .dlc_bench import DlcBench
from .gar_bench_cap import GarBenchCap, GarBenchCapDetailed
from .items import Item
from .judges import Judge, JudgedBenchmark, LocalJudge, Prompt, ServerJudge
from .mdvp_bench import MdvpBench
from .paradlc_bench import ParaDlcBench
from .reading import EvaluationSet
from .scoring import match_answers
from .text_files import read_text
from .verdicts import Verdict, read_verdicts

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments

JUDGEMENTS = "judgements.jsonl"

JUDGED: dict[str, type[JudgedBenchmark]] = {
    "dlc_bench": DlcBench,
    "paradlc_bench": ParaDlcBench,
    "gar_bench_cap_simple": GarBenchCap,
    "gar_bench_cap_detailed": GarBenchCapDetailed,
    "mdvp_bench": MdvpBench,
}
"""Benchmarks that a judge scores, by name."""

JUDGED_TASKS = ("descriptions", "judged")


@dataclass
class Judging:
    """A judge with its benchmark; without a judge, answers are counted and wait for one.

    name: the judge's; load: makes it, once there is something to judge; None if there is none. verdicts: replies that were
    given, by row and id, in place of a judge. root: the folder of the pictures that a judge may see.
    """

    benchmark: JudgedBenchmark | None
    note: str
    root: Path = Path()
    name: str = ""
    load: Callable[[], Judge] | None = None
    verdicts: Mapping[str | None, Mapping[str, Verdict]] | None = None
    _judge: list[Judge] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        arguments: EvaluateArguments,
        benchmark: Benchmark,
        items: Sequence[Item],
        found: EvaluationSet,
        device: str,
    ) -> Judging:
        """From a command's arguments: the judge or its replies, and what the benchmark asks.

        Raises `ValueError` for files that do not belong together, or with the items, before anything is answered.
        """
        kind = JUDGED[benchmark.name]
        if arguments.judge is None and arguments.verdicts is None:
            needed = "--judge and --qa" if benchmark.name == "dlc_bench" else "--judge"
            return cls(None, f"no judge yet: the same command with {needed} (or --verdicts) scores these answers")
        if benchmark.task == "descriptions" and find_spec("inflect") is None:
            raise ValueError("A judge's questions need inflect (pip install 'tap-bridge[eval]'): install it.")
        judged = kind(arguments, items)
        wordings = judged.wordings()
        digest = sha256("".join(text for text, _ in wordings).encode()).hexdigest()[:8]
        prompt = "your own prompt" if any(is_given for _, is_given in wordings) else "our prompt 1"
        published = f"published rows: {judged.published}"
        if arguments.verdicts is not None:
            verdicts = read_verdicts(arguments.verdicts, items, found.places)
            return cls(judged, f"a judge's replies were given; {published}", found.root, verdicts=verdicts)
        name = str(arguments.judge)
        load: Callable[[], Judge]
        if arguments.judge_url is None:
            load = partial(LocalJudge, name, device, judged.max_tokens)
        else:
            key = None if arguments.judge_key is None else read_text(arguments.judge_key).strip()
            server = ServerJudge(
                arguments.judge_url, name, key, judged.max_tokens
            )  # refused at once if it is no address
            load = lambda: server  # noqa: E731
        note = f"judge {name} with {prompt} (sha256 {digest}); {published}"
        return cls(judged, note, found.root, name, load)

    def score(
        self, row: str, lines: Sequence[dict[str, Any]], items: Sequence[Item], problems: Problems, output: Path
    ) -> dict[str, Any]:
        """The benchmark's scores of one row; replies that are on disk already are not asked for again."""
        by_id = match_answers(lines, items, row, problems)
        if self.benchmark is None:
            return {"questions": float(len(by_id)), "descriptions": float(len(by_id))}
        wanted = self.benchmark.judged(items, problems)
        answers = {item.id: str(by_id[item.id]["answer"]) for item in wanted}
        if self.verdicts is not None:
            replies = self._given(row, wanted, answers, problems)
        else:
            replies = self._asked(row, wanted, answers, output)
        return self.benchmark.score(replies, wanted, row, problems)

    def _given(
        self, row: str, items: Sequence[Item], answers: Mapping[str, str], problems: Problems
    ) -> dict[str, list[str]]:
        """The replies of the file; an item without one, or whose verdict is of another answer, is named."""
        assert self.verdicts is not None
        assert self.benchmark is not None
        verdicts = {**self.verdicts.get(None, {}), **self.verdicts.get(row, {})}
        replies: dict[str, list[str]] = {}
        for item in items:
            verdict = verdicts.get(item.id)
            if verdict is None:
                problems.add(f"{row}: no verdict", item.id)
            elif verdict.answer is not None and verdict.answer.strip() != answers[item.id].strip():
                problems.add(f"{row}: verdict on another answer, not counted", item.id)
            elif len(verdict.replies) != (count := self.benchmark.replies_to(item)):
                problems.add(
                    f"{row}: verdict of {counted(len(verdict.replies), 'reply', 'replies')} to {count}", item.id
                )
            else:
                replies[item.id] = verdict.replies
        if not replies:
            raise ValueError(f"No verdict is on an answer of {row}: give the predictions that were judged.")
        return replies

    def _asked(self, row: str, items: Sequence[Item], answers: Mapping[str, str], output: Path) -> dict[str, list[str]]:
        """The judge's replies, from disk or by asking."""
        assert self.benchmark is not None
        replies: dict[str, list[str]] = {}
        kept = _kept(output / JUDGEMENTS)
        with (output / JUDGEMENTS).open("a", encoding="utf-8") as file:
            for item in tqdm(items, desc=f"judging {row}", unit="answer"):
                picture = partial(self._picture, item.sample)
                prompts = self.benchmark.prompts(item, answers[item.id], picture)
                replies[item.id] = [self._reply(prompt, kept, file, {"row": row, "id": item.id}) for prompt in prompts]
        return replies

    def _picture(self, sample: Sample) -> np.ndarray:
        return open_image(sample, self.root)

    def _reply(self, prompt: Prompt, kept: dict[str, str], file: TextIO, about: dict[str, str]) -> str:
        """The reply to a prompt, from disk or by asking; a new one goes to disk at once."""
        digest = _digest(self.name, prompt)
        if digest not in kept:
            if not self._judge:
                assert self.load is not None
                self._judge.append(self.load())
            kept[digest] = self._judge[0](prompt)
            line = {**about, "prompt": digest, "reply": kept[digest]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
        return kept[digest]


def _digest(judge: str, prompt: Prompt) -> str:
    """What names a prompt to a judge: 32 hex digits over its text and its pictures' pixels."""
    digest = sha256(f"{judge}\n".encode())
    for part in [prompt] if isinstance(prompt, str) else prompt:
        digest.update(part.encode() if isinstance(part, str) else f"{part.shape}".encode() + part.tobytes())
    return digest.hexdigest()[:32]


def _kept(path: Path) -> dict[str, str]:
    """Replies by prompt; the torn end of a run that was killed is cut off."""
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
