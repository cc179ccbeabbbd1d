"""DLC-Bench's second step (https://github.com/NVlabs/describe-anything): a judge answers questions about each description.

Whether the description names the right thing is asked first; where it does not, every later score is at most 0. A region's
positive score is the mean over its positive questions, its negative score that over its negative ones, if it has any; reported
are the means over regions, and the mean of both. The judge's prompt here is ours; the benchmark's own can be given as a file.
Published numbers come from Llama-3.1-8B-Instruct: another judge, or another prompt, gives numbers that do not compare.
Knows descriptions and questions, not who described.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tap_tokenizer import load_pretrained

from .coco_reading import is_number
from .problems import counted, first_names
from .text_files import read_json, read_text

JUDGE_PROMPT = """Read the description of an object and answer the question about it.
Reply with exactly one of the choices, no reasons; where none fits to the word, take the closest.

Description:
{description}

Question:
{question}"""
"""Our wording, version 1."""

LETTERS = "abcde"


class Judge(Protocol):
    """Answers one prompt, always in the same way."""

    name: str

    def __call__(self, prompt: str) -> str: ...


class LocalJudge:
    """An instruct language model of transformers, greedy."""

    def __init__(self, source: str, device: str = "cpu", max_new_tokens: int = 300) -> None:
        self.name = source
        self.tokenizer = load_pretrained(AutoTokenizer, source)
        self.model = load_pretrained(AutoModelForCausalLM, source, dtype="auto").to(device).eval()
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def __call__(self, prompt: str) -> str:
        text: Any = prompt
        if self.tokenizer.chat_template is not None:
            turn = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=text is prompt).to(self.model.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = self.model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, pad_token_id=pad,
            max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        return str(self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


class ServerJudge:
    """A model behind an OpenAI-compatible server, at temperature 0. url: up to and with /v1. key: bearer token, if any."""

    def __init__(
        self, url: str, model: str, key: str | None = None, max_tokens: int = 300, timeout: float = 120
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"judge_url is {url}, expected an address such as http://localhost:8000/v1.")
        self.name, self.url, self.key = model, url.rstrip("/") + "/chat/completions", key
        self.max_tokens, self.timeout = max_tokens, timeout

    def __call__(self, prompt: str) -> str:
        content = {
            "model": self.name, "messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "top_p": 1,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"]).strip()
        except (urllib.error.URLError, TimeoutError) as error:
            raise ValueError(f"The judge at {self.url} gave no answer ({error}): is it running?") from error
        except (KeyError, IndexError, json.JSONDecodeError) as error:
            raise ValueError(f"The judge at {self.url} does not answer as an OpenAI-compatible server does.") from error


def read_questions(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Each region's questions, recognition first, from `qa.json` and the `class_names.json` beside it.

    Raises `ValueError` if one of both has regions that the other lacks, or for a question of another form.
    """
    names_path = path.with_name("class_names.json")
    for file in (path, names_path):
        if not file.is_file():
            raise ValueError(f"Found nothing at {file}: give the benchmark's qa.json with class_names.json beside it.")
    asked, names = read_json(path), read_json(names_path)
    for file, content in ((path, asked), (names_path, names)):
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds a {type(content).__name__}, expected an object by region id.")
    for one, first, other, second in ((path, asked, names_path, names), (names_path, names, path, asked)):
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
    return {key: [recognition_question(names[key]), *questions] for key, questions in asked.items()}


def _is_question(question: Any) -> bool:
    if not isinstance(question, dict) or question.get("type") not in ("positive", "negative"):
        return False
    choices = question.get("choices")
    return (
        isinstance(question.get("question"), str) and isinstance(choices, list) and 0 < len(choices) <= len(LETTERS)
        and all(isinstance(c, list) and len(c) == 2 and isinstance(c[0], str) and is_number(c[1]) for c in choices)
    )  # fmt: skip


def recognition_question(class_name: str) -> dict[str, Any]:
    """The question that is asked first: whether the description names the region's class."""
    import inflect

    english = inflect.engine()
    several = class_name != "bus" and english.singular_noun(class_name) is not False  # inflect takes bus for a plural
    named = f"Are the objects in the description {class_name}" if several else (
        f"Is the object in the description {english.a(class_name)}"
    )  # fmt: skip
    question = f"{named}, or something similar? It need not match to the word."
    return {"question": question, "choices": [["Yes", "correct"], ["No", "incorrect"]], "type": "recognition"}


def judge_prompt(description: str, question: Mapping[str, Any], template: str = JUDGE_PROMPT) -> str:
    """What the judge is asked: a template with {description} and {question}, choices lettered from A."""
    lines = [f"{letter.upper()}. {words}" for letter, (words, _) in zip(LETTERS, question["choices"])]
    asked = "\n".join([question["question"], *lines])
    parts = {"{description}": description, "{question}": asked}
    return re.sub("{description}|{question}", lambda found: parts[found[0]], template)


def read_choice(reply: str, choices: Sequence[str]) -> int | None:
    """Which choice a judge's reply means, by the benchmark's order of rules; None, which scores 0, if none fits.

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

    questions: the recognition question, then the region's own, each with choices [words, score] and a type.
    """
    if len(questions) != len(replies):
        raise ValueError(f"Got {len(replies)} replies to {len(questions)} questions: give one for each.")
    scores: dict[str, list[float]] = {"positive": [], "negative": []}
    recognised: bool | None = None
    for question, reply in zip(questions, replies):
        choice = read_choice(reply, [words for words, _ in question["choices"]])
        value = 0 if choice is None or choice >= len(question["choices"]) else question["choices"][choice][1]
        if question["type"] == "recognition":
            if value not in ("correct", "incorrect"):
                raise ValueError(f"The judge answered {reply!r} to a recognition question, expected Yes or No.")
            recognised = value == "correct"
        elif question["type"] not in scores:
            raise ValueError(f"A question has type {question['type']!r}, expected positive or negative.")
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


def read_template(path: str | None) -> str:
    """The judge's prompt from a file; ours if none is given. Raises `ValueError` if it lacks one of its two fields."""
    text = JUDGE_PROMPT if path is None else read_text(path)
    if "{description}" not in text or "{question}" not in text:
        raise ValueError(f"{path} lacks {{description}} or {{question}}: both are filled in for every question.")
    return text
