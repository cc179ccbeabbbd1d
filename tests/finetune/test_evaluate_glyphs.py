"""The evaluation of the bundled models: whole parts, controls beside scores, and numbers that follow from the lines."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("accelerate")

from finetune import evaluate_glyphs
from finetune.evaluate_glyphs import main
from finetune.glyphs import views
from finetune.glyphs.free_questions import FREE_FAMILIES
from finetune.glyphs.questions import FAMILIES
from finetune.glyphs.records import benchmark_scenes
from finetune.glyphs.report import as_tables, summarise
from finetune.glyphs.seen_scenes import SeenScenes
from finetune.glyphs.views import Asked
from llm_bridge import FeatureLayout, RegionChat
from tap_tokenizer import TapRegionTokenizer

pytestmark = pytest.mark.slow

SMALL = ["--model", "region-chat-tiny"]
ALONE = [*SMALL, "--described_model", "none"]


@pytest.fixture(scope="module")
def flags(stage: Path) -> list[str]:
    """A short evaluation, in which a language model that knows nothing is told what TAP sees."""
    return [*SMALL, "--described_model", str(stage / "lm" / "model"), "--splits", "test", "--seeds", "0,1", "--scenes", "3",
            "--control_scenes", "2", "--batch_size", "3", "--workers", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def told(stage: Path) -> RegionChat:
    tokenizer = TapRegionTokenizer.from_pretrained("tap-tiny")
    return RegionChat.from_pretrained(stage / "lm" / "model", mode="described", region_tokenizer=tokenizer)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    main([*flags, "--output", str(folder)])
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((folder / "parts").iterdir()) for line in path.read_text().splitlines()]


def test_every_control_is_asked_the_same_questions(evaluated: Path) -> None:
    questions = [line for line in lines_of(evaluated) if line.get("family") in FAMILIES]
    views = {view: [(q["seed"], q["scene"], q["question"]) for q in questions if q["view"] == view]
             for view in ("full", "shuffled", "question only", "no position", "follow-up", "described")}  # fmt: skip
    assert views["full"]
    assert all(asked == views["full"] for asked in views.values())


def test_free_questions_are_asked_with_their_controls_and_of_a_model_that_is_told(evaluated: Path) -> None:
    questions = [line for line in lines_of(evaluated) if line.get("family") in FREE_FAMILIES]
    views = {view: Counter((q["seed"], q["scene"], q["question"]) for q in questions if q["view"] == view)
             for view in dict.fromkeys(q["view"] for q in questions)}  # fmt: skip
    best = views.pop("told the truth, in its best form")
    assert Counter() < best < views["full"]  # it is asked for knowledge alone
    assert set(views) == {"full", "shuffled", "question only", "described", "told the truth"}
    assert views["full"] == views["question only"] == views["described"] == views["told the truth"]
    assert views["shuffled"] <= views["full"]  # a question about more regions than another scene has cannot be shuffled
    metrics = json.loads((evaluated / "metrics.json").read_text())["test"]
    for group in ("phrasing that no recipe contains", "what takes general knowledge"):
        assert {f"{view}: {group}" for view in views} <= set(metrics)
    table = (evaluated / "table.md").read_text()
    assert "| phrasing colour |" in table
    assert "| knowledge, open |" in table


def test_only_the_first_scenes_are_asked_about(tmp_path: Path) -> None:
    main([*ALONE, "--splits", "test", "--seeds", "0", "--scenes", "3", "--batch_size", "1", "--question_scenes", "2",
          "--free_scenes", "0", "--control_scenes", "0", "--shuffled_scenes", "0", "--output", str(tmp_path)])  # fmt: skip
    lines = lines_of(tmp_path)
    assert {line["scene"] for line in lines if line["task"] == "question"} == {0, 1}
    assert {line["scene"] for line in lines if line["task"] == "region"} == {0, 1, 2}


def test_controls_and_free_questions_are_of_the_splits_that_are_named_for_them(tmp_path: Path) -> None:
    main([*ALONE, "--splits", "test,test-crowded", "--seeds", "0", "--scenes", "2", "--batch_size", "2", "--workers", "1",
          "--control_splits", "test-crowded", "--output", str(tmp_path)])  # fmt: skip
    lines = [line for line in lines_of(tmp_path) if line["task"] == "question"]
    views = {split: {line["view"] for line in lines if line["split"] == split} for split in ("test", "test-crowded")}
    assert views["test"] == {"full"}
    assert {"full", "shuffled", "question only", "no position", "follow-up"} <= views["test-crowded"]
    assert {line["split"] for line in lines if line["family"] in FREE_FAMILIES} == {"test-crowded"}


def test_free_questions_are_of_the_first_scenes(tmp_path: Path) -> None:
    main([*ALONE, "--splits", "test", "--seeds", "0", "--scenes", "2", "--batch_size", "1", "--free_scenes", "1",
          "--control_scenes", "0", "--shuffled_scenes", "0", "--output", str(tmp_path)])  # fmt: skip
    assert {line["scene"] for line in lines_of(tmp_path) if line.get("family") in FREE_FAMILIES} == {0}


def test_a_model_that_is_told_the_truth_reads_it_and_not_what_tap_sees(told: RegionChat) -> None:
    seen = SeenScenes.encode(told.region_tokenizer, list(benchmark_scenes("test", 0, 1)))
    written = list(views.described_questions(told, seen, FREE_FAMILIES, views.TOLD_TRUTH))
    assert len(written) == len(seen.scenes[0].free) > 10
    for text, question in zip(written, seen.scenes[0].free):
        glyphs = [seen.scenes[0].scene.objects[i] for i in question.objects]
        for number, glyph in enumerate(glyphs, start=1):
            assert f"region{number} is a {glyph.size} {glyph.colour} {glyph.kind}." in text


def test_results_of_other_weights_are_not_continued(
    evaluated: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()}
    monkeypatch.setattr(evaluate_glyphs, "fingerprint", lambda model: "another")
    with pytest.raises(ValueError, match="other model_fingerprint, described_fingerprint"):
        main([*flags, "--output", str(evaluated)])
    assert {path: path.read_bytes() for path in evaluated.rglob("*") if path.is_file()} == before


def test_no_position_hides_only_boxes_and_order() -> None:
    config = SimpleNamespace(feature_layout=FeatureLayout(token_size=3, embed_size=2, num_experts=4))
    features = torch.rand(2, 6, 3 + 2 + 5 + 1 + 4 + 1)
    features[..., -1] = torch.tensor([1.0, 1, 1, 1, 0, 0])
    blind = views._without_position(SimpleNamespace(model=SimpleNamespace(config=config)), features)  # type: ignore[arg-type]
    assert not blind[..., 5:10].any()
    torch.testing.assert_close(blind[:, 4:, :5], features[:, 4:, :5])  # the regions themselves stay where they are
    assert not torch.equal(blind[:, :4, :5], features[:, :4, :5])
    for row, old in zip(blind, features):
        assert sorted(row[:4, 0].tolist()) == sorted(old[:4, 0].tolist())


def test_shuffled_questions_see_another_scene() -> None:
    def asked(text: str, scene: int, regions: int) -> Asked:
        return Asked(scene, None, [], [text], torch.full((regions, 1, 4), scene), torch.tensor(scene), (scene, 1))  # type: ignore[arg-type]

    questions = [asked("a", 0, 1), asked("b", 0, 2), asked("c", 1, 1), asked("d", 1, 1)]
    shown = views._shuffled(None, None, questions)  # type: ignore[arg-type]
    assert [(one.turns, one.scene) for one in shown] == [
        (["a"], 0),
        (["c"], 1),
        (["d"], 1),
    ]  # nothing else has two regions
    for seen in (
        [int(one.features[0, 0, 0]) for one in shown],
        [one.context for one in shown],
        [one.size[0] for one in shown],
    ):
        assert seen == [1, 0, 0]


def test_a_follow_up_comes_after_other_questions_of_its_scene_and_their_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llm_bridge import RegionBridgeProcessor

    seen: list[list[dict[str, str]]] = []
    plain = RegionBridgeProcessor.chat_batch

    def spy(self: Any, conversations: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(conversations)
        return plain(self, conversations, *rest, **options)

    def nameless(text: str) -> str:
        return re.sub(r"region\d+", "region", text)

    monkeypatch.setattr(RegionBridgeProcessor, "chat_batch", spy)
    main([*ALONE, "--splits", "test", "--seeds", "0", "--scenes", "1", "--output", str(tmp_path)])
    talks = [turns for turns in seen if len(turns) > 1]
    lines = [line for line in lines_of(tmp_path) if line.get("family") in FAMILIES]
    questions = [line for line in lines if line["view"] == "follow-up"]
    assert Counter(nameless(turns[-1]["content"]) for turns in talks) == Counter(
        nameless(question["question"]) for question in questions
    )
    assert len(questions) > 5
    assert {len(turns) // 2 for turns in talks} == set(range(1, 6))
    said = {(nameless(q["question"]), nameless(q["answer"])) for q in lines if q["view"] == "full"}
    for turns in talks:
        words = [turn["content"] for turn in turns]
        assert {(nameless(q), nameless(a)) for q, a in zip(words[:-1:2], words[1::2])} <= said
        first_named = list(dict.fromkeys(int(n) for text in words[::2] for n in re.findall(r"<region(\d+)>", text)))
        assert first_named == sorted(first_named)


def test_regions_of_an_answer_are_those_that_were_meant() -> None:
    """In a talk, where they have other numbers than in the question alone."""
    assert views._renumbered("region1", [7, 3], [5, 3, 7]) == "region3"
    assert views._renumbered("region3 and region1", [5, 3, 7], [7, 3]) == "region1 and another region"
    assert views._renumbered("region9", [5, 3, 7], [7, 3]) == "region9"


def test_described_questions_are_those_that_a_chat_would_write(told: RegionChat) -> None:
    """Whose regions are described by the scene and answered in a batch, to the letter as one at a time."""
    chat = told
    seen = SeenScenes.encode(told.region_tokenizer, list(benchmark_scenes("test", 0, 2)))
    written = list(views.described_questions(chat, seen))
    answered = list(views.described_lines(chat, seen))
    asked = [(one.picture, question) for one in seen.scenes for question in one.questions]
    assert len(asked) == len(written) == len(answered) > 10
    for (picture, question), text, line in zip(asked, written, answered):
        order: list[int] = []
        words, _ = question.numbered(order)
        chat.reset()
        boxes = picture.boxes[order].tolist()
        said = chat.ask(words, image=picture.image, boxes=boxes, max_new_tokens=views.MAX_NEW_TOKENS)
        assert said == line["answer"]
        plain = [{"role": "user", "content": text}]
        assert chat.processor.apply_chat_template(plain) == chat.processor.apply_chat_template(chat.messages[:1])


def test_tables_and_figures_are_written(evaluated: Path) -> None:
    table = (evaluated / "table.md").read_text()
    for row in ("mask mIoU from a box", "concept top-1 (kind)", "LLM: nearest, farthest, counting", "same_kind"):
        assert row in table
    for column in ("TAP alone", "no position", "regions shuffled", "question only", "chance", "majority"):
        assert column in table
    for name in ("answers-test.png", "confusion.png", "masks.png"):
        assert (evaluated / name).read_bytes().startswith(b"\x89PNG")


def test_missing_parts_are_made_again_with_the_same_bytes(evaluated: Path, flags: list[str]) -> None:
    kept, lost = evaluated / "parts" / "test-0.jsonl", evaluated / "parts" / "test-1.jsonl"
    before, untouched = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    main([*flags, "--output", str(evaluated)])
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == untouched


def test_workers_give_the_results_of_one_process(evaluated: Path, flags: list[str], tmp_path: Path) -> None:
    main([*flags, "--model", "none", "--described_model", "none", "--workers", "2", "--output", str(tmp_path)])
    parallel, alone = (
        {task: [line for line in lines_of(folder) if line["task"] == task] for task in ("region", "retrieval")}
        for folder in (tmp_path, evaluated)
    )
    searches = [[(line["seed"], line["by"]) for line in run["retrieval"]] for run in (parallel, alone)]
    assert set(searches[0]) <= set(searches[1])
    for mine, theirs in zip(parallel["region"], alone["region"], strict=True):
        assert mine == {**theirs, "iou_box": pytest.approx(theirs["iou_box"], abs=0.01),
                        "iou_centre": pytest.approx(theirs["iou_centre"], abs=0.01),
                        "iou_point": pytest.approx(theirs["iou_point"], abs=0.01)}  # fmt: skip


def test_a_folder_of_other_results_is_refused(evaluated: Path, flags: list[str]) -> None:
    with pytest.raises(ValueError, match="other scenes"):
        main([*flags, "--output", str(evaluated), "--scenes", "4"])


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--splits", "tests", "expected some of train"),
        ("--seeds", "a", "whole numbers"),
        ("--scenes", "0", "at least one"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(flag: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main([flag, value, "--region_tokenizer", "nowhere"])


def question(family: str, truth: str, answer: str, view: str = "full", seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"task": "question", "split": "test", "seed": seed, "scene": 0, "view": view, "family": family, "truth": truth,
            "answer": answer, "choices": 2, "kinds": ["sun"], **more}  # fmt: skip


OF = {
    "benchmark": "b", "scenes": 1, "question_scenes": 1, "control_splits": "test", "control_scenes": 1, "shuffled_scenes": 1,
    "free_scenes": 7, "seeds": "0,1", "region_tokenizer": "t", "region_tokenizer_fingerprint": "f", "model": "m",
}  # fmt: skip
REGION = {
    "task": "region", "split": "test", "seed": 0, "iou_box": 0.5, "iou_centre": 0.75, "iou_point": 0.25,
    "kind": ["sun", "sun"], "colour": ["red", "blue"],
    "size": ["small", "small"], "caption": ["a small red sun", "a small blue sun"],
}  # fmt: skip


def test_numbers_are_means_over_seeds_of_shares() -> None:
    lines = [
        REGION, {**REGION, "seed": 1, "iou_box": 1.0},
        question("side", "yes", "yes"), question("side", "no", "yes"), question("side", "yes", "yes", seed=1),
        question("side", "yes", "no", "shuffled"),
        question("kind", "sun", "star", tap="sun"),
    ]  # fmt: skip
    found = summarise(lines)["test"]
    assert found["mask mIoU from a box"] == 0.75
    assert (found["mask mIoU from the centre point"], found["mask mIoU from a random point"]) == (0.75, 0.25)
    assert found["spread"]["mask mIoU from a box"] == 0.5
    assert (found["concept top-1 (kind)"], found["concept top-1 (colour)"]) == (1.0, 0.0)
    assert found["full: side"] == 0.75  # the mean of 1/2 and 1
    assert found["shuffled: side"] == 0.0
    assert found["chance: side"] == 0.5
    assert found["majority: side"] == 0.75
    assert (found["full: kind"], found["tap alone: kind"]) == (0.0, 1.0)
    assert found["n: side"] == 3
    assert found["contained: side"] == 0.75
    assert found["contained: kind"] == 0.0
    tables = as_tables({"of": OF, **summarise(lines)})
    assert "| side | 3 | 0.750 | 0.750 |" in tables
    assert "first 7" not in tables


def test_scores_have_intervals_and_talks_are_compared_with_the_same_questions() -> None:
    lines = [
        REGION,
        *({**question("side", "yes", "yes"), "scene": scene} for scene in range(9)),
        {**question("side", "yes", "no"), "scene": 9},
        {**question("side", "yes", "no", "follow-up"), "scene": 0},
        *({**question("side", "yes", "yes", "follow-up"), "scene": scene} for scene in (1, 2, 3)),
        {"task": "text", "split": "test", "seed": 0, "nats": [20.0, 10.0], "tokens": 10},
    ]  # fmt: skip
    metrics = summarise(lines)
    found = metrics["test"]
    assert found["interval"]["full: side"] == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert found["interval"]["full: two regions compared"] == found["interval"]["full: side"]
    assert found["LLM: as the 2nd to 6th question of a talk, minus asked first"] == -0.25
    assert found["LLM: perplexity of plain text"] == pytest.approx(math.exp(2))
    assert found["the same without the adapter"] == pytest.approx(math.exp(1))
    tables = as_tables({"of": OF, **metrics})
    assert "| LLM: two regions compared | 0.900 (0.596–0.982) |" in tables
    assert "| two regions compared | 10 | 0.900 |" in tables


def test_free_answers_count_evenly_by_what_is_written() -> None:
    def free(family: str, written: str, truth: str, answer: str) -> dict[str, Any]:
        return question(family, truth, answer, written=written, reject=[])

    lines = [
        free("phrasing colour", "color?", "red", "It's red."), free("phrasing colour", "color?", "red", "It's blue."),
        free("phrasing colour", "hue?", "red", "red"), free("phrasing kind", "who?", "sun", "a star"),
        free("knowledge, yes or no", "hot?", "yes", "Yes, it is."),
    ]  # fmt: skip
    found = summarise([REGION, *lines, question("kind", "sun", "It's a sun.")])["test"]
    assert found["full: phrasing colour"] == 0.75  # the mean of 1/2 and 1
    assert found["full: phrasing that no recipe contains"] == 0.5  # the mean of 1/2, 1 and 0
    assert found["full: what takes general knowledge"] == 1.0
    assert (found["full: kind"], found["contained: kind"]) == (0.0, 1.0)
