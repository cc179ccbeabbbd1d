"""MDVP-Bench (https://github.com/AFeng-x/Draw-and-Understand): answers about marked regions, rated beside the true answer.

A domain's file, such as natural_QA_box.json, is a list of {image_name, question, gt_answers, dataset_name} with a `bbox`
(x y width height) or `points` for each mark. Grasp-Any-Region's mdvp_caption_mask.json covers all domains, with one mask in
each entry: {image_path, mask_rle, question, caption, dataset_name}. The judge sees the picture with numbered marks, reads the
true answer and the answer, and rates both in the first line of its reply. A domain's score is the mean rating of the answers
divided by that of the true ones.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llm_bridge import replace_regions

from ..data.entries import Problems, clipped_box, is_number, mask_fault, numbered, read_each
from ..data.json_files import read_questions
from ..data.source import literal, with_all_shown
from ..records import Record, Region, Turn, mask_box
from .items import EvaluationSet, Item, Place
from .judged import JudgedTask
from .judges import Prompt, fill_template, with_numbers

JUDGE_PROMPT = """Two answers to a question about numbered regions of the picture are to be rated. {context}

Question: {question}

Answer 1: {truth}

Answer 2: {answer}

How helpful, relevant, accurate and detailed is each? Give both a number from 1 to 10, where 10 is best.
Write the two numbers, answer 1's first, separated by a space and nothing else, into the first line. Then say why.
Do not mind which answer stands first."""
"""Our wording, version 1."""

CONTEXTS = {
    "natural": "The picture is a photograph.",
    "ocr": "The picture has text in it, and what the text says is what is asked.",
    "panel": "The picture has several panels.",
    "android": "The picture is a telephone's screen.",
    "web": "The picture is a web page.",
}
"""What the judge is told about a domain, by a word in its name."""

GROUPS = {"Natural": "natural", "OCR": "ocr", "Multi-Panel": "multipanel", "Screenshot": "android|web"}
"""The domains of each column, which is the mean of their scores."""

UNREAD = (-1.0, -1.0)
"""The ratings that the benchmark's script counts for a reply without any."""


@dataclass(kw_only=True)
class MdvpBench(JudgedTask):
    """Answers that a judge rates beside the true ones, with one prompt for each."""

    columns = ("questions", *GROUPS, "all")
    asks_questions = True
    sees = True
    longest_reply = 1024
    published_judge = "GPT-4o (2024-11-20) or GPT-4V, its own prompt"
    judge_prompt = JUDGE_PROMPT
    fields = (("question",), ("truth",), ("answer",))

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        """A record of one question for each entry, numbered from 1; those that cannot be asked are named by their number.

        The pictures' folder may be the one above their `images`.
        """
        content, problems = read_questions(path), found.problems
        found.places = [
            Place(f"{number}/q0", {"gt": entry.get("caption"), "gt_answers": entry.get("gt_answers"),
                                   "question": entry.get("question"), "image_name": entry.get("image_name")})
            for number, entry in enumerate(content, 1)
        ]  # fmt: skip
        counts: Counter[str] = Counter()

        def read(number: str, entry: dict[str, Any]) -> Record | None:
            domain = entry["dataset_name"]
            counts[domain] += 1
            image = _picture(entry, found.root)
            size = found.size_of(image)
            marked = list(_regions(entry, size, number, problems))
            regions = [region for region in marked if region is not None]
            truth = entry.get("caption", entry.get("gt_answers"))
            if not isinstance(truth, str) or not truth.strip():
                problems.add("question without an answer", number)
            elif not regions or len(regions) < len(marked):
                problems.add("question about a region that cannot be shown", number)
            else:
                asked = re.sub(r"<(?:Region|Mark) (\d+)>", r"<region\1>", entry["question"])
                turns = with_all_shown([Turn("user", asked, domain), Turn("assistant", truth)], len(regions))
                mark = "Mark" if "points" in entry else "Region"
                found.told[int(number)] = {"question": entry["question"], "mark": mark, "number": counts[domain]}
                return Record(image, size[1], size[0], regions, turns, self.title, image_id=int(number))
            return None

        found.records = list(islice(read_each(numbered(content, 1), read, problems), limit))

    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        mark = told.get("mark", "Region")

        def renamed(number: int, _: bool) -> str | None:
            return f"<{mark} {item.rows[number - 1] + 1}>" if 1 <= number <= len(item.rows) else None

        fields = {
            "context": next((words for name, words in CONTEXTS.items() if name in item.type), ""),
            "domain": item.type,
            "question": told.get("question", replace_regions(item.asked, renamed)),
            "truth": replace_regions(item.references[0], renamed),
            "answer": replace_regions(answer, renamed),
        }
        order = sorted(range(len(item.rows)), key=lambda row: item.rows[row])
        shown = with_numbers(picture(), [item.record.regions[row] for row in order])
        return [[fill_template(self.template, fields), shown]]

    def score_replies(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        ratings: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for item in items:
            if item.id not in replies:
                continue
            rated = read_ratings(replies[item.id][0])
            if rated == UNREAD:
                problems.add(f"{row}: the judge gave no two ratings, counted as -1 and -1", item.id)
            ratings[item.type].append(rated)
        if not ratings:
            raise ValueError(f"The judge rated no answer of {row}: there is nothing to score.")
        domains = {name: relative_score(some) for name, some in sorted(ratings.items())}
        scores: dict[str, Any] = {"questions": float(sum(map(len, ratings.values()))), "by_domain": domains}
        for group, words in GROUPS.items():
            if some := [value for name, value in domains.items() if re.match(words, name)]:
                scores[group] = float(np.mean(some))
        return {**scores, "all": relative_score([pair for some in ratings.values() for pair in some])}


MDVP_BENCH = MdvpBench(
    name="mdvp_bench",
    title="MDVP-Bench",
    rules="mean rating of the answers over that of the true ones, by a judge who sees the marks",
)


def _picture(entry: dict[str, Any], root: Path) -> str:
    name = str(entry["image_path"] if "image_path" in entry else entry["image_name"])
    domain = str(entry["dataset_name"]).removesuffix("_box").removesuffix("_point")
    places = (name, f"images/{name}", f"{domain}/images/{name}", f"{domain}/{name}")
    return next((place for place in places if (root / place).is_file()), name)


def _regions(entry: dict[str, Any], size: tuple[int, int], name: str, problems: Problems) -> Iterator[Region | None]:
    """An entry's regions; None if one of them lies outside the picture. If the picture does not open, nothing is clipped."""
    height, width = size if size != (1, 1) else (10**6, 10**6)
    if "mask_rle" in entry:
        mask = entry["mask_rle"]
        fault = mask_fault(mask, size) if size != (1, 1) else None
        box = None if fault else mask_box(mask, tuple(mask["size"]))
        yield None if box is None else Region(box, mask=mask, id=f"{name}/0")
        return
    for i, mark in enumerate(literal(entry["points"] if "points" in entry else entry["bbox"])):
        key = f"{name}/{i}"
        if "points" in entry:
            good = len(mark) == 2 and all(is_number(v) for v in mark)
            good = good and 0 <= mark[0] <= width and 0 <= mark[1] <= height
            yield Region(points=[list(mark)], point_labels=[1], id=key) if good else None
            continue
        if len(mark) == 4 and all(is_number(v) for v in mark) and min(mark[2:]) < 1:
            problems.add("box thinner than a pixel, taken as one pixel", key)
            mark = [*mark[:2], max(mark[2], 1), max(mark[3], 1)]
        found = clipped_box(mark, width, height)
        if found is not None and found[1]:
            problems.add("box beyond its picture's border, clipped", key)
        yield None if found is None else Region(found[0], id=key)


def read_ratings(reply: str) -> tuple[float, float]:
    """The true answer's rating and the answer's, from a reply's first line, as the benchmark's script reads it."""
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        return float(words[0]), float(words[1])
    except (ValueError, IndexError):
        return UNREAD


def relative_score(ratings: Sequence[tuple[float, float]]) -> float:
    """Mean rating of the answers divided by that of the true ones. The means are rounded to .001 first, as in the script."""
    true, said = (round(float(value), 3) for value in np.mean(ratings, axis=0))
    return said / (true + 1e-6)
