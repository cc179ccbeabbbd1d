"""Which region TAP's own words and the instruct model are asked about, when a question has earlier turns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("inflect")

from finetune.answerers import Bridge, CaptionDecoder, ConceptHead, DescribedModel
from finetune.data.entries import Problems
from finetune.records import Record, Region, Turn
from finetune.tasks import TASKS
from finetune.tasks.items import Seen
from tap_tokenizer import ConceptBank, RegionTokens

TURNS = [
    ("What is <region1>?", "a cup"),
    ("And <region2>?", "a dog"),
    ("Is <region3> larger than region2?", "yes"),
    ("Describe region2 beside region1.", "a dog by a cup"),
    ("And how large is it?", "small"),
]
BOXES = [[0.0, 0.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]


class Regions:
    """Region tokens that are their regions' numbers in the record."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.embeds = torch.eye(3)[torch.tensor(numbers, dtype=torch.long) - 1]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: list[int]) -> Regions:
        return Regions([self.numbers[i] for i in places])


def turns(pairs: list[tuple[str, str]]) -> list[Turn]:
    return [Turn(role, words) for pair in pairs for role, words in zip(("user", "assistant"), pair)]


def seen(history: str) -> list[Seen]:
    regions = [Region(box, id=f"0/{i}") for i, box in enumerate(BOXES)]
    record = Record("a.png", 8, 8, regions, turns(TURNS), image_id=0)
    items = replace(TASKS["answers"], history=history).items(record, Problems())
    return [Seen(i, None, cast(Any, Regions([row + 1 for row in i.rows]))) for i in items]


@pytest.mark.parametrize("history", ["true", "none"])
def test_baselines_describe_the_first_region_of_the_question(history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RegionTokens, "concatenate", lambda some: [n for regions in some for n in regions.numbers])
    tokenizer = SimpleNamespace(caption=lambda numbers: [f"region {n}" for n in numbers])
    said = CaptionDecoder(cast(Any, tokenizer)).answer(seen(history), TASKS["answers"])
    expected = [f"region {number}" for number in (1, 2, 3, 2, 2)]  # "it" is what the question before spoke of
    assert [line["words"] for line in said] == expected
    bank = SimpleNamespace(scores=lambda embeds: embeds, names=["region 1", "region 2", "region 3"])
    named = ConceptHead(cast(ConceptBank, bank)).answer(seen(history), TASKS["answers"])
    assert [line["words"] for line in named] == expected


def test_regions_may_be_asked_about_in_any_order() -> None:
    """A conversation that begins with its second region is cut after each question, and numbered by what it then shows."""
    talk = turns([("What is <region2>?", "a cup"), ("And <region1>, beside region2?", "region1 is a lid")])
    record = Record("a.png", 8, 8, [Region(id="0/0"), Region(id="0/1")], talk, image_id=0)
    one, two = TASKS["answers"].items(record, Problems())
    assert (one.rows, [turn.content for turn in one.record.conversations]) == ([1], ["What is <region1>?"])
    assert two.rows == [1, 0]
    assert [turn.content for turn in two.record.conversations] == [
        "What is <region1>?", "a cup", "And <region2>, beside region1?",
    ]  # fmt: skip
    assert two.references == ["region2 is a lid"]


def test_a_question_that_cannot_be_asked_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: Bridge, conversations: Any, rows: Any, contexts: Any, sizes: Any) -> list[str]:
        if any("<region3>" in turns[-1]["content"] for turns in conversations):
            raise ValueError("has 900 tokens, more than 512")
        return ["yes"] * len(conversations)

    monkeypatch.setattr(Bridge, "_ask", ask)
    monkeypatch.setattr("finetune.answerers.region_features", lambda *_: torch.zeros(3, 1, 4))
    monkeypatch.setattr("finetune.answerers.picture_size", lambda _: (8, 8))
    processor = SimpleNamespace(experts="routed", context=SimpleNamespace(slots=0))
    lines = Bridge(cast(Any, None), cast(Any, processor), 4, 3).answer(seen("true"), TASKS["answers"])
    problems = [line.get("problem") for line in lines]
    assert [line["answer"] for line in lines] == ["" if problem else "yes" for problem in problems]
    assert problems.count("has 900 tokens, more than 512") == sum("<region3>" in q for q, _ in TURNS) > 0


def test_a_described_question_shows_every_region_that_it_names() -> None:
    told: list[list[dict[str, Any]]] = []

    class Inputs(dict[str, Any]):
        def to(self, device: str) -> Inputs:
            return self

    def template(messages: list[dict[str, Any]], **_: Any) -> Inputs:
        told.append(messages[0]["content"])
        return Inputs(input_ids=torch.zeros(1, 1))

    config = SimpleNamespace(eos_token_id=1)
    model = SimpleNamespace(device="cpu", generate=lambda **_: torch.zeros(1, 2), generation_config=config)
    processor = SimpleNamespace(apply_chat_template=template, batch_decode=lambda *_, **__: [" yes "])
    lines = DescribedModel(cast(Any, SimpleNamespace(model=model, processor=processor)), 4).answer(
        seen("true"), TASKS["answers"]
    )
    assert [line["answer"] for line in lines] == ["yes"] * 5
    shown = [[(part["name"], list(part["box"])) for part in content if part["type"] == "region"] for content in told]
    assert shown[1] == [("region1", BOXES[1])]
    assert shown[2] == [("region1", BOXES[1]), ("region2", BOXES[2])]
    assert told[2][-1]["text"] == "\nIs region2 larger than region1?"
    assert shown[3] == [("region1", BOXES[0]), ("region2", BOXES[1])]
    assert shown[4] == []
