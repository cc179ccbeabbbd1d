"""What of a record a run learns from: which questions, how many in a row, and with which picture context."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

import finetune.train as train
from finetune.conversations import Conversations
from finetune.data.mixture import Mixture
from finetune.region_cache import RegionCache
from finetune.train_arguments import TrainArguments
from llm_bridge import PictureContext, RegionBridgeConfig

pytestmark = pytest.mark.slow


def conversations(stage: Path, cache: str, **options: object) -> Conversations:
    arguments = TrainArguments(
        output_dir="", data=[str(stage / "records.jsonl")], caches=[str(stage / cache)], **options
    )  # type: ignore[arg-type]
    return Conversations(arguments, Mixture([len(RegionCache(stage / cache))]), range(6))


def questions(sample: dict[str, object]) -> list[str]:
    return [turn["content"] for turn in sample["conversations"] if turn["role"] == "user"]  # type: ignore[attr-defined]


def test_only_questions_of_a_kind(stage: Path) -> None:
    everything = conversations(stage, "cache")
    chosen = conversations(stage, "cache", questions=["What|Which"])
    shortened = 0
    for whole, part in zip(everything, chosen):  # type: ignore[call-overload]
        wanted = [q for q in questions(whole.sample) if "What" in q or "Which" in q]
        if not wanted:
            assert part.sample == whole.sample
            continue
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


def test_questions_about_the_same_regions(stage: Path) -> None:
    several = 0
    for seed in range(8):
        picked = conversations(stage, "cache", turns=[2], same_region=True, seed=seed)
        for whole, part in zip(conversations(stage, "cache", seed=seed), picked):  # type: ignore[call-overload]
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
    (["--same_region", "true", "--image_grid", "2"], "same_region"),
    (["--questions", "(", "--image_grid", "2"], "no regular expression"),
    (["--questions", "a", "b", "--image_grid", "2"], "2 questions for 1 data"),
])  # fmt: skip
def test_what_cannot_be_is_refused(stage: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train.main(["--output_dir", str(tmp_path / "x"), "--language_model", str(stage / "lm" / "model"), "--data",
                    str(stage / "records.jsonl"), "--caches", str(stage / "cache"), "--region_tokenizer", str(stage / "tap0"),
                    *flags])  # fmt: skip


def test_a_bridge_without_context_learns_from_a_cache_that_has_one(stage: Path, tmp_path: Path) -> None:
    train.main(["--output_dir", str(tmp_path), "--mode", "projector", "--language_model", str(stage / "lm" / "model"),
                "--data", str(stage / "records.jsonl"), "--caches", str(stage / "cache"), "--region_tokenizer",
                str(stage / "tap0"), "--steps", "1", "--batch_size", "2", "--tracker", "none"])  # fmt: skip
    assert PictureContext.of(RegionBridgeConfig.from_pretrained(tmp_path / "model")).slots == 0
    assert PictureContext.of(RegionCache(stage / "cache").plan).slots == 4
