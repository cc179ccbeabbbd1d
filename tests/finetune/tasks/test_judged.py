"""GAR-Bench-Cap, ParaDLC-Bench and MDVP-Bench: from files of their form to prompts, verdicts and scores."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("inflect")

from PIL import Image

from finetune import evaluate
from finetune.records import encode_mask
from finetune.tasks import TASKS
from finetune.tasks.gar_bench import GarBenchCap, as_prompts
from finetune.tasks.items import EvaluationSet, Item
from finetune.tasks.judged import read_verdicts
from finetune.tasks.judges import ServerJudge
from finetune.tasks.mdvp_bench import MdvpBench, read_ratings, relative_score
from finetune.tasks.task import TaskOptions

SIZE = (60, 80)


def mask_of(x: int, y: int, side: int = 20) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return encode_mask(mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures that every file here is of."""
    (tmp_path / "images").mkdir()
    for number in (0, 1):
        Image.new("RGB", SIZE[::-1], (40 * number, 90, 120)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def run(folder: Path, benchmark: str, *flags: str) -> dict[str, Any]:
    output = folder / f"out{len(list(folder.iterdir()))}"
    evaluate.main(["--output", str(output), "--benchmark", benchmark, "--images", str(folder), *flags])
    return dict(json.loads((output / "metrics.json").read_text()))


def items_in(benchmark: str, annotations: str, images: Path) -> tuple[list[Item], EvaluationSet]:
    task = replace(TASKS[benchmark])
    task.configure(TaskOptions("out", annotations=annotations, images=str(images)))
    found = task.read()
    return [item for record in found.records for item in task.items(record, found.problems)], found


def problems(metrics: dict[str, Any]) -> dict[str, list[str]]:
    return {kind: about["names"] for kind, about in metrics["problems"].items()}


# --- GAR-Bench-Cap -------------------------------------------------------------------------------------------------


def simple(count: int) -> list[dict[str, Any]]:
    return [
        {"image": f"images/{n % 2}.png", "mask_rles": [mask_of(5, 5), mask_of(40, 30)], "answer": f"<Prompt1> is {n}.",
         "question": "What is <Prompt1> to <Prompt0>?" if n % 2 else "Where is <Prompt0>?"}
        for n in range(count)
    ]  # fmt: skip


def detailed(count: int) -> list[dict[str, Any]]:
    return [
        {"image": f"images/{n % 2}.png", "mask_rles": [mask_of(5, 5), mask_of(40, 30)], "subject_name": "a dog",
         "object_name": "a cup", "predicate_name": "beside"}
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "whole", "right", "official"),
    [
        ("simple", 97, 54, "0.557"),
        ("simple", 97, 62, "0.639"),
        ("detailed", 107, 71, "0.664"),
        ("detailed", 107, 74, "0.692"),
    ],
)
def test_verdict_files_of_gar_reproduce_its_numbers(
    kind: str, whole: int, right: int, official: str, folder: Path
) -> None:
    """As many items and verdicts as the cached files of the 1B and the 8B have, one file being answers and verdicts."""
    entries = (simple if kind == "simple" else detailed)(whole)
    judged = [{**e, "model_output": f"said {n}", "eval_result": str(n < right)} for n, e in enumerate(entries)]
    file = write(folder / "eval.json", judged)
    flags = ["--annotations", write(folder / "cap.json", entries), "--predictions", file, "--verdicts", file]
    metrics = run(folder, f"gar_bench_cap_{kind}", *flags)
    scores = metrics["rows"]["given predictions"]
    assert f"{scores['accuracy']:.3f}" == official
    assert scores["accuracy"] == right / whole
    assert not metrics["subset"]
    assert not metrics["problems"]


def test_only_the_exact_reply_true_counts_as_true(folder: Path) -> None:
    entries = simple(5)
    replies = ["True", "true", "True.", " True", "False"]
    judged = [{**e, "model_output": "x", "eval_result": reply} for e, reply in zip(entries, replies)]
    file = write(folder / "eval.json", judged)
    flags = ["--annotations", write(folder / "cap.json", entries), "--predictions", file, "--verdicts", file]
    scores = run(folder, "gar_bench_cap_simple", *flags)["rows"]["given predictions"]
    assert (scores["accuracy"], scores["accuracy (as meant)"]) == (1 / 5, 4 / 5)


def test_a_judge_reads_the_benchmarks_region_names_and_sees_each_region(folder: Path) -> None:
    items, found = items_in("gar_bench_cap_simple", write(folder / "cap.json", simple(2)), folder)
    shown, turned = items
    assert shown.asked.startswith("The picture has <region1>, <region2>.")
    assert turned.asked == "What is <region1> to <region2>?"  # numbered as the question names them
    assert turned.rows == [1, 0]
    assert as_prompts("<region1> is beside region2, not <region3>.", turned.rows) == (
        "<Prompt1> is beside <Prompt0>, not <region3>."
    )
    judge = TASKS["gar_bench_cap_simple"]
    assert isinstance(judge, GarBenchCap)
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[5:25, 5:25] = 200  # the first region
    told = found.told[turned.record.image_id]
    (prompt,) = judge.prompts(turned, "<region1> is beside <region2>", lambda: picture, told)
    assert not isinstance(prompt, str)
    texts = [part for part in prompt if isinstance(part, str)]
    pictures = [part for part in prompt if not isinstance(part, str)]
    assert [text.strip() for text in texts[:-1]] == [
        "1. The picture:", "2. <Prompt0>:", "3. The mask of <Prompt0>:", "4. <Prompt1>:", "5. The mask of <Prompt1>:",
    ]  # fmt: skip
    assert "Answer: <Prompt1> is beside <Prompt0>" in texts[-1]
    assert "True answer: <Prompt1> is 1." in texts[-1]
    first, mask = pictures[1], pictures[2]
    assert (first[mask == 255] == 200).all()
    assert (mask == 255).sum() == 400


def test_the_detailed_file_is_asked_our_question_and_scored_by_its_relation(folder: Path) -> None:
    items, found = items_in("gar_bench_cap_detailed", write(folder / "cap.json", detailed(1)), folder)
    assert "<region1>" in items[0].asked
    assert "<region2>" in items[0].asked
    assert found.told[0] == {"subject_name": "a dog", "object_name": "a cup", "predicate_name": "beside"}


def test_entries_that_cannot_be_judged_are_named(folder: Path) -> None:
    good = simple(1)[0]
    changes: list[dict[str, Any]] = [{}, {"answer": " "}, {"question": None}, {"mask_rles": good["mask_rles"][:1]},
                                     {"mask_rles": [good["mask_rles"][0], {"size": list(SIZE), "counts": "zz"}]}]  # fmt: skip
    items, found = items_in(
        "gar_bench_cap_simple", write(folder / "cap.json", [{**good, **c} for c in changes]), folder
    )
    assert [item.id for item in items] == ["0/q0"]
    assert {kind: about["names"] for kind, about in found.problems.as_dict().items()} == {
        "entry without question or answer": ["1", "2"], "entry without two masks": ["3"], "mask with broken counts": ["4"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"is not the file of gar_bench_cap_detailed: KeyError\('subject_name'\)"):
        items_in("gar_bench_cap_detailed", str(folder / "cap.json"), folder)


# --- ParaDLC-Bench -------------------------------------------------------------------------------------------------

CHOICES = {
    "positive": [["right", 1], ["not told", 0], ["wrong", -1], ["half", 0.5]],
    "negative": [["told", -1], ["not", 1]],
}


def para(folder: Path, pictures: int = 2) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Pictures of three regions each, of which two have questions; the last region has none about what is there."""
    entries, qa = [], {}
    for n in range(pictures):
        regions = [{"index": 5 * i, "category_name": "cup", "mask_rle": mask_of(2 + 25 * i, 3)} for i in range(3)]
        entries.append({"file_name": f"{n % 2}.png", "height": SIZE[0], "width": SIZE[1], "image_id": 100 + n,
                        "annotations": regions})  # fmt: skip
        for i in (0, 1):
            kinds = ("positive", "negative", "positive") if i == 0 or n < pictures - 1 else ("negative",)
            qa[f"{100 + n}_{5 * i}"] = [{"question": "?", "choices": CHOICES[kind], "type": kind} for kind in kinds]
    names = {f"{100 + n}_{5 * i}": "wild cup" for n in range(pictures) for i in range(3)}
    write(folder / "qa.json", qa)
    write(folder / "class_names.json", names)
    return write(folder / "annotations.json", entries), qa


def test_paradlc_items_are_the_regions_with_questions(folder: Path) -> None:
    path, qa = para(folder, 100)
    items, found = items_in("paradlc_bench", path, folder / "images")
    assert (len(found.records), len(items)) == (100, len(qa)) == (100, 200)
    assert items[1].id == "100_5"
    assert items[1].record.regions[0].box == [27, 3, 47, 23]
    assert not found.problems.as_dict()
    (folder / "qa.json").unlink()
    with pytest.raises(ValueError, match=r"Found nothing at .*qa\.json, which says what regions are evaluated"):
        items_in("paradlc_bench", path, folder / "images")


def test_paradlc_scores_follow_its_rules(folder: Path) -> None:
    path, qa = para(folder, 6)
    random = np.random.RandomState(0)
    cache: dict[str, Any] = {}
    positive, negative = [], []
    for number, (key, questions) in enumerate(qa.items()):
        known = number % 4 != 3
        replies, values = ["Yes" if known else "No"], defaultdict(list)
        for question in questions:
            choice = int(random.randint(len(question["choices"])))
            replies.append(f"{'ABCD'[choice]}. {question['choices'][choice][0]}")
            value = question["choices"][choice][1]
            values[question["type"]].append(value if known else min(0, value))
        positive.append(np.mean(values["positive"]) if values["positive"] else 0)  # none about what is there: 0
        negative.append(np.mean(values["negative"]))
        cache[key] = {"pred": f"text {key}", "response": replies}
    cache |= {"avg_pos": 0.1, "avg_neg": 0.2}  # the script's own means stand at the end
    file = write(folder / "eval.json", cache)
    metrics = run(folder, "paradlc_bench", "--annotations", path, "--predictions", file, "--verdicts", file)
    scores = metrics["rows"]["given predictions"]
    assert scores["positive"] == pytest.approx(np.mean(positive))
    assert scores["negative"] == pytest.approx(np.mean(negative))
    assert scores["average"] == pytest.approx((np.mean(positive) + np.mean(negative)) / 2)
    assert not metrics["problems"]


def test_verdicts_on_other_answers_are_named_and_do_not_count(folder: Path) -> None:
    path, qa = para(folder)
    cache = {key: {"pred": f"text {key}", "response": ["Yes", *("A" for _ in some)]} for key, some in qa.items()}
    keys = list(cache)
    said = write(folder / "said.json", {key: f"text {key}" for key in keys})
    cache[keys[0]]["pred"] = "another"
    cache[keys[1]]["response"] = ["Yes"]
    del cache[keys[2]]
    flags = ["--annotations", path, "--predictions", said, "--verdicts", write(folder / "eval.json", cache)]
    metrics = run(folder, "paradlc_bench", *flags)
    assert problems(metrics) == {
        "given predictions: no verdict": [keys[2]],
        "given predictions: verdict of 1 reply to 4": [keys[1]],
        "given predictions: verdict on another answer, not counted": [keys[0]],
    }
    with pytest.raises(ValueError, match="has no verdict on any item that is evaluated"):
        run(folder, "paradlc_bench", *flags[:-1], write(folder / "x.json", {"7": cache[keys[0]]}))


# --- MDVP-Bench ----------------------------------------------------------------------------------------------------


def marks(kind: str = "box") -> list[dict[str, Any]]:
    """A domain's file with boxes (once as text, once with one that has no height) or points."""
    entries: list[dict[str, Any]] = [
        {"image_name": "0.png", "question": "What is <Region 2>?", "gt_answers": "<Region 2>: a cup",
         "bbox": "[[5, 5, 20, 20], [40, 30, 20, 0]]"},
        {"image_name": "1.png", "question": "Tell what each region is.", "gt_answers": "<Region 1>: a dog",
         "bbox": [[5.5, 5, 20, 20]]},
    ]  # fmt: skip
    if kind == "point":
        entries = [{**{k: v for k, v in e.items() if k != "bbox"}, "points": [[9, 9], [50, 40]]} for e in entries]
        for entry in entries:
            entry["question"] = entry["question"].replace("Region", "Mark")
    return [{**e, "question_id": n, "dataset_name": f"natural_QA_{kind}"} for n, e in enumerate(entries, 1)]


@pytest.mark.parametrize("kind", ["box", "point"])
def test_a_domains_file_is_read_with_its_boxes_or_points(kind: str, folder: Path) -> None:
    items, found = items_in("mdvp_bench", write(folder / "m.json", marks(kind)), folder)
    assert [item.id for item in items] == ["1/q0", "2/q0"]
    assert items[0].asked == "The picture has <region1>, <region2>.\nWhat is <region2>?"
    assert items[0].type == f"natural_QA_{kind}"
    regions = items[0].record.regions
    if kind == "box":
        assert [r.box for r in regions] == [[5, 5, 25, 25], [40, 30, 60, 31]]
        assert found.problems.as_dict()["box thinner than a pixel, taken as one pixel"]["names"] == ["1/1"]
    else:
        assert [r.points for r in regions] == [[[9, 9]], [[50, 40]]]
    judge = TASKS["mdvp_bench"]
    assert isinstance(judge, MdvpBench)
    (prompt,) = judge.prompts(items[0], "region2 is a mug", lambda: np.zeros((*SIZE, 3), np.uint8), found.told[1])
    assert not isinstance(prompt, str)
    text, picture = prompt
    mark = "Region" if kind == "box" else "Mark"
    assert f"Question: What is <{mark} 2>?" in str(text)
    assert f"Answer 2: <{mark} 2> is a mug" in str(text)
    assert "photograph" in str(text)
    assert np.asarray(picture).any()


def test_entries_of_grasp_any_region_have_one_mask(folder: Path) -> None:
    entries = [{"image_path": "images/0.png", "mask_rle": mask_of(5, 5), "dataset_name": "web_detailed_caption_box",
                "question": "Describe each marked region.", "caption": "a cup"}]  # fmt: skip
    (item,), _ = items_in("mdvp_bench", write(folder / "m.json", entries), folder)
    assert item.references == ["a cup"]
    assert item.record.regions[0].box == [5, 5, 25, 25]
    broken = [{**entries[0], "mask_rle": {"size": [9, 9], "counts": "x"}}, {**entries[0], "caption": None}, *entries]
    _, found = items_in("mdvp_bench", write(folder / "m.json", broken), folder)
    assert {kind: about["names"] for kind, about in found.problems.as_dict().items()} == {
        "question about a region that cannot be shown": ["1"], "question without an answer": ["2"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [("8 6\nbecause", (8, 6)), ("8,6", (8, 6)), ("9.5 7.5", (9.5, 7.5)), ("8, 6", (-1, -1)), ("Scores: 8 6", (-1, -1)),
     ("8", (-1, -1)), ("", (-1, -1)), ("8 6 and why", (8, 6))],
)  # fmt: skip
def test_ratings_are_read_as_the_script_reads_them(reply: str, ratings: tuple[float, float]) -> None:
    assert read_ratings(reply) == ratings


def test_mdvp_scores_by_domain_and_group(folder: Path) -> None:
    """Reviews of the script's form, which count from 1 within each domain; the score is that of its summary."""
    domains = ["natural_detailed_caption_box", "android_detailed_caption_box", "web_detailed_caption_box"]
    entries = [{"image_path": f"images/{n % 2}.png", "mask_rle": mask_of(5, 5), "dataset_name": domains[n % 3],
                "question": "Describe each marked region.", "caption": f"truth {n}"} for n in range(9)]  # fmt: skip
    said = [{"image_path": f"x/{n}", "caption": f"said {n}", "gt": f"truth {n}"} for n in range(9)]
    pairs = [(7 + n % 3, 3 + n % 5) for n in range(9)]
    reviews = [{"id": n // 3 + 1, "question_id": n // 3 + 1, "category": domains[n % 3], "answer2": f"said {n}",
                "content": f"{a} {b}\nbecause", "tuple": [a, b]} for n, (a, b) in enumerate(pairs)]  # fmt: skip
    (folder / "reviews.jsonl").write_text("\n".join(json.dumps(line) for line in reviews))
    flags = ["--annotations", write(folder / "m.json", entries), "--predictions", write(folder / "said.json", said),
             "--verdicts", str(folder / "reviews.jsonl")]  # fmt: skip
    metrics = run(folder, "mdvp_bench", *flags)
    scores = metrics["rows"]["given predictions"]
    expected = {}
    for k, domain in enumerate(domains):
        true, told = (round(float(np.mean([pair[i] for pair in pairs[k::3]])), 3) for i in (0, 1))
        expected[domain] = told / (true + 1e-6)
        assert round(100 * scores["by_domain"][domain], 2) == round(told / (true + 1e-6) * 100, 2)
    assert scores["by_domain"] == pytest.approx(expected)
    assert scores["Natural"] == pytest.approx(expected[domains[0]])
    assert scores["Screenshot"] == pytest.approx((expected[domains[1]] + expected[domains[2]]) / 2)
    assert not problems(metrics)
    assert relative_score([(8, 6), (-1, -1)]) == pytest.approx(2.5 / (3.5 + 1e-6))
    other = [*said[1:], said[0]]
    with pytest.raises(
        ValueError, match=r"prediction 1 has the gt 'truth 1', where the benchmark's file has 'truth 0'"
    ):
        run(folder, "mdvp_bench", *flags[:3], write(folder / "other.json", other), *flags[4:])


# --- a judge that is asked ------------------------------------------------------------------------------------------


def test_a_judge_is_asked_once_and_its_replies_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = simple(3)
    sent = []

    def reply(self: ServerJudge, prompt: Any) -> str:
        sent.append(prompt)
        return "True" if "said 1" in prompt[-1] else "False"

    monkeypatch.setattr(ServerJudge, "__call__", reply)
    (folder / "prompt.txt").write_text("Is {model_output} the same as {answer}?\n")
    said = write(folder / "said.json", [{**e, "model_output": f"said {n}"} for n, e in enumerate(entries)])
    flags = ["--output", str(folder / "out"), "--benchmark", "gar_bench_cap_simple", "--images", str(folder), "--judge", "m",
             "--judge_url", "http://127.0.0.1:9/v1", "--judge_prompt", str(folder / "prompt.txt"), "--annotations",
             write(folder / "cap.json", entries), "--predictions", said]  # fmt: skip
    for _ in range(2):
        evaluate.main(flags)
        metrics = json.loads((folder / "out" / "metrics.json").read_text())
        assert metrics["rows"]["given predictions"]["accuracy"] == 1 / 3
        assert len(sent) == 3
    assert sent[2][-1] == "Is said 2 the same as <Prompt1> is 2.?\n"
    assert np.asarray(sent[1][1])[0, 0].tolist() == [40, 90, 120]  # its own picture
    assert "judge m with your own prompt" in " ".join(metrics["notes"])
    kept = str(folder / "out" / "judgements.jsonl")
    again = [
        *flags[:5],
        str(folder),
        "--annotations",
        str(folder / "cap.json"),
        "--predictions",
        said,
        "--verdicts",
        kept,
    ]
    evaluate.main(["--output", str(folder / "b"), *again[2:]])
    scores = json.loads((folder / "b" / "metrics.json").read_text())["rows"]["given predictions"]
    assert scores["accuracy"] == 1 / 3


def test_answers_are_kept_until_there_is_a_judge(folder: Path) -> None:
    said = write(folder / "said.json", [{**e, "model_output": "x"} for e in simple(2)])
    flags = ["--annotations", write(folder / "cap.json", simple(2)), "--predictions", said]
    metrics = run(folder, "gar_bench_cap_simple", *flags)
    assert metrics["rows"]["given predictions"]["questions"] == 2
    assert "no judge yet: the same command with --judge (or --verdicts)" in " ".join(metrics["notes"])


@pytest.mark.parametrize("benchmark", ["gar_bench_cap_simple", "gar_bench_cap_detailed", "paradlc_bench", "mdvp_bench"])
def test_the_bundled_model_answers_every_item(benchmark: str, folder: Path) -> None:
    if benchmark == "paradlc_bench":
        path, count = para(folder)[0], 4
        for file in (folder / "images").iterdir():
            file.rename(folder / file.name)
    elif benchmark == "mdvp_bench":
        path, count = write(folder / "m.json", marks("point")), 2
        for file in (folder / "images").iterdir():
            file.rename(folder / file.name)
    else:
        path, count = write(folder / "cap.json", simple(2) if "simple" in benchmark else detailed(2)), 2
    metrics = run(folder, benchmark, "--annotations", path, "--rows", "caption decoder;language model",
                  "--max_new_tokens", "4")  # fmt: skip
    assert metrics["n"]["items"] == count
    assert list(metrics["rows"]) == ["caption decoder", "language model"]
    assert set(metrics["problems"]) <= {"language model: empty answer"}


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "flags", "words"),
    [
        (
            "gar_bench_cap_simple",
            ["--judge", "m"],
            "The judge of gar_bench_cap_simple must see pictures: give one on a server",
        ),
        ("mdvp_bench", ["--judge", "m", "--verdicts", "v"], "Got both judge and verdicts"),
        ("dlc_bench", ["--verdicts", "v"], "A judge needs qa="),
        ("pope", ["--verdicts", "v"], "pope is not about descriptions"),
        ("mdvp_bench", ["--qa", "v"], "mdvp_bench is not about descriptions"),
        ("gar_bench_cap_simple", ["--recognition_question", "v"], "is not about descriptions"),
    ],
)
def test_options_that_a_judge_cannot_use_are_refused(
    benchmark: str, flags: list[str], words: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        run(folder, benchmark, "--annotations", "none.json", *flags)


def test_records_without_relations_are_refused(folder: Path) -> None:
    record = {"image": "images/0.png", "width": 80, "height": 60, "regions": [{"box": [1, 1, 9, 9]}, {"box": [9, 9, 30, 30]}],
              "conversations": [{"role": "user", "content": "What is <region1> to <region2>?"},
                                {"role": "assistant", "content": "beside"}]}  # fmt: skip
    (folder / "own.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "p.jsonl").write_text(json.dumps({"id": "0/q0", "answer": "near"}) + "\n")
    (folder / "v.jsonl").write_text(json.dumps({"id": "0/q0", "reply": "True"}) + "\n")
    flags = ["--data", str(folder / "own.jsonl"), "--predictions", str(folder / "p.jsonl"), "--verdicts",
             str(folder / "v.jsonl")]  # fmt: skip
    out = str(folder / "out")
    evaluate.main(["--output", out, "--benchmark", "gar_bench_cap_simple", *flags])
    assert json.loads((folder / "out" / "metrics.json").read_text())["rows"]["given predictions"]["accuracy"] == 1
    with pytest.raises(ValueError, match="Records have no relations for a judge of gar_bench_cap_detailed"):
        evaluate.main(["--output", f"{out}2", "--benchmark", "gar_bench_cap_detailed", *flags])


def test_a_verdict_may_call_a_question_by_its_entrys_number(folder: Path) -> None:
    items, found = items_in("gar_bench_cap_simple", write(folder / "cap.json", simple(1)), folder)
    (folder / "verdicts.jsonl").write_text('{"id": 0, "reply": "True"}\n')
    verdicts = read_verdicts(str(folder / "verdicts.jsonl"), items, found)
    assert verdicts[None][items[0].id].replies == ["True"]
