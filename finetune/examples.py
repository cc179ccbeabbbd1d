"""Texts for a language model to continue: questions about things, after examples of questions and answers about other things.

Asked in its chat format, a small language model talks around what it knows about a thing. After a few questions and short
answers about other things, it says what it knows. This needs no chat template, so it works with any causal language model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from llm_bridge import generate_each

from .instructions import WHICH
from .records import Record

_ANSWERED = (
    ("What do people do with a kettle?", "Boil water for tea."),
    ("Where would I see a tractor?", "On a farm."),
    ("Who needs a stethoscope?", "Doctors and nurses."),
    ("What is a sweater made from?", "Wool."),
    ("When does one need a sofa?", "When one wants to sit and rest."),
    ("What would a sheep do all day?", "Eat grass."),
)
_THINGS = ("kettle", "tractor", "stethoscope", "sweater", "sofa", "sheep")

_ASKED = (
    ("a sofa", "How many people can sit on a sofa?"),
    ("a kettle", "What does one pour into a kettle?"),
    ("a cactus", "Why does a cactus need so little water?"),
    ("a sheep", "What do people make from the wool of a sheep?"),
    ("a tractor", "On what kind of ground does a tractor drive?"),
)
_ASKED_WHICH = (
    ("a sofa", "Which of these would several people sit on?"),
    ("a kettle", "Which of these would you boil water in?"),
    ("a cactus", "Which of these grows in the desert?"),
    ("a sheep", "Which of these gives us wool?"),
    ("a tractor", "Which of these pulls a plough?"),
)

_JUDGED = (
    ("a small white kettle", "at the top", "a white kettle", "Yes"),
    ("a large red sofa", "at the bottom right", "a green chair", "No"),
    ("an old blue tractor", "at the left", "at the left of the picture", "Yes"),
    ("a woolly sheep", "in the center", "at the top of the picture", "No"),
    ("a tall green cactus", "at the bottom", "a cactus", "Yes"),
    ("a grey sweater", "at the top right", "a sock", "No"),
)

THE_THING = "The thing"
"""What a region is called in a description of which a question is answered with yes or no; in the question, it is "it"."""

_ANSWER = "Answer:"


def as_text(question: str) -> str:
    """A question as a text to be continued with its answer, up to the end of the line."""
    return f"Question: {question}\n{_ANSWER}"


def is_text(told: str) -> bool:
    """Whether what a teacher was told is a text to continue, and not a turn of a chat."""
    return told.endswith(_ANSWER)


def read_texts(record: Record) -> bool:
    """Whether a teacher read texts to continue, and no chat. Its answers are then other tokens, and are learned as they are."""
    return any(is_text(turn.told or "") for turn in record.conversations)


def after_examples(text: str) -> str:
    """A text of `as_text` after questions about other things, and their answers."""
    return "".join(f"{as_text(question)} {answer}\n" for question, answer in _ANSWERED) + text


def after_judgements(text: str) -> str:
    """A text after descriptions of other things, for each of which a question is answered with yes or no."""
    examples = [
        f"{THE_THING} is {thing}. It is {place} of the picture.\n{as_text(f'Is it {said}?')} {answer}.\n"
        for thing, place, said, answer in _JUDGED
    ]
    return "".join(examples) + text


def names_an_example(answer: str, question: str) -> bool:
    """Whether an answer names one of the things that the examples are about, as a model does when it knows nothing better.

    Not if the question names it, too: a sofa may be called one.
    """
    named = [{thing for thing in _THINGS if re.search(rf"\b{thing}s?\b", text.lower())} for text in (answer, question)]
    return bool(named[0] - named[1])


def lines_after(
    model: PreTrainedModel, processor: Any, texts: Sequence[str], batch_size: int, **options: Any
) -> list[str]:
    """How a language model continues each text, up to the end of the line, stripped; greedy unless `options` say otherwise.

    processor: with the text tokenizer. options: for `generate`, with `max_new_tokens`.
    """
    said: list[str] = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        prompts = [processor.tokenizer(text, return_tensors="pt").to(model.device) for text in part]
        said += generate_each(model, processor, prompts, stop_strings=["\n"], tokenizer=processor.tokenizer, **options)
    return [words.split("\n")[0].strip() for words in said]


def ask_about(thing: str) -> str:
    """A text to be continued with a question about a thing ("a cat"), up to the end of the line."""
    return f"{_asked(_ASKED)}Thing: {thing}\nQuestion:"


def ask_which(thing: str) -> str:
    """A text to be continued with a question whose answer is the thing; the question's first words, `WHICH`, are given."""
    return f"{_asked(_ASKED_WHICH)}Thing: {thing}\nQuestion: {WHICH}"


def question_about(said: str, names: Sequence[str]) -> str | None:
    """The question with which a text begins, with `<region1>` in place of the names, which are given without articles.

    None if the text does not begin with a question, or if the question gives away what the region is.
    """
    found = re.match(r"[^.!?]+\?", said.strip("\"'“”*- "))
    if found is None:
        return None
    question = found[0]
    for name in names:
        question = re.sub(rf"\b(?:the|an?|this|that) {re.escape(name)}\b", "<region1>", question, flags=re.IGNORECASE)
    if re.search(r"(?<!<)\bregion ?\d", question) or any(name.lower() in question.lower() for name in names):
        return None
    return question


def _asked(examples: Sequence[tuple[str, str]]) -> str:
    return "".join(f"Thing: {thing}\nQuestion: {question}\n\n" for thing, question in examples)
