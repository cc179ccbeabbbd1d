"""GAR-Bench-Cap (https://github.com/Haochen-Wang409/Grasp-Any-Region): answers about two regions, judged true or false.

Two files, GAR-Bench-Caption-Simple.json with 97 questions and their answers, and GAR-Bench-Caption-Detailed.json with 107
pairs of regions, whose relation (subject, predicate, object) a description of the first has to tell. The judge sees the
picture, and each region with its surroundings and its mask. The score is the share of replies that are "True" to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.entries import mask_fault
from ..data.problems import Problems, numbered, read_each
from ..data.sample import Sample
from ..data.source import literal, masked_region, with_all_shown
from ..records import Record, Turn
from .benchmarks import Benchmark
from .items import REGION_NAME, Item
from .judge_pictures import region_mask, surroundings
from .judges import JudgedBenchmark, Prompt, fill_template
from .places import Place
from .question_metrics import AS_MEANT

if TYPE_CHECKING:
    from ..evaluate import EvaluateArguments

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


def read_gar_cap(content: Sequence[Any], benchmark: Benchmark, problems: Problems) -> Iterator[Sample]:
    """A record of one question for each entry; entries without what they need are named by their number, from 0."""
    is_detailed = benchmark.name == "gar_bench_cap_detailed"

    def read(number: str, entry: dict[str, Any]) -> Sample | None:
        if fault := _fault(entry, RELATION if is_detailed else ("question", "answer")):
            problems.add(fault, number)
            return None
        masks = literal(entry["mask_rles"])
        size = tuple(masks[0]["size"])
        regions = [replace(masked_region(mask, size), id=f"{number}/{i}") for i, mask in enumerate(masks)]
        if is_detailed:
            told = {key: entry[key] for key in RELATION}
            asked, truth = benchmark.question, " ".join(told.values())
        else:
            told = {"answer": entry["answer"]}
            asked, truth = (
                re.sub(r"<Prompt(\d+)>", lambda m: f"<region{int(m[1]) + 1}>", entry["question"]),
                entry["answer"],
            )
        turns = with_all_shown([Turn("user", asked), Turn("assistant", truth)], len(regions))
        record = Record(entry["image"], size[1], size[0], regions, turns, benchmark.title, image_id=int(number))
        return {**record.to_dict(), "judged": told}

    return read_each(numbered(content), read, problems)


def places_of(content: Sequence[Any]) -> list[Place]:
    """The entries' items in the file's order."""
    return [Place(f"{n}/q0", {"question": entry.get("question"), "image": entry.get("image")})
            for n, entry in enumerate(content)]  # fmt: skip


def _fault(entry: dict[str, Any], needed: Sequence[str]) -> str | None:
    """Why an entry cannot be asked or judged; None if it can. Raises `KeyError` for an entry of another form."""
    if not all(isinstance(entry[key], str) and entry[key].strip() for key in needed):
        return f"entry without {' or '.join(needed)}"
    if not isinstance(entry["image"], str):
        return "entry without a picture"
    masks = literal(entry["mask_rles"])
    if not isinstance(masks, list) or len(masks) < 2:
        return "entry without two masks"
    return next((fault for mask in masks if (fault := mask_fault(mask, tuple(masks[0]["size"])))), None)


class GarBenchCap(JudgedBenchmark):
    """One prompt for each answer, to which the reply is True or False."""

    sees = True
    max_tokens = 1000
    published = "GPT-4o (2024-11-20), its own prompt"
    judge_prompt = SIMPLE_PROMPT
    fields: tuple[tuple[str, ...], ...] = (("answer",), ("model_output",))

    def prompts(self, item: Item, answer: str, picture: Callable[[], np.ndarray]) -> list[Prompt]:
        whole = picture()
        told = {"answer": item.references[0], **item.sample.get("judged", {})}
        parts: list[str | np.ndarray] = ["\n1. The picture:\n", whole]
        for number in sorted(item.rows):
            shown, mask = surroundings(whole, region_mask(item.sample, item.rows.index(number)))
            parts += [f"\n{2 * number + 2}. <Prompt{number}>:\n", shown]
            parts += [f"\n{2 * number + 3}. The mask of <Prompt{number}>:\n", mask]
        return [[*parts, fill_template(self.template, {**told, "model_output": as_prompts(answer, item.rows)})]]

    def score(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        said = [replies[item.id][0] if item.id in replies else "" for item in items]
        return {
            "questions": float(len(items)),
            "accuracy": sum(reply == "True" for reply in said) / len(items),
            AS_MEANT: sum(reply.strip().lower().startswith("true") for reply in said) / len(items),
        }


class GarBenchCapDetailed(GarBenchCap):
    """The judge is told the relation."""

    judge_prompt = DETAILED_PROMPT
    fields = tuple((name,) for name in (*RELATION, "model_output"))

    def __init__(self, arguments: EvaluateArguments, items: Sequence[Item]) -> None:
        super().__init__(arguments, items)
        if arguments.data is not None:
            raise ValueError(
                "Records have no relations for a judge of gar_bench_cap_detailed: take gar_bench_cap_simple."
            )


def as_prompts(answer: str, rows: Sequence[int]) -> str:
    """An answer whose regions have the names that the benchmark gives them: <Prompt0> is the first.

    rows: which of the record's regions each that the answer may name is.
    """

    def renamed(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        return f"<Prompt{rows[number - 1]}>" if 1 <= number <= len(rows) else match[0]

    return REGION_NAME.sub(renamed, answer)
