"""Texts that a language model goes on with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from finetune import examples
from finetune.examples import (
    after_examples,
    as_text,
    ask_about,
    ask_which,
    is_text,
    lines_after,
    names_an_example,
    question_about,
    read_texts,
)
from finetune.records import Record, Turn


def test_a_text_is_told_from_a_turn_of_a_chat_by_its_end() -> None:
    assert is_text(as_text("What does a cat eat?"))
    assert not is_text("region1 is a cat.\nWhat does region1 eat?")
    turns = [Turn("user", "What does <region1> eat?", told=as_text("What does a cat eat?")), Turn("assistant", "Fish.")]
    assert read_texts(Record(conversations=turns))
    assert not read_texts(Record(conversations=[Turn("user", "What is <region1>?"), turns[1]]))


def test_every_example_is_answered_as_the_question_is_to_be() -> None:
    *shown, last = after_examples(as_text("What does a cat eat?")).split("Question: ")[1:]
    assert last == "What does a cat eat?\nAnswer:"
    assert len(shown) > 3
    assert all(one.count("?\nAnswer: ") == 1 and one.endswith(".\n") for one in shown)


def test_an_answer_that_names_a_thing_of_the_examples_is_known_as_such() -> None:
    asked = after_examples("").splitlines()[::2]
    assert len(asked) > 3
    assert all(names_an_example(question, "") for question in asked)
    assert names_an_example("A sofa.", as_text("What is soft?"))
    assert not names_an_example("Boil water.", as_text("What is hot?"))


def test_a_thing_of_the_examples_may_be_named_where_the_question_is_about_it() -> None:
    assert not names_an_example("People sit on sofas.", as_text("Who needs a sofa?"))
    assert names_an_example("A sofa and a kettle.", as_text("What goes well with a sofa?"))


def test_questions_are_asked_for_about_a_thing_of_which_no_example_speaks() -> None:
    assert ask_about("a cat").endswith("Thing: a cat\nQuestion:")
    assert ask_which("a cat").endswith("Thing: a cat\nQuestion: Which of these")
    assert all(text.count(" cat") == 1 for text in (ask_about("a cat"), ask_which("a cat")))


def test_a_question_that_was_thought_of_names_the_region_and_gives_nothing_away() -> None:
    names = ["black cat", "cat"]
    assert question_about("How old is a cat? Or is it?", names) == "How old is <region1>?"
    assert question_about('"How old is the cat?"', names) == "How old is <region1>?"
    assert question_about("Is a black cat old?", names) == "Is <region1> old?"
    assert question_about("Which of these can purr?", names) == "Which of these can purr?"
    assert question_about("Do cats sleep?", names) is None
    assert question_about("Is a cat older than region2?", names) is None
    assert question_about("A cat.", names) is None


def test_a_line_ends_where_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def generate_each(model: Any, processor: Any, prompts: list[Any], **options: Any) -> list[str]:
        assert options["stop_strings"] == ["\n"]
        asked.append(len(prompts))
        return ["Fish.\nQuestion: and"] * len(prompts)

    monkeypatch.setattr(examples, "generate_each", generate_each)
    model = SimpleNamespace(device="cpu")
    processor = SimpleNamespace(tokenizer=lambda text, return_tensors: SimpleNamespace(to=lambda device: text))
    assert lines_after(model, processor, ["a", "b", "c"], 2, max_new_tokens=4) == ["Fish."] * 3  # type: ignore[arg-type]
    assert asked == [2, 1]
