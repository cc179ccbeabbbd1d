"""DLC-Bench (https://github.com/NVlabs/describe-anything): a judge answers questions about each description.

The first question is whether the description names the right thing; if it does not, no later question scores above 0. A
region's positive score is the mean over its positive questions, and its negative score the mean over its negative ones, if it
has any. The means over regions are reported, and the mean of these two. The judge's prompt and the first question are our own;
the benchmark's can be given as files. Published numbers come from Llama-3.1-8B-Instruct. Numbers from another judge or prompt
do not compare with them.

ParaDLC-Bench (https://github.com/MSALab-PKU/PerceptionDLM) asks such questions about several regions of a picture. Its
`annotations.json` is a list of pictures, {file_name, height, width, image_id, annotations: [{index, mask_rle}]}. The `qa.json`
beside it has questions about the regions to evaluate, by IMAGE_INDEX, and `class_names.json` has their names. The judge sees
each region with its surroundings and its mask, and is told the class. A region without a positive question gets a positive
score of 0. Each region is described separately, from its mask's box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tap_tokenizer import counted

from ..data.entries import Problems, first_names, is_number, mask_fault, numbered, read_each
from ..data.json_files import read_json, read_text
from ..records import Record, Region, mask_box
from .items import EvaluationSet, Item
from .judged import JUDGE_OPTIONS, JudgedTask
from .judges import Prompt, fill_template, region_mask, surroundings
from .task import Published, TaskOptions

DETAIL_QUESTION = "Describe <region> in detail."
JUDGE_PROMPT = """Read the description of an object and answer the question about it.
Reply with exactly one of the choices, no reasons; where none fits to the word, take the closest.

Description:
{description}

Question:
{question}"""
"""Our wording, version 1."""

RECOGNITION_QUESTION = """\
Is the object in the description {a_class_name}, or something similar? It need not match to the word.
Are the objects in the description {class_name}, or something similar? It need not match to the word."""
"""Our wording, version 1: a line for one object, and a line for several. If there is only one line, it serves for both."""

LETTERS = "abcde"


@dataclass(kw_only=True)
class DlcBench(JudgedTask):
    """Descriptions of regions in COCO's layout."""

    question: str = DETAIL_QUESTION

    kind = "descriptions"
    columns = ("positive", "negative", "average", "recognised")
    takes = JUDGE_OPTIONS | {"qa", "recognition_question"}
    needs_references = False
    needed = "--judge and --qa"
    published_judge = "Llama-3.1-8B-Instruct, its own prompt"
    judge_prompt = JUDGE_PROMPT
    fields = (("description", "pred_caption"), ("question", "question_text_str"))
    recognition: ClassVar[str] = RECOGNITION_QUESTION
    no_positive: ClassVar[float | None] = None
    """The positive score of a region without a positive question; None leaves it out of the mean."""
    more_names: ClassVar[bool] = False
    """Whether `class_names.json` may have regions that `qa.json` lacks."""

    recognition_template: str = field(init=False, default=RECOGNITION_QUESTION)
    questions: dict[str, list[dict[str, Any]]] = field(init=False, default_factory=dict)

    @property
    def qa(self) -> str | None:
        """The file of the judge's questions."""
        return self.options.qa

    def configure(self, options: TaskOptions) -> None:
        super().configure(options)
        if self.qa == options.qa and self.has_judge != (self.qa is not None):
            raise ValueError("A judge needs qa=… with the benchmark's questions, and qa needs a judge=… or verdicts=….")

    def prepare_judge(self, items: Sequence[Item], found: EvaluationSet) -> None:
        if find_spec("inflect") is None:
            raise ValueError("A judge's questions need inflect (pip install 'tap-bridge[eval]'): install it.")
        super().prepare_judge(items, found)
        given = self.options.recognition_question
        self.recognition_template = self.recognition if given is None else read_recognition(given)
        self.questions = read_questions(Path(str(self.qa)), self.recognition_template, self.more_names)
        _check_questions(self.questions, [item.id for item in items])

    def judged(self, items: Sequence[Item], problems: Problems) -> list[Item]:
        """The regions that have questions."""
        ids = {item.id for item in items}
        problems.extend("region without questions in qa", [key for key in ids if key not in self.questions])
        problems.extend("questions of a region that is not evaluated", [k for k in self.questions if k not in ids])
        return [item for item in items if item.id in self.questions]

    def replies_to(self, item: Item) -> int:
        return len(self.questions[item.id])

    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        return [judge_prompt(answer, question, self.template) for question in self.questions[item.id]]

    def score_replies(
        self, replies: Mapping[str, Sequence[str]], items: Sequence[Item], row: str, problems: Problems
    ) -> dict[str, Any]:
        scores = []
        for item in items:
            questions = self.questions[item.id]
            said = replies.get(item.id, [""] * len(questions))
            if item.id in replies and not _answers_recognition(said[0]):
                problems.add(f"{row}: the judge answered neither yes nor no to recognition, taken as no", item.id)
            found = region_scores(questions, said)
            scores.append({**found, "positive": self.no_positive} if found["positive"] is None else found)
        return benchmark_scores(scores)

    def wordings(self) -> list[tuple[str, bool]]:
        own = self.recognition_template
        return [*super().wordings(), (own, own != self.recognition)]


DLC_BENCH = DlcBench(
    name="dlc_bench", title="DLC-Bench", rules="mean of positive and negative score by a judge", whole=100,
    published=(
        Published("DAM-3B", {"positive": 0.510, "negative": 0.830, "average": 0.670}, "NVlabs/describe-anything"),
        Published("GAR-1B", {"positive": 0.489, "negative": 0.870, "average": 0.679}, "Haochen-Wang409/Grasp-Any-Region"),
        Published("GAR-8B", {"positive": 0.502, "negative": 0.846, "average": 0.674}, "Haochen-Wang409/Grasp-Any-Region"),
    ),
)  # fmt: skip


def read_recognition(path: str) -> str:
    """Read the first question's template from a file. Raises `ValueError` for more than two lines, or one without a field."""
    text = read_text(path).rstrip("\n")
    lines = text.split("\n")
    if len(lines) > 2 or not all("{class_name}" in line or "{a_class_name}" in line for line in lines):
        raise ValueError(
            f"{path} is not a template of the first question: expected a line for one object and perhaps one for several, "
            "each with {class_name} or {a_class_name}."
        )
    return text


def _check_questions(questions: Mapping[str, Sequence[Mapping[str, Any]]], ids: Sequence[str]) -> None:
    """Raise `ValueError` unless both scores can be measured on the regions that are evaluated."""
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
    choice = read_choice(reply, ["Yes", "No"])
    return choice is not None and choice < 2


def read_questions(
    path: Path, recognition: str = RECOGNITION_QUESTION, more_names: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Each region's questions, recognition first, from `qa.json` and the `class_names.json` beside it.

    more_names: whether the names may be of more regions. Raises `ValueError` if one of both has regions that the other
    lacks, or for a question of another form.
    """
    names_path = path.with_name("class_names.json")
    for file in (path, names_path):
        if not file.is_file():
            raise ValueError(f"Found nothing at {file}: give the benchmark's qa.json with class_names.json beside it.")
    asked, names = read_json(path), read_json(names_path)
    for file, content in ((path, asked), (names_path, names)):
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds a {type(content).__name__}, expected an object by region id.")
    pairs = ((path, asked, names_path, names), (names_path, names, path, asked))
    for one, first, other, second in pairs[:1] if more_names else pairs:
        if alone := [key for key in first if key not in second]:
            raise ValueError(
                f"{one} has {counted(len(alone), 'region')} that {other} lacks ({first_names(alone)}): "
                "give the two files of one version of the benchmark."
            )
    for key, questions in asked.items():
        if not isinstance(names[key], str) or not names[key].strip():
            raise ValueError(f"{names_path} has {names[key]!r} for region {key}, expected the name of its class.")
        if not isinstance(questions, list) or not all(_is_question(question) for question in questions):
            raise ValueError(
                f"{path} has a question of another form for region {key}: expected question, choices with scores, "
                "and type positive or negative."
            )
    return {key: [recognition_question(names[key], recognition), *questions] for key, questions in asked.items()}


def _is_question(question: Any) -> bool:
    if not isinstance(question, dict) or question.get("type") not in ("positive", "negative"):
        return False
    choices = question.get("choices")
    return (
        isinstance(question.get("question"), str) and isinstance(choices, list) and 0 < len(choices) <= len(LETTERS)
        and all(isinstance(c, list) and len(c) == 2 and isinstance(c[0], str) and is_number(c[1]) for c in choices)
    )  # fmt: skip


def recognition_question(class_name: str, template: str = RECOGNITION_QUESTION) -> dict[str, Any]:
    """The question that is asked first: whether the description names the region's class.

    template: a line with {class_name}, or with {a_class_name}, which has its article; a second line is for plurals.
    """
    one, *several = template.split("\n")
    fields = {"class_name": class_name, "a_class_name": class_name}
    if several or "{a_class_name}" in template:
        import inflect

        english = inflect.engine()
        fields["a_class_name"] = english.a(class_name)
        # inflect takes bus for a plural, and before 7.6 took "wine glass" for one, as the published prompts do
        is_plural = class_name != "bus" and (
            class_name.endswith("ss") or english.singular_noun(class_name) is not False
        )
        one = several[0] if several and is_plural else one
    question = fill_template(one, fields)
    return {"question": question, "choices": [["Yes", "correct"], ["No", "incorrect"]], "type": "recognition"}


def judge_prompt(description: str, question: Mapping[str, Any], template: str = JUDGE_PROMPT) -> str:
    """What the judge is asked: a template with {description} and {question}, choices lettered from A.

    {pred_caption} and {question_text_str}, as the benchmark's own script has them, are the same.
    """
    lines = [f"{letter.upper()}. {words}" for letter, (words, _) in zip(LETTERS, question["choices"])]
    asked = "\n".join([question["question"], *lines]).strip()
    fields = {"description": description, "pred_caption": description, "question": asked, "question_text_str": asked}
    return fill_template(template, fields)


def read_choice(reply: str, choices: Sequence[str]) -> int | None:
    """The choice that a judge's reply means, by the benchmark's rules in their order; None, which scores 0, if none fits.

    The choice itself, with or without its letter, or the letter; the only choice that the reply contains; a letter with a
    full stop at its beginning; of several choices contained, the last, the longest where two begin together; the longest
    choice that contains the reply; a letter alone or on the first line.
    """
    said = reply.strip().lower()
    if not said:
        return None
    inside: list[tuple[int, int, int]] = []
    for i, choice in enumerate(c.strip().lower() for c in choices):
        if said in (choice, f"{LETTERS[i]}. {choice}", LETTERS[i]):
            return i
        if choice in said:
            inside.append((said.index(choice), len(choice), -i))
    if len(inside) == 1:
        return -inside[0][2]
    if said[0] in LETTERS and said[1:2] == ".":
        return LETTERS.index(said[0])
    if inside:
        return -max(inside)[2]
    around = [(len(c.strip()), -i) for i, c in enumerate(choices) if said in c.strip().lower()]
    if around:
        return -max(around)[1]
    return LETTERS.index(said[0]) if said[0] in LETTERS and said[1:2] in ("", "\n") else None


def region_scores(questions: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> dict[str, Any]:
    """One region's positive and negative score (None if it has no such question) from the judge's replies.

    questions: the recognition question, then the region's own, each with choices [words, score] and a type. A reply that
    answers neither yes nor no does not recognise the region.
    """
    scores: dict[str, list[float]] = {"positive": [], "negative": []}
    recognised: bool | None = None
    for question, reply in zip(questions, replies, strict=True):
        choice = read_choice(reply, [words for words, _ in question["choices"]])
        value = 0 if choice is None or choice >= len(question["choices"]) else question["choices"][choice][1]
        if question["type"] == "recognition":
            recognised = value == "correct"
        elif recognised is None:
            raise ValueError("A question comes before the recognition question: ask that first.")
        else:
            scores[question["type"]].append(value if recognised else min(0, value))
    means = {name: sum(values) / len(values) if values else None for name, values in scores.items()}
    return {**means, "recognised": recognised}


def benchmark_scores(regions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the regions that have a score, and the mean of positive and negative."""
    result: dict[str, float] = {}
    for name in ("positive", "negative"):
        values = [r[name] for r in regions if r[name] is not None]
        if not values:
            raise ValueError(f"No region has a {name} question: is qa.json the benchmark's?")
        result[name] = sum(values) / len(values)
    result["average"] = (result["positive"] + result["negative"]) / 2
    result["recognised"] = sum(bool(r["recognised"]) for r in regions) / len(regions)
    return result


# --- ParaDLC-Bench -------------------------------------------------------------------------------------------------------

CLASS_QUESTION = (
    "The region in the picture is of the class {class_name}. Is the description about that, or something similar?"
)
"""Our wording, version 1."""


@dataclass(kw_only=True)
class ParaDlcBench(DlcBench):
    """DLC-Bench's questions, for a judge that sees the region."""

    needed = "--judge"
    sees = True
    published_judge = "GPT-5.2, its own prompt"
    recognition = CLASS_QUESTION
    no_positive = 0.0
    more_names = True

    @property
    def qa(self) -> str | None:
        annotations = self.options.annotations
        beside = None if annotations is None else str(Path(annotations).with_name("qa.json"))
        return self.options.qa or beside

    def read_file(self, path: Path, found: EvaluationSet, limit: int | None) -> None:
        """The pictures, with only those regions that the `qa.json` beside the file asks about."""
        questions = path.with_name("qa.json")
        if not questions.is_file():
            raise ValueError(
                f"Found nothing at {questions}, which says what regions are evaluated: put it beside {path.name}."
            )
        asked, seen = read_json(questions), set()

        def read(_: str, entry: dict[str, Any]) -> Record:
            size = (entry["height"], entry["width"])
            regions = []
            for annotation in entry["annotations"]:
                key = f"{entry['image_id']}_{annotation['index']}"
                if key not in asked:
                    continue
                seen.add(key)
                mask = annotation["mask_rle"]
                fault = mask_fault(mask, size)
                box = None if fault else mask_box(mask, size)
                if box is None:
                    found.problems.add(fault or "empty mask", key)
                    continue
                regions.append(Region(box, mask=mask, label=annotation.get("category_name") or "", id=key))
            return Record(entry["file_name"], size[1], size[0], regions, source=self.title, image_id=entry["image_id"])

        found.records = list(islice(read_each(numbered(read_json(path)), read, found.problems), limit))
        if limit is None or len(found.records) < limit:
            found.problems.extend("questions of a region that is not listed", [key for key in asked if key not in seen])

    def prompts(
        self, item: Item, answer: str, picture: Callable[[], np.ndarray], told: Mapping[str, Any]
    ) -> list[Prompt]:
        shown, mask = surroundings(picture(), region_mask(item.record, 0))
        return [
            ["The picture:\n", shown, "\nThe mask of the region:\n", mask, f"\n{text}\n"]
            for text in super().prompts(item, answer, picture, told)
            if isinstance(text, str)
        ]


PARADLC_BENCH = ParaDlcBench(
    name="paradlc_bench", title="ParaDLC-Bench", whole=299, whole_pictures=100,
    rules="mean of positive and negative score by a judge who sees the region; every region described by itself",
    published=(
        Published("GAR-8B", {"average": 0.695}, "README of MSALab-PKU/PerceptionDLM"),
        Published("LLaDA-V-8B", {"average": 0.352}, "README of MSALab-PKU/PerceptionDLM"),
        Published("PerceptionDLM-8B", {"average": 0.624}, "README of MSALab-PKU/PerceptionDLM"),
    ),
)  # fmt: skip
