"""What of a record a run learns from: which questions, how many in a row, and with which picture context."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

import finetune.train as train
from finetune.cache import RegionCache
from finetune.conversations import Conversations, _Steps
from finetune.data.collator import CachedSample
from finetune.train_arguments import TrainArguments
from llm_bridge import PictureContext, RegionBridgeConfig

pytestmark = pytest.mark.slow


def conversations(stage: Path, cache: str, **options: object) -> Conversations:
    arguments = TrainArguments(
        output_dir="", data=[str(stage / "records.jsonl")], caches=[str(stage / cache)], **options
    )  # type: ignore[arg-type]
    return Conversations(arguments)


def questions(sample: dict[str, object]) -> list[str]:
    return [turn["content"] for turn in sample["conversations"] if turn["role"] == "user"]  # type: ignore[attr-defined]


def by_record(data: Conversations) -> dict[int, CachedSample]:
    """One pass over the records, by their rows."""
    places = [data.mixture[position] for position in range(len(data.rows[0]))]
    return {data.rows[source][place]: data[position] for position, (source, place, _) in enumerate(places)}


def test_records_and_caches_that_are_named_twice_are_opened_once(stage: Path) -> None:
    data = Conversations(
        TrainArguments(output_dir="", data=[str(stage / "records.jsonl")] * 2, caches=[str(stage / "cache")] * 2)
    )
    assert data.samples[0] is data.samples[1]
    assert data.caches[0] is data.caches[1]


def test_tokens_of_a_picture_of_another_size_are_refused(stage: Path, tmp_path: Path) -> None:
    """As caches have them that were made before the size was checked."""
    lines = [json.loads(line) for line in (stage / "records.jsonl").read_text().splitlines()]
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps({**line, "width": 2 * line["width"]}) + "\n" for line in lines))
    arguments = TrainArguments(output_dir="", data=[str(data)], caches=[str(stage / "cache")])
    with pytest.raises(
        ValueError, match=r"^Record \d+ of .*records\.jsonl, for which tokens are cached, says that its"
    ):
        Conversations(arguments)[0]


def test_only_questions_of_a_kind(stage: Path) -> None:
    everything = by_record(conversations(stage, "cache"))
    chosen = by_record(conversations(stage, "cache", questions=["What|Which"]))
    shortened = 0
    for row, whole in everything.items():
        wanted = [q for q in questions(whole.sample) if "What" in q or "Which" in q]
        if not wanted:
            assert row not in chosen
            continue
        part = chosen[row]
        assert len(questions(part.sample)) == len(wanted)
        shortened += len(wanted) < len(questions(whole.sample))
        for turn, mine in zip(wanted, questions(part.sample)):
            assert turn.split("<")[0] == mine.split("<")[0]
        answers = [t["content"] for t in part.sample["conversations"] if t["role"] == "assistant"]
        assert all(answer in str(whole.sample["conversations"]) for answer in answers)
        for region, box in zip(part.sample["regions"], part.regions.boxes):
            row = whole.sample["regions"].index(region)
            assert torch.equal(whole.regions.boxes[row], box)  # the tokens went with their regions
    assert shortened


def test_only_questions_with_an_answer(stage: Path) -> None:
    answers = [item.sample["conversations"][1]["content"] for item in by_record(conversations(stage, "cache")).values()]
    wanted = sorted(answers)[0]
    chosen = by_record(conversations(stage, "cache", questions=[rf"\n{re.escape(wanted)}$"]))
    assert 0 < len(chosen) <= len(RegionCache(stage / "cache"))
    for item in chosen.values():
        assert {t["content"] for t in item.sample["conversations"] if t["role"] == "assistant"} == {wanted}
    with pytest.raises(ValueError, match=r"No record of .* has a question in which 'zebra'"):
        conversations(stage, "cache", questions=["zebra"])


def test_steps_are_the_same_wherever_a_run_began_and_alike_conversations_come_together(stage: Path) -> None:
    def steps(start: int, **options: object) -> tuple[Conversations, list[list[int]]]:
        arguments = TrainArguments(
            output_dir="", data=[str(stage / "records.jsonl")] * 2, caches=[str(stage / "cache")] * 2, steps=20,
            batch_size=2, turns=[1, 3], **options,
        )  # type: ignore[arg-type]  # fmt: skip
        data = Conversations(arguments)
        batches = list(sampler := _Steps(data, arguments, start, processes=2))
        assert len(sampler) == len(batches)
        return data, batches

    for options in ({}, {"group_by_length": True}, {"group_by_length": True, "gradient_accumulation_steps": 2}):
        data, whole = steps(0, **options)
        per_step = 2 * options.get("gradient_accumulation_steps", 1)
        assert len(whole) == 20 * per_step
        positions = np.ravel(whole)
        assert len(set(positions)) == len(positions)
        assert sorted(positions)[: 16 * 2 * per_step] == list(range(16 * 2 * per_step))  # two whole windows
        for start in (3, 8, 19):
            assert steps(start, **options)[1] == whole[start * per_step :]
        mixed = sum(len({data.length(p) for batch in whole[i : i + per_step] for p in batch}) > 1
                    for i in range(0, 16 * per_step, per_step))  # fmt: skip
        assert mixed <= 2 if options else mixed > 2  # one step of each window has both


def test_conversations_reach_workers_that_are_started_anew(stage: Path) -> None:
    data = conversations(stage, "cache", questions=["What"], turns=[1])
    assert pickle.loads(pickle.dumps(data))[3].sample == data[3].sample


def test_questions_about_the_same_regions(stage: Path) -> None:
    several = 0
    for seed in range(8):
        picked = by_record(conversations(stage, "cache", turns=[2], same_region=1.0, seed=seed))
        wholes = by_record(conversations(stage, "cache", seed=seed))
        for row, part in picked.items():
            whole = wholes[row]
            asked = questions(part.sample)
            named = [set(re.findall(r"region\d+", question)) for question in asked]
            assert all(names == named[0] for names in named)
            assert len(part.sample["regions"]) == len(named[0]) == len(part.regions)
            several += len(asked) == 2
            assert len(asked) <= 2
            for region, box in zip(part.sample["regions"], part.regions.boxes):
                assert torch.equal(whole.regions.boxes[whole.sample["regions"].index(region)], box)
    assert several > 5


@pytest.mark.parametrize(("flags", "words"), [
    (["--same_region", "0.5", "--image_grid", "2"], "without turns"),
    (["--same_region", "2", "--turns", "2", "--image_grid", "2"], "a share from 0 to 1"),
    (["--questions", "(", "--image_grid", "2"], "no regular expression"),
    (["--questions", "a", "b", "--image_grid", "2"], "2 questions for 1 data"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train.main(["--output_dir", str(tmp_path / "x"), "--language_model", str(tmp_path / "none"), "--data", "none.jsonl",
                    "--caches", "none", *flags])  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_a_bridge_without_context_learns_from_a_cache_that_has_one(stage: Path, tmp_path: Path) -> None:
    train.main(["--output_dir", str(tmp_path), "--mode", "projector", "--language_model", str(stage / "lm" / "model"),
                "--data", str(stage / "records.jsonl"), "--caches", str(stage / "cache"), "--region_tokenizer",
                str(stage / "tap0"), "--steps", "1", "--batch_size", "2", "--tracker", "none"])  # fmt: skip
    assert PictureContext.of(RegionBridgeConfig.from_pretrained(tmp_path / "model")).slots == 0
    assert PictureContext.of(RegionCache(stage / "cache").plan).slots == 4
