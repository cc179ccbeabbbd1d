"""Which records come when, which of their questions are asked, and what tensors they become."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

import finetune.train as train
from finetune import cache_regions
from finetune.batches import CachedRecord, ConversationCollator, Conversations, Mixture, StepSampler
from finetune.cache import RegionCache
from finetune.config import Source
from finetune.records import Record, Region, Turn
from llm_bridge import PictureContext, RegionBridgeConfig, RegionBridgeProcessor

# --- which record comes when ------------------------------------------------------------------------------------------


def test_each_visit_goes_through_all_records() -> None:
    mixture = Mixture([7], seed=1)
    for visit in range(3):
        drawn = [mixture[i] for i in range(7 * visit, 7 * visit + 7)]
        assert sorted(row for _, row, _ in drawn) == list(range(7))
        assert {v for _, _, v in drawn} == {visit}
    assert [mixture[i][1] for i in range(7)] != [mixture[i][1] for i in range(7, 14)]


def test_positions_do_not_depend_on_how_they_are_reached() -> None:
    forward = [Mixture([50, 30], [1, 3], seed=2)[i] for i in range(5000)]
    mixture = Mixture([50, 30], [1, 3], seed=2)
    assert [mixture[i] for i in reversed(range(5000))][::-1] == forward


def test_weights_hold_in_every_part_of_a_run() -> None:
    mixture = Mixture([1000, 10, 500], [1, 1, 2], seed=0)
    for block in range(3):
        counts = Counter(mixture[block * 4096 + i][0] for i in range(4096))
        assert counts == {0: 1024, 1: 1024, 2: 2048}
    assert Counter(Mixture([300, 100])[i][0] for i in range(4096)) == {0: 3072, 1: 1024}


def test_all_records_come_equally_often() -> None:
    mixture = Mixture([40, 25], [1, 1], seed=3)
    drawn = Counter(mixture[i][:2] for i in range(20_000))
    for source, size in ((0, 40), (1, 25)):
        counts = [drawn[source, row] for row in range(size)]
        assert max(counts) - min(counts) <= 1


def test_seeds_differ() -> None:
    assert [Mixture([50], seed=0)[i] for i in range(20)] != [Mixture([50], seed=1)[i] for i in range(20)]


@pytest.mark.parametrize(("sizes", "weights"), [([], None), ([0], None), ([3], [1, 2]), ([3, 4], [1, 0])])
def test_impossible_mixtures_are_refused(sizes: list[int], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="Got"):
        Mixture(sizes, weights)


# --- the turns of a conversation ----------------------------------------------------------------------------------------


def conversations(stage: Path, cache: str, seed: int = 0, **options: object) -> Conversations:
    source = Source(str(stage / "records.jsonl"), str(stage / cache), **options)  # type: ignore[arg-type]
    return Conversations([source], seed)


ANSWER = {"role": "assistant", "content": "yes"}


def questions(record: Record) -> list[str]:
    return [turn.content for turn in record.conversations if turn.role == "user"]


def answers_of(record: Record) -> list[str]:
    return [turn.content for turn in record.conversations if turn.role == "assistant"]


def by_record(data: Conversations) -> dict[int, CachedRecord]:
    """One pass over the records, by their rows."""
    return {data.mixture[position][1]: data[position] for position in range(len(data.records[0]))}


@pytest.mark.slow
def test_records_and_caches_given_twice_are_opened_once(stage: Path) -> None:
    data = Conversations([Source(str(stage / "records.jsonl"), str(stage / "cache"))] * 2)
    assert data.records[0] is data.records[1]
    assert data.caches[0] is data.caches[1]


@pytest.mark.slow
def test_only_what_a_teacher_said_in_a_chat_is_learned_from_its_distribution(stage: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (stage / "records.jsonl").read_text().splitlines()]
    for row, line in enumerate(lines):
        for turn in line["conversations"]:
            if turn["role"] == "user":
                turn["told"] = ("region1 is a cat.\nWhat does region1 eat?", "Question: What does a cat eat?\nAnswer:")[
                    row % 2
                ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Conversations([Source(str(path), str(stage / "cache"), turns=1, loss="teacher")])
    assert {row: item.is_taught for row, item in by_record(data).items()} == {
        row: row % 2 == 0 for row in range(len(lines))
    }


@pytest.mark.slow
def test_a_conversation_with_a_teacher_keeps_to_questions_told_in_one_form(stage: Path, tmp_path: Path) -> None:
    """So that where several are asked in a row, those of the chat are not learned without its distribution."""
    told = ["region1 is a cat.\nWhat is it?", "region1 is a cat.\nIs it?", "Question: Who needs a cat?\nAnswer:"]
    lines = [json.loads(line) for line in (stage / "records.jsonl").read_text().splitlines()]
    for line in lines:
        line["conversations"] = [
            turn for one in told for turn in ({"role": "user", "content": "Is <region1>?", "told": one}, ANSWER)
        ]
        del line["regions"][1:]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cache_regions.main(["--data", str(path), "--region_tokenizer", str(stage / "tap0"), "--output", str(tmp_path / "cache"),
                        "--workers", "0"])  # fmt: skip
    data = Conversations([Source(str(path), str(tmp_path / "cache"), loss="teacher")])
    drawn = [data[position] for position in range(5 * len(lines))]
    own = [tuple(turn.told for turn in item.record.conversations if turn.role == "user") for item in drawn]
    assert set(own) == {tuple(told[:2]), tuple(told[2:])}
    assert [item.is_taught for item in drawn] == [len(one) == 2 for one in own]
    assert data.taught() == {str(path): (2 * len(lines), 3 * len(lines))}
    plain = Conversations([Source(str(path), str(tmp_path / "cache"))])
    assert len(questions(plain[0].record)) == 3
    assert plain.taught() == {}


@pytest.mark.slow
def test_tokens_of_a_picture_of_another_size_are_refused(stage: Path, tmp_path: Path) -> None:
    """As caches have them that were made before the size was checked."""
    lines = [json.loads(line) for line in (stage / "records.jsonl").read_text().splitlines()]
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps({**line, "width": 2 * line["width"]}) + "\n" for line in lines))
    with pytest.raises(
        ValueError, match=r"^Record \d+ of .*records\.jsonl, for which tokens are cached, says that its"
    ):
        Conversations([Source(str(data), str(stage / "cache"))])[0]


@pytest.mark.slow
def test_records_without_a_conversation_are_passed_over_and_counted(stage: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (stage / "records.jsonl").read_text().splitlines()]
    data = tmp_path / "records.jsonl"

    def opened(silent: set[int]) -> Conversations:
        changed = [{**line, "conversations": []} if i in silent else line for i, line in enumerate(lines)]
        data.write_text("".join(json.dumps(line) + "\n" for line in changed))
        return Conversations([Source(str(data), str(stage / "cache"))])

    found = opened({0, 3})
    assert found.silent == {str(data): 2}
    drawn = [found[position] for position in range(2 * (len(lines) - 2))]
    assert Counter(str(item.record.regions[0].box) for item in drawn) == {
        str(line["regions"][0]["box"]): 2 for i, line in enumerate(lines) if i not in (0, 3)
    }
    assert all(item.regions is not None and len(item.regions) == len(item.record.regions) for item in drawn)
    with pytest.raises(ValueError, match=r"No record of .* has a conversation"):
        opened(set(range(len(lines))))


@pytest.mark.slow
def test_batches_do_not_depend_on_where_a_run_began_and_group_by_length(stage: Path) -> None:
    def steps(start: int, is_grouped: bool, accumulated: int) -> tuple[Conversations, list[list[int]]]:
        records, cache = str(stage / "records.jsonl"), str(stage / "cache")
        sources = [Source(records, cache, turns=1), Source(records, cache, turns=3)]
        data = Conversations(sources)
        batches = list(sampler := StepSampler(data, range(start, 20), 2, 2 * accumulated, 0, is_grouped))
        assert len(sampler) == len(batches)
        return data, batches

    for is_grouped, accumulated in ((False, 1), (True, 1), (True, 2)):
        data, whole = steps(0, is_grouped, accumulated)
        per_step = 2 * accumulated
        assert len(whole) == 20 * per_step
        positions = np.ravel(whole)
        assert len(set(positions)) == len(positions)
        assert sorted(positions)[: 16 * 2 * per_step] == list(range(16 * 2 * per_step))  # two whole windows
        for start in (3, 8, 19):
            assert steps(start, is_grouped, accumulated)[1] == whole[start * per_step :]
        mixed = sum(len({data.length(p) for batch in whole[i : i + per_step] for p in batch}) > 1
                    for i in range(0, 16 * per_step, per_step))  # fmt: skip
        assert mixed <= 2 if is_grouped else mixed > 2  # one step of each window has both


@pytest.mark.slow
def test_conversations_reach_spawned_workers(stage: Path) -> None:
    data = conversations(stage, "cache", turns=1)
    assert pickle.loads(pickle.dumps(data))[3].record == data[3].record


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "words"), [
    (["--teacher_share", "2", "--image_grid", "2"], "a share from 0 to 1"),
    (["--turns", "1", "2", "--image_grid", "2"], "2 turns for 1 data"),
])  # fmt: skip
def test_impossible_options_are_refused_before_anything_is_loaded(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train.main(["--output_dir", str(tmp_path / "x"), "--language_model", str(tmp_path / "none"), "--data", "none.jsonl",
                    "--caches", "none", *flags])  # fmt: skip
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_bridge_without_context_learns_from_a_cache_that_has_one(stage: Path, tmp_path: Path) -> None:
    train.main(["--output_dir", str(tmp_path), "--mode", "projector", "--language_model", str(stage / "lm" / "model"),
                "--data", str(stage / "records.jsonl"), "--caches", str(stage / "cache"), "--region_tokenizer",
                str(stage / "tap0"), "--steps", "1", "--batch_size", "2", "--tracker", "none"])  # fmt: skip
    assert PictureContext.of(RegionBridgeConfig.from_pretrained(tmp_path / "model")).slots == 0
    assert PictureContext.of(RegionCache(stage / "cache").plan).slots == 4


# --- conversations → tensors --------------------------------------------------------------------------------------------


@pytest.fixture
def item() -> CachedRecord:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    tokenizer = processor.region_tokenizer
    assert tokenizer is not None
    regions = tokenizer.encode(np.zeros((60, 90, 3), np.uint8), boxes=[[1, 2, 30, 40], [30, 5, 80, 50], [2, 2, 9, 9]])
    turns = []
    for n in (1, 2, 3):
        turns += [Turn("user", f"What is <region{n}>?"), Turn("assistant", "cloud")]
    return CachedRecord(Record("a.png", 90, 60, [Region(), Region(), Region()], turns), regions)


def test_questions_beyond_the_length_are_dropped_from_the_end(item: CachedRecord) -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    whole = ConversationCollator(processor)([item])
    length = whole["input_ids"].shape[1]
    assert torch.equal(ConversationCollator(processor, length)([item])["input_ids"], whole["input_ids"])
    cut = ConversationCollator(processor, length - 1)([item, item])
    assert cut["input_ids"].shape[1] < length
    assert cut["region_mask"].sum(dim=1).tolist() == [2, 2]
    assert torch.equal(cut["region_features"][0], whole["region_features"][0, :2])
    assert (cut["labels"] != -100).any(dim=1).all()
    with pytest.raises(ValueError, match=r"A question about a\.png has \d+ tokens"):
        ConversationCollator(processor, 3)([item])


def test_every_answer_ends_with_a_token_that_stops_generation(
    item: CachedRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """Here with a template that ends no turn: the end is appended, and that is said before the first batch."""
    type(logging.getLogger()).warning_once.cache_clear()  # type: ignore[attr-defined]
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    processor.chat_template = (
        "{% for m in messages %}{{ {'user': 'Q: ', 'assistant': 'A: '}[m['role']] + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
    )
    end = processor.tokenizer.eos_token_id
    collator = ConversationCollator(processor)
    assert "training appends '</s>' to them" in caplog.text
    labels = collator([item])["labels"][0].tolist()
    assert labels.count(end) == 3
    ends = [label for label, after in zip(labels, [*labels[1:], -100]) if label != -100 and after == -100]
    assert ends == [end] * 3


def test_a_tokenizer_without_an_end_is_refused_before_the_first_batch() -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    processor.tokenizer.eos_token, processor.eos_token_id = None, []
    processor.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"could not learn to stop: set tokenizer\.eos_token"):
        ConversationCollator(processor)


def test_a_taught_conversation_is_also_written_as_its_teacher_reads_it(item: CachedRecord) -> None:
    processor = RegionBridgeProcessor.from_pretrained("region-chat-tiny")
    told = "region1 is a cloud.\nWhat is region1?"
    turns = [Turn("user", "What is <region1>?", told=told), Turn("assistant", "cloud")]
    taught = CachedRecord(replace(item.record, conversations=turns), item.regions[:1], is_taught=True)
    plain = replace(taught, is_taught=False)
    collator = ConversationCollator(processor)
    assert "told" not in collator([plain])
    batch = collator([plain, taught])
    assert batch["is_taught"].tolist() == [False, True]
    assert len(batch["told"]["input_ids"]) == 1
    text = processor.decode(batch["told"]["input_ids"][0])
    assert told in text
    own, wanted = batch["labels"][1], batch["told"]["labels"][0]
    assert torch.equal(own[own != -100], wanted[wanted != -100])
    length = batch["told"]["input_ids"].shape[1]
    with pytest.raises(ValueError, match=f"has {length} tokens"):
        ConversationCollator(processor, length - 1)([taught])
    unsaid = replace(taught.record, conversations=[Turn("user", "What is <region1>?"), turns[1]])
    with pytest.raises(ValueError, match="no question that says in words"):
        collator([replace(taught, record=unsaid)])
