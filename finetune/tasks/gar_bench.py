"""GAR-Bench (https://github.com/Haochen-Wang409/Grasp-Any-Region): questions with choices about masks, and judged answers.

GAR-Bench-VQA has questions with choices. In GAR-Bench-Cap, answers about two regions are judged true or false. It has two
files: GAR-Bench-Caption-Simple.json has 97 questions with answers, and GAR-Bench-Caption-Detailed.json has 107 pairs of regions
whose relation (subject, predicate, object) a description of the first must state. The judge sees the picture, and each region
with its surroundings and its mask. The score is the share of replies that are exactly "True".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llm_bridge import replace_regions

from ..data.entries import Problems, mask_fault, numbered, read_each
from ..data.gar_bench import GarBenchSource
from ..data.json_files import read_questions
from ..data.source import literal, masked_region, with_all_shown
from ..records import Record, Turn
from .items import EvaluationSet, Item, Place
from .judged import JudgedTask
from .judges import Prompt, fill_template, region_mask, surroundings
from .questions import AS_MEANT, Questions, choices_of
from .task import Published

_SOURCE = "reference outputs of Haochen-Wang409/Grasp-Any-Region"


def _places(content: Sequence[Mapping[str, Any]]) -> list[Place]:
    return [Place(f"{n}/q0", {key: entry.get(key) for key in ("question", "image")}) for n, entry in enumerate(content)]


def _mask_fault(masks: Sequence[Any]) -> str | None:
    """What is wrong with the first mask that has a fault, all of the first one's size; None if none has."""
    return next((fault for mask in masks if (fault := mask_fault(mask, tuple(masks[0]["size"])))), None)


# --- GAR-Bench-VQA ----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class GarBench(Questions):
    """A list of {image, mask_rles, question, choices, answer, type}."""

    letters_alone = True

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        content, root = read_questions(path), found.root
        found.places = _places(content)
        source = GarBenchSource(output=str(root / "records.jsonl"), images=str(root), annotations=str(path))

        def read(number: str, entry: dict[str, Any]) -> Record | None:
            if fault := _question_fault(entry):
                found.problems.add(fault, number)
                return None
            record = source.record_of(entry)
            regions = [replace(region, id=f"{number}/{i}") for i, region in enumerate(record.regions)]
            return replace(record, image_id=int(number), regions=regions)

        found.records = list(islice(read_each(numbered(content), read, found.problems), limit))


def _question_fault(entry: Mapping[str, Any]) -> str | None:
    """Why a question cannot be asked or scored; None if it can. Raises `KeyError` for an entry of another form."""
    masks, choices, answer = literal(entry["mask_rles"]), literal(entry.get("choices")), entry.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return "question without an answer"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return "question without choices"
    listed = choices_of("\n".join(choices))
    if listed and answer.strip() not in listed:
        return "question whose answer is none of its choices"
    if not isinstance(masks, list) or not masks:
        return "question without a mask"
    fault = _mask_fault(masks)
    return fault and f"question about a {fault}"


GAR_BENCH = GarBench(
    name="gar_bench", title="GAR-Bench-VQA", version=2, whole=424,
    rules="the answer is the right choice's letter and nothing else; as meant: or begins with it, or is its words",
    published=(
        Published("GAR-1B", {"accuracy": 0.479}, f"{_SOURCE}; its paper has .506"),
        Published("GAR-8B", {"accuracy": 0.578}, f"{_SOURCE}; its paper has .599"),
    ),
)  # fmt: skip


# --- GAR-Bench-Cap ----------------------------------------------------------------------------------------------------


SIMPLE_PROMPT = """Does the answer mean the same as the true answer? The pictures show what both speak of.

True answer: {answer}
Answer: {model_output}

Other words for the same thing are right. Reply with one word, True or False."""
"""Our wording, version 1."""

DETAILED_PROMPT = """Does the description, first, speak of {subject_name}, and, second, say that it stands in the relation \
"{predicate_name}", or one that means the same, to {object_name}? The pictures show both.

Description: {model_output}

Reply with one word: True if it does both, else False."""
"""Our wording, version 1."""

RELATION = ("subject_name", "predicate_name", "object_name")


@dataclass(kw_only=True)
class GarBenchCap(JudgedTask):
    """Questions with true answers. The judge gets one prompt for each and replies True or False."""

    rules: str = "share of answers that a judge who sees the regions calls True"

    columns = ("questions", "accuracy", AS_MEANT)
    asks_questions = True
    sees = True
    longest_reply = 1000
    published_judge = "GPT-4o (2024-11-20), its own prompt"
    judge_prompt = SIMPLE_PROMPT
    fields: ClassVar[Sequence[Sequence[str]]] = (("answer",), ("model_output",))
    keys: ClassVar[Sequence[str]] = ("question", "answer")
    """What an entry must have besides a picture and two masks."""

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        content = read_questions(path)
        found.places = _places(content)

        def read(number: str, entry: dict[str, Any]) -> Record | None:
            if fault := _entry_fault(entry, self.keys):
                found.problems.add(fault, number)
                return None
            masks = literal(entry["mask_rles"])
            size = tuple(masks[0]["size"])
            regions = [replace(masked_region(mask, size), id=f"{number}/{i}") for i, mask in enumerate(masks)]
            asked, truth, found.told[int(number)] = self.question_of(entry)
            turns = with_all_shown([Turn("user", asked), Turn("assistant", truth)], len(regions))
            return Record(entry["image"], size[1], size[0], regions, turns, self.title, image_id=int(number))

        found.records = list(islice(read_each(numbered(content), read, found.problems), limit))

    def question_of(self, entry: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
        """An entry's question, its true answer, and what the judge is told."""
        asked = re.sub(r"<Prompt(\d+)>", lambda m: f"<region{int(m[1]) + 1}>", entry["question"])
        return asked, entry["answer"], {"answer": entry["answer"]}

    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        whole = picture()
        parts: list[str | np.ndarray] = ["\n1. The picture:\n", whole]
        for number in sorted(item.rows):
            shown, mask = surroundings(whole, region_mask(item.record, item.rows.index(number)))
            parts += [f"\n{2 * number + 2}. <Prompt{number}>:\n", shown]
            parts += [f"\n{2 * number + 3}. The mask of <Prompt{number}>:\n", mask]
        fields = {"answer": item.references[0], **told, "model_output": as_prompts(answer, item.rows)}
        return [[*parts, fill_template(self.template, fields)]]

    def score_replies(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        said = [replies[item.id][0] if item.id in replies else "" for item in items]
        return {
            "questions": float(len(items)),
            "accuracy": sum(reply == "True" for reply in said) / len(items),
            AS_MEANT: sum(reply.strip().lower().startswith("true") for reply in said) / len(items),
        }


@dataclass(kw_only=True)
class GarBenchCapDetailed(GarBenchCap):
    """Relations that a description of the first region must state. The judge is told the relation."""

    question: str = "Describe <region1> in detail, and tell how it relates to <region2>."

    judge_prompt = DETAILED_PROMPT
    fields = tuple((name,) for name in (*RELATION, "model_output"))
    keys = RELATION

    def question_of(self, entry: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
        told = {key: entry[key] for key in RELATION}
        return self.question, " ".join(told.values()), told

    def prepare_judge(self, items: Sequence[Item], found: EvaluationSet) -> None:
        super().prepare_judge(items, found)
        if self.options.data is not None:
            raise ValueError(f"Records have no relations for a judge of {self.name}: take gar_bench_cap_simple.")


GAR_BENCH_CAP_SIMPLE = GarBenchCap(
    name="gar_bench_cap_simple", title="GAR-Bench-Cap, simple", whole=97,
    published=(
        Published("GAR-1B", {"accuracy": 0.557}, _SOURCE),
        Published("GAR-8B", {"accuracy": 0.639}, _SOURCE),
    ),
)  # fmt: skip
GAR_BENCH_CAP_DETAILED = GarBenchCapDetailed(
    name="gar_bench_cap_detailed", title="GAR-Bench-Cap, detailed", whole=107,
    published=(
        Published("GAR-1B", {"accuracy": 0.664}, _SOURCE),
        Published("GAR-8B", {"accuracy": 0.692}, _SOURCE),
    ),
)  # fmt: skip


def _entry_fault(entry: dict[str, Any], needed: Sequence[str]) -> str | None:
    """Why an entry cannot be asked or judged; None if it can. Raises `KeyError` for an entry of another form."""
    if not all(isinstance(entry[key], str) and entry[key].strip() for key in needed):
        return f"entry without {' or '.join(needed)}"
    if not isinstance(entry["image"], str):
        return "entry without a picture"
    masks = literal(entry["mask_rles"])
    if not isinstance(masks, list) or len(masks) < 2:
        return "entry without two masks"
    return _mask_fault(masks)


def as_prompts(answer: str, rows: Sequence[int]) -> str:
    """An answer whose regions have the names that the benchmark gives them: <Prompt0> is the first.

    rows: which of the record's regions each that the answer may name is.
    """

    def renamed(number: int, _: bool) -> str | None:
        return f"<Prompt{rows[number - 1]}>" if 1 <= number <= len(rows) else None

    return replace_regions(answer, renamed)
